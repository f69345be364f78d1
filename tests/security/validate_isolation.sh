#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tries to break out of a running sandbox, in more than a hundred ways, and prints TAP.
#
#   tests/security/validate_isolation.sh [NAMESPACE]           on a cluster [sandbox-system]
#   tests/security/validate_isolation.sh --local SANDBOX_ID    on this machine
#                                        [--only PATTERN] [--list]
#
# Reads POSTERN_URL and POSTERN_API_KEY, or what `postern up` wrote into POSTERN_DATA_DIR
# (./.postern). The exit code is 0 only if every attempt was stopped and every control, the same
# attempt without that wall, got through. Run it as root: many controls need that, and those
# that cannot run are named. The sandbox itself is left as it was; what breaks its sandbox is
# tried in others of the same template, which are made for it and destroyed.
#
# On a cluster it makes sandboxes through the API and enters them through it. It needs `kubectl` with
# a context that may look at Services, EndpointSlices and pods everywhere, at claims and sandboxes in
# NAMESPACE, and may make a namespace with pods: there the controls run, without walls.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for python in /usr/bin/python3 python3; do
  command -v "$python" >/dev/null && exec "$python" -I "$folder/validate.py" "$@"
done
echo 'validate_isolation: python3 is missing; install it (apt-get install python3)' >&2
exit 2

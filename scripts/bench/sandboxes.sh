#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures sandboxes through the API of `postern up`, and beside each figure the bare runtime in the
# same run: bubblewrap and runsc with the same mounts and the same process 1, and nothing around them.
# Usage: scripts/bench/sandboxes.sh [gvisor] [namespaces] [PART…]     Both levels if none is named, and
#        all parts: warm (claims), cold (starts, exec, pause), inside (streams, files and process 1 of one
#        sandbox), burst, idle (memory and processors of idle ones), many (claims beside 200), apart (what
#        postern-orchestrator holds beside 200, its gateway in a process of its own). Run it as root.
# Prints a table and writes target/bench/sandboxes.json; ends with 1 if a bar was missed. Needs
# `make build PROFILE=release`; give it the machine alone: it takes some four minutes for each isolation.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:?}" "${POSTERN_CACHE:=$HOME/.cache/postern}"
programs=${POSTERN_PROGRAMS:-$CARGO_TARGET_DIR/programs}
[[ -x $programs/postern ]] || { echo "bench: there is no $programs/postern; \`make build PROFILE=release\` makes it" >&2; exit 2; }
exec /usr/bin/python3 -I scripts/bench/sandboxes/bench.py "$programs" "$POSTERN_CACHE/gvisor/runsc" target/bench/sandboxes.json "$@"

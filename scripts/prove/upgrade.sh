#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves that an upgrade of the chart fails no request and changes no key: on a real API server and its
# controllers, with gateway, orchestrator, Jobs and sandboxd run from the images as they ship, unpacked,
# while an agent asks on and on (tests/k8s/suite/cases/upgrade.rs; `make test-k8s` plays it with the
# development build's programs).
# Usage: scripts/prove/upgrade.sh      ROUNDS= [3]
# Ends with `N passed, N failed`. Needs `make build`; run it as root.
set -uo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:=$HOME/.cache/postern/target}"
export CARGO_TARGET_DIR POSTERN_PROVE_IMAGES=$CARGO_TARGET_DIR/images

scripts/setup.sh images && scripts/setup.sh test && scripts/k8s.sh || exit 1
PROFILE=dist scripts/images.sh layouts || exit 1
passed=0 failed=0
said=$(mktemp)
trap 'rm -f "$said"' EXIT
for round in $(seq "${ROUNDS:-3}"); do
  echo "# round $round of ${ROUNDS:-3}"
  # A case that was never played has not passed.
  if cargo test --locked --workspace --test k8s -- an_upgrade_under_load | tee "$said" && grep -q 'an_upgrade_under_load.* ok ' "$said"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
  fi
done
echo "$passed passed, $failed failed"
((failed == 0 && passed > 0))

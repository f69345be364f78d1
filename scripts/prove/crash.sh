#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves that `kill -9` of `postern up` loses nothing, whatever it was in the middle of: kills it
# while sandboxes are made, claimed, paused, resumed, used and destroyed, starts it again, and looks at
# each sandbox and at what is left on the machine (tests/suite/crash_in_the_middle.rs; `make test` plays
# three rounds). Tells in how many rounds each transition was cut: at least five of each are wanted
# from 200 rounds on.
# Usage: scripts/prove/crash.sh       ROUNDS= kills [200]   FROM= the first one's number [0], for parts
# Ends with `N passed, N failed`. Needs `make build`; run it as root.
set -uo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:=$HOME/.cache/postern/target}"
export CARGO_TARGET_DIR POSTERN_PROVE_ROUNDS=${ROUNDS:-200} POSTERN_PROVE_FROM=${FROM:-0}

said=$(mktemp)
trap 'rm -f "$said"' EXIT
name=crash_in_the_middle::a_crash_in_the_middle_of_everything_loses_nothing
cargo test --locked --quiet -p postern-tests --test suite -- --exact "$name" --nocapture 2>&1 | tee "$said"
failed=$((PIPESTATUS[0] != 0))
passed=$(grep -c '^round [0-9]* of [0-9]* passed: ' "$said")
# A round that failed is the last one; one that was never played is none.
((passed == POSTERN_PROVE_ROUNDS)) || failed=1
if ((POSTERN_PROVE_ROUNDS >= 200)) && rare=$(grep -E '^transition .*: cut [0-4] times$' "$said"); then
  echo "prove: too few cuts: $rare" >&2
  failed=1
fi
# Promised for a machine that is not busy with other things.
if longest=$(grep -oP '^what nobody wanted was gone after \K[0-9]+' "$said") && ((longest >= 5)); then
  echo "prove: what nobody wanted was there for more than 5 s after a start" >&2
  failed=1
fi
echo "$passed passed, $failed failed"
((failed == 0))

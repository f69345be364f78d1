#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves that `kill -9` of `postern up` loses nothing, whatever it was in the middle of: kills it
# while sandboxes are made, used and destroyed, starts it again, and looks at each sandbox and at
# what is left on the machine (tests/suite/crash_in_the_middle.rs; `make test` plays three rounds).
# Usage: scripts/prove/crash.sh       ROUNDS= kills [20]
# Ends with `N passed, N failed`. Needs `make build`; run it as root.
set -uo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:=$HOME/.cache/postern/target}"
export CARGO_TARGET_DIR POSTERN_PROVE_ROUNDS=${ROUNDS:-20}

said=$(mktemp)
trap 'rm -f "$said"' EXIT
name=crash_in_the_middle::a_crash_in_the_middle_of_everything_loses_nothing
cargo test --locked --quiet -p postern-tests --test suite -- --exact "$name" --nocapture 2>&1 | tee "$said"
failed=$((PIPESTATUS[0] != 0))
passed=$(grep -c '^round [0-9]* of [0-9]* passed: ' "$said")
# A round that failed is the last one; one that was never played is none.
((passed == POSTERN_PROVE_ROUNDS)) || failed=1
echo "$passed passed, $failed failed"
((failed == 0))

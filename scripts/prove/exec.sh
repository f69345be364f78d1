#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves that a command's output and exit code survive `kill -9` of the orchestrator: kills it again
# and again while a command runs, and goes on each time from the last event that was read
# (tests/suite/exec_crash.rs; `make test` kills three times).
# Usage: scripts/prove/exec.sh       ROUNDS= kills [20]
# Ends with `N passed, N failed`. Needs `make build`.
set -uo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:=$HOME/.cache/postern/target}"
export CARGO_TARGET_DIR POSTERN_PROVE_ROUNDS=${ROUNDS:-20}

said=$(mktemp)
trap 'rm -f "$said"' EXIT
name=exec_crash::a_command_is_followed_through_any_number_of_kills
cargo test --locked --quiet --workspace --test suite -- --exact "$name" --nocapture 2>&1 | tee "$said"
failed=$((PIPESTATUS[0] != 0))
passed=$(grep -c '^round [0-9]* of [0-9]* passed: ' "$said")
((passed == POSTERN_PROVE_ROUNDS)) || failed=1
echo "$passed passed, $failed failed"
((failed == 0))

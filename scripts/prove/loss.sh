#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves that `kill -9` loses no file that was acknowledged: kills syncs, the orchestrator, the store
# and sandboxes in turn, at random moments, while agents write; then every write that a sync was told is
# in the store must be there bit for bit, nothing half written may ever have been seen in it, and of
# what two sandboxes wrote into one file at once both must be kept (tests/suite/loss.rs; `make test`
# plays eight rounds). The store is versitygw over a folder, which scripts/stores.sh brings.
# Usage: scripts/prove/loss.sh       ROUNDS= [100]   FROM= the first one's number [0], for parts
# Ends with `N passed, N failed`. Needs `make build`; run it as root.
set -uo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:=$HOME/.cache/postern/target}"
export CARGO_TARGET_DIR POSTERN_PROVE_ROUNDS=${ROUNDS:-100} POSTERN_PROVE_FROM=${FROM:-0}

said=$(mktemp)
trap 'rm -f "$said"' EXIT
scripts/stores.sh s3 || exit 1
name=loss::nothing_that_was_acknowledged_is_lost_whatever_is_killed
cargo test --locked --quiet --workspace --test suite -- --exact "$name" --nocapture 2>&1 | tee "$said"
failed=$((PIPESTATUS[0] != 0))
passed=$(grep -c '^round [0-9]* of [0-9]* passed: ' "$said")
# A round that failed is the last one; one that was never played is none.
((passed == POSTERN_PROVE_ROUNDS)) || failed=1
echo "$passed passed, $failed failed"
((failed == 0))

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures the way of events: what a request pays to hand its decision on, and how many decisions and
# lines of the files' log each database takes in a second, Postgres with its own settings but `fsync` (off).
# Usage: scripts/bench/audit.sh     (EVENTS=50000)     Give it the machine alone.
# Prints a table and writes target/bench/audit.json; ends with 1 if a bar was missed. Needs Postgres for its rows (`initdb`).
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:?}"
profile=(--profile "${PROFILE:-release}")
tests=(store::tests::rate:: stream::spool::tests::handing_a_record_over)
cargo test "${profile[@]}" --locked --workspace --lib --no-run --quiet
POSTERN_BENCH_EVENTS=${EVENTS:-50000} cargo test "${profile[@]}" --locked --workspace --lib --quiet -- \
  --test-threads 1 --nocapture "${tests[@]}" | /usr/bin/python3 -I scripts/bench/audit.py target/bench/audit.json

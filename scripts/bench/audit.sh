#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures the way of events: what a request pays to hand its decision on, and how many decisions and
# lines of the files' log each database takes in a second, Postgres with its own settings but `fsync` (off).
# Usage: scripts/bench/audit.sh     (EVENTS=50000)     Give it the machine alone.
# Prints a table and writes its rows into target/bench/storage.json; ends with 1 if a bar was missed, or a row is.
# Needs Postgres (`initdb`). Builds without optimisation are not measured.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:?}"
[[ ${PROFILE:-dev} != dev ]] || PROFILE=release
profile=(--profile "$PROFILE")
tests=(store::tests::rate:: stream::spool::tests::handing_a_record_over)
cargo test "${profile[@]}" --locked --workspace --lib --no-run --quiet
POSTERN_BENCH_EVENTS=${EVENTS:-50000} cargo test "${profile[@]}" --locked --workspace --lib --quiet -- \
  --test-threads 1 --nocapture "${tests[@]}" | /usr/bin/python3 -I scripts/bench/audit.py target/bench/storage.json

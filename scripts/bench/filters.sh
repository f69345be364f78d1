#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures what filters cost: in a gateway that serves, in its engine, and from push to the first
# request that a pushed filter runs on.
# Usage: scripts/bench/filters.sh     Prints a table: what, figure, unit, the figure beside it, bar.
# Writes target/bench/filters.json. Times of the gateway are of its thread's processor, so that other
# work on the machine counts little; the first run builds with optimisation, which takes minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:?}"

cargo bench --quiet --locked --workspace --bench filters
programs=$CARGO_TARGET_DIR/programs
if [[ -x $programs/postern ]]; then
  scripts/bench/push_to_active.py "$programs" target/bench/filters.json
else
  echo "push_to_active is left out: \`make build PROFILE=release\` makes the programs" >&2
fi
printf 'written: target/bench/filters.json\n'

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures the policy engine against the cedar-policy crate alone, in one run of one program.
# Usage: scripts/bench/policies.sh [loading] [candidates] [many]     Prints a table: what, figure, unit, the figure beside it, ratio.
# Writes target/bench/policies.json. Times are of one thread's processor, so that other work on the
# machine counts little; the first run builds with optimisation, which takes minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo bench --quiet --locked --workspace --bench policies -- "$@"
printf 'written: target/bench/policies.json\n'

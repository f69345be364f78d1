#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves that the policy engine decides as Cedar does: random policies, entities and requests
# (templates, hierarchies, when and unless, extension types, conditions that err) are decided by the
# function that the gateway calls and by the cedar-policy crate over the whole set; decision,
# reasons and errors must be equal. Each case asks twice with one session, so that what its first
# request settles is held against Cedar's answer to the second.
# Usage: scripts/prove/policies.sh     CASES= how many [100000]
# Builds with optimisation first, which takes minutes; then 100,000 take two cores a minute or two.
# Ends with `N passed, N failed`. A case that differs is printed, as small as it could be made.
set -uo pipefail
cd "$(dirname "$0")/../.."
cases=${CASES:-100000}
[[ $cases =~ ^[1-9][0-9]*$ ]] || { echo "prove: CASES=$cases is no number; such as CASES=100000" >&2; exit 2; }

test=decision_reasons_and_errors_equal_cedar_s_over_the_whole_set
run() { cargo test --release --quiet --locked -p postern-policies --lib "$@"; }
run --no-run || exit 1
# Half of them at a time: each half draws its own.
halves=($((cases / 2)) $((cases - cases / 2)))
pids=()
for half in "${halves[@]}"; do
  if ((half > 0)); then PROPTEST_CASES=$half run -- "$test" & pids+=($!); fi
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=$((failed + 1)); done
if ((failed == 0)); then
  echo "$cases passed, 0 failed"
else
  echo "fewer than $cases passed, $failed failed"
  exit 1
fi

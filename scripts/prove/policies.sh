#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves that the policy engine decides as Cedar does: random policies, entities and requests
# (templates, hierarchies, when and unless, extension types, conditions that err) are decided by the
# function that the gateway calls and by the cedar-policy crate over the whole set; decision,
# reasons and errors must be equal.
# Usage: scripts/prove/policies.sh     CASES= how many [100000]
# Ends with `N passed, N failed`. A case that differs is printed, as small as it could be made.
set -uo pipefail
cd "$(dirname "$0")/../.."
cases=${CASES:-100000}
[[ $cases =~ ^[1-9][0-9]*$ ]] || { echo "prove: CASES=$cases is no number; such as CASES=100000" >&2; exit 2; }

test=decision_reasons_and_errors_equal_cedar_s_over_the_whole_set
if PROPTEST_CASES=$cases cargo test --quiet --locked -p postern-policies --lib -- "$test"; then
  echo "$cases passed, 0 failed"
else
  echo "fewer than $cases passed, 1 failed"
  exit 1
fi

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves that `kill -9` of `postern up` loses nothing, whatever it was in the middle of: kills it
# while sandboxes are made, claimed, paused, resumed, used and destroyed, starts it again, and looks at
# each sandbox and at what is left on the machine (tests/suite/crash_in_the_middle.rs; `make test` plays
# three rounds). Tells in how many rounds each transition was cut: at least five of each are wanted
# from 200 rounds on.
# Usage: scripts/prove/crash.sh       ROUNDS= kills per level [200]   FROM= the first one's number [0], for parts
#                                     LEVELS= [gvisor namespaces]
#                                     POSTERN_ALLOW_SKIP=1 leaves gvisor out where there is no runsc
# Ends with `N passed, N failed`. Needs `make build`; run it as root.
set -uo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:=$HOME/.cache/postern/target}" "${POSTERN_CACHE:=$HOME/.cache/postern}"
export CARGO_TARGET_DIR POSTERN_CACHE POSTERN_PROVE_ROUNDS=${ROUNDS:-200} POSTERN_PROVE_FROM=${FROM:-0}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
name=crash_in_the_middle::a_crash_in_the_middle_of_everything_loses_nothing
passed=0 failed=0
fail() { # TEXT
  echo "prove: $1" >&2
  failed=$((failed + 1))
}

prove() { # LEVEL
  local said=$folder/$1 played rare longest
  echo "# $1"
  POSTERN_PROVE_LEVEL=$1 cargo test --locked --quiet --workspace --test suite -- --exact "$name" --nocapture 2>&1 |
    tee "$said" || fail "$1: a round failed"
  grep -qx "isolation $1" "$said" || fail "$1: it was not played at this isolation"
  played=$(grep -c '^round [0-9]* of [0-9]* passed: ' "$said")
  passed=$((passed + played))
  # A round that failed is the last one; one that was never played is none.
  ((played == POSTERN_PROVE_ROUNDS)) || fail "$1: $played rounds of $POSTERN_PROVE_ROUNDS passed"
  if ((POSTERN_PROVE_ROUNDS >= 200)) && rare=$(grep -E '^transition .*: cut [0-4] times$' "$said"); then
    fail "$1: too few cuts: $rare"
  fi
  # Promised for a machine that is not busy with other things.
  if longest=$(grep -oP '^what nobody wanted was gone after \K[0-9]+' "$said") && ((longest >= 5)); then
    fail "$1: what nobody wanted was there for more than 5 s after a start"
  fi
}

for level in ${LEVELS:-gvisor namespaces}; do
  if [[ $level == gvisor && ! -x $POSTERN_CACHE/gvisor/runsc ]] && ! command -v runsc >/dev/null; then
    missing="there is no runsc; \`make gvisor\` builds it"
    if [[ ${POSTERN_ALLOW_SKIP:-} == 1 ]]; then
      echo "# gvisor is left out: $missing"
    else
      fail "$missing; POSTERN_ALLOW_SKIP=1 leaves gvisor out"
    fi
    continue
  fi
  prove "$level"
done
echo "$passed passed, $failed failed"
((failed == 0 && passed > 0))

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves that nothing gets out of a sandbox: starts `postern up` with data of its own at each
# isolation level, makes two sandboxes, and lets the escape suite loose in both.
# Usage: scripts/prove/escape.sh      ROUNDS= sandboxes per level [2]   LEVELS= [gvisor namespaces]
#                                     POSTERN_ALLOW_SKIP=1 leaves gvisor out where there is no runsc
#                                     ONLY= patterns of checks [*], such as 'network/* files/*'
# In each sandbox at least as many checks of each kind must have held as `floors` says, unless ONLY= is given.
# Ends with `N passed, N failed`. Run it as root: see tests/security/validate_isolation.sh.
set -uo pipefail
cd "$(dirname "$0")/../.."
programs=${POSTERN_PROGRAMS:-${CARGO_TARGET_DIR:-$HOME/.cache/postern/target}/programs}
cache=${POSTERN_CACHE:-$HOME/.cache/postern} allow_skip=${POSTERN_ALLOW_SKIP:-}
# `postern` reads every POSTERN_ variable as a setting, and these are none of its own.
unset POSTERN_PROGRAMS POSTERN_ALLOW_SKIP
postern=$programs/postern
[[ -x $postern ]] || { echo "prove: there is no $postern; build it (make build)" >&2; exit 2; }

floors='network:14 files:12 kernel:10 slot:8 exhaustion:8 neighbours:8 calls:8' floor_together=60

folder=$(mktemp -d /var/tmp/postern-prove-XXXXXX)
chmod 711 "$folder"
up= passed=0 failed=0 left=()
# Ends `postern up`, which ends its sandboxes. Where that fails, the data folder is all that knows
# of them: it is kept.
stop() { # LEVEL
  [[ -n $up ]] || return 0
  local status=0 tries
  kill -INT "$up" 2>/dev/null
  for ((tries = 0; tries < 300; tries++)); do
    kill -0 "$up" 2>/dev/null || break
    sleep 0.1
  done
  if kill -0 "$up" 2>/dev/null; then
    echo "prove: postern up (process $up) did not end within 30 s" >&2
    kill -KILL "$up"
  fi
  wait "$up" || status=$?
  up=
  ((status == 0)) && return 0
  echo "prove: postern up --isolation $1 ended with $status; its last words:" >&2
  tail -n 5 "$folder/$1.log" >&2
  left+=("$1") failed=$((failed + 1))
}
finish() {
  stop "${level:-}"
  if ((${#left[@]} == 0)); then
    rm -rf "$folder"
    return
  fi
  echo "prove: something may still run; $folder is kept. This ends it, Ctrl-C when it is up:" >&2
  for level in "${left[@]}"; do echo "  $postern up --data-dir $folder/$level" >&2; done
}
trap finish EXIT
trap 'exit 130' INT TERM

start() { # LEVEL
  "$postern" up --isolation "$1" --data-dir "$folder/$1" >"$folder/$1.log" 2>&1 &
  up=$!
  for ((tries = 0; tries < 600; tries++)); do
    [[ -s $folder/$1/connection.json ]] && "$postern" --data-dir "$folder/$1" sandbox ls >/dev/null 2>&1 && return 0
    kill -0 "$up" 2>/dev/null || break
    sleep 0.1
  done
  echo "prove: postern up --isolation $1 did not start:" >&2
  tail -n 20 "$folder/$1.log" >&2
  return 1
}

# Whether enough was shown: what a control did not reach, or was left out for a reason, has not held.
enough() { # LEVEL ROUND OUTPUT
  local held floor count together
  held=$(sed -n 's/^# held: \(.*\); not counted.*/\1/p' "$3" | tr ',' '\n')
  for floor in $floors; do
    count=$(awk -v kind="${floor%:*}" '$2 == kind { print $1 }' <<<"$held")
    ((${count:-0} >= ${floor#*:})) && continue
    echo "prove: $1, sandbox $2: ${count:-0} checks of ${floor%:*} held, at least ${floor#*:} are wanted" >&2
    failed=$((failed + 1))
  done
  together=$(awk '{ all += $1 } END { print all + 0 }' <<<"$held")
  ((together >= floor_together)) && return 0
  echo "prove: $1, sandbox $2: $together checks held, at least $floor_together are wanted" >&2
  failed=$((failed + 1))
}

prove() { # LEVEL ROUND
  local sandbox output=$folder/$1-$2.tap patterns=() pattern
  sandbox=$("$postern" --data-dir "$folder/$1" sandbox create --user "prove-$2" --conversation "prove-$2") ||
    { echo "prove: no sandbox could be made"; failed=$((failed + 1)); return; }
  set -f
  for pattern in ${ONLY:-*}; do patterns+=(--only "$pattern"); done
  set +f
  POSTERN_DATA_DIR=$folder/$1 tests/security/validate_isolation.sh --local "${sandbox##*[$'\n ']}" "${patterns[@]}" | tee "$output"
  # A suite that broke off has no last line of this form; that is a failure too.
  if [[ $(tail -n 1 "$output") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
    passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
    [[ -n ${ONLY:-} ]] || enough "$1" "$2" "$output"
  else
    failed=$((failed + 1))
  fi
}

for level in ${LEVELS:-gvisor namespaces}; do
  if [[ $level == gvisor && ! -x $cache/gvisor/runsc ]] && ! command -v runsc >/dev/null; then
    missing="there is no runsc; \`make gvisor\` builds it"
    if [[ $allow_skip == 1 ]]; then
      echo "# gvisor is left out: $missing"
    else
      echo "prove: $missing; POSTERN_ALLOW_SKIP=1 leaves gvisor out" >&2
      failed=$((failed + 1))
    fi
    continue
  fi
  if start "$level"; then
    for ((round = 1; round <= ${ROUNDS:-2}; round++)); do prove "$level" "$round"; done
  else
    failed=$((failed + 1))
  fi
  stop "$level"
done
echo "$passed passed, $failed failed"
((failed == 0 && passed > 0))

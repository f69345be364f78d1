# SPDX-License-Identifier: Apache-2.0
# Checks that are counted in $passed and $failed, for scripts that source this and have a folder $work.
passed=0 failed=0

# Runs a check; its words are shown where it fails.
check() { # WHAT COMMAND…
  local what=$1
  shift
  if "$@" >"$work/said" 2>&1; then
    passed=$((passed + 1))
    printf 'ok: %s\n' "$what"
  else
    failed=$((failed + 1))
    printf 'NOT OK: %s\n' "$what"
    sed 's/^/    /' "$work/said"
  fi
}

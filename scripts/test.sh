#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that must pass, in parts; ends with the minutes of each.
# Usage: scripts/test.sh [lint]
set -uo pipefail
cd "$(dirname "$0")/.."
: "${CARGO_TARGET_DIR:?}" "${POSTERN_CACHE:?}"
export PATH=$POSTERN_CACHE/tools/bin:$PATH CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

names=() minutes=() results=()
table() {
  printf '\n%-14s %8s  %s\n' part minutes result
  for index in "${!names[@]}"; do printf '%-14s %8s  %s\n' "${names[index]}" "${minutes[index]}" "${results[index]}"; done
}
part() {
  local name=$1 begun=$SECONDS status=0
  shift
  printf '\n== %s: %s\n' "$name" "$*"
  "$@" || status=$?
  names+=("$name") minutes+=("$(awk "BEGIN { printf \"%.1f\", ($SECONDS - $begun) / 60 }")")
  if ((status)); then
    results+=("FAILED ($status)")
    table
    exit "$status"
  fi
  results+=(ok)
}

part format cargo fmt --all --check
part licences cargo deny --log-level error check --hide-inclusion-graph licenses bans sources
part unused cargo shear
part build scripts/build.sh
part clippy cargo clippy --locked --workspace --all-targets --quiet -- -D warnings
[[ ${1:-} == lint ]] && { table; exit 0; }
# Tests of gVisor, with h2spec, golang-migrate, over object stores and against a cluster's parts fail without
# them, and so do those on Postgres, which scripts/setup.sh installs, unless POSTERN_ALLOW_SKIP=1 leaves them out.
[[ ${POSTERN_ALLOW_SKIP:-} == 1 ]] || part gvisor scripts/gvisor.sh
[[ ${POSTERN_ALLOW_SKIP:-} == 1 ]] || part h2spec scripts/h2spec.sh
[[ ${POSTERN_ALLOW_SKIP:-} == 1 ]] || part stores scripts/stores.sh
[[ ${POSTERN_ALLOW_SKIP:-} == 1 ]] || part k8s scripts/k8s.sh
[[ ${POSTERN_ALLOW_SKIP:-} == 1 ]] || part migrate scripts/migrate.sh
# Rendering the chart needs helm, which takes minutes to build once.
[[ ${POSTERN_ALLOW_SKIP:-} == 1 ]] || part chart scripts/chart.sh check
part tests cargo test --locked --workspace --quiet
table

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Has cargo look again at what is not the tree that was built last.
# Usage: scripts/fresh.sh      in the tree's own folder, CARGO_TARGET_DIR set; scripts/setup.sh ends with it
#
# All clones of one machine build into the same folder, and cargo takes for built whatever is older than what it
# made of it: after a build from another clone, or of another commit, that clone's programs and tests would be
# run for these. So $CARGO_TARGET_DIR/.sources keeps the path of the tree that was built last and the digest of
# each of its files, and what is not recorded there is touched. Clones that build at the same time are not told
# apart; nor are names with a line's end in them looked at.
set -euo pipefail
: "${CARGO_TARGET_DIR:?}"
export LC_ALL=C

tree=$(pwd -P)
record=$CARGO_TARGET_DIR/.sources
now=$record.$$
was_there=0
[[ -d $CARGO_TARGET_DIR ]] && was_there=1
mkdir -p "$CARGO_TARGET_DIR"
trap 'rm -f "$now"' EXIT

everything() {
  [[ -e .git ]] && git ls-files -co --exclude-standard -z 2>/dev/null && return
  # No clone, or no git that would tell of it.
  find . \( -name .git -o -name .postern -o -name target \) -prune -o -type f -print0
}
# What can be read, without the target folder itself, which may be inside the tree.
files() {
  local path
  everything | while IFS= read -rd '' path; do
    path=${path#./}
    [[ $path == *$'\n'* || $path == "${CARGO_TARGET_DIR#"$tree/"}"/* || -L $path || ! -f $path || ! -r $path ]] ||
      printf '%s\0' "$path"
  done
}
lines() { tail -n +2 "$1" | sort -u; }
# The lines of what was not there when the last build began.
news() {
  if [[ -r $record && $(head -n 1 "$record") == "$tree" ]]; then
    comm -13 <(lines "$record") <(lines "$now")
  elif ((was_there)); then
    lines "$now"
  fi
}

{
  printf '%s\n' "$tree"
  files | xargs -0r sha256sum -z -- | tr '\0' '\n'
} >"$now"
# Behind the digest's 64 characters and two more.
mapfile -t touched < <(news | cut -c 67-)
if ((${#touched[@]})); then
  printf '%s\0' "${touched[@]}" | xargs -0 touch -c --
  echo "setup: ${#touched[@]} files are newer than what was built"
fi
mv -f "$now" "$record"

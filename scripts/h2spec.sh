#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the pinned h2spec into $POSTERN_CACHE/h2spec/h2spec, once. Less than a CPU minute.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
: "${POSTERN_CACHE:=$HOME/.cache/postern}"

# Pinned by module version, which the Go checksum database vouches for.
module=github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
folder=$POSTERN_CACHE/h2spec
stamp=$folder/.module
if [[ -x $folder/h2spec && -e $stamp && $(<"$stamp") == "$module" ]]; then
  echo "h2spec: $folder/h2spec is there already"
  exit 0
fi
mkdir -p "$folder"
go=$("$scripts/go.sh")
echo "h2spec: building $module"
cd "$folder" # outside any module
CGO_ENABLED=0 GOBIN=$folder "$go" install -trimpath -ldflags='-s -w' "$module"
printf '%s' "$module" >"$stamp"
echo "h2spec: done: $folder/h2spec"

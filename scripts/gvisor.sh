#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the pinned gVisor into $POSTERN_CACHE/gvisor/runsc, once. About 2 CPU minutes.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
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
go=$("$scripts/go.sh")
echo "gvisor: building $module"
cd "$folder" # outside any module
CGO_ENABLED=0 GOBIN=$folder "$go" install -trimpath -ldflags='-s -w' "$module"
printf '%s' "$module" >"$stamp"
echo "gvisor: done: $folder/runsc"

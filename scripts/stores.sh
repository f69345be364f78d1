#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Brings the object stores that tests run against into $POSTERN_CACHE, once, each pinned:
# versitygw (S3) and Azurite (Azure Blob). Of Google Cloud Storage no emulator takes puts with
# conditions by the XML API, which is what we send: its requests are tested at the wire.
# Usage: scripts/stores.sh [s3|azure]     About 2 CPU minutes for both.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
: "${POSTERN_CACHE:=$HOME/.cache/postern}"

s3() { "$scripts/go-tool.sh" versitygw github.com/versity/versitygw/cmd/versitygw@v1.8.0; }
azure() {
  local folder=$POSTERN_CACHE/azurite version=3.35.0
  if [[ -e $folder/.version && $(<"$folder/.version") == "$version" ]]; then
    echo "azurite: $folder is there already"
    return
  fi
  command -v npm >/dev/null || { echo 'azurite: npm is missing. Install it: sudo apt-get install -y npm' >&2; exit 1; }
  echo "azurite: installing $version"
  mkdir -p "$folder"
  npm install --prefix "$folder" --no-audit --no-fund --silent "azurite@$version"
  printf '%s' "$version" >"$folder/.version"
  echo "azurite: done: $folder/node_modules/.bin/azurite-blob"
}

case ${1:-all} in
  s3 | azure) "$1" ;;
  all) s3; azure ;;
  *) echo "usage: scripts/stores.sh [s3|azure]" >&2; exit 2 ;;
esac

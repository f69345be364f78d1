#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves that the images can be built for arm64 on another machine: builds their layouts, looks at what they say
# they are, and has qemu run each program as far as that shows that it starts.
# Usage: scripts/prove/arm64.sh      PROFILE= [dist]; needs `qemu-aarch64-static` (Debian: qemu-user-static)
# Ends with `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:=$HOME/.cache/postern/target}"
export CARGO_TARGET_DIR TARGET=aarch64-unknown-linux-musl
qemu=$(command -v qemu-aarch64-static) || {
  echo 'prove: qemu-aarch64-static is missing. Run this, then try again:  sudo apt-get install -y qemu-user-static' >&2
  exit 2
}
scripts/images.sh layouts || exit 1
layouts=$CARGO_TARGET_DIR/images-arm64
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
source scripts/images/check.sh

is_arm() { # IMAGE
  python3 - "$layouts/$1" <<'EOF'
import json, sys
def blob(digest):
    with open(f"{sys.argv[1]}/blobs/{digest.replace(':', '/')}") as file:
        return json.load(file)
with open(sys.argv[1] + "/index.json") as file:
    manifest = blob(json.load(file)["manifests"][0]["digest"])
found = blob(manifest["config"]["digest"])["architecture"]
assert found == "arm64", found
EOF
}
says() { # WORDS PROGRAM ARGUMENTS…
  local words=$1 program=$2
  shift 2
  # Some of them refuse to work as they are called here, and say so.
  "$qemu" "$program" "$@" >"$work/told" 2>&1
  grep -q -- "$words" "$work/told" || { cat "$work/told"; return 1; }
}
for image in gateway orchestrator sandbox; do
  check "postern-$image: its layout is for arm64" is_arm "postern-$image"
  for program in "$layouts/roots/$image"/usr/bin/*; do
    check "${program##*/} is a program of arm64" grep -q '^aarch64$' <(python3 -c 'import sys
with open(sys.argv[1], "rb") as file: head = file.read(20)
print({183: "aarch64"}.get(int.from_bytes(head[18:20], "little"), "another"))' "$program")
  done
done
programs=$layouts/roots
check 'postern-gateway tells its version' says '^postern-gateway ' "$programs/gateway/usr/bin/postern-gateway" --version
check 'postern-orchestrator tells its version' says '^postern-orchestrator ' "$programs/orchestrator/usr/bin/postern-orchestrator" --version
check 'postern-compile tells its fingerprint' says '^[0-9a-f]\{60\}' "$programs/orchestrator/usr/bin/postern-compile" fingerprint
mkdir -p "$work/out"
copies() { "$qemu" "$programs/sandbox/usr/bin/postern-sandboxd" install "$work/out" && cmp "$work/out/postern-sandboxd" "$programs/sandbox/usr/bin/postern-sandboxd"; }
check 'postern-sandboxd copies itself' copies
check 'postern-sync tells how it is called' says 'usage: postern-sync' "$programs/sandbox/usr/bin/postern-sync"
echo "$passed passed, $failed failed"
((failed == 0 && passed > 0))

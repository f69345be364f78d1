#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the path of a C compiler for another architecture's musl target: zig's, which has the C library of every
# target in it. Brings zig into $POSTERN_CACHE/zig (pip).
# Usage: scripts/zig.sh TARGET      such as aarch64-unknown-linux-musl
set -euo pipefail
: "${POSTERN_CACHE:=$HOME/.cache/postern}"
target=${1:?usage: scripts/zig.sh TARGET}
version=0.17.1
place=$POSTERN_CACHE/zig stamp=$POSTERN_CACHE/zig/.installed

if [[ ! -e $stamp || $(<"$stamp") != "$version" ]]; then
  echo "zig: installing zig $version into $place (pip)" >&2
  python3 -m venv "$place"
  "$place/bin/pip" install --quiet --disable-pip-version-check "ziglang==$version" >&2
  printf '%s' "$version" >"$stamp"
fi
# Rust's names of targets are not zig's: crates that compile C pass them on.
compiler=$place/cc-$target
cat >"$compiler.new" <<EOF
#!/bin/sh
for word; do
  shift
  case \$word in --target=*) ;; *) set -- "\$@" "\$word" ;; esac
done
exec "$place/bin/python" -m ziglang cc -target ${target%%-*}-linux-musl -fno-sanitize=undefined "\$@"
EOF
chmod 0755 "$compiler.new"
mv "$compiler.new" "$compiler"
printf '%s\n' "$compiler"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures how users' files are carried (sandbox's slot, sync, gateway, orchestrator, and a store in a
# folder or versitygw) and beside it rclone, which copies the same tree directly, in the same run.
# Usage: scripts/bench/storage.sh [--only small,s3,large,changes,idle] [--files N] [--tree DIR]     Run it as root.
# Prints a table and writes target/bench/storage.json; ends with 1 if a bar was missed. Needs `make build PROFILE=release`; brings
# versitygw and rclone, which take some CPU minutes to build (RCLONE=path: one that is there already).
# Give it the machine alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:?}" "${POSTERN_CACHE:=$HOME/.cache/postern}"
programs=${POSTERN_PROGRAMS:-$CARGO_TARGET_DIR/programs}
[[ -x $programs/postern ]] || { echo "bench: there is no $programs/postern; \`make build PROFILE=release\` makes it" >&2; exit 2; }
export POSTERN_CACHE
scripts/stores.sh s3
[[ -n ${RCLONE:-} ]] || scripts/go-tool.sh rclone github.com/rclone/rclone@v1.76.0
rclone=${RCLONE:-$POSTERN_CACHE/rclone/rclone}
exec /usr/bin/python3 -I scripts/bench/storage/bench.py "$programs" "$rclone" "$POSTERN_CACHE/versitygw/versitygw" target/bench/storage.json "$@"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures how users' files are carried (sandbox's slot, sync, gateway, orchestrator, store in a folder)
# and beside it rclone, which copies the same tree between two folders directly, in the same run.
# Usage: scripts/bench/storage.sh [--only small,large,changes,idle] [--files N]     Run it as root.
# Prints a table and writes target/bench/storage.json. Needs `make build PROFILE=release` and rclone
# (`apt install rclone`, or RCLONE=path); give it the machine alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:?}"
programs=${POSTERN_PROGRAMS:-$CARGO_TARGET_DIR/programs}
[[ -x $programs/postern ]] || { echo "bench: there is no $programs/postern; \`make build PROFILE=release\` makes it" >&2; exit 2; }
rclone=${RCLONE:-$(command -v rclone || true)}
[[ -x $rclone ]] || { echo "bench: there is no rclone; \`apt install rclone\`, or name it with RCLONE=" >&2; exit 2; }
exec /usr/bin/python3 -I scripts/bench/storage/bench.py "$programs" "$rclone" target/bench/storage.json "$@"

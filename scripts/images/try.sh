#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Starts each image from its OCI layout, unpacked: not as root, without capabilities, on a root file system
# that cannot be written; and holds their sizes to what is promised. Needs bubblewrap, python3 and curl.
# Usage: scripts/images/try.sh LAYOUTS      the folder that `scripts/images.sh layouts` fills
set -euo pipefail
layouts=${1:?usage: scripts/images/try.sh LAYOUTS}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
chmod 0755 "$work"
children=()
trap 'for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done; rm -rf "$work"' EXIT
fail() { echo "try: $*" >&2; exit 1; }

# Megabytes of a file's part of the image: the whole that is pulled, or its last layer.
size_is() {
  local name=$1 what=$2 most=$3 bytes
  bytes=$(python3 "$here/unpack.py" "$layouts/$name" "$work/$name" --size "$what")
  awk -v name="$name" -v what="$what" -v bytes="$bytes" -v most="$most" \
    'BEGIN { printf "try: %s, %s: %.1f MB, at most %d\n", name, what, bytes / 1e6, most; exit bytes > most * 1e6 }' ||
    fail "$name is too large"
}

# A container of an image: its own files read-only, a place to write, the user that it names; where we are
# root, on this machine too.
contained() {
  local name=$1 user
  local -a as=()
  shift
  user=$(<"$work/$name.user")
  ((EUID)) || as=(setpriv "--reuid=${user%:*}" "--regid=${user#*:}" --clear-groups --no-new-privs)
  "${as[@]}" bwrap --unshare-user --unshare-pid --unshare-ipc --uid "${user%:*}" --gid "${user#*:}" --cap-drop ALL --die-with-parent \
    --ro-bind "$work/$name/usr" /usr --ro-bind "$work/$name/etc" /etc --proc /proc --dev /dev \
    --tmpfs /tmp --tmpfs /var/lib/postern --clearenv "$@"
}

size_is postern-gateway image 40
size_is postern-orchestrator image 60
size_is postern-sandbox programs 6

mkdir -p "$work/out"
chmod 0777 "$work/out"
contained postern-sandbox --bind "$work/out" /postern --remount-ro / /usr/bin/postern-sandboxd install /postern
cmp "$work/out/postern-sandboxd" "$work/postern-sandbox/usr/bin/postern-sandboxd"
echo 'try: postern-sandbox copies sandboxd to where the agent is'
if contained postern-sandbox --remount-ro / /usr/bin/postern-sync 2>"$work/usage"; then
  fail 'postern-sync does something without being told where'
fi
grep -q 'usage: postern-sync' "$work/usage" || fail "unexpected: $(<"$work/usage")"
echo 'try: postern-sandbox has postern-sync for the container beside the agent'

contained postern-orchestrator --setenv DATABASE_URL sqlite:///var/lib/postern/try.db --remount-ro / \
  /usr/bin/postern-orchestrator migrate 2>&1 | sed 's/^/try:   /'
contained postern-orchestrator --remount-ro / /usr/bin/postern-compile --help >/dev/null
if contained postern-orchestrator --remount-ro / /usr/bin/postern-orchestrator --data-dir /usr/here 2>"$work/refused"; then
  fail 'the root file system can be written'
fi
grep -q '/usr/here' "$work/refused" || fail "unexpected: $(<"$work/refused")"
echo 'try: postern-orchestrator brings a database up to date, and cannot write elsewhere'

mkdir -p "$work/config/backends/desk"
printf 'url = "http://127.0.0.1:9"\n' >"$work/config/backends/desk/backend.toml"
printf '0123456789abcdef0123456789abcdef\n' >"$work/secret"
chmod -R a+rX "$work/config" "$work/secret"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
contained postern-gateway --ro-bind "$work/config" /config --ro-bind "$work/secret" /secret --remount-ro / \
  --setenv POSTERN_GATEWAY_TOKENS_ISSUER try --setenv POSTERN_GATEWAY_TOKENS_AUDIENCE try \
  --setenv POSTERN_GATEWAY_TOKENS_ALGORITHM HS256 --setenv POSTERN_GATEWAY_TOKENS_SECRET_FILE /secret \
  --setenv POSTERN_DATA_DIR /var/lib/postern --setenv POSTERN_GATEWAY_LISTEN 127.0.0.1:0 \
  --setenv POSTERN_GATEWAY_ADMIN_LISTEN "127.0.0.1:$port" \
  /usr/bin/postern-gateway --config /config >"$work/gateway.log" 2>&1 &
children+=($!)
ready=
for _ in $(seq 600); do
  ready=$(curl -sS --noproxy '*' "http://127.0.0.1:$port/readyz" 2>/dev/null || true)
  [[ $ready == ready* ]] && break
  sleep 0.1
done
[[ $ready == ready* ]] || fail "the gateway is not ready: $ready $(<"$work/gateway.log")"
user=$(awk '/^Uid:/ { print $2 }' "/proc/$(pgrep -f "$work.*gateway --config /config" | head -n 1)/status" 2>/dev/null || true)
echo "try: postern-gateway is ready${user:+, as user $user of this machine}"

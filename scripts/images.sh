#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The images postern-gateway, postern-orchestrator and postern-sandbox: static programs, nothing else.
# Usage: scripts/images.sh build            with Docker's engine where one answers, else without any
#        scripts/images.sh push REGISTRY    what `build` made
#        scripts/images.sh layouts          OCI layouts in $CARGO_TARGET_DIR/images, no engine needed
#        scripts/images.sh try              starts what `layouts` made, and holds sizes to their bounds
#        scripts/images.sh programs         only the static programs
#        scripts/images.sh roots FOLDER     only the images' files, for the Dockerfile
#        scripts/images.sh layout IMAGE PROGRAMS LAYOUT   one layout, of programs that are in a folder
# ENGINE=docker|none instead of looking; TAG= instead of the chart's appVersion; PROFILE= instead of dist;
# TARGET= instead of this machine's musl target (aarch64-unknown-linux-musl makes layouts for arm64, in images-arm64;
# zig compiles its C); RUST= a builder instead of the Dockerfile's, by its digest.
set -euo pipefail
cd "$(dirname "$0")/.."
# Whoever writes them, files of an image have the same modes.
umask 022
: "${CARGO_TARGET_DIR:=$HOME/.cache/postern/target}"
: "${PROFILE:=dist}"
[[ $PROFILE == dev ]] && folder=debug || folder=$PROFILE
: "${TARGET:=$(uname -m)-unknown-linux-musl}"
: "${TAG:=$(sed -n 's/^appVersion: "\(.*\)"/\1/p' charts/agent-sandbox-kit/Chart.yaml)}"
export CARGO_TARGET_DIR
images=(gateway orchestrator sandbox)
layouts=$CARGO_TARGET_DIR/images
if [[ ${TARGET%%-*} != "$(uname -m)" ]]; then
  arch=${TARGET%%-*}
  layouts+=-${arch/aarch64/arm64}
fi
say() { printf 'images: %s\n' "$*"; }

# The programs of each image; the first is what it runs.
programs_of() {
  case $1 in
    gateway) echo postern-gateway ;;
    orchestrator) echo postern-orchestrator postern-compile ;;
    sandbox) echo postern-sandboxd postern-sync ;;
  esac
}

has_engine() {
  case ${ENGINE:-} in
    docker) return 0 ;;
    none) return 1 ;;
    *) command -v docker >/dev/null && docker info >/dev/null 2>&1 ;;
  esac
}

# What compiles C and links for another architecture: Rust brings the C library and the linker, zig its headers.
cross() {
  local under=${TARGET//-/_} compiler
  if command -v rustup >/dev/null; then
    rustup -q target add --toolchain "$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)" "$TARGET"
  fi
  compiler=$(scripts/zig.sh "$TARGET")
  export "CC_$under=$compiler" "AR_$under=ar" "CARGO_TARGET_${under^^}_LINKER=rust-lld"
  export "CARGO_TARGET_${under^^}_RUSTFLAGS=-Clink-self-contained=yes -Clinker-flavor=ld.lld"
}

own() {
  if ! command -v musl-gcc >/dev/null; then
    echo 'images: musl-gcc is missing. Run this, then try again:  sudo apt-get install -y musl-tools' >&2
    exit 1
  fi
  export "CC_${TARGET//-/_}=musl-gcc"
}

programs() {
  local image program
  if [[ ${TARGET%%-*} == "$(uname -m)" ]]; then own; else cross; fi
  for image in "${images[@]}"; do
    for program in $(programs_of "$image"); do
      local profile=$PROFILE
      # Small where it ships, as scripts/build.sh makes it: each sandbox holds its code in memory.
      [[ $program == postern-sandboxd && $PROFILE != dev ]] && profile=inside
      say "$program, static ($profile)"
      cargo build --locked --profile "$profile" -p "$program" --target "$TARGET"
      [[ $profile == "$PROFILE" ]] ||
        install -D -m 0755 "$CARGO_TARGET_DIR/$TARGET/$profile/$program" "$CARGO_TARGET_DIR/$TARGET/$folder/$program"
    done
  done
}

# The files of one image, with what they were built from.
root_of() { # IMAGE PROGRAMS ROOT
  local image=$1 from=$2 root=$3 program
  rm -rf "$root"
  install -d "$root/usr/bin" "$root/etc/ssl/certs" "$root/usr/share/doc/postern"
  install -d -m 1777 "$root/tmp"
  for program in $(programs_of "$image"); do
    install -m 0755 "$from/$program" "$root/usr/bin/"
  done
  printf 'root:x:0:0::/:/\nnonroot:x:65532:65532::/:/\nuser:x:1000:1000::/home/user:/\n' >"$root/etc/passwd"
  printf 'root:x:0:\nnonroot:x:65532:\nuser:x:1000:\n' >"$root/etc/group"
  # Mozilla's authorities as Debian ships them, without what this machine may have added.
  [[ $image == sandbox ]] || cat /usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
  install -m 0644 LICENSE NOTICE "$root/usr/share/doc/postern/"
  # shellcheck disable=SC2046 # one word for each program
  python3 scripts/images/sbom.py "$TARGET" $(programs_of "$image") >"$root/usr/share/doc/postern/sbom.cdx.json"
}

roots() {
  local image
  for image in "${images[@]}"; do root_of "$image" "$CARGO_TARGET_DIR/$TARGET/$folder" "$1/$image"; done
}

# One layout, and what its programs were built from beside it.
layout_of() { # IMAGE ROOT LAYOUT
  local image=$1 root=$2 layout=$3 user=65532:65532 program
  [[ $image == sandbox ]] && user=1000:1000
  program=$(programs_of "$image")
  python3 scripts/images/layout.py "$root" "$layout" --tag "$TAG" --user "$user" \
    --entrypoint "/usr/bin/${program%% *}" --target "$TARGET"
  cp "$root/usr/share/doc/postern/sbom.cdx.json" "$layout.cdx.json"
}

write_layouts() {
  local staged=$layouts/roots image
  programs
  roots "$staged"
  for image in "${images[@]}"; do layout_of "$image" "$staged/$image" "$layouts/postern-$image"; done
}

write_one() { # IMAGE PROGRAMS LAYOUT
  [[ -n $(programs_of "$1") ]] || { echo "images: no image \`$1\`: there are ${images[*]}" >&2; exit 2; }
  root_of "$1" "$2" "$3.root"
  layout_of "$1" "$3.root" "$3"
}

build_with_docker() {
  local image
  local -a builder=()
  if [[ -n ${RUST:-} ]]; then
    [[ $RUST == *@sha256:* ]] || { echo "images: RUST=$RUST names no digest (…@sha256:…): what builds would be whatever it is today" >&2; exit 2; }
    builder=(--build-arg "RUST=$RUST")
  fi
  for image in "${images[@]}"; do
    say "postern-$image:$TAG (docker)"
    docker build --target "$image" "${builder[@]}" --tag "postern-$image:$TAG" .
  done
}

push() {
  local registry=${1%/} image
  for image in "${images[@]}"; do
    local name=postern-$image:$TAG
    if has_engine; then
      docker tag "$name" "$registry/$name"
      docker push "$registry/$name"
    elif command -v skopeo >/dev/null; then
      [[ -d $layouts/postern-$image ]] || { echo 'images: nothing to push: run `make docker-build` first' >&2; exit 1; }
      # shellcheck disable=SC2086 # several options
      skopeo copy --quiet ${SKOPEO_OPTIONS:-} "oci:$layouts/postern-$image:$TAG" "docker://$registry/$name"
    else
      echo 'images: no Docker engine and no skopeo. Run this, then try again:  sudo apt-get install -y skopeo' >&2
      exit 1
    fi
    say "pushed $registry/$name"
  done
}

case ${1:-} in
  build) if has_engine; then build_with_docker; else write_layouts; fi ;;
  push) push "${2:?images: to which registry? make docker-push REGISTRY=HOST/PATH}" ;;
  layouts) write_layouts ;;
  try) scripts/images/try.sh "$layouts" ;;
  programs) programs ;;
  roots) roots "${2:?usage: scripts/images.sh roots FOLDER}" ;;
  layout)
    usage='usage: scripts/images.sh layout IMAGE PROGRAMS LAYOUT'
    write_one "${2:?$usage}" "${3:?$usage}" "${4:?$usage}"
    ;;
  *)
    echo 'usage: scripts/images.sh build | push REGISTRY | layouts | try | programs | roots FOLDER | layout IMAGE PROGRAMS LAYOUT' >&2
    exit 2
    ;;
esac

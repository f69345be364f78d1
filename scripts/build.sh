#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the binaries and the first-party filters into $CARGO_TARGET_DIR/programs.
# `postern` finds its companions there, beside itself; PROFILE=dist embeds them in it.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CARGO_TARGET_DIR:?}" "${PROFILE:=dev}"

folder=$PROFILE
[[ $PROFILE == dev ]] && folder=debug
musl=x86_64-unknown-linux-musl
wasm=wasm32-unknown-unknown
programs=$CARGO_TARGET_DIR/programs
mkdir -p "$programs/filters"
say() { printf 'build: %s\n' "$*"; }

# Small where it is not for tests: each sandbox holds its code in memory.
inside=inside folder_inside=inside
[[ $PROFILE == dev ]] && inside=dev folder_inside=debug
say "postern-sandboxd, static ($inside)"
# Without what only pods need.
cargo build --quiet --locked --profile "$inside" -p postern-sandboxd --no-default-features --target "$musl"
install -m 0755 "$CARGO_TARGET_DIR/$musl/$folder_inside/postern-sandboxd" "$programs/"

say "postern, postern-shim, postern-sync, postern-compile, postern-gateway, postern-orchestrator ($PROFILE)"
if [[ $PROFILE == dev ]]; then
  # One build with everything's features, so that tests and lints share its dependencies.
  cargo build --locked --workspace --all-targets
else
  for package in postern-shim postern-sync postern-compile postern-gateway postern-orchestrator; do
    cargo build --locked --profile "$PROFILE" -p "$package"
  done
fi
install -m 0755 "$CARGO_TARGET_DIR/$folder/postern-shim" "$CARGO_TARGET_DIR/$folder/postern-sync" "$CARGO_TARGET_DIR/$folder/postern-compile" \
  "$CARGO_TARGET_DIR/$folder/postern-gateway" "$CARGO_TARGET_DIR/$folder/postern-orchestrator" "$programs/"

say "first-party filters (WebAssembly)"
for manifest in plugins/*/filter.toml; do
  name=$(basename "$(dirname "$manifest")")
  cargo build --quiet --locked --profile filter -p "postern-plugin-$name" --target "$wasm"
  "$programs/postern-compile" wrap "$CARGO_TARGET_DIR/$wasm/filter/postern_plugin_${name//-/_}.wasm" "$programs/filters/$name.wasm"
  install -m 0644 "$manifest" "$programs/filters/$name.toml"
done
for folder_of_filter in examples/*/config/filters/*/; do
  name=$(basename "$folder_of_filter")
  install -m 0644 "$programs/filters/$name.wasm" "$programs/filters/$name.toml" -t "$folder_of_filter"
  mv "$folder_of_filter/$name.toml" "$folder_of_filter/filter.toml"
done

if [[ $PROFILE != dev ]]; then
  POSTERN_EMBED=$programs cargo build --locked --profile "$PROFILE" -p postern
fi
install -m 0755 "$CARGO_TARGET_DIR/$folder/postern" "$programs/"
say "done: $programs/postern"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures what the orchestrator adds to a cluster's own time: real API server and controller, kwok's nodes.
# Usage: scripts/bench/kubernetes.sh     As root. Prints a table and writes target/bench/kubernetes.json; ends with
#        1 if a bar was missed. Needs `make build PROFILE=release` and `scripts/k8s.sh`; give it the machine alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:?}"

# What it is measured beside is compiled as well as what is measured.
cargo test --quiet --release --locked --workspace --test k8s -- bench
printf 'written: target/bench/kubernetes.json\n'

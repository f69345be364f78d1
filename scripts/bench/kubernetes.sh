#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures what the orchestrator adds to a cluster's own time: real API server and controller, kwok's nodes.
# Usage: scripts/bench/kubernetes.sh     As root. Prints rows and writes target/bench/kubernetes.json.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:?}"

cargo test --quiet --locked --workspace --test k8s -- bench
printf 'written: target/bench/kubernetes.json\n'

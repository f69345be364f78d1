#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves that filters can be replaced under load: no request fails, and memory does not grow.
# Usage: scripts/prove/reload.sh      ROUNDS= replacements [10000]
# Ends with `N passed, N failed`. `make test` runs a short form.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo bench --quiet --locked --workspace --bench filters -- --prove-reload "${ROUNDS:-10000}"

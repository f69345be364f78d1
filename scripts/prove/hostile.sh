#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves that a hostile filter hurts its own tenant alone: each way of plugins/hostile is let loose
# while another tenant is served, whose p99 stays within 1.5 times what it is alone, in the same run;
# the tenant itself gets its error in time, and memory comes back. Alone and beside alternate in short
# turns. Where alone differs as much from alone, all of that is measured again; after three times nothing
# is shown, which counts as failed. The neighbour's p99 beside the same number of harmless requests is
# told, and not judged.
# Usage: scripts/prove/hostile.sh      ROUNDS= of all ways [3], 5 minutes each
# Ends with `N passed, N failed`.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo bench --quiet --locked --workspace --bench filters -- --prove-hostile "${ROUNDS:-3}"

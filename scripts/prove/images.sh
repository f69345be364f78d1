#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves what is promised of the images: builds their layouts without an engine, as they ship, and starts
# each from its layout: sizes, digests, bills of materials, users, roots that cannot be written
# (scripts/images/try.sh). `make test` plays it on the development build's sandboxd (tests/suite/images.rs).
# Usage: scripts/prove/images.sh      PROFILE= [dist]; needs what `scripts/setup.sh images` installs
# Ends with `N passed, N failed`.
set -euo pipefail
cd "$(dirname "$0")/../.."
scripts/images.sh layouts
exec scripts/images.sh try

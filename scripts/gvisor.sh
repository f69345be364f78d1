#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the pinned gVisor into $POSTERN_CACHE/gvisor/runsc, once. About 2 CPU minutes. Pinned by module
# version: the binary itself does not know its own.
exec "$(dirname "$0")/go-tool.sh" gvisor gvisor.dev/gvisor/runsc@v0.0.0-20260905035102-160fafc42237

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the pinned h2spec into $POSTERN_CACHE/h2spec/h2spec, once. Less than a CPU minute.
exec "$(dirname "$0")/go-tool.sh" h2spec github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible

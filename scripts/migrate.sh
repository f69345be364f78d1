#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the pinned golang-migrate into $POSTERN_CACHE/migrate/migrate, once. Half a CPU minute.
GO_TAGS=postgres,sqlite exec "$(dirname "$0")/go-tool.sh" migrate github.com/golang-migrate/migrate/v4/cmd/migrate@v4.20.1

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the path of the pinned helm; builds it into the cache where scripts/k8s.sh has not.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
: "${POSTERN_CACHE:=$HOME/.cache/postern}"
helm=$POSTERN_CACHE/k8s/helm
if [[ ! -x $helm ]]; then
  "$scripts/go-tool.sh" helm helm.sh/helm/v4/cmd/helm@v4.3.1 >&2
  helm=$POSTERN_CACHE/helm/helm
fi
printf '%s\n' "$helm"

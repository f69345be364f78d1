#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The chart, rendered and held to what is committed.
# Usage: scripts/chart.sh template [VALUES [HELM OPTION…]]
#          prints the objects for values-VALUES.yaml: gcp (as if absent), azure, azure-government, or
#          trial (the embedded database)
#        scripts/chart.sh write    renders manifests/
#        scripts/chart.sh check    lints, renders each, and says if manifests/ differ
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
root=$scripts/..
chart=$root/charts/agent-sandbox-kit
manifests=$root/manifests
helm=$("$scripts/helm.sh")
# Nothing of the caller's own helm counts.
HELM_HOME=$(mktemp -d)
export HELM_CACHE_HOME=$HELM_HOME HELM_CONFIG_HOME=$HELM_HOME HELM_DATA_HOME=$HELM_HOME
trap 'rm -rf "$HELM_HOME"' EXIT

# What an operator has to say; placeholders that a reader replaces.
given=(--set image.registry=REGISTRY --set orchestrator.env.BACKEND_URL=https://backend.example
  --set orchestrator.env.STORAGE_BUCKET=BUCKET
  --set orchestrator.secrets.DATABASE_URL.name=postern-database --set orchestrator.secrets.DATABASE_URL.key=url)

values() {
  case $1 in
    gcp) printf '%s\n' -f "$chart/values-gcp.yaml" "${given[@]}" ;;
    azure) printf '%s\n' -f "$chart/values-azure.yaml" "${given[@]}" ;;
    azure-government)
      printf '%s\n' -f "$chart/values-azure.yaml" -f "$chart/values-azure-government.yaml" "${given[@]}"
      ;;
    trial)
      printf '%s\n' --set image.registry=REGISTRY --set database.embedded.enabled=true \
        --set orchestrator.env.STORAGE_BACKEND=local
      ;;
    *)
      echo "chart: no values for \`$1\`: there are gcp, azure, azure-government and trial" >&2
      return 2
      ;;
  esac
}

template() {
  local -a with
  local text
  text=$(values "$1")
  mapfile -t with <<<"$text"
  shift
  "$helm" template agent-sandbox-kit "$chart" --namespace postern "${with[@]}" "$@"
}

head_of() {
  printf '# SPDX-License-Identifier: Apache-2.0\n# Rendered from charts/agent-sandbox-kit by `make helm-template`; not edited by hand.\n'
}

# The objects of one template file.
part() { head_of; template gcp --show-only "templates/$1"; }
# All of them, without the pods of `helm test`.
all() { head_of; template gcp --skip-tests; }

render() {
  local to=$1
  mkdir -p "$to"
  part network-policy.yaml >"$to/network-policy.yaml"
  part rbac.yaml >"$to/rbac.yaml"
  part sandbox-template.yaml >"$to/sandbox-template.yaml"
  part warm-pool.yaml >"$to/warm-pool.yaml"
  part retention.yaml >"$to/data-retention-cronjob.yaml"
  all >"$to/all.yaml"
  cp "$chart/dashboards/postern.json" "$to/grafana-dashboard.json"
}

case ${1:-} in
  template) template "${2:-gcp}" "${@:3}" ;;
  write)
    render "$manifests"
    echo "chart: manifests/ written"
    ;;
  check)
    rendered=$HELM_HOME/rendered
    for kind in gcp azure azure-government trial; do
      text=$(values "$kind")
      mapfile -t with <<<"$text"
      "$helm" lint --quiet --strict "$chart" "${with[@]}"
      template "$kind" >/dev/null
    done
    render "$rendered"
    diff -ru "$manifests" "$rendered" || {
      echo 'chart: manifests/ are not what the chart renders: `make helm-template` writes them' >&2
      exit 1
    }
    echo "chart: lints, renders with each values file, and manifests/ are what it renders"
    ;;
  *)
    echo "usage: scripts/chart.sh template [VALUES] | write | check" >&2
    exit 2
    ;;
esac

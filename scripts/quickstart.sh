#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From nothing to a sandbox that is shown to be shut in.
# Usage: scripts/quickstart.sh local | gcp | azure [--dry-run] [--government]
#
#   local    on this machine: builds, starts `postern up` with the support desk's example
#   gcp      on the GKE cluster that kubectl points to; wants REGISTRY, STORAGE_BUCKET, DATABASE_URL, BACKEND_URL
#   azure    the same on AKS; STORAGE_BUCKET is the container. --government: Azure Government
#
# Each step looks first whether it is done, so that a run that was broken off goes on where it stopped,
# and a second run changes nothing. --dry-run tells the commands and runs none of them.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { sed -n '3,12p' "$0" | sed 's/^# \{0,1\}//'; }
where=${1:-}
shift || true
dry=0 government=0
for option in "$@"; do
  case $option in
    --dry-run) dry=1 ;;
    --government) government=1 ;;
    *) echo "quickstart: \`$option\` is no option" >&2; usage >&2; exit 2 ;;
  esac
done
case $where in
  local) steps=6 ;;
  gcp | azure) steps=8 ;;
  *) usage >&2; exit 2 ;;
esac
if ((government)) && [[ $where != azure ]]; then
  echo 'quickstart: --government is of azure' >&2
  exit 2
fi

agent_sandbox=v0.5.6
namespace=${NAMESPACE:-postern} release=agent-sandbox-kit sandboxes=${SANDBOX_NAMESPACE:-sandbox-system}
done_steps=0
step() { done_steps=$((done_steps + 1)); printf '\n[%d/%d] %s\n' "$done_steps" "$steps" "$*"; }
there() { printf '      there already: %s\n' "$*"; }
# Says a command, and runs it unless this is a dry run. Values of secrets are never among the words.
run() {
  printf '      $ %s\n' "$(printf '%q ' "$@")"
  ((dry)) || "$@"
}
# Prerequisites: told all at once, each with its fix.
missing=()
need() { command -v "$1" >/dev/null || missing+=("$1: $2"); }
given() { [[ -n ${!1:-} ]] || missing+=("$1: $2"); }
told_missing() {
  ((${#missing[@]} == 0)) && return 0
  printf 'quickstart: before this works:\n' >&2
  printf '  - %s\n' "${missing[@]}" >&2
  ((dry)) || exit 1
}

# --- on this machine --------------------------------------------------------------------------------
: "${CARGO_TARGET_DIR:=$HOME/.cache/postern/target}"
data=.postern
healthy() {
  local url
  [[ -f $data/connection.json ]] || return 1
  url=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["url"].rstrip("/"))' "$data/connection.json" 2>/dev/null) || return 1
  python3 - "$url/healthz" <<'END' 2>/dev/null
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=2).read()
END
}

start_in_background() {
  umask 077
  local log=$1 pid
  shift
  setsid nohup "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  printf '%s\n' "$pid" >"$log.pid"
}

here() {
  step 'prerequisites'
  need cargo 'install Rust with rustup, https://rustup.rs'
  need python3 'sudo apt-get install -y python3'
  [[ $(uname -s) == Linux ]] || missing+=('Linux: on another system, run this in a virtual machine')
  told_missing
  run scripts/setup.sh demo

  step 'programs'
  local programs=$CARGO_TARGET_DIR/programs
  run make --no-print-directory build
  export PATH=$programs:$PATH

  step "the example's backend"
  if python3 -c 'import socket; socket.create_connection(("127.0.0.1", 9000), 1)' 2>/dev/null; then
    there 'something listens on 127.0.0.1:9000'
  else
    printf '      $ python3 examples/support-desk/backend.py &\n'
    ((dry)) || { mkdir -p "$data"; start_in_background "$data/quickstart-backend.log" python3 examples/support-desk/backend.py; }
  fi

  step 'postern up'
  if healthy; then
    there "what $data/connection.json says"
  else
    printf '      $ postern up --config examples/support-desk/config &\n'
    if ((!dry)); then
      mkdir -p "$data"
      start_in_background "$data/quickstart-up.log" postern up --config examples/support-desk/config
      printf '      waiting until it is ready '
      for _ in $(seq 120); do
        healthy && break
        if ! kill -0 "$(<"$data/quickstart-up.log.pid")" 2>/dev/null; then
          printf '\nquickstart: it has ended; its last words:\n' >&2
          tail -n 20 "$data/quickstart-up.log" >&2
          exit 1
        fi
        printf '.'
        sleep 1
      done
      printf '\n'
      healthy || { echo "quickstart: not ready after two minutes; see $data/quickstart-up.log" >&2; exit 1; }
    fi
  fi

  step 'a sandbox'
  local id=SANDBOX
  run postern doctor || true
  if ((dry)); then
    run postern --json sandbox create --user alice --conversation quickstart
  else
    # A repeat of the same conversation finds the same sandbox.
    id=$(postern --json sandbox create --user alice --conversation quickstart | python3 -c 'import json, sys; print(json.load(sys.stdin)["sandbox_id"])')
    there "$id"
  fi
  run postern sandbox exec "$id" -- python3 -c 'import os, urllib.request as web; print(web.urlopen(os.environ["GATEWAY_URL"] + "/support-desk/orders").read().decode())'

  step 'is it shut?'
  run tests/security/validate_isolation.sh --local "$id"

  ((dry)) && { printf '\nNothing was run.\n'; return; }
  cat <<END

Postern runs, its sandbox is shut, and Alice's orders came through the gateway without a credential.
  look     postern sandbox ls           (PATH=$programs:\$PATH)
  change   examples/support-desk/config, which is obeyed within a second
  stop     kill \$(cat $data/quickstart-up.log.pid) \$(cat $data/quickstart-backend.log.pid)
END
}

# --- on a cluster -----------------------------------------------------------------------------------
has() { ((dry)) && return 1; kubectl "$@" >/dev/null 2>&1; }

looked_at_cluster() {
  local classes
  ((dry)) && { run kubectl version; run kubectl get runtimeclass; return; }
  kubectl version >/dev/null 2>&1 || missing+=("a cluster that kubectl reaches: $credentials")
  classes=$(kubectl get runtimeclass -o name 2>/dev/null || true)
  case $where in
    gcp) [[ $classes == */gvisor* ]] || missing+=('a RuntimeClass gvisor: gcloud container node-pools create sandboxes --sandbox type=gvisor --cluster CLUSTER') ;;
    azure) [[ $classes == *kata* ]] || missing+=('a RuntimeClass of Kata: az aks nodepool add --os-sku AzureLinux --workload-runtime KataMshvVmIsolation …') ;;
  esac
}

kata_class() {
  ((dry)) && { echo kata-mshv-vm-isolation; return; }
  kubectl get runtimeclass -o name | sed -n 's,.*/\(kata.*vm-isolation\)$,\1,p' | tail -n 1
}

cluster() {
  local -a values=(-f charts/agent-sandbox-kit/values-gcp.yaml)
  credentials='gcloud container clusters get-credentials CLUSTER --region REGION'
  if [[ $where == azure ]]; then
    values=(-f charts/agent-sandbox-kit/values-azure.yaml)
    credentials='az aks get-credentials --resource-group GROUP --name CLUSTER'
    ((government)) && values+=(-f charts/agent-sandbox-kit/values-azure-government.yaml)
  fi

  step 'prerequisites'
  need kubectl 'https://kubernetes.io/docs/tasks/tools'
  need helm 'https://helm.sh/docs/intro/install, or the path that scripts/helm.sh prints'
  need make 'sudo apt-get install -y make'
  [[ $where == gcp ]] && need gcloud 'https://cloud.google.com/sdk/docs/install'
  [[ $where == azure ]] && need az 'https://learn.microsoft.com/cli/azure/install-azure-cli'
  given REGISTRY 'export REGISTRY=… where images go: REGION-docker.pkg.dev/PROJECT/REPOSITORY, or NAME.azurecr.io (.us for Government)'
  given STORAGE_BUCKET 'export STORAGE_BUCKET=… the bucket or container of users'"'"' files'
  given DATABASE_URL 'export DATABASE_URL=postgres://… of a Postgres that the cluster reaches; it goes into a Secret and nowhere else'
  given BACKEND_URL 'export BACKEND_URL=https://… what sandboxes may call'
  command -v kubectl >/dev/null && looked_at_cluster
  told_missing
  if ((government)); then run az cloud set --name AzureUSGovernment; fi

  step "agent-sandbox $agent_sandbox: CRDs and controller"
  local from=https://github.com/kubernetes-sigs/agent-sandbox/releases/download/$agent_sandbox
  if has get crd sandboxclaims.extensions.agents.x-k8s.io; then
    there 'sandboxclaims.extensions.agents.x-k8s.io'
  else
    run kubectl apply --server-side -f "$from/manifest.yaml"
    run kubectl apply --server-side -f "$from/extensions.yaml"
  fi
  run kubectl -n agent-sandbox-system rollout status deployment --timeout=5m

  step 'images'
  run make --no-print-directory docker-build
  run make --no-print-directory docker-push "REGISTRY=${REGISTRY:-REGISTRY}"

  step "namespace $namespace"
  if has get namespace "$namespace"; then there "$namespace"; else run kubectl create namespace "$namespace"; fi

  step "the database's URL, in a Secret"
  if has -n "$namespace" get secret postern-database; then
    there postern-database
  else
    printf '      $ kubectl -n %s create secret generic postern-database --from-file=url=/dev/stdin\n' "$namespace"
    ((dry)) || printf '%s' "$DATABASE_URL" | kubectl -n "$namespace" create secret generic postern-database --from-file=url=/dev/stdin
  fi

  step "release $release"
  [[ $where == azure ]] && values+=(--set "sandbox.runtimeClass.name=$(kata_class)")
  [[ -n ${IDENTITY:-} && $where == gcp ]] && values+=(--set "orchestrator.serviceAccount.annotations.iam\.gke\.io/gcp-service-account=$IDENTITY")
  [[ -n ${IDENTITY:-} && $where == azure ]] && values+=(--set "orchestrator.serviceAccount.annotations.azure\.workload\.identity/client-id=$IDENTITY")
  run helm upgrade --install "$release" charts/agent-sandbox-kit/ -n "$namespace" "${values[@]}" \
    --set "image.registry=${REGISTRY:-REGISTRY}" --set "sandbox.namespace=$sandboxes" \
    --set "orchestrator.env.STORAGE_BUCKET=${STORAGE_BUCKET:-BUCKET}" \
    --set "orchestrator.env.BACKEND_URL=${BACKEND_URL:-https://backend.example}" \
    --set orchestrator.secrets.DATABASE_URL.name=postern-database --set orchestrator.secrets.DATABASE_URL.key=url

  step 'ready?'
  run kubectl -n "$namespace" rollout status "deployment/$release-orchestrator" --timeout=5m
  run kubectl -n "$namespace" rollout status "deployment/$release-gateway" --timeout=5m
  run kubectl -n "$sandboxes" wait --for=jsonpath='{.status.readyReplicas}' sandboxwarmpool --all --timeout=5m

  step 'is it shut?'
  run helm -n "$namespace" test "$release" --logs

  if ((dry)); then printf '\nNothing was run.\n'; else helm -n "$namespace" get notes "$release"; fi
}

if [[ $where == local ]]; then here; else cluster; fi

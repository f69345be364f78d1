#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the parts of a real cluster that tests run (tests/k8s/go.mod) into $POSTERN_CACHE/k8s, once for
# each go.sum: etcd, API server, controller manager, scheduler, kwok, the agent-sandbox controller, helm,
# kubectl; and puts the CRDs and kwok's stages beside them. From nothing about 12 CPU minutes and 3 GB;
# POSTERN_GO_JOBS says how many compilers run at once [2].
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
: "${POSTERN_CACHE:=$HOME/.cache/postern}"
module=$scripts/../tests/k8s
folder=$POSTERN_CACHE/k8s
key=$(cat "$module/go.mod" "$module/go.sum" | sha256sum | cut -c 1-32)
if [[ -e $folder/.key && $(<"$folder/.key") == "$key" ]]; then
  echo "k8s: $folder is there already"
  exit 0
fi
go=$("$scripts/go.sh")
cd "$module"
export CGO_ENABLED=0 GOFLAGS=-mod=readonly
version() { "$go" list -m -f '{{.Version}}' "$1"; }
found() { "$go" list -m -f '{{.Dir}}' "$1"; }
mkdir -p "$folder"
rm -f "$folder/.key"
echo "k8s: fetching modules"
"$go" mod download
kubernetes=$(version k8s.io/kubernetes)
minor=${kubernetes#v1.}
base="-X k8s.io/component-base/version"
stamp="-s -w $base.gitVersion=$kubernetes $base.gitMajor=1 $base.gitMinor=${minor%%.*}"
stamp+=" -X helm.sh/helm/v4/internal/version.version=$(version helm.sh/helm/v4)"
# What an interrupted run has built is not built again.
part=$folder/.part-$key
mkdir -p "$part"
for program in $("$go" list -f '{{.ImportPath}}' tool); do
  name=${program##*/}
  # A module's own program has the name of its version.
  [[ $name == v3 ]] && name=etcd
  [[ -x $part/$name ]] && continue
  echo "k8s: building $name"
  "$go" build -p "${POSTERN_GO_JOBS:-2}" -trimpath -ldflags "$stamp" -o "$part/.new" "$program"
  mv "$part/.new" "$part/$name"
done
mv "$part"/* "$folder/"
rm -rf "$folder"/.part-*
sandbox=$(found sigs.k8s.io/agent-sandbox) kwok=$(found sigs.k8s.io/kwok)
install -d "$folder/crds"
install -m 0644 "$sandbox"/k8s/crds/*.yaml "$folder/crds/"
stages=$kwok/kustomize/stage
for stage in "$stages"/node/fast/node-initialize.yaml \
  "$stages"/node/heartbeat-with-lease/node-heartbeat-with-lease.yaml \
  "$stages"/pod/fast/pod-{ready,complete,delete}.yaml; do
  printf -- '---\n'
  cat "$stage"
done >"$folder/stages.yaml"
printf '%s' "$key" >"$folder/.key"
echo "k8s: done: $folder"

# SPDX-License-Identifier: Apache-2.0
"""The cluster, as far as the suite looks at it and changes it, by `kubectl` and its own settings."""

import json
import subprocess
import time

SECONDS = 60
GATEWAY_PART = ("app.kubernetes.io/component", "gateway")


class KubectlError(Exception):
    """What kubectl said."""


def kubectl(*words, given=None, seconds=SECONDS):
    """Runs it, and returns what it prints."""
    try:
        done = subprocess.run(["kubectl", f"--request-timeout={seconds}s", *words], capture_output=True, text=True,
                              timeout=seconds + 10, check=False, input=None if given is None else json.dumps(given))
    except FileNotFoundError:
        raise KubectlError("kubectl is missing: install it, and give it a context of the cluster") from None
    except subprocess.TimeoutExpired:
        raise KubectlError(f"kubectl {' '.join(words[:3])}: no answer within {seconds} s") from None
    if done.returncode:
        raise KubectlError(f"kubectl {' '.join(words[:3])}: {done.stderr.strip()}")
    return done.stdout


def get(*words):
    return json.loads(kubectl("get", *words, "-o", "json"))


def create(item):
    kubectl("create", "--validate=false", "-f", "-", given=item)


def is_refused(item):
    """Why the API server would not take an object; None: it would."""
    try:
        kubectl("create", "--validate=false", "--dry-run=server", "-f", "-", given=item)
    except KubectlError as error:
        return str(error)
    return None


def pod_of(sandbox, namespace):
    """The pod of a sandbox, through its claim."""
    claim = get("sandboxclaims.extensions.agents.x-k8s.io", sandbox, "-n", namespace)
    name = claim["status"]["sandbox"]["name"]
    owner = get("sandboxes.agents.x-k8s.io", name, "-n", namespace)
    name = owner["metadata"].get("annotations", {}).get("agents.x-k8s.io/pod-name", name)
    return get("pods", name, "-n", namespace)


def addresses(slices):
    """Address and port of whatever EndpointSlices name, by TCP."""
    return [[address, port["port"]] for item in slices["items"] for endpoint in item.get("endpoints") or []
            for address in endpoint["addresses"] for port in item.get("ports") or [] if port.get("protocol", "TCP") == "TCP"]


def surroundings(pod):
    """What a pod could reach, of which it may reach nothing."""
    services, found = get("services", "-A")["items"], []
    for service in services:
        spec = service["spec"]
        is_gateway = GATEWAY_PART in (spec.get("selector") or {}).items()
        if not is_gateway and spec.get("clusterIP", "None") != "None":
            found += [[spec["clusterIP"], port["port"]] for port in spec.get("ports", []) if port.get("protocol", "TCP") == "TCP"]
    api = next(service["spec"]["clusterIP"] for service in services
               if service["metadata"]["name"] == "kubernetes" and service["metadata"]["namespace"] == "default")
    label = "kubernetes.io/service-name={}"
    own = addresses(get("endpointslices", "-n", "default", "-l", label.format("kubernetes")))
    names = [service for service in services if (service["metadata"].get("labels") or {}).get("k8s-app") == "kube-dns"]
    dns = [service["spec"]["clusterIP"] for service in names]
    for service in names:
        where = service["metadata"]
        dns += [host for host, _ in addresses(get("endpointslices", "-n", where["namespace"], "-l", label.format(where["name"])))]
    hosts = [entry["ip"] for entry in pod["status"].get("hostIPs") or []] or [pod["status"]["hostIP"]]
    return {"api_servers": [[api, 443], *own], "dns": sorted(set(dns)), "nodes": hosts, "services": found}


def other_pods(own):
    """Address and port of each running pod but gateways and a sandbox's own, as far as they declare ports."""
    found = []
    for pod in get("pods", "-A", "--field-selector=status.phase=Running")["items"]:
        labels = pod["metadata"].get("labels") or {}
        if GATEWAY_PART in labels.items() or pod["metadata"]["uid"] == own["metadata"]["uid"]:
            continue
        for container in pod["spec"]["containers"]:
            found += [[pod["status"]["podIP"], port["containerPort"]] for port in container.get("ports") or []
                      if port.get("protocol", "TCP") == "TCP" and pod["status"].get("podIP")]
    return found


def kernel_of(node):
    """The kernel of a node; empty if this account may not know."""
    try:
        return get("nodes", node)["status"]["nodeInfo"]["kernelVersion"]
    except (KubectlError, KeyError):
        return ""


def given_to(pod):
    """Whatever a pod's containers are given that could hold a credential, or that is the node's."""
    spec, found = pod["spec"], []
    for volume in spec.get("volumes") or []:
        sources = [volume, *(volume.get("projected") or {}).get("sources", [])]
        for kind in ("secret", "serviceAccountToken", "hostPath", "csi", "clusterTrustBundle"):
            if any(kind in source for source in sources):
                found.append(f"volume {volume['name']}: {kind}")
    for container in [*(spec.get("initContainers") or []), *spec["containers"], *(spec.get("ephemeralContainers") or [])]:
        for variable in container.get("env") or []:
            if "secretKeyRef" in (variable.get("valueFrom") or {}):
                found.append(f"container {container['name']}: {variable['name']} from a Secret")
        if any("secretRef" in source for source in container.get("envFrom") or []):
            found.append(f"container {container['name']}: environment from a Secret")
    return found


def wait(what, look, seconds):
    """Looks until there is something, at most this long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.5)
    raise KubectlError(f"{what} did not come about within {seconds} s")

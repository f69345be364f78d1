# SPDX-License-Identifier: Apache-2.0
"""Controls on a cluster: pods of the same image and runtime as a sandbox's, in a namespace of their own
that has no policies, with an account's token and a Secret. All of it is gone when the suite ends; if the
suite is killed, its pods end by themselves and their tokens with them."""

import json
import secrets

import inside
import kubectl
from cluster import AGENT_PORT, SERVER_PORT

START_SECONDS = 180
RUN_SECONDS = 300
# All that a run waits for while it needs them takes less.
LIFE_SECONDS = 1800
SECRET = "postern-escape"
TERMINATION_LOG = "/dev/termination-log"
LISTEN = ("import socket, sys, time\n"
          "listeners = [socket.create_server(('', int(port))) for port in sys.argv[1:]]\n"
          "time.sleep(3600)\n")


class Unwalled:
    """A context: the namespace with a pod that listens, on entry; gone on exit."""

    def __init__(self, pod):
        self.like = pod
        self.namespace = f"postern-escape-{secrets.token_hex(4)}"

    def __enter__(self):
        kubectl.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
        try:
            bait = {"AWS_SECRET_ACCESS_KEY": secrets.token_hex(8)}
            kubectl.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": self.namespace},
                            "stringData": bait})
            kubectl.wait("the namespace's service account", self._has_account, START_SECONDS)
            ports = [SERVER_PORT, AGENT_PORT]
            self._create("listener", [LISTEN, *map(str, ports)], ports)
            self.listener = kubectl.wait("the pod without walls", lambda: self._pod("listener", "Running"), START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        kubectl.kubectl("delete", "namespace", self.namespace, "--wait=false", "--ignore-not-found")

    def outcomes(self, modules, runs):
        """Runs checks there, each with a target; the outcome of each by its name."""
        name = f"attempts-{secrets.token_hex(3)}"
        needed = [entry for entry in modules if entry[0] in ("core", "network", "cluster")]
        packed = inside.packed(needed, "cluster", "report", runs, TERMINATION_LOG)
        self._create(name, [inside.LOADER, packed], [])
        pod = kubectl.wait("the end of the pod without walls",
                           lambda: self._pod(name, "Succeeded") or self._pod(name, "Failed"), RUN_SECONDS)
        said = pod["status"]["containerStatuses"][0]["state"]["terminated"].get("message", "")
        try:
            found = json.loads(said)
        except ValueError:
            raise kubectl.KubectlError(f"pod {name} did not say what it found: {said[-300:]!r}") from None
        return {name: {"outcome": kind, "how": how, "errno": number} for name, (kind, how, number) in found.items()}

    def privileged(self):
        """A pod that could do anything with its node."""
        pod = self._object("privileged", ["pass"], [])
        pod["spec"] |= {"hostPID": True, "hostNetwork": True, "volumes": [{"name": "node", "hostPath": {"path": "/"}}]}
        pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}
        return pod

    def _has_account(self):
        accounts = kubectl.get("serviceaccounts", "-n", self.namespace)["items"]
        return any(account["metadata"]["name"] == "default" for account in accounts)

    def _pod(self, name, phase):
        pod = kubectl.get("pods", name, "-n", self.namespace)
        if pod["status"].get("phase") == "Pending":
            for status in pod["status"].get("containerStatuses") or []:
                reason = status.get("state", {}).get("waiting", {})
                if reason.get("reason") in ("ImagePullBackOff", "ErrImagePull", "CreateContainerConfigError"):
                    raise kubectl.KubectlError(f"pod {name} without walls does not start: {reason}")
        return pod if pod["status"].get("phase") == phase else None

    def _create(self, name, arguments, ports):
        kubectl.create(self._object(name, arguments, ports))

    def _object(self, name, arguments, ports):
        """As the sandbox's own pod is, but for its walls."""
        spec = self.like["spec"]
        kept = {field: spec[field] for field in ("runtimeClassName", "nodeSelector", "tolerations", "imagePullSecrets")
                if field in spec}
        container = {
            "name": "escape", "image": spec["containers"][0]["image"], "command": ["python3", "-I", "-c", *arguments],
            "env": [{"name": "AWS_SECRET_ACCESS_KEY",
                     "valueFrom": {"secretKeyRef": {"name": SECRET, "key": "AWS_SECRET_ACCESS_KEY"}}}],
            "ports": [{"containerPort": port} for port in ports],
            "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                "capabilities": {"drop": ["ALL"]}},
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}},
        }
        return {"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": self.namespace, "labels": {"app": "postern-escape"}},
                "spec": kept | {
                    "restartPolicy": "Never", "activeDeadlineSeconds": LIFE_SECONDS,
                    "automountServiceAccountToken": True, "terminationGracePeriodSeconds": 0,
                    "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000,
                                        "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [container]}}

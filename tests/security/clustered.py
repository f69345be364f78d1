# SPDX-License-Identifier: Apache-2.0
"""The escape suite on a cluster: sandboxes are made and entered through our own API, so nobody needs a
right to run commands in pods; `kubectl` tells what there is, and makes the pods without walls.

What one machine's suite tries with bait of that machine cannot be tried from another, and is left out.
All containers of a pod share its network, so what is shut for the agent's is shut for the others; what
each of them is given is read from its spec.
"""

import kubectl
import core
import inside
from suite import Suite
from unwalled import Unwalled

GROUPS = ("cluster/", "kernel/", "files/", "network/", "neighbours/", "slot/", "exhaustion/")
# They need bait, addresses or ids of the machine that serves; or, as `processors`, a look at its processes.
# `/tmp` and `/data` of a pod are volumes on its node's disk: nothing refuses a write beyond their size, the
# kubelet ends the pod some time later. That a disk holds out can be seen at the node alone.
OF_ONE_MACHINE = {
    "kernel/trace-host", "kernel/signal-host", "kernel/see-host",
    "files/etc", "files/shadow", "files/host-file", "files/host-file-by-dots", "files/root-home", "files/var", "files/usr-local",
    "files/proc-root", "files/leaked-folder", "files/sys", "files/kernel-command-line",
    "neighbours/runtime-process", "neighbours/slot-path", "neighbours/socket-path",
    "slot/link-to-file", "slot/link-to-folder", "slot/link-that-climbs", "slot/climb", "slot/hard-link",
    "slot/replace-socket", "slot/file-beside-socket", "exhaustion/processors",
    "exhaustion/fill-tmp", "exhaustion/fill-disk", "exhaustion/reserve-disk", "exhaustion/inodes",
}
# Of the network those that need no address: a pod has an interface, and its cluster is tried by `cluster/`.
OF_NETWORK = {f"network/{name}" for name in (
    "raw-icmp", "raw-icmp6", "packet-socket", "vsock", "make-interface", "take-address", "make-route", "tunnel")}
SPECS = {
    "cluster/given-to-containers": "a Secret, a token or a folder of the node in the spec of any container of any sandbox's pod",
    "cluster/privileged-pod": "a privileged pod with the node's processes, network and root, where sandboxes are",
}


def names():
    """What is tried on a cluster."""
    fits = [name for name in core.TABLE if name.startswith(GROUPS) and name not in OF_ONE_MACHINE]
    return [*(name for name in fits if not name.startswith("network/") or name in OF_NETWORK), *SPECS]


class ClusterSuite(Suite):
    """One run against one sandbox of a namespace, which is made for it."""

    OTHERS = "the neighbour"

    def __init__(self, api, namespace, bait, chosen):
        api.interpreter = "python3"
        self.namespace = namespace
        made = api.create({})
        if made.get("runtime") != "kubernetes":
            raise kubectl.KubectlError(f"this server makes sandboxes on `{made.get('runtime')}`: use --local SANDBOX_ID")
        super().__init__(api, made["sandbox_id"], bait, chosen)

    def _has_own_kernel(self):
        """gVisor's and Kata's word is not taken: the kernel inside must be another than the node's."""
        self.pod = kubectl.pod_of(self.id, self.namespace)
        of_node = kubectl.kernel_of(self.pod["spec"].get("nodeName", ""))
        _, release, _ = self.api.python(self.id, "import os; print(os.uname().release)")
        return of_node != "" and release.strip() not in ("", of_node)

    def _harm_of_machine(self):
        """Nothing: this machine does not serve, and nodes are not looked at."""

    def run(self, report):
        containers = ", ".join(container["name"] for container in self.pod["spec"]["containers"])
        print(f"# sandbox {self.id}, pod {self.pod['metadata']['name']} of {self.namespace} with {containers}, isolation "
              f"{self.shown.get('isolation')}, {'a kernel of its own' if self.has_own_kernel else 'the kernel of its node'}")
        self.neighbour = self.api.create(self.shown)
        self._prepare_neighbour()
        with Unwalled(self.pod) as unwalled:
            self._aim(unwalled)
            self._in_pods(report, unwalled)
            self._specs(report, unwalled)
        for name in self.names:
            if name in core.TABLE and core.TABLE[name].breaks:
                self._exhaust(report, core.TABLE[name])

    def _aim(self, unwalled):
        """Tells the attempts where everything is; the controls' neighbour is the pod without walls."""
        around = kubectl.surroundings(self.pod) | {"pods": kubectl.other_pods(self.pod)}
        peer = kubectl.pod_of(self.neighbour["sandbox_id"], self.namespace)["status"]["podIP"]
        self.target["cluster"] = around | {"peer": peer}
        self.control_target["cluster"] = around | {"peer": unwalled.listener["status"]["podIP"]}

    def _in_pods(self, report, unwalled):
        calm = [core.TABLE[name] for name in self.names if name in core.TABLE and not core.TABLE[name].breaks]
        found = inside.outcomes(self.api, self.id, self.modules, [it.name for it in calm if it.control != "inward"], self.target)
        at_neighbour = [it.name for it in calm if it.control == "neighbour"]
        controls = inside.outcomes(self.api, self.neighbour["sandbox_id"], self.modules, at_neighbour, self.target)
        of_pods = [it.name for it in calm if it.control in ("pod", "inward")]
        target = {"cluster": self.control_target["cluster"]}
        if of_pods:
            controls |= unwalled.outcomes(self.modules, [[name, target] for name in of_pods])
        inward = [it.name for it in calm if it.control == "inward"]
        if inward:
            found |= unwalled.outcomes(self.modules, [[name, {"cluster": self.target["cluster"]}] for name in inward])
        for entry in calm:
            self._judge(report, entry, found[entry.name], controls.get(entry.name) or self._control(entry))

    def _specs(self, report, unwalled):
        name = "cluster/given-to-containers"
        if name in self.names:
            pods = kubectl.get("pods", "-n", self.namespace)["items"]
            found = [f"{pod['metadata']['name']}: {what}" for pod in pods for what in kubectl.given_to(pod)]
            count = sum(len(pod["spec"].get("initContainers") or []) + len(pod["spec"]["containers"]) for pod in pods)
            control = kubectl.given_to(unwalled.listener)
            said = f"in a pod without walls: {'; '.join(control) or 'nothing was found either'}"
            self._told(report, name, found, f"{count} containers of {len(pods)} pods are given none", bool(control), said)
        name = "cluster/privileged-pod"
        if name in self.names:
            wanted = unwalled.privileged()
            control = kubectl.is_refused(wanted)
            wanted["metadata"]["namespace"] = self.namespace
            refused = kubectl.is_refused(wanted)
            found = [] if refused and "PodSecurity" in refused else [refused or "the API server takes it"]
            self._told(report, name, found, f"stopped by Pod Security: {refused}", control is None,
                       f"in a namespace without walls: {control or 'it is taken'}")

    def _told(self, report, name, found, how, is_control_through, said):
        if found:
            report.hole(name, SPECS[name], f"REACHED: {'; '.join(found[:5])}", said)
        elif is_control_through:
            report.held(name, SPECS[name], how, said)
        else:
            report.not_counted(name, SPECS[name], how, said)

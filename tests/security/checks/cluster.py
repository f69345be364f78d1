# SPDX-License-Identifier: Apache-2.0
"""What a pod could reach of its cluster, and who could reach into it.

The control of each runs in a pod of the same image and runtime in a namespace without policies, with
an account's token and a Secret: the same attempt there must succeed. A connection that nobody answers
within the time counts as stopped, for that is what a policy does; the control shows that it is answered.
"""

import errno
import json
import os
import select
import socket
import time

import core
from core import Stopped, check
from network import question

# What the suite leaves listening in the neighbour and in the pod without walls (neighbours.py).
SERVER_PORT, AGENT_PORT = 39872, 49983
EGRESS = "the network policies of its namespace: out to the gateway only"
INGRESS = "the network policies of its namespace: in from the orchestrator only"
SECONDS = 3
# Within the time of one attempt that is some 5000 addresses; more than that is told as undecided.
MOST_AT_ONCE = 250
API_NAME = "kubernetes.default.svc"
ACCOUNT_FOLDERS = ("/var/run/secrets", "/run/secrets")
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_WEB_IDENTITY_TOKEN_FILE", "AZURE_CLIENT_SECRET",
    "AZURE_FEDERATED_TOKEN_FILE", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING", "DATABASE_URL",
    "GOOGLE_APPLICATION_CREDENTIALS", "POSTERN_API_KEY", "POSTERN_GATEWAY_CREDENTIAL", "POSTERN_MASTER_KEY",
    "POSTERN_SANDBOX_CONTROL_KEY", "TOKEN_SIGNING_KEY",
)


def connect_any(addresses):
    """Tries all, many at once; the first that stands is returned."""
    refusal = "there is no address to try"
    for first in range(0, len(addresses), MOST_AT_ONCE):
        found, refusal = connect_together(addresses[first:first + MOST_AT_ONCE])
        if found:
            return found
    raise Stopped(refusal)


def connect_together(addresses):
    """What stands, if anything, and why the others do not."""
    waiting, refusal = {}, f"none of {len(addresses)} answered within {SECONDS} s"
    try:
        for host, port in addresses:
            try:
                attempt = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:
                    raise
                # Without IPv6 the others can still be tried.
                refusal = f"EAFNOSUPPORT for {host}"
                continue
            attempt.setblocking(False)
            waiting[attempt] = (host, port)
            error = attempt.connect_ex((host, port))
            if error not in (0, errno.EINPROGRESS):
                refusal = f"{errno.errorcode.get(error, error)} from {host}"
                del waiting[attempt]
                attempt.close()
        deadline = time.monotonic() + SECONDS
        while waiting and (left := deadline - time.monotonic()) > 0:
            for attempt in select.select([], list(waiting), [], left)[1]:
                address = waiting.pop(attempt)
                error = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                attempt.close()
                if error == 0:
                    return f"connected to {address[0]}, port {address[1]}", ""
                refusal = f"{errno.errorcode.get(error, error)} from {address[0]}"
    finally:
        for attempt in waiting:
            attempt.close()
    return None, refusal


@check("the API server, by its Service and by its own addresses", EGRESS, "pod")
def api_server(target):
    return connect_any(target["cluster"]["api_servers"])


@check("the kubelet of its own node, ports 10250 and 10255", EGRESS, "pod")
def kubelet(target):
    return connect_any([[host, port] for host in target["cluster"]["nodes"] for port in (10250, 10255)])


@check("the metadata service, 169.254.169.254", EGRESS, "pod", excused={0: "pods of this cluster have no metadata service"})
def metadata(target):
    return connect_any([["169.254.169.254", 80]])


@check("the metadata service, fd00:ec2::254", EGRESS, "pod", excused={0: "pods of this cluster have no metadata service on IPv6"})
def metadata6(target):
    return connect_any([["fd00:ec2::254", 80]])


@check("the cluster's DNS by UDP, by its Service and by its own addresses", EGRESS, "pod")
def dns_udp(target):
    for server in target["cluster"]["dns"]:
        with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as attempt:
            attempt.settimeout(SECONDS)
            try:
                attempt.connect((server, 53))
                attempt.send(question(f"{API_NAME}.cluster.local"))
                return f"{server} answered {len(attempt.recv(512))} bytes"
            except OSError:
                continue  # No answer, or a refusal: the next.
    raise Stopped(f"none of {len(target['cluster']['dns'])} answered")


@check("the cluster's DNS by TCP", EGRESS, "pod")
def dns_tcp(target):
    return connect_any([[server, 53] for server in target["cluster"]["dns"]])


@check("the API server's name, by the pod's own resolver", "the pod has no resolver", "pod")
def dns_resolver(target):
    for name in (API_NAME, f"{API_NAME}.cluster.local"):
        try:
            return f"resolved to {socket.getaddrinfo(name, 443)[0][4][0]}"
        except socket.gaierror as error:
            refusal = error
    raise Stopped(f"getaddrinfo: {refusal.strerror}")


@check("the internet: 1.1.1.1 and 8.8.8.8, TCP 443", EGRESS, "pod", excused={0: "pods of this cluster have no way to the internet"})
def internet(target):
    return connect_any([["1.1.1.1", 443], ["8.8.8.8", 443]])


@check("a public resolver, 8.8.8.8, TCP 53", EGRESS, "pod", excused={0: "pods of this cluster have no way to the internet"})
def public_dns(target):
    return connect_any([["8.8.8.8", 53]])


@check("every Service of the cluster but the gateway's", EGRESS, "pod")
def services(target):
    return connect_any(target["cluster"]["services"])


@check("every other pod of the cluster but gateways, at the ports that it declares", EGRESS, "pod")
def other_pods(target):
    return connect_any(target["cluster"]["pods"])


@check("the server of another sandbox's agent, at its pod's address", EGRESS, "pod")
def neighbour_server(target):
    return connect_any([[target["cluster"]["peer"], SERVER_PORT]])


@check("sandboxd of another sandbox, at its pod's address", EGRESS, "pod")
def neighbour_sandboxd(target):
    return connect_any([[target["cluster"]["peer"], AGENT_PORT]])


@check("from a pod elsewhere: the server of a sandbox's agent", INGRESS, "inward")
def from_elsewhere_server(target):
    return connect_any([[target["cluster"]["peer"], SERVER_PORT]])


@check("from a pod elsewhere: sandboxd of a sandbox", INGRESS, "inward")
def from_elsewhere_sandboxd(target):
    return connect_any([[target["cluster"]["peer"], AGENT_PORT]])


@check("a service account's token, or a cloud's, in files", "no account's token is given to the pod", "pod")
def account_token(target):
    looked = 0
    for folder in ACCOUNT_FOLDERS:
        for at, _, names in os.walk(folder):
            for name in names:
                looked += 1
                try:
                    with open(os.path.join(at, name), "rb") as file:
                        if file.read(64).strip():
                            return f"read {at}/{name}"
                except OSError:
                    continue  # What cannot be read gives nothing away.
    raise Stopped(f"{looked} files are in {' and '.join(ACCOUNT_FOLDERS)}, none can be read")


@check("credentials of the store, the database or the release in any process's environment",
       "none is given to the pod", "pod")
def store_credentials(target):
    looked = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                names = {entry.partition(b"=")[0].decode(errors="replace") for entry in file.read().split(b"\0")}
        except OSError:
            continue  # Not ours to read, or just ended.
        looked += 1
        if found := sorted(names & {*CREDENTIALS, *(f"{name}_FILE" for name in CREDENTIALS)}):
            return f"process {pid} has {found}"
    raise Stopped(f"{looked} environments could be read, none has any")


def report(runs, path):
    """What a pod without walls does: runs each check with its target, and leaves the outcomes, short."""
    found = {}
    for name, target in runs:
        said = core.outcome(core.TABLE[name], target)
        found[name] = [said["outcome"], said["how"][:90], said.get("errno", 0)]
    with open(path, "w") as file:
        json.dump(found, file)

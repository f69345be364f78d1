# SPDX-License-Identifier: Apache-2.0
"""Ways out by network: there must be none but the door."""

import errno
import fcntl
import os
import socket
import struct

from core import Stopped, check

NOTHING_BUT_LOOPBACK = "a network namespace with nothing but its own loopback"
SECONDS = 3
SO_BINDTODEVICE = 25


def connect(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as attempt:
        attempt.settimeout(SECONDS)
        attempt.connect(address)
    return f"connected to {address}"


def connect_any(family, addresses):
    """Raises the last refusal only if all refuse."""
    refusal = Stopped("there is no address to try")
    for address in addresses:
        try:
            return connect(family, address)
        except OSError as error:
            refusal = error
    raise refusal


@check("TCP to a listener on 127.0.0.1 of this machine", NOTHING_BUT_LOOPBACK)
def host_loopback_tcp(target):
    return connect(socket.AF_INET, ("127.0.0.1", target["tcp4"]))


@check("TCP to a listener on ::1 of this machine", NOTHING_BUT_LOOPBACK, excused={errno.EADDRNOTAVAIL: "no IPv6 here"})
def host_loopback_tcp6(target):
    return connect(socket.AF_INET6, ("::1", target["tcp6"]))


@check("UDP to an echo service on 127.0.0.1 of this machine", NOTHING_BUT_LOOPBACK)
def host_loopback_udp(target):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attempt:
        attempt.settimeout(SECONDS)
        attempt.connect(("127.0.0.1", target["udp4"]))
        attempt.send(b"ping")
        return f"was answered {attempt.recv(16)!r}"


@check("a mapped address, ::ffff:127.0.0.1, to this machine's listener", NOTHING_BUT_LOOPBACK)
def host_loopback_mapped(target):
    return connect(socket.AF_INET6, ("::ffff:127.0.0.1", target["tcp4"]))


@check("0.0.0.0 as a name for this machine's loopback", NOTHING_BUT_LOOPBACK)
def host_loopback_zero(target):
    return connect(socket.AF_INET, ("0.0.0.0", target["tcp4"]))


@check("every TCP port that listens on this machine: API, gateway, admin, control", NOTHING_BUT_LOOPBACK)
def every_listening_port(target):
    return connect_any(socket.AF_INET, [("127.0.0.1", port) for port in target["ports"]])


@check("the orchestrator's REST API", NOTHING_BUT_LOOPBACK)
def rest_api(target):
    return connect(socket.AF_INET, tuple(target["api"]))


@check("a route to this machine's own addresses", NOTHING_BUT_LOOPBACK,
       excused={0: "this machine has no address but loopback"})
def host_addresses(target):
    refusal = Stopped("there is none")
    for family, address in target["addresses"]:
        try:  # UDP: the kernel looks for a route, nothing is sent.
            return connect(family, (address, 9), socket.SOCK_DGRAM)
        except OSError as error:
            refusal = error
    raise refusal


@check("the metadata service, 169.254.169.254", NOTHING_BUT_LOOPBACK, "world")
def metadata(target):
    return connect(socket.AF_INET, ("169.254.169.254", 80))


@check("the metadata service, fd00:ec2::254", NOTHING_BUT_LOOPBACK, "world")
def metadata6(target):
    return connect(socket.AF_INET6, ("fd00:ec2::254", 80))


@check("the internet: 1.1.1.1 and 8.8.8.8, TCP 443", NOTHING_BUT_LOOPBACK, "world")
def internet(target):
    return connect_any(socket.AF_INET, [("1.1.1.1", 443), ("8.8.8.8", 443)])


@check("the internet: 2606:4700:4700::1111, TCP 443", NOTHING_BUT_LOOPBACK, "world")
def internet6(target):
    return connect(socket.AF_INET6, ("2606:4700:4700::1111", 443))


@check("the internet by UDP (QUIC, NTP, WireGuard)", NOTHING_BUT_LOOPBACK, "world")
def internet_udp(target):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attempt:
        return f"sent {attempt.sendto(b'hello', ('1.1.1.1', 443))} bytes"


@check("names, by the C library's resolver", "no resolver and no network", "world")
def dns_resolver(target):
    try:
        return f"resolved to {socket.getaddrinfo('postern-escape.example', 80)[0][4]}"
    except socket.gaierror as error:
        raise Stopped(f"getaddrinfo: {error.strerror}") from None


def question(name):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", 0x504F, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)


@check("names, by UDP to the resolvers of this machine and public ones", NOTHING_BUT_LOOPBACK, "world")
def dns_udp(target):
    refusal = Stopped("no resolver")
    for resolver in [*target["resolvers"], "127.0.0.1", "127.0.0.53", "1.1.1.1"]:
        try:
            family = socket.AF_INET6 if ":" in resolver else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as attempt:
                attempt.settimeout(SECONDS)
                attempt.connect((resolver, 53))
                attempt.send(question("postern-escape.example"))
                return f"{resolver} answered {len(attempt.recv(512))} bytes"
        except OSError as error:
            refusal = error
    raise refusal


@check("names, by TCP to a public resolver", NOTHING_BUT_LOOPBACK, "world")
def dns_tcp(target):
    return connect(socket.AF_INET, ("1.1.1.1", 53))


@check("data hidden in multicast DNS, 224.0.0.251", NOTHING_BUT_LOOPBACK, "world")
def dns_multicast(target):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attempt:
        return f"sent {attempt.sendto(question('data.local'), ('224.0.0.251', 5353))} bytes"


@check("a raw socket (ICMP tunnel)", "no capability", "world")
def raw_icmp(target):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as attempt:
        return f"opened {attempt.fileno()}"


@check("a raw IPv6 socket", "no capability", "world")
def raw_icmp6(target):
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as attempt:
        return f"opened {attempt.fileno()}"


@check("a packet socket (sniffing, forged frames)", "seccomp, no capability", "world")
def packet_socket(target):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as attempt:
        return f"opened {attempt.fileno()}"


@check("vsock, which no network namespace holds back", "seccomp; gVisor's network stack",
       excused={errno.EAFNOSUPPORT: "this kernel has no vsock"})
def vsock(target):
    with socket.socket(40, socket.SOCK_STREAM) as attempt:
        return f"opened {attempt.fileno()}"


@check("an abstract unix stream socket of this machine", "a network namespace of its own; Landlock's scope")
def abstract_stream(target):
    return connect(socket.AF_UNIX, "\0" + target["abstract_stream"])


@check("an abstract unix datagram socket of this machine", "a network namespace of its own; Landlock's scope")
def abstract_datagram(target):
    return connect(socket.AF_UNIX, "\0" + target["abstract_datagram"], socket.SOCK_DGRAM)


@check("a unix socket in this machine's files, as docker.sock is one", "a root file system of its own")
def path_socket(target):
    known = ["/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/dbus/system_bus_socket",
             "/run/systemd/private", "/run/crio/crio.sock", "/run/podman/podman.sock"]
    return connect_any(socket.AF_UNIX, [target["socket"], *known])


@check("an interface other than loopback", NOTHING_BUT_LOOPBACK, excused={0: "this machine has none"})
def interfaces(target):
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not others:
        raise Stopped("there is only lo")
    return f"there are {others}"


@check("binding a socket to an interface of this machine", NOTHING_BUT_LOOPBACK, excused={0: "this machine has none"})
def bind_to_interface(target):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attempt:
        refusal = Stopped("this machine has none")
        for name in target["interfaces"]:
            try:
                attempt.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, name.encode() + b"\0")
                return f"bound to {name}"
            except OSError as error:
                refusal = error
        raise refusal


def netlink(kind, flags, body):
    """One rtnetlink request (rtnetlink(7)); returns when the kernel has acknowledged it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as attempt:
        attempt.settimeout(SECONDS)
        attempt.bind((0, 0))
        attempt.send(struct.pack("=IHHII", 16 + len(body), kind, flags | 0x5, 1, 0) + body)
        error = struct.unpack_from("=i", attempt.recv(4096), 16)[0]
    if error:
        raise OSError(-error, os.strerror(-error))
    return "the kernel agreed"


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


@check("making a network interface (netlink, RTM_NEWLINK)", "no capability", "world", also={errno.EINVAL},
       excused={errno.EOPNOTSUPP: "this kernel can make no dummy, bridge or veth interface"})
def make_interface(target):
    refusal = None
    for kind in (b"dummy", b"bridge", b"veth", b"ifb"):
        info = attribute(18, attribute(1, kind + b"\0"))
        try:
            return netlink(16, 0x600, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, b"escape0\0") + info)
        except OSError as error:
            refusal = error
    raise refusal


@check("taking the metadata service's address (netlink, RTM_NEWADDR)", "no capability", "world")
def take_address(target):
    address = socket.inet_aton("169.254.169.253")
    body = struct.pack("=BBBBi", socket.AF_INET, 32, 0, 254, 1) + attribute(2, address) + attribute(1, address)
    return netlink(20, 0x600, body)


@check("a default route (netlink, RTM_NEWROUTE)", "no capability", "world")
def make_route(target):
    route = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 254, 4, 253, 1, 0)
    return netlink(24, 0x600, route + attribute(1, socket.inet_aton("203.0.113.7")) + attribute(4, struct.pack("=i", 1)))


@check("a tunnel device (/dev/net/tun)", "no such device", "world",
       excused={errno.ENOENT: "this machine has no /dev/net/tun", errno.ENODEV: "this kernel has no tun"})
def tunnel(target):
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"escape1", 0x1001))
    return "made a tunnel"


def through_the_door(target, request):
    with socket.socket() as attempt:
        attempt.settimeout(SECONDS)
        attempt.connect(tuple(target["door"]))
        attempt.sendall(request.encode())
        answer = attempt.recv(4096)
    if target["greeting"].encode() in answer:
        return "this machine's listener answered"
    said = answer.split(b"\r\n")[0].decode(errors="replace")
    raise Stopped(f"the door answered {said!r}" if answer else "the door closed the connection")


@check("the door as an open proxy: CONNECT to this machine's listener", "the door refuses CONNECT")
def door_connect(target):
    name = f"127.0.0.1:{target['tcp4']}"
    return through_the_door(target, f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n")


@check("the door as an open proxy: an absolute URL of this machine's listener", "the door keeps only the path")
def door_absolute(target):
    name = f"127.0.0.1:{target['tcp4']}"
    return through_the_door(target, f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n")


@check("the door with a Host of this machine's listener", "the gateway routes by path and session only")
def door_host(target):
    name = f"127.0.0.1:{target['tcp4']}"
    return through_the_door(target, f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n")

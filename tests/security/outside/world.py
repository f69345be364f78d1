# SPDX-License-Identifier: Apache-2.0
"""A throw-away world for controls: namespaces in which we are root and nothing is walled off.

Its root is this machine's, under an overlay that is memory; its network has the addresses of the
internet and of metadata services on its own loopback, with somebody listening. What an attempt
breaks there, is broken there only, and gone with its process 1.
"""

import ctypes
import json
import os
import selectors
import socket
import struct
import traceback

from core import outcome
from network import attribute, netlink

NEW_MOUNT, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
ADDRESSES = ["169.254.169.254", "1.1.1.1", "8.8.8.8", "192.0.2.1", "fd00:ec2::254", "2606:4700:4700::1111"]
_LIBC = ctypes.CDLL(None, use_errno=True)


def control(entry, target):
    """The outcome of an attempt in a world of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            _enter()
            said = _as_first(lambda: _attempt(entry, target))
        except Exception:
            said = json.dumps({"outcome": "undecided", "how": "no world: " + traceback.format_exc(limit=1)[-300:]}).encode()
        os.write(writer, said)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else {"outcome": "undecided", "how": "the world ended without a word"}


def _enter():
    kinds = NEW_MOUNT | NEW_UTS | NEW_IPC | NEW_PID | NEW_NET
    user, group = os.getuid(), os.getgid()
    if user != 0:
        kinds |= NEW_USER
    _called(_LIBC.unshare(kinds))
    if user != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def _as_first(act):
    """Only a child is in the new process namespace; it is its process 1."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            said = act()
        except Exception:
            said = {"outcome": "undecided", "how": "no world: " + traceback.format_exc(limit=2)[-300:]}
        os.write(writer, json.dumps(said).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def _attempt(entry, target):
    _files()
    _network()
    services = _listen()
    if os.fork() == 0:
        _serve(services)
    return outcome(entry, target)  # Process 1 ends after this, and with it all others.


def _files():
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    scratch = "/mnt"  # On every Linux system; covered here by memory, in this namespace only.
    _mount("none", scratch, "tmpfs")
    for name in ("upper", "work", "root"):
        os.mkdir(f"{scratch}/{name}")
    _mount("none", f"{scratch}/root", "overlay", 0, f"lowerdir=/,upperdir={scratch}/upper,workdir={scratch}/work")
    for name in ("dev", "sys"):
        _mount(f"/{name}", f"{scratch}/root/{name}", None, MS_BIND | MS_REC)
    os.chdir(f"{scratch}/root")
    _called(_LIBC.syscall(155, b".", b".") if os.uname().machine == "x86_64" else _LIBC.syscall(41, b".", b"."))
    _called(_LIBC.umount2(b".", 2))
    os.chdir("/")
    _mount("none", "/proc", "proc")
    _mount("none", "/tmp", "tmpfs")
    _mount("none", "/usr/local", "tmpfs")
    for path in ("/home/victim", "/data/user", "/run/postern", "/opt/postern", "/usr/local/bin"):
        os.makedirs(path, exist_ok=True)
    # A token where none may lie; not whole in this file, or the attempt would find this file.
    for path, text in (("/opt/postern/sandboxd", "x"), ("/run/postern/gateway.sock", "x"),
                       ("/tmp/token", "eyJ" + "hbGciOiJIUzI1NiJ9.e30.x")):
        with open(path, "w") as file:
            file.write(text)
    if os.path.lexists("/etc/resolv.conf"):
        os.unlink("/etc/resolv.conf")
    for path, text in (("/etc/resolv.conf", "nameserver 127.0.0.1\n"), ("/etc/nsswitch.conf", "hosts: files dns\n")):
        with open(path, "w") as file:
            file.write(text)


def _network():
    up = struct.pack("=BxHiII", 0, 0, 1, 1, 1)
    netlink(16, 0, up)
    for address in ADDRESSES:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        packed = socket.inet_pton(family, address)
        body = struct.pack("=BBBBi", family, len(packed) * 8, 0, 0, 1) + attribute(2, packed) + attribute(1, packed)
        try:
            netlink(20, 0x600, body)
        except OSError:
            if family == socket.AF_INET:
                raise  # A machine without IPv6 has no such controls; they say so themselves.
    everywhere = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 4, 253, 1, 0)
    netlink(24, 0x600, everywhere + attribute(4, struct.pack("=i", 1)))


def _listen():
    services = []
    for port in (80, 443, 53):
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            try:
                services.append(socket.create_server((address, port), family=family))
            except OSError:
                pass  # No IPv6; an IPv4 listener that is missing fails its control.
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("0.0.0.0", 53))
    return [*services, names]


def _serve(services):
    """Accepts on TCP; answers every question by UDP with 192.0.2.1."""
    waiting = selectors.DefaultSelector()
    for service in services:
        waiting.register(service, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj.type == socket.SOCK_STREAM:
                key.fileobj.accept()[0].close()
                continue
            asked, sender = key.fileobj.recvfrom(512)
            # The question's own header and body, marked as an answer, and one address after it.
            end = asked.index(b"\0", 12) + 5
            is_address = asked[end - 4:end - 2] == b"\0\1"
            head = asked[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_address else b"\0\0") + b"\0\0\0\0"
            record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("192.0.2.1") if is_address else b""
            key.fileobj.sendto(head + asked[12:end] + record, sender)


def _mount(source, at, kind, flags=0, options=None):
    encoded = [None if value is None else value.encode() for value in (source, at, kind)]
    _called(_LIBC.mount(*encoded, ctypes.c_ulong(flags), None if options is None else options.encode()), at)


def _called(result, what=""):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)

# SPDX-License-Identifier: Apache-2.0
"""What is laid out on this machine for a sandbox to reach: listeners, sockets, files, a process.

All of it is ours, on loopback or in a folder of its own, and gone when the suite ends. What the
attempts are told of it is the `target`; secrets are in it only as digests.
"""

import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

GREETING = "postern-bait"
MOST_PORTS = 200


def digest(value):
    return hashlib.sha256(value).hexdigest()


def read(path):
    with open(path, "rb") as file:
        return file.read()


class Bait:
    """A context: laid out on entry, gone on exit."""

    def __enter__(self):
        # Everybody may read it: only walls keep a sandbox from it, never a mode.
        self.folder = tempfile.mkdtemp(prefix="postern-escape-", dir="/var/tmp")
        os.chmod(self.folder, 0o755)
        self.secret = os.path.join(self.folder, "secret")
        with open(self.secret, "w") as file:
            file.write(secrets.token_hex(16))
        os.mkdir(os.path.join(self.folder, "beside"))
        shutil.copy(self.secret, os.path.join(self.folder, "beside/secret"))
        self.listeners = []
        self.target = {"greeting": GREETING, "is_control": False, **self._listen(), **self._files(), **self._machine()}
        name = f"postern-victim-{secrets.token_hex(8)}"
        self.victim = subprocess.Popen([sys.executable, "-I", "-c", "import sys; sys.stdin.read()", name],
                                       stdin=subprocess.PIPE)
        self.target |= {"victim": self.victim.pid, "victim_digest": digest(name.encode())}
        return self

    def __exit__(self, *_):
        self.victim.kill()
        self.victim.wait()
        for listener in self.listeners:
            listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _listen(self):
        """Sockets of every kind; those of TCP greet, the one of UDP echoes."""
        name = secrets.token_hex(8)
        path = os.path.join(self.folder, "docker.sock")
        tcp4 = self._serve(socket.create_server(("127.0.0.1", 0)))
        try:
            tcp6 = self._serve(socket.create_server(("::1", 0), family=socket.AF_INET6))
        except OSError:
            tcp6 = 9
        for address in ("\0" + name, path):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(address)
            listener.listen()
            self._serve(listener)
        os.chmod(path, 0o666)
        datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        datagram.bind(f"\0{name}-datagram")
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        threading.Thread(target=echo, args=(udp,), daemon=True).start()
        proxy = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=open_proxy, args=(proxy, tcp4), daemon=True).start()
        self.listeners += [datagram, udp, proxy]
        return {"tcp4": tcp4, "tcp6": tcp6, "udp4": udp.getsockname()[1], "abstract_stream": name,
                "abstract_datagram": f"{name}-datagram", "socket": path, "open_proxy": list(proxy.getsockname())}

    def _serve(self, listener):
        self.listeners.append(listener)
        threading.Thread(target=greet, args=(listener,), daemon=True).start()
        name = listener.getsockname()
        return name[1] if isinstance(name, tuple) else None

    def _files(self):
        candidates = (os.path.join("/etc", name) for name in sorted(os.listdir("/etc")))
        skeleton = {"/etc/passwd", "/etc/group", "/etc/hosts", "/etc/hostname", "/etc/nsswitch.conf", "/etc/resolv.conf"}
        etc = next(path for path in candidates if os.path.isfile(path) and not os.path.islink(path)
                   and os.stat(path).st_mode & 0o004 and os.stat(path).st_size and path not in skeleton)
        return {"secret": self.secret, "secret_digest": digest(read(self.secret)), "etc_file": etc,
                "etc_digest": digest(read(etc)[:65536]), "cmdline_digest": digest(read("/proc/cmdline"))}

    def _machine(self):
        others = [name for _, name in socket.if_nameindex() if name != "lo"]
        resolvers = [line.split()[1] for line in read("/etc/resolv.conf").decode().splitlines()
                     if line.startswith("nameserver ")] if os.path.exists("/etc/resolv.conf") else []
        return {"interfaces": others, "resolvers": resolvers, "addresses": own_addresses(), "ports": listening_ports(),
                "disks": sorted(os.listdir("/sys/block")), "host_inodes": os.statvfs("/").f_files or 1 << 40}


def own_addresses():
    """This machine's addresses but loopback, each found by asking for a route to it."""
    found = []
    for line in read("/proc/net/fib_trie").decode().splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "|--":
            candidate = words[1]
        elif "host LOCAL" in line and not candidate.startswith("127."):
            found.append([int(socket.AF_INET), candidate])
    for line in read("/proc/net/if_inet6").decode().splitlines() if os.path.exists("/proc/net/if_inet6") else []:
        words = line.split()
        if words[5] != "lo" and words[3] == "00":
            found.append([int(socket.AF_INET6), socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0]))])
    return [list(entry) for entry in dict.fromkeys(map(tuple, found))]


def listening_ports():
    ports = set()
    for line in read("/proc/net/tcp").decode().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A":
            ports.add(int(words[1].split(":")[1], 16))
    # The door's number inside is its own: it is not this machine's.
    return sorted(ports - {49980})[:MOST_PORTS]


def greet(listener):
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            try:
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(GREETING)}\r\n\r\n{GREETING}".encode())
            except OSError:
                pass  # It only wanted to see that we listen.


def echo(udp):
    while True:
        try:
            said, sender = udp.recvfrom(64)
            udp.sendto(said, sender)
        except OSError:
            return


def open_proxy(listener, port):
    """The control of the door: one that carries whatever it is asked for to the listener."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, socket.create_connection(("127.0.0.1", port)) as upstream:
            connection.recv(4096)
            connection.sendall(upstream.recv(4096))

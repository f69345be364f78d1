# SPDX-License-Identifier: Apache-2.0
"""The bare runtime: the command line of a sandbox that runs, on a folder of its own, without shim,
cgroup, seccomp, database and API; and an HTTP/2 client that talks to its process 1 over its pipes.
"""

import json
import os
import shutil
import struct
import subprocess
import tempfile
import time

DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def is_of_sync(words):
    """Whether a command line is that of a sandbox's sync, which runs beside it in namespaces of its own."""
    return ("--hostname", "sync") in zip(words, words[1:])


def command_of(run, sandbox):
    """The runtime's arguments of a sandbox that runs."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{pid}/cmdline", "rb").read().decode().split("\0")[:-1]
        except (OSError, UnicodeDecodeError):
            continue
        name = os.path.basename(words[0]) if words else ""
        if name in ("bwrap", "runsc") and any(f"{run}/{sandbox}" in word for word in words) and "gofer" not in words and "boot" not in words and not is_of_sync(words):
            return words
    raise SystemExit(f"the runtime of {sandbox} was not found; run this as root")


class Bare:
    """Starts what the shim starts, as often as wanted."""

    def __init__(self, run, sandbox):
        self.folder = tempfile.mkdtemp(prefix="postern-bare-", dir="/var/tmp")
        os.chmod(self.folder, 0o711)
        ours = f"{run}/{sandbox}"
        words = command_of(run, sandbox)
        while "--add-seccomp-fd" in words:
            at = words.index("--add-seccomp-fd")
            del words[at:at + 2]
        self.words = [word.replace(ours, self.folder).replace(sandbox, "bare") for word in words]
        self.number = 0
        for name in ("gateway", "disk/data/user", "disk/data/scratch", "disk/home", "bundle", "runsc"):
            os.makedirs(f"{self.folder}/{name}")
        for path, _, _ in os.walk(f"{self.folder}/disk"):
            os.chmod(path, 0o777)
        bundle = f"{ours}/bundle/config.json"
        if os.path.exists(bundle):
            text = open(bundle).read().replace(ours, self.folder)
            open(f"{self.folder}/bundle/config.json", "w").write(text)

    def start(self):
        """A sandbox whose process 1 has answered, and how long that took."""
        self.number += 1
        words = [*self.words[:-1], f"bare-{os.getpid()}-{self.number}"] if "-bundle" in self.words else self.words
        begun = time.perf_counter()
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin"})
        agent = Agent(process)
        agent.health()
        return time.perf_counter() - begun, agent

    def pipe(self, command, size):
        """Bytes a second of a command's output through a plain pipe, without process 1."""
        self.number += 1
        if "-bundle" in self.words:
            config = json.load(open(f"{self.folder}/bundle/config.json"))
            config["process"]["args"] = command
            os.makedirs(f"{self.folder}/plain", exist_ok=True)
            json.dump(config, open(f"{self.folder}/plain/config.json", "w"))
            words = [word.replace(f"{self.folder}/bundle", f"{self.folder}/plain") for word in self.words[:-1]]
            words.append(f"bare-{os.getpid()}-{self.number}")
        else:
            words = [*self.words[:self.words.index("--") + 1], *command]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin"})
        got = len(process.stdout.read(1))
        begun = time.perf_counter()
        while chunk := process.stdout.read(1 << 20):
            got += len(chunk)
        took = time.perf_counter() - begun
        process.wait()
        if got != size:
            raise SystemExit(f"the bare command wrote {got} bytes of {size}")
        return got / took

    def keep(self, command):
        """Seconds that `runsc` takes to write a checkpoint of a command that has begun to print lines, and
        to restore it until it prints the next."""
        self.number += 1
        config = json.load(open(f"{self.folder}/bundle/config.json"))
        config["process"]["args"] = command
        os.makedirs(f"{self.folder}/plain", exist_ok=True)
        json.dump(config, open(f"{self.folder}/plain/config.json", "w"))
        common = self.words[:self.words.index("-bundle")]
        verb = next(word for word in ("run", "restore") if word in common)
        common, image = common[:common.index(verb)], f"{self.folder}/image-{self.number}"
        spawn = lambda words: subprocess.Popen([*common, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin"})
        first, second = f"bare-{os.getpid()}-{self.number}-a", f"bare-{os.getpid()}-{self.number}-b"
        process = spawn(["run", "-bundle", f"{self.folder}/plain", first])
        process.stdout.readline()
        begun = time.perf_counter()
        subprocess.run([*common, "checkpoint", "-compression=none", "-image-path", image, first], check=True, stdout=subprocess.DEVNULL)
        kept = time.perf_counter() - begun
        process.stdout.close()
        process.kill()
        process.wait()
        begun = time.perf_counter()
        process = spawn(["restore", "-image-path", image, "-bundle", f"{self.folder}/plain", second])
        if not process.stdout.readline():
            raise SystemExit("the bare sandbox was not restored")
        restored = time.perf_counter() - begun
        process.kill()
        process.wait()
        shutil.rmtree(image)
        return kept, restored

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


class Agent:
    """Talks to process 1. It knows as much of HTTP/2 as that takes."""

    def __init__(self, process):
        self.process, self.stream = process, 1
        self.read, self.write = process.stdout, process.stdin
        self._send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, b"")
                   + _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x7FFF0000 - 65535)))

    def _send(self, data):
        self.write.write(data)
        self.write.flush()

    def _request(self, method, path, kind="", body=None):
        fields = [(":method", method), (":scheme", "http"), (":authority", "sandbox"), (":path", path)]
        fields += [("content-type", kind)] if kind else []
        # Literal fields without indexing (RFC 7541, 6.2.2), never longer than 126 bytes.
        block = b"".join(b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in fields)
        stream, self.stream = self.stream, self.stream + 2
        end = END_HEADERS | (END_STREAM if body is None else 0)
        self._send(_frame(HEADERS, end, stream, block) + (b"" if body is None else _frame(DATA, END_STREAM, stream, body)))
        answer = b""
        while True:
            kind, flags, of, payload = self._frame()
            if of == stream and kind == DATA:
                answer += payload
            if of == stream and flags & END_STREAM and kind in (DATA, HEADERS):
                return answer

    def _frame(self):
        while True:
            head = self.read.read(9)
            if len(head) < 9:
                raise SystemExit("the bare sandbox ended")
            length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            stream, payload = int.from_bytes(head[5:], "big"), self.read.read(length)
            if kind == SETTINGS and not flags & ACK:
                self._send(_frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                self._send(_frame(PING, ACK, 0, payload))
            elif kind == GOAWAY:
                raise SystemExit("the bare sandbox's process 1 went away")
            elif kind in (DATA, HEADERS):
                return kind, flags, stream, payload

    def health(self):
        self._request("GET", "/health")

    def identify(self):
        told = {"sandbox_id": "sandbox-aaaaaaaaaaaa", "conversation_id": "c", "token": "t", "env": {}}
        self._request("POST", "/postern.Control/Identify", "application/json", json.dumps(told).encode())

    def run(self, command):
        """Seconds until a command has ended, as its stream says."""
        message = json.dumps({"process": {"cmd": command[0], "args": command[1:]}, "stdin": False}).encode()
        begun = time.perf_counter()
        answer = self._request("POST", "/process.Process/Start", "application/connect+json", b"\0" + struct.pack(">I", len(message)) + message)
        if b"exitCode" not in answer:
            raise SystemExit(f"the bare agent did not run it: {answer!r}")
        return time.perf_counter() - begun

    def end(self):
        self.process.kill()
        self.process.wait()


def _frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

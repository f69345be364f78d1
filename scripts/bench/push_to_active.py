#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""From the push of a first-party filter to the first request that it runs on.

Usage: push_to_active.py PROGRAMS FILTERS_JSON
Starts `postern up` with data of its own and a backend, makes a sandbox, and asks through the
sandbox's own door from outside, as often as it can, until the pushed filter's answer comes. Each
round pushes another version. Adds `push_to_active`, the median, to the file.
"""
import http.client
import http.server
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROUNDS = 9


class Backend(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = json.dumps(dict(self.headers)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Door(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def call(url, key, method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def find_door(sandbox):
    for root in ("/run/postern",):
        for folder, _, files in os.walk(root):
            if sandbox in folder:
                for name in files:
                    if name.endswith(".sock") and "gateway" in name:
                        return os.path.join(folder, name)
    raise SystemExit(f"the door of {sandbox} is not below /run/postern; run this as root")


def main():
    programs, written = sys.argv[1:]
    backend = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    at = f"http://127.0.0.1:{backend.server_port}"
    folder = tempfile.mkdtemp(prefix="postern-bench-", dir="/var/tmp")
    os.chmod(folder, 0o711)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("POSTERN_")}
    environment["BACKEND_URL"] = at
    log = open(f"{folder}/log", "w")
    up = subprocess.Popen(
        [f"{programs}/postern", "up", "--data-dir", f"{folder}/data", "--isolation", "namespaces"],
        env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        measure(programs, written, folder, up, at)
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(timeout=60)


def measure(programs, written, folder, up, at):
    connection = f"{folder}/data/connection.json"
    for _ in range(600):
        if os.path.exists(connection) or up.poll() is not None:
            break
        time.sleep(0.05)
    with open(connection) as file:
        told = json.load(file)
    url = told["url"].rstrip("/")
    with open(told["key_file"]) as file:
        key = file.read().strip()
    wanted = {"user_id": "alice", "conversation_id": "c1", "claims": {"round": "0"}}
    made = call(url, key, "POST", "/sandbox?wait=running", wanted)
    sandbox, token = made["sandbox_id"], made["token"]
    import base64
    with open(f"{programs}/filters/claim-injection.wasm", "rb") as file:
        component = base64.b64encode(file.read()).decode()
    with open(f"{programs}/filters/claim-injection.toml") as file:
        manifest = file.read()
    door = find_door(sandbox)
    times = []
    for number in range(ROUNDS):
        # Another component each time, so that nothing compiled before can be used: a custom section
        # that says which round it is.
        raw = base64.b64decode(component)
        name = b"round"
        payload = bytes([len(name)]) + name + str(number).encode()
        body = {"manifest": manifest.replace("X-User-Plan", f"X-Round-{number}").replace('"plan"', '"round"'),
                "component": base64.b64encode(raw + bytes([0, len(payload)]) + payload).decode()}
        pushing = threading.Thread(target=push, args=(url, key, body, at, number == 0))
        begun = time.monotonic()
        pushing.start()
        ask = Door(door)
        while True:
            ask.request("GET", "/x", headers={"Authorization": f"Bearer {token}"})
            answer = json.loads(ask.getresponse().read())
            if any(header.lower() == f"x-round-{number}" for header in answer):
                break
            if time.monotonic() - begun > 30:
                raise SystemExit("the pushed filter did not run within 30 s")
        times.append(time.monotonic() - begun)
        pushing.join()
    median = statistics.median(times)
    print(f"{'push_to_active':<28} {median:>10.2f} s    {'':>12}  bar: 1 s (first {times[0]:.2f}, slowest {max(times):.2f})")
    with open(written) as file:
        rows = json.load(file)
    rows = [row for row in rows if row["name"] != "push_to_active"]
    rows.append({"name": "push_to_active", "value": median, "unit": "s", "against": None, "ratio": None})
    with open(written, "w") as file:
        json.dump(rows, file, indent=2)


def push(url, key, body, at, is_first):
    call(url, key, "PUT", "/filters/claim-injection", body)
    if is_first:
        backend = {"backend": {"url": at, "filters": ["claim-injection"]}}
        call(url, key, "PUT", "/backends/default", backend)


main()

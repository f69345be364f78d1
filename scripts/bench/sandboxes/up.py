# SPDX-License-Identifier: Apache-2.0
"""`postern up` with data of its own, and the calls that are measured."""

import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time

PATIENCE = 120


class Up:
    """Runs until the `with` ends; its sandboxes end with it."""

    def __init__(self, programs, runsc, level):
        self.folder = tempfile.mkdtemp(prefix="postern-bench-", dir="/var/tmp")
        os.chmod(self.folder, 0o711)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("POSTERN_")}
        environment |= {"POSTERN_RUNSC": runsc, "POSTERN_SANDBOX_MAX_WARM_POOL": "400", "POSTERN_LOG": "warn"}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.admin = "127.0.0.1:%d" % free.getsockname()[1]
        environment["POSTERN_API_ADMIN_LISTEN"] = self.admin
        self.log = open(f"{self.folder}/log", "w")
        command = [f"{programs}/postern", "--data-dir", f"{self.folder}/data", "up", "--isolation", level]
        self.process = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=self.log, stderr=self.log)
        self.local = threading.local()
        self.made = 0
        self.lock = threading.Lock()

    def __enter__(self):
        written = f"{self.folder}/data/connection.json"
        wait("`postern up`", lambda: self.process.poll() is not None or os.path.exists(written))
        if self.process.poll() is not None:
            raise SystemExit(open(f"{self.folder}/log").read())
        self.told = json.load(open(written))
        self.key = open(self.told["key_file"]).read().strip()
        self.run = self.told["run"]
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE)
        subprocess.run(["rm", "-rf", self.folder], check=False)

    def connection(self):
        """One kept-alive connection for each thread, as an application's client has."""
        if not hasattr(self.local, "connection"):
            self.local.connection = http.client.HTTPConnection(self.told["url"].split("//")[1].rstrip("/"), timeout=PATIENCE)
        return self.local.connection

    def begin(self, method, path, body=None):
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        text = None if body is None else json.dumps(body)
        try:
            self.connection().request(method, path, text, headers)
        except (BrokenPipeError, ConnectionResetError):
            # The server ends connections on which nothing came for a while.
            self.connection().close()
            self.connection().request(method, path, text, headers)
        return self.connection().getresponse()

    def call(self, method, path, body=None):
        answer = self.begin(method, path, body)
        text = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {text.decode()}")
        return json.loads(text or b"null")

    def template(self, name, **fields):
        self.call("PUT", f"/templates/{name}", {"memory": "256MiB", "disk": "64MiB", **fields})

    def wish(self, template):
        """A conversation and a user that never were."""
        with self.lock:
            self.made += 1
            number = self.made
        return {"user_id": f"user-{number}", "conversation_id": f"c-{number}", "template": template}

    def create(self, template, wait=""):
        return self.call("POST", f"/sandbox{wait}", self.wish(template))["sandbox_id"]

    def create_and_first_byte(self, template, wait=""):
        """Seconds from the call to the first byte that a command inside writes."""
        wish, begun = self.wish(template), time.perf_counter()
        sandbox = self.call("POST", f"/sandbox{wait}", wish)["sandbox_id"]
        answer = self.begin("POST", f"/sandbox/{sandbox}/exec", {"command": ["/bin/echo", "x"]})
        for line in answer:
            if line.startswith(b"event: stdout"):
                break
        took = time.perf_counter() - begun
        answer.read()
        return took, sandbox

    def destroy(self, sandbox):
        self.call("DELETE", f"/sandbox/{sandbox}")

    def ready(self, template):
        """How many are kept ready."""
        connection = http.client.HTTPConnection(self.admin, timeout=PATIENCE)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        name = f'postern_warm_pool_available{{template="{template}"}} '
        return next((int(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name)), 0)

    def fill(self, template, count):
        wait(f"a pool of {count}", lambda: self.ready(template) == count)


def wait(what, is_so):
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come about within {PATIENCE} s")
        time.sleep(0.01)

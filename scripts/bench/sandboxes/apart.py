# SPDX-License-Identifier: Apache-2.0
"""`postern-orchestrator` and `postern-gateway` on this machine, as docs/one-machine.md has them apart: what
the orchestrator holds by itself, without a gateway in the same process."""

import os
import secrets
import signal
import socket
import subprocess
import tempfile
import threading

from up import PATIENCE, Up, wait


class Apart(Up):
    """Runs until the `with` ends, which ends its sandboxes first: the orchestrator would leave them."""

    def __init__(self, programs, runsc, level):
        self.folder = tempfile.mkdtemp(prefix="postern-bench-", dir="/var/tmp")
        os.chmod(self.folder, 0o711)
        self.programs = programs
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("POSTERN_")}
        self.environment |= {
            "TOKEN_SIGNING_KEY": secrets.token_urlsafe(48), "POSTERN_LOG": "warn",
            "POSTERN_FILES_API": f"{self.folder}/files.sock",
        }
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.admin = "127.0.0.1:%d" % free.getsockname()[1]
        self.log = open(f"{self.folder}/log", "w")
        self.local, self.lock, self.made = threading.local(), threading.Lock(), 0
        more = {"POSTERN_RUNSC": runsc, "POSTERN_ISOLATION": level}
        self.process = self.spawn(
            "postern-orchestrator", more, "--data-dir", f"{self.folder}/data", "--listen", "127.0.0.1:0",
            "--control-listen", "127.0.0.1:0", "--admin-listen", self.admin)
        self.gateway = None

    def spawn(self, program, more, *arguments):
        command = [f"{self.programs}/{program}", *arguments]
        return subprocess.Popen(command, env=self.environment | more, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def __enter__(self):
        super().__enter__()
        credential = f"{self.folder}/credential"
        with open(os.open(credential, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(self.call("POST", "/gateways", {"name": "bench"})["credential"])
        more = {"POSTERN_GATEWAY_CREDENTIAL_FILE": credential, "POSTERN_GATEWAY_SOCKETS": "true", "POSTERN_ORCHESTRATOR": self.told["control"]}
        self.gateway = self.spawn(
            "postern-gateway", more, "--data-dir", f"{self.folder}/gateway", "--listen", "127.0.0.1:0",
            "--admin-listen", "127.0.0.1:0")
        wait("the gateway", lambda: self.call("GET", "/gateways")["gateways"][0]["connected"] == 1)
        return self

    def __exit__(self, *_):
        try:
            self.empty()
        finally:
            for process in filter(None, (self.process, self.gateway)):
                process.send_signal(signal.SIGTERM)
            for process in filter(None, (self.process, self.gateway)):
                process.wait(PATIENCE)
            subprocess.run(["rm", "-rf", self.folder, self.run], check=False)

    def empty(self):
        """Nothing of a sandbox is left when this returns."""
        self.template("warm", warm_pool=0)
        while page := self.call("GET", "/sandbox?status=running")["sandboxes"]:
            for sandbox in page:
                self.destroy(sandbox["sandbox_id"])
        wait("the end of all sandboxes", lambda: not [name for name in os.listdir(self.run) if name.startswith("sandbox-")])

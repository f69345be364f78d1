# SPDX-License-Identifier: Apache-2.0
"""The suite against a sandbox that is none: commands run as plain processes of this machine.

Every attempt whose control is a plain process must then be reported as a hole; the others would
change this machine and are left out. A suite that finds nothing here would find nothing anywhere.
"""

import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True

import validate  # noqa: E402  (the folder is ours to name first)
from api import Api  # noqa: E402
from suite import Suite  # noqa: E402

# Listed by the neighbour's traces or the slot's paths, which a plain process has not.
LEFT_OUT = {"neighbours/runtime-process", "neighbours/slot-path", "neighbours/socket-path"}


class Nothing(Api):
    """The API of a machine without sandboxes."""

    def __init__(self):
        self.url, self.made, self.gateway = "http://127.0.0.1:9", [], None
        self.interpreter = "/usr/bin/python3"

    def sandbox(self, sandbox):
        return {"sandbox_id": sandbox, "isolation": "none", "limits": {}}

    def create(self, like, user=None):
        return {"sandbox_id": "nothing", "token": ""}

    def destroy(self, sandbox, seconds=60):
        pass

    def run(self, sandbox, command, seconds=60):
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        return done.returncode, done.stdout, done.stderr


def main():
    names = [name for name, entry in validate.core.TABLE.items()
             if entry.control == "host" and not entry.breaks and name not in LEFT_OUT]

    class Plain(Suite):
        def _prepare_neighbour(self):
            """There is none."""

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.target = self.control_target | {"ports": self.bait.target["ports"], "api": ["127.0.0.1", self.bait.target["tcp4"]]}
            self.control_target = self.target

    return validate.run(Nothing(), "nothing", names, Plain)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""How much processor time a sandbox takes, measured from outside: gVisor's own clock inside counts
a task that waits for a processor as running."""

import os
import time

WINDOW_SECONDS = 1.0


class Meter:
    """Samples all processes of one sandbox."""

    def __init__(self, sandbox):
        self.sandbox = sandbox.encode()
        self.samples = []

    def sample(self):
        self.samples.append((time.monotonic(), self._ticks()))

    def most(self):
        """The most processors that were in use over any second or more."""
        hertz = os.sysconf("SC_CLK_TCK")
        shares = [0.0]
        for index, (begun, before) in enumerate(self.samples):
            for ended, after in self.samples[index + 1:]:
                if ended - begun >= WINDOW_SECONDS:
                    used = sum(ticks - before.get(pid, 0) for pid, ticks in after.items())
                    shares.append(used / hertz / (ended - begun))
        return max(shares)

    def _ticks(self):
        """The time of each process that names the sandbox, and of all below it."""
        parents, ticks, ours = {}, {}, set()
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                with open(f"/proc/{pid}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    if self.sandbox in file.read():
                        ours.add(pid)
            except OSError:
                continue  # It has just ended.
            parents[pid] = int(fields[1])
            ticks[pid] = int(fields[11]) + int(fields[12])
        while below := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= below
        return {pid: ticks[pid] for pid in ours if pid in ticks}

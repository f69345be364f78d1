# SPDX-License-Identifier: Apache-2.0
"""One run of the escape suite against one sandbox: what is tried in it, its control, the verdict."""

import os
import threading
import urllib.parse

import calls
import core
import inside
import planted
import tokens
import world
from api import ApiError
from processor_time import Meter

FOLDER = os.path.dirname(os.path.abspath(__file__))

for module in inside.ORDER:
    __import__(module)

# Proves that a sandbox which may be broken was not the only thing that still works.
UNHARMED = """
import ctypes, os
child = os.fork()
if child == 0: os._exit(0)
os.waitpid(child, 0)
block = bytearray(16 << 20)
with open("/data/scratch/postern-unharmed", "wb") as file: file.write(block[:1 << 20])
os.unlink("/data/scratch/postern-unharmed")
print("unharmed")
"""
LIMIT_OF = {"fork-bomb": "pids", "nested-fork-bomb": "pids", "threads": "pids", "memory": "memory", "hidden-memory": "memory",
            "fill-tmp": "memory", "fill-shm": "memory", "fill-disk": "disk", "reserve-disk": "disk", "inodes": "disk",
            "processors": "cpu"}


# For a server that tells none: bytes, thousandths of a processor, processes, bytes.
USUAL_LIMITS = {"memory": 512 << 20, "cpu": 1000, "pids": 128, "disk": 1 << 30}


WHERE = {"host": "on this machine", "world": "in a throw-away world", "neighbour": "in the neighbour",
         "pod": "in a pod without walls", "inward": "from a pod without walls, into another"}


class Suite:
    """One run against one sandbox."""

    # Who must not be harmed by what is taken without end.
    OTHERS = "the neighbour and this machine"

    def __init__(self, api, sandbox, bait, names):
        self.api, self.bait, self.names = api, bait, names
        self.shown = api.sandbox(sandbox)
        self.id = sandbox
        self.modules = inside.load(os.path.join(FOLDER, "checks"))
        self.limits, self.enforced = limits_of(self.shown)
        self.has_own_kernel = self._has_own_kernel()
        address = api_address(api.url)
        self.target = bait.target | {
            "limits": self.limits, "api": address, "door": ["127.0.0.1", 49980],
            "writable": "/data/user", "scratch": "/data/scratch", "inodes": 1000,
            # Ours first: the control ends with the first that answers and asks no stranger.
            "ports": list(dict.fromkeys([address[1], bait.target["tcp4"], *bait.target["ports"]])),
        }
        self.control_target = self.target | {
            "is_control": True, "writable": bait.folder, "scratch": bait.folder, "door": bait.target["open_proxy"],
        }

    def _has_own_kernel(self):
        """gVisor's word is not taken: the kernel inside must be another than this machine's."""
        _, release, _ = self.api.python(self.id, "import os; print(os.uname().release)")
        return self.shown.get("isolation") == "gvisor" and release.strip() not in ("", os.uname().release)

    def run(self, report):
        print(f"# sandbox {self.id}, isolation {self.shown.get('isolation')}, "
              f"{'a kernel of its own' if self.has_own_kernel else 'the kernel of this machine'}, limits {self.limits}")
        self.neighbour = self.api.create(self.shown)
        self._prepare_neighbour()
        calm = [name for name in self.names if name in core.TABLE and not core.TABLE[name].breaks]
        found = inside.outcomes(self.api, self.id, self.modules, calm, self.target) if calm else {}
        at_neighbour = [name for name in calm if core.TABLE[name].control == "neighbour"]
        theirs = inside.outcomes(self.api, self.neighbour["sandbox_id"], self.modules, at_neighbour,
                                 self.target) if at_neighbour else {}
        for name in calm:
            self._judge(report, core.TABLE[name], found[name], theirs.get(name) or self._control(core.TABLE[name]))
        for name in self.names:
            if name in core.TABLE and core.TABLE[name].breaks:
                self._exhaust(report, core.TABLE[name])
        self._planted(report)
        self._calls(report)
        self._tokens(report)

    def _prepare_neighbour(self):
        identity = self.neighbour["sandbox_id"]
        secret = os.urandom(16).hex()
        code, _, errors = inside.call(self.api, identity, self.modules, "neighbours", "live", secret)
        if code != 0:
            raise SystemExit(f"validate_isolation: could not prepare the neighbour {identity}: {errors}")
        traces = traces_of(identity)
        for target in (self.target, self.control_target):
            target |= {"neighbour_digest": core.digest(secret), **traces}

    def _control(self, entry):
        if entry.control == "world":
            return world.control(entry, self.control_target | {"writable": "/tmp"})
        return core.outcome(entry, self.control_target)

    def _judge(self, report, entry, found, control):
        where = WHERE[entry.control]
        said = f"{where}: {control['outcome']}: {control['how']}"
        if found["outcome"] == "reached" and entry.own_kernel and self.has_own_kernel:
            found = {"outcome": "stopped", "how": f"granted by the sandbox's own kernel, not this machine's: {found['how']}"}
        if found["outcome"] == "reached":
            report.hole(entry.name, entry.tried, f"REACHED: {found['how']}", said)
        elif found["outcome"] == "undecided":
            report.hole(entry.name, entry.tried, f"undecided: {found['how']}", said)
        elif control["outcome"] == "reached":
            report.held(entry.name, entry.tried, f"stopped by {entry.wall}: {found['how']}", said)
        elif control.get("errno", 0) in entry.excused and control["outcome"] == "stopped":
            report.excused(entry.name, entry.tried, entry.excused[control.get("errno", 0)])
        else:
            report.not_counted(entry.name, entry.tried, found["how"], said)

    def _exhaust(self, report, entry):
        """Runs an attempt in a sandbox of its own, while all others go on."""
        limit = LIMIT_OF.get(entry.name.partition("/")[2])
        if limit and not self.enforced.get(limit):
            report.excused(entry.name, entry.tried, f"the API says that {limit} is not enforced here")
            return
        spare = self.api.create(self.shown)["sandbox_id"]
        result = {}

        def attack():
            try:
                result.update(inside.outcomes(self.api, spare, self.modules, [entry.name], self.target)[entry.name])
            except ApiError as error:
                result.update({"outcome": "undecided", "how": str(error), "is_killed": self._has_ended(spare)})
        attacking = threading.Thread(target=attack)
        attacking.start()
        harm, meter = None, Meter(spare)
        while attacking.is_alive() and not harm:
            meter.sample()
            harm = self._harm()
        meter.sample()
        attacking.join()
        if result["outcome"] == "undecided" and result.get("is_killed"):
            ended = self._has_ended(spare)
            result = {"outcome": "stopped", "how": "its sandbox was ended" if ended else "it was killed with its parents"}
        if entry.name == "exhaustion/processors" and result["outcome"] != "undecided":
            most, allowed = meter.most(), self.limits["cpu"] / 1000
            kind = "reached" if most > allowed * 1.3 else "stopped"
            result = {"outcome": kind, "how": f"{most:.2f} processors of {allowed:.2f}, measured from outside"}
        harm = harm or self._harm()
        if self._exists(spare):
            self.api.destroy(spare)
        if harm:
            report.hole(entry.name, entry.tried, f"others were harmed: {harm} ({result['how']})")
            return
        result["how"] += f"; unharmed: {self.OTHERS}"
        self._judge(report, entry, result, self._control(entry))

    def _harm(self):
        """What no longer works elsewhere; None if all does."""
        try:
            code, out, errors = self.api.python(self.neighbour["sandbox_id"], UNHARMED, seconds=30)
        except ApiError as error:
            return f"the neighbour did not answer: {error}"
        if out.strip() != "unharmed":
            return f"the neighbour cannot work (exit {code}): {errors[-200:]}"
        return self._harm_of_machine()

    def _harm_of_machine(self):
        """What this machine, which serves, has no more of."""
        free = os.statvfs(self.bait.folder)
        if free.f_bavail * free.f_frsize < 64 << 20 or free.f_favail < 1000:
            return "this machine's disk is full"
        available = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemAvailable"))
        return "this machine's memory is full" if available < 64 << 10 else None

    def _exists(self, sandbox):
        try:
            return self.api.sandbox(sandbox).get("status") not in ("destroyed",)
        except ApiError:
            return False

    def _has_ended(self, sandbox):
        """Whether a sandbox no longer does anything at all."""
        try:
            return self.api.run(sandbox, ["/bin/true"], 20)[0] != 0
        except ApiError:
            return True

    def _planted(self, report):
        names = [trap.name for trap in planted.TRAPS if f"slot/planted-{trap.name}" in self.names]
        are_kept = bool(names) and planted.are_kept(self.api, self.shown)
        for trap in planted.TRAPS:
            name = f"slot/planted-{trap.name}"
            if name not in self.names:
                continue
            how = None
            try:
                kind, how = planted.spring(self.api, self.shown, trap, self.bait)
            except ApiError as error:
                kind, how = "undecided", str(error)
            control, said = planted.control(trap, self.bait)
            said = f"on this machine: {control}: {said}"
            if kind == "stopped" and not are_kept:
                report.not_counted(name, trap.tried, "no files are kept here, so nobody walked into it", said)
            elif kind == "stopped" and control == "reached":
                report.held(name, trap.tried, f"stopped by whoever saves files, who opens nothing by path: {how}", said)
            elif kind == "stopped":
                report.not_counted(name, trap.tried, how, said)
            else:
                report.hole(name, trap.tried, f"{kind}: {how}", said)

    def _calls(self, report):
        for trap in calls.TRAPS:
            name = f"calls/{trap.name}"
            if name not in self.names:
                continue
            try:
                kind, how = calls.spring(self.api, self.shown, trap)
            except (ApiError, OSError) as error:
                kind, how = "undecided", repr(error)
            control, said = calls.control(trap)
            said = f"on this machine: {control}: {said}"
            if kind != "stopped":
                report.hole(name, trap.tried, f"{kind}: {how}", said)
            elif control == "reached":
                report.held(name, trap.tried, f"stopped: {trap.wall}: {how}", said)
            else:
                report.not_counted(name, trap.tried, how, said)

    def _tokens(self, report):
        names = [name for name in self.names if name.startswith("neighbours/token-")]
        if not names:
            return
        own = self.api.create(self.shown)
        try:
            is_taken, found = tokens.outcomes(self.api, own, self.neighbour)
        except (ApiError, OSError, KeyError, ValueError) as error:
            is_taken, found = False, dict.fromkeys(tokens.TRIED, (0, f"could not be tried: {error!r}"))
        said = f"one's own token at one's own socket: {'reached: taken' if is_taken else 'stopped: refused too'}"
        for name in names:
            kind = name.partition("token-")[2]
            if kind not in found:
                report.excused(name, tokens.TRIED[kind], "this gateway has no door over TCP")
                continue
            status, code = found[kind]
            if not is_taken:
                report.not_counted(name, tokens.TRIED[kind], f"{status} {code}", said)
            elif tokens.is_refused(status, code):
                report.held(name, tokens.TRIED[kind], f"stopped by the gateway: {status} {code}", said)
            else:
                report.hole(name, tokens.TRIED[kind], f"REACHED: {status} {code}", said)


def limits_of(shown):
    """What a sandbox may use, by name, and whether each is enforced."""
    limits = shown.get("limits", {})
    values = {name: limits.get(name, {}).get("value", default) for name, default in USUAL_LIMITS.items()}
    return values, {name: bool(limits.get(name, {}).get("enforced")) for name in USUAL_LIMITS}


def api_address(url):
    address = urllib.parse.urlsplit(url)
    return [address.hostname, address.port or {"https": 443}.get(address.scheme, 80)]


def traces_of(sandbox):
    """What of a sandbox can be found on this machine by its id: processes, folders and sockets."""
    pids = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if sandbox.encode() in file.read():
                    pids.append(int(pid))
        except OSError:
            continue  # It has just ended.
    with open("/proc/self/mountinfo") as file:
        folders = {line.split()[4] for line in file if sandbox in line.split()[4]}
    with open("/proc/net/unix") as file:
        sockets = {line.split()[7] for line in file if sandbox in line}
    return {"neighbour_pids": pids, "neighbour_folders": sorted(folders), "neighbour_sockets": sorted(sockets)}

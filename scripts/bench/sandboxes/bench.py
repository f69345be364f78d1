# SPDX-License-Identifier: Apache-2.0
"""Measures sandboxes beside the bare runtime. Usage: bench.py PROGRAMS RUNSC JSON [LEVEL…] [PART…]
Levels are gvisor and namespaces; parts are those of PARTS below. Those that are not named are all measured."""

import concurrent.futures
import glob
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]
sys.dont_write_bytecode = True

import inside  # noqa: E402  (the folders are ours to name first)
from apart import Apart  # noqa: E402
from bare import Bare, is_of_sync  # noqa: E402
from report import Report  # noqa: E402
from up import Up, wait  # noqa: E402

ROUNDS = 40
POOL = 10
BURST = 100
IDLE = 50
IDLE_SECONDS = 60
MANY = 200
LEVELS = ("gvisor", "namespaces")
PARTS = ("warm", "cold", "inside", "burst", "idle", "many", "apart")


def quantile(values, part):
    """Nearest rank."""
    return sorted(values)[max(0, -(-len(values) * part // 100) - 1)]


def ms(seconds):
    return seconds * 1000


def warm(up, rounds=ROUNDS):
    """Creates from a full pool, one after the other, each with the machine at rest."""
    took = []
    for _ in range(rounds):
        up.fill("warm", POOL)
        seconds, sandbox = up.create_and_first_byte("warm")
        took.append(ms(seconds))
        up.destroy(sandbox)
    return took


def creates(up, level, report):
    """Cold starts and bare starts by turns, so that both see the same machine."""
    first = up.create("cold", "?wait=running")
    bare, cold, alone = Bare(up.run, first), [], []
    for _ in range(ROUNDS):
        seconds, agent = bare.start()
        alone.append(ms(seconds))
        agent.end()
        seconds, sandbox = up.create_and_first_byte("cold", "?wait=running")
        cold.append(ms(seconds))
        up.destroy(sandbox)
    beside = quantile(alone, 50)
    report.add(f"cold_create.{level}.p50", quantile(cold, 50), "ms", beside, 1.3 * beside + 15)
    report.add(f"cold_create.{level}.p99", quantile(cold, 99), "ms", quantile(alone, 99))

    _, agent = bare.start()
    agent.identify()
    through, direct = [], []
    for _ in range(5 * ROUNDS):
        direct.append(ms(agent.run(["/bin/true"])))
        begun = time.perf_counter()
        up.call("POST", f"/sandbox/{first}/exec", {"command": ["/bin/true"], "collect": True})
        through.append(ms(time.perf_counter() - begun))
    agent.end()
    bare.close()
    beside = quantile(direct, 50)
    report.add(f"exec_true.{level}.p50", quantile(through, 50), "ms", beside, 2 * beside)
    freeze(up, level, first, report)
    up.destroy(first)


def freezer(sandbox):
    """The file that freezes a sandbox's cgroup, and what to write."""
    for folder in glob.glob(f"/sys/fs/cgroup/**/postern-*-{sandbox}", recursive=True):
        for file, frozen, thawed in (("freezer.state", "FROZEN", "THAWED"), ("cgroup.freeze", "1", "0")):
            if os.path.exists(f"{folder}/{file}"):
                state = f"{folder}/{'cgroup.events' if file == 'cgroup.freeze' else file}"
                return f"{folder}/{file}", frozen, thawed, state
    return None


def freeze(up, level, sandbox, report):
    found = freezer(sandbox)
    if found is None:
        for name in ("pause", "resume"):
            report.left_out(f"{name}.{level}.p50", "ms", "no cgroup can freeze here")
        return
    file, frozen, thawed, state = found

    def bare(value):
        begun = time.perf_counter()
        with open(file, "w") as knob:
            knob.write(value)
        is_frozen = value == frozen
        while (("FROZEN" in (text := open(state).read())) or "frozen 1" in text) != is_frozen:
            pass
        return ms(time.perf_counter() - begun)

    def ours(verb):
        begun = time.perf_counter()
        up.call("POST", f"/sandbox/{sandbox}/{verb}")
        return ms(time.perf_counter() - begun)

    pauses, resumes, bare_pauses, bare_resumes = [], [], [], []
    for _ in range(ROUNDS):
        bare_pauses.append(bare(frozen))
        bare_resumes.append(bare(thawed))
        pauses.append(ours("pause"))
        resumes.append(ours("resume"))
    for name, values, beside in (("pause", pauses, bare_pauses), ("resume", resumes, bare_resumes)):
        report.add(f"{name}.{level}.p50", quantile(values, 50), "ms", quantile(beside, 50), quantile(beside, 50) + 10)


def burst(up, level, report):
    up.template("burst", warm_pool=BURST)
    up.fill("burst", BURST)
    with concurrent.futures.ThreadPoolExecutor(BURST) as callers:
        for answered in [callers.submit(up.call, "GET", "/healthz") for _ in range(BURST)]:
            answered.result()
        begun = time.perf_counter()
        made = [callers.submit(up.create, "burst") for _ in range(BURST)]
        sandboxes = [it.result() for it in made]
        report.add(f"burst_100.{level}", time.perf_counter() - begun, "s", None, 2)
    up.template("burst", warm_pool=0)
    destroy_all(up, sandboxes)


def destroy_all(up, sandboxes):
    with concurrent.futures.ThreadPoolExecutor(8) as callers:
        list(callers.map(up.destroy, sandboxes))


def tree(run, sandbox, with_sync=True):
    """All processes of a sandbox: those that name its folder, and all that descend from them."""
    parents, ours = {}, set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(pid)] = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
            words = open(f"/proc/{pid}/cmdline", "rb").read().decode(errors="replace").split("\0")
            if any(f"{run}/{sandbox}" in word for word in words) and (with_sync or not is_of_sync(words)):
                ours.add(int(pid))
        except OSError:
            continue
    while grown := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= grown
    return ours


def pss(pids):
    """What these processes hold, in MB. One that has ended meanwhile holds nothing; that none can be read
    is no figure."""
    held = []
    for pid in pids:
        try:
            lines = open(f"/proc/{pid}/smaps_rollup").read().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        held += [int(line.split()[1]) for line in lines if line.startswith("Pss:")]
    if not held:
        raise SystemExit(f"bench: of the processes {sorted(pids)} no memory can be read; run this as root")
    return sum(held) / 1000


def processor_seconds(pids):
    total = 0
    for pid in pids:
        try:
            fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        except OSError:
            continue
    return total / os.sysconf("SC_CLK_TCK")


def idle(up, level, report):
    """Memory and processor time of sandboxes that nobody uses."""
    with concurrent.futures.ThreadPoolExecutor(2) as callers:
        sandboxes = list(callers.map(lambda _: up.create("cold", "?wait=running"), range(IDLE)))
    time.sleep(2)
    # Memory is told without the sync, the processors' time with it.
    used = sorted(pss(tree(up.run, sandbox, with_sync=False)) for sandbox in sandboxes)
    trees = [tree(up.run, sandbox) for sandbox in sandboxes]
    report.add(f"idle_pss.{level}", used[len(used) // 2], "MB", None, 22 if level == "gvisor" else 5)
    pids = set().union(*trees)
    before, begun = processor_seconds(pids), time.monotonic()
    time.sleep(IDLE_SECONDS)
    share = (processor_seconds(pids) - before) / (time.monotonic() - begun) / IDLE * 100
    report.add(f"idle_cpu.{level}", share, "%", None, 0.1)
    return sandboxes


def many(up, level, report, sandboxes, alone):
    """Claims beside sandboxes that nobody uses, of which there are `MANY` in the end."""
    fill(up, sandboxes)
    took = quantile(warm(up, ROUNDS // 2), 50)
    report.add(f"with_200_idle.{level}", took, "ms", alone, 1.5 * alone)
    # Gateway and orchestrator in one: told, and judged apart.
    report.add(f"with_200_idle.{level}.up", resident(up), "MB")
    destroy_all(up, sandboxes)


def fill(up, sandboxes):
    """As many as `MANY`, none of which anybody uses."""
    with concurrent.futures.ThreadPoolExecutor(2) as callers:
        sandboxes += callers.map(lambda _: up.create("cold", "?wait=running"), range(MANY - len(sandboxes)))


def resident(up):
    """What the process holds that serves the API, in MB."""
    status = open(f"/proc/{up.process.pid}/status").read()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1000


def apart(programs, runsc, level, report):
    """What the orchestrator holds beside sandboxes that nobody uses, after some claims."""
    with Apart(programs, runsc, level) as up:
        up.template("cold")
        up.template("warm", warm_pool=POOL)
        sandboxes = []
        fill(up, sandboxes)
        warm(up, ROUNDS // 2)
        report.add(f"with_200_idle.{level}.orchestrator", resident(up), "MB", None, 60)
        destroy_all(up, sandboxes)


def measure(programs, runsc, level, parts, report):
    if "apart" in parts:
        apart(programs, runsc, level, report)
    if not parts - {"apart"}:
        return
    with Up(programs, runsc, level) as up:
        up.template("cold")
        # `many` is told beside `warm`, in the same run.
        if {"warm", "many"} & parts:
            up.template("warm", warm_pool=POOL)
            wait("the first pool", lambda: up.ready("warm") == POOL)
            took = warm(up)
            report.add(f"warm_create.{level}.p50", quantile(took, 50), "ms", None, 25)
            report.add(f"warm_create.{level}.p99", quantile(took, 99), "ms", None, 100)
        if "cold" in parts:
            creates(up, level, report)
        if "inside" in parts:
            inside.measure(up, level, report)
        if "burst" in parts:
            burst(up, level, report)
        sandboxes = idle(up, level, report) if "idle" in parts else []
        if "many" in parts:
            many(up, level, report, sandboxes, quantile(took, 50))


def main():
    programs, runsc, path, *wanted = sys.argv[1:]
    if unknown := [word for word in wanted if word not in LEVELS + PARTS]:
        raise SystemExit(f"bench: there is no {unknown[0]}; levels are {', '.join(LEVELS)}, parts {', '.join(PARTS)}")
    report = Report(path)
    parts = {part for part in PARTS if part in wanted} or set(PARTS)
    try:
        if "inside" in parts:
            inside.size(programs, report)
        for level in [level for level in LEVELS if level in wanted] or LEVELS:
            measure(programs, runsc, level, parts, report)
    except BaseException:
        report.write()
        raise
    report.end()


main()

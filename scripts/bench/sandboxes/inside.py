# SPDX-License-Identifier: Apache-2.0
"""What goes on inside a sandbox, through the API: streams, small files, and what process 1 costs."""

import glob
import os
import time

from bare import Bare

STREAM_BYTES = 256 << 20
STREAMS = 3
ROUNDS = 200
# A Python process whose heap holds this, and how often it is kept and brought back.
HEAP = 50 << 20
KEEPS = 10
# Process 1 as the sandbox's own view names it (`inside::SANDBOXD` of the shim).
PROCESS_ONE = b"/opt/postern/sandboxd\0"
# Until a process that was brought back has to have gone on.
GOES_ON = "10s"
HELD = f"import os,time\nheap=os.urandom(1<<20)*{HEAP >> 20}\nwhile True:\n    print(len(heap), flush=True)\n    time.sleep(0.002)\n"


def quantile(values, part):
    """Nearest rank."""
    return sorted(values)[max(0, -(-len(values) * part // 100) - 1)]


def stream(up, sandbox):
    """Bytes a second of a command's output as the API's client gets it, events decoded."""
    answer = up.begin("POST", f"/sandbox/{sandbox}/exec", {"command": ["head", "-c", str(STREAM_BYTES), "/dev/zero"]})
    got, begun, rest = 0, None, b""
    while chunk := answer.read(1 << 20):
        begun = begun or time.perf_counter()
        rest += chunk
        *lines, rest = rest.split(b"\n")
        # Base64 of whole groups of three but for the end of each event: counted, as decoding here would
        # measure Python.
        for line in lines:
            if line.startswith(b'data: {"data":"'):
                text = line[15:-2]
                got += len(text) // 4 * 3 - text[-2:].count(b"=")
    took = time.perf_counter() - begun
    if got != STREAM_BYTES:
        raise SystemExit(f"{got} bytes came of {STREAM_BYTES}")
    return got / took


def octets(up, method, path, body=None):
    headers = {"Authorization": f"Bearer {up.key}", "Content-Type": "application/octet-stream"}
    up.connection().request(method, path, body, headers)
    answer = up.connection().getresponse()
    content = answer.read()
    if answer.status >= 300:
        raise SystemExit(f"{method} {path}: {answer.status} {content[:300]}")
    return content


def timed(act):
    begun = time.perf_counter()
    act()
    return (time.perf_counter() - begun) * 1000


def resident(run, sandbox):
    """What process 1 of a namespace sandbox holds; gVisor's is within its own kernel."""
    for status in glob.glob("/proc/[0-9]*/status"):
        folder = os.path.dirname(status)
        try:
            line = open(f"{folder}/cmdline", "rb").read()
            # The runtime's own line names the sandbox; process 1 has its descendants' place below it.
            if not line.startswith(PROCESS_ONE) or not is_below(int(os.path.basename(folder)), f"{run}/{sandbox}"):
                continue
            text = open(status).read()
            return next(int(row.split()[1]) for row in text.splitlines() if row.startswith("VmRSS:")) / 1000
        except (OSError, StopIteration):
            continue
    raise SystemExit(f"process 1 of {sandbox} was not found; run this as root")


def is_below(pid, name):
    while pid > 1:
        if name.encode() in open(f"/proc/{pid}/cmdline", "rb").read():
            return True
        pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
    return False


def goes_on(up, sandbox):
    """The process that was kept is the one that runs, and it writes: else it was no restore that was timed."""
    script = "kill -0 $(cat /data/scratch/pid) || exit 1; was=$(stat -c %s /data/scratch/out); until [ $(stat -c %s /data/scratch/out) -gt $was ]; do sleep 0.01; done"
    ran = up.call("POST", f"/sandbox/{sandbox}/exec", {"command": ["sh", "-c", script], "collect": True, "timeout": GOES_ON})
    if ran.get("exit_code") != 0:
        raise SystemExit(f"the process did not go on after a resume: {ran}")


def keep(up, report):
    """A sandbox with 50 MB of Python to disk and back, sealed, beside runsc's own checkpoint and restore."""
    sandbox = up.create("cold", "?wait=running")
    body = {"command": ["sh", "-c", f"python3 -I -S -c '{HELD}' >/data/scratch/out 2>&1 & echo $! >/data/scratch/pid; until [ -s /data/scratch/out ]; do sleep 0.01; done"], "collect": True}
    up.call("POST", f"/sandbox/{sandbox}/exec", body)
    goes_on(up, sandbox)
    bare, ours, plain = Bare(up.run, sandbox), ([], []), ([], [])
    for _ in range(KEEPS):
        for rows, took in zip(plain, bare.keep(["/usr/bin/python3", "-I", "-S", "-c", HELD])):
            rows.append(took * 1000)
        ours[0].append(timed(lambda: up.call("POST", f"/sandbox/{sandbox}/stop", {"keep": "memory"})))
        ours[1].append(timed(lambda: up.call("POST", f"/sandbox/{sandbox}/resume", {})))
        goes_on(up, sandbox)
    bare.close()
    for name, ours, plain in zip(("checkpoint", "restore"), ours, plain):
        beside = quantile(plain, 50)
        report.add(f"{name}.gvisor.p50", quantile(ours, 50), "ms", beside, 1.2 * beside)
    up.destroy(sandbox)


def size(programs, report):
    """Of the binary, which is the same at every level."""
    report.add("sandboxd_size", os.path.getsize(f"{programs}/postern-sandboxd") / 1e6, "MB", None, 6)


def measure(up, level, report):
    if level == "gvisor":
        keep(up, report)
    sandbox = up.create("cold", "?wait=running")
    held = resident(up.run, sandbox) if level == "namespaces" else None
    content = b"x" * 1024
    path = f"/sandbox/{sandbox}/files/data/user/small"
    runs, writes, reads = [], [], []
    for _ in range(ROUNDS):
        runs.append(timed(lambda: up.call("POST", f"/sandbox/{sandbox}/exec", {"command": ["/bin/true"], "collect": True})))
        writes.append(timed(lambda: octets(up, "PUT", path, content)))
        reads.append(timed(lambda: octets(up, "GET", path)))
    beside = quantile(runs, 50)
    report.add(f"file_write_1k.{level}.p50", quantile(writes, 50), "ms", beside, 2 * beside)
    report.add(f"file_read_1k.{level}.p50", quantile(reads, 50), "ms", beside, 2 * beside)
    bare = Bare(up.run, sandbox)
    command = ["/usr/bin/head", "-c", str(STREAM_BYTES), "/dev/zero"]
    plain = [bare.pipe(command, STREAM_BYTES) / 1e6 for _ in range(STREAMS)]
    ours = [stream(up, sandbox) / 1e6 for _ in range(STREAMS)]
    bare.close()
    report.least(f"exec_stream.{level}", max(ours), "MB/s", max(plain), 0.5 * max(plain))
    if held is not None:
        report.add("sandboxd_rss", held, "MB", None, 3)
    up.destroy(sandbox)

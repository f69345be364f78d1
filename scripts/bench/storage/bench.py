# SPDX-License-Identifier: Apache-2.0
"""Measures how files are carried beside rclone. Usage: bench.py PROGRAMS RCLONE STORE JSON [--files N] [--tree DIR]

Ours is the whole road: sandbox's slot, sync, gateway, orchestrator, and a store in a folder or versitygw
(STORE). rclone copies the same tree between two folders, or to and from the same versitygw, directly,
with three sets of options; the best of them counts. `cached` is what a sandbox gets that is filled from
what its machine has, the store's folder or the cache; the other figures are taken without that.

The tree is a real one: the first N files of 1 to 64 KiB below DIR, else made up.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.dont_write_bytecode = True

from report import Report  # noqa: E402  (the folder is ours to name first)

ROUNDS = 3
# Files of the tree that the bars are for; with as many, nothing is scaled.
BAR_FILES = 10_000
CHANGES = 60
PARTS = ("small", "s3", "large", "changes", "idle")
IDLE_SECONDS = 60
RCLONE = (
    ("fast-list", "--transfers 32 --checkers 64 --fast-list"),
    ("few", "--transfers 8 --checkers 16"),
    ("no-check", "--transfers 16 --checkers 32 --ignore-checksum --no-check-dest"),
)
# To and from a service; with --no-check-dest rclone 1.76 never ends there.
RCLONE_S3 = RCLONE[:2] + (("no-head", "--transfers 16 --checkers 32 --ignore-checksum --s3-no-head --s3-no-check-bucket"),)


def quantile(values, part):
    """Nearest rank."""
    return sorted(values)[max(0, -(-len(values) * part // 100) - 1)]


def wait(what, found, seconds=120, every=0.005):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        value = found()
        if value is not None:
            return value
        time.sleep(every)
    raise SystemExit(f"bench: {what} did not come about in {seconds} s")


class Up:
    """`postern up` with data of its own."""

    def __init__(self, programs, folder, settings=(), files=None):
        os.makedirs(folder, exist_ok=True)
        self.folder, self.data = folder, os.path.join(folder, "data")
        self.files = files or os.path.join(self.data, "files")
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": folder, **dict(settings)}
        for name in ("API", "API_ADMIN", "GATEWAY", "GATEWAY_ADMIN", "CONTROL"):
            environment[f"POSTERN_{name}_LISTEN"] = "127.0.0.1:0"
        self.log = open(os.path.join(folder, "log"), "wb")
        command = [os.path.join(programs, "postern"), "--data-dir", self.data, "up"]
        self.process = subprocess.Popen(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        written = wait("`postern up`", self.written, 60)
        self.url, self.run, self.admin = written["url"].rstrip("/"), written["run"], written["admin"][0]
        self.key = open(written["key_file"]).read().strip()
        self.call("PUT", "/templates/bench", {"memory": "512MiB", "disk": "4GiB"})

    def written(self):
        if self.process.poll() is not None:
            raise SystemExit(open(os.path.join(self.folder, "log")).read())
        try:
            written = json.load(open(os.path.join(self.data, "connection.json")))
        except (OSError, ValueError):
            return None
        return written if written["pid"] == self.process.pid else None

    def call(self, method, path, body=None, raw=None):
        data = raw if raw is not None else (json.dumps(body).encode() if body is not None else None)
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("Authorization", f"Bearer {self.key}")
        if data is not None:
            request.add_header("Content-Type", "application/octet-stream" if raw is not None else "application/json")
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise SystemExit(f"bench: {method} {path}: {error.code} {error.read().decode()}") from None
        return json.loads(text) if text.strip() else None

    def sandbox(self, user, conversation):
        wish = {"user_id": user, "conversation_id": conversation, "template": "bench"}
        made = self.call("POST", "/sandbox?wait=running", wish)
        if made["status"] != "running":
            raise SystemExit(f"bench: a sandbox did not start: {made}\n{open(os.path.join(self.folder, 'log')).read()[-3000:]}")
        return made["sandbox_id"]

    def exec(self, sandbox, command):
        ran = self.call("POST", f"/sandbox/{sandbox}/exec", {"command": command, "collect": True})
        if ran["exit_code"] != 0:
            raise SystemExit(f"bench: {command}: {ran}")
        return ran["stdout"]

    def destroy(self, sandbox):
        self.call("DELETE", f"/sandbox/{sandbox}")

    def spent(self, phase):
        """Seconds that this phase took so far, and how often."""
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found = {kind: re.search(rf'^postern_sync_seconds_{kind}{{phase="{phase}"}} (\S+)', text, re.M) for kind in ("sum", "count")}
        return tuple(float(found[kind].group(1)) if found[kind] else 0.0 for kind in ("sum", "count"))

    def phase(self, phase, act):
        """What the phase took in `act`, seconds."""
        before = self.spent(phase)[0]
        done = act()
        return self.spent(phase)[0] - before, done

    def kept(self, user, path=""):
        return os.path.join(self.files, "tenants/default/users", user, "files", path)

    def slot(self, sandbox, path=""):
        return os.path.join(self.run, sandbox, "disk/data/user", path)

    def syncs(self, sandbox):
        """Processes of a sandbox's sync: bubblewrap's and the one within."""
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                line = open(f"/proc/{name}/cmdline").read()
                parent = re.search(r"^PPid:\t(\d+)", open(f"/proc/{name}/status").read(), re.M).group(1)
            except (OSError, AttributeError):
                continue
            if f"{self.run}/{sandbox}" in line and "--hostname\0sync" in line:
                found.append(int(name))
            elif int(parent) in found:
                found.append(int(name))
        return found

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(180)


class S3:
    """versitygw over a folder."""

    USER, SECRET = "bench", "a-secret-of-this-benchmark"

    def __init__(self, program, folder):
        self.folder = folder
        os.makedirs(os.path.join(folder, "bucket"))
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        command = [program, "--port", f"127.0.0.1:{self.port}", "--access", self.USER, "--secret", self.SECRET, "--quiet", "posix", folder]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait("versitygw", self.listens, 30)
        self.settings = {
            "STORAGE_BACKEND": "s3",
            "STORAGE_BUCKET": "bucket",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": self.USER,
            "AWS_SECRET_ACCESS_KEY": self.SECRET,
            "AWS_REGION": "us-east-1",
        }
        self.files = os.path.join(folder, "bucket")

    def listens(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return None
        return True

    def remote(self, path):
        """How rclone names a folder of it."""
        return f":s3,provider=Other,force_path_style=true,region=us-east-1,access_key_id={self.USER},secret_access_key={self.SECRET},endpoint='http://127.0.0.1:{self.port}':bucket/{path}"

    def stop(self):
        self.process.kill()
        self.process.wait()


def make_tree(folder, files, low, high, seed=1):
    """A tree like a checked-out project's: folders of some 40 files, sizes spread by their logarithm."""
    rng, total = random.Random(seed), 0
    for number in range(files):
        place = os.path.join(folder, f"d{number // 1000}", f"e{number // 40}")
        os.makedirs(place, exist_ok=True)
        size = int(low * (high / low) ** rng.random())
        with open(os.path.join(place, f"file-{number}.dat"), "wb") as file:
            file.write(rng.randbytes(size))
        total += size
    return total


def real_files(source):
    """Files of 1 to 64 KiB below a folder, in one order whatever the disk's."""
    for place, folders, names in os.walk(source):
        folders.sort()
        for path in (os.path.join(place, name) for name in sorted(names)):
            if os.path.isfile(path) and not os.path.islink(path) and 1 << 10 <= os.path.getsize(path) <= 64 << 10:
                yield path


def copy_tree(source, folder, files):
    """The first so many of them as they lie there; their bytes together, or None if there are fewer."""
    found = list(itertools.islice(real_files(source), files))
    if len(found) < files:
        return None
    for path in found:
        to = os.path.join(folder, os.path.relpath(path, source))
        os.makedirs(os.path.dirname(to), exist_ok=True)
        shutil.copyfile(path, to)
    return sum(os.path.getsize(path) for path in found)


def same(one, other):
    """Whether two trees hold the same files."""
    def digests(folder):
        found = {}
        for place, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(place, name)
                found[os.path.relpath(path, folder)] = hashlib.sha256(open(path, "rb").read()).hexdigest()
        return found

    return digests(one) == digests(other)


def rclone(program, options, source, target):
    if not target.startswith(":"):
        shutil.rmtree(target, ignore_errors=True)
    begun = time.monotonic()
    command = [program, "copy", "--config", "/dev/null", *options.split(), source, target]
    subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={"HOME": "/nonexistent"})
    return time.monotonic() - begun


def best_of_rclone(program, source, target, report, name):
    """Each time to a folder that is not there."""
    best = None
    for label, options in RCLONE_S3 if ":" in source[:1] + target[:1] else RCLONE:
        took = min(rclone(program, options, source, f"{target}-{label}-{number}" if target.startswith(":") else target) for number in range(ROUNDS))
        report.add(f"{name}.rclone.{label}", took, "s")
        best = took if best is None else min(best, took)
    return best


def own(up, sandbox, tree):
    """Puts a tree into a sandbox's slot as its agent would have, while its sync stands still."""
    syncs = wait("the sync", lambda: up.syncs(sandbox) or None)
    for pid in syncs:
        os.kill(pid, signal.SIGSTOP)
    slot = up.slot(sandbox)
    owner = os.stat(slot)
    subprocess.run(["cp", "-a", f"{tree}/.", slot], check=True)
    subprocess.run(["chown", "-R", f"{owner.st_uid}:{owner.st_gid}", slot], check=True)


def small_files(up, tree, times):
    """Seconds of each phase, three times over."""
    for number in range(ROUNDS):
        user = f"small-{number}"
        sandbox = up.sandbox(user, f"flush-{number}")
        own(up, sandbox, tree)
        times["flush"].append(up.phase("flush", lambda: up.destroy(sandbox))[0])
        if number == 0 and not same(tree, up.kept(user)):
            raise SystemExit("bench: what was flushed is not what was there")
        took, sandbox = up.phase("hydrate", lambda: up.sandbox(user, f"hydrate-{number}"))
        times["hydrate"].append(took)
        if number == 0 and not same(tree, up.slot(sandbox)):
            raise SystemExit("bench: what was brought in is not what was there")
        # Nothing changed: a sync that is begun again on the same slot.
        before = up.spent("hydrate")
        for pid in up.syncs(sandbox):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        # How long it took the orchestrator says itself: asked often, it would have to answer meanwhile.
        wait("the sync again", lambda: True if up.spent("hydrate")[1] > before[1] else None, every=0.5)
        times["again"].append(up.spent("hydrate")[0] - before[0])
        up.destroy(sandbox)


def small(given, tree, folder, report, store):
    """Small files into and out of a store, with and without what the machine has at hand."""
    kind = "s3" if store else "local"
    settings, files = (store.settings, store.files) if store else ({}, None)
    plain, cached = ({"flush": [], "hydrate": [], "again": []} for _ in range(2))
    for times, cache in ((plain, "0"), (cached, "10GiB")):
        up = Up(given.programs, os.path.join(folder, f"up-{kind}-{cache}"), {**settings, "POSTERN_FILES_CACHE_SIZE": cache}, files)
        try:
            small_files(up, tree, times)
        finally:
            up.stop()
        if files:
            shutil.rmtree(os.path.join(files, "tenants"))
    if store:
        flush = best_of_rclone(given.rclone, tree, store.remote("rclone"), report, "flush_10k.s3")
        hydrate = best_of_rclone(given.rclone, store.remote("rclone-few-0"), os.path.join(folder, "copy"), report, "hydrate_10k.s3")
    else:
        flush = hydrate = best_of_rclone(given.rclone, tree, os.path.join(folder, "copy"), report, "small_10k.local")
    report.add(f"flush_10k.{kind}", min(plain["flush"]), "s", flush, flush)
    report.add(f"hydrate_10k.{kind}", min(plain["hydrate"]), "s", hydrate, hydrate)
    report.add(f"hydrate_10k.{kind}.cached", min(cached["hydrate"]), "s", hydrate, hydrate)
    # The bar is for 10,000 files: a tree of another number stands for one of that many, and is said to.
    note = None if given.files == BAR_FILES else f"measured with {given.files} files, scaled to {BAR_FILES}"
    report.add(f"hydrate_again.{kind}", min(plain["again"]) * 1000 * BAR_FILES / given.files, "ms", None, 300, note=note)


def make_large(folder):
    """Five files of 200 MiB."""
    tree = os.path.join(folder, "large")
    os.makedirs(tree)
    for number in range(5):
        with open(os.path.join(tree, f"large-{number}"), "wb") as file:
            for _ in range(200):
                file.write(random.Random(number).randbytes(1 << 20))
    return tree


def large(given, tree, folder, report, store):
    """Large files into and out of a store, without what the machine has at hand."""
    kind = "s3" if store else "local"
    settings, files = (store.settings, store.files) if store else ({}, None)
    up, flushed, hydrated = Up(given.programs, os.path.join(folder, f"up-large-{kind}"), {**settings, "POSTERN_FILES_CACHE_SIZE": "0"}, files), [], []
    try:
        for number in range(ROUNDS):
            user = f"large-{number}"
            sandbox = up.sandbox(user, f"flush-{number}")
            own(up, sandbox, tree)
            flushed.append(up.phase("flush", lambda: up.destroy(sandbox))[0])
            took, sandbox = up.phase("hydrate", lambda: up.sandbox(user, f"hydrate-{number}"))
            hydrated.append(took)
            up.destroy(sandbox)
            up.call("DELETE", f"/users/{user}")
    finally:
        up.stop()
    name, copy = f"big_5x200MB.{kind}", os.path.join(folder, "copy")
    if store:
        flush = best_of_rclone(given.rclone, tree, store.remote("rclone"), report, f"{name}.flush")
        for copied in os.listdir(files):
            if copied != "rclone-few-0":
                shutil.rmtree(os.path.join(files, copied))
        hydrate = best_of_rclone(given.rclone, store.remote("rclone-few-0"), copy, report, f"{name}.hydrate")
    else:
        flush = hydrate = best_of_rclone(given.rclone, tree, copy, report, name)
    for what, own_time, theirs in (("flush", min(flushed), flush), ("hydrate", min(hydrated), hydrate)):
        report.least(f"{name}.{what}", 1000 / own_time, "MiB/s", 1000 / theirs, 0.8 * 1000 / theirs)


def changes(up, report):
    sandbox, lags = up.sandbox("changes", "changes"), []
    for number in range(CHANGES):
        name = f"f{number % 7}"
        up.exec(sandbox, f"echo {number} > /data/user/{name}")
        path = up.kept("changes", name)

        def there():
            try:
                return True if open(path).read() == f"{number}\n" else None
            except OSError:
                return None

        wait("a change in the store", there, 30)
        # From the write itself: the command's end, and the answer that tells of it, come later.
        lags.append(time.time() - os.stat(up.slot(sandbox, name)).st_mtime)
    report.add("change_to_store.p50", quantile(lags, 50), "s")
    report.add("change_to_store.p95", quantile(lags, 95), "s", None, 1.0)
    seen = []
    for number in range(CHANGES // 3):
        up.call("PUT", f"/users/changes/files/direct-{number}", raw=b"hello")
        begun, path = time.monotonic(), up.slot(sandbox, f"direct-{number}")
        wait("a file of the direct API", lambda: True if os.path.exists(path) else None, 30)
        seen.append(time.monotonic() - begun)
    report.add("direct_to_sandbox.p95", quantile(seen, 95), "s", None, 2.0)
    return sandbox


def idle(up, tree, report):
    sandbox = up.sandbox("idle", "idle")
    own(up, sandbox, tree)
    for pid in up.syncs(sandbox):
        os.kill(pid, signal.SIGCONT)
    count = sum(len(names) for _, _, names in os.walk(tree))
    wait("all files in the store", lambda: True if sum(len(n) for _, _, n in os.walk(up.kept("idle"))) >= count else None, 300)
    time.sleep(10)
    pid = up.syncs(sandbox)[-1]

    def ticks():
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before, begun = ticks(), time.monotonic()
    time.sleep(IDLE_SECONDS)
    spent = (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - begun)
    pss = re.search(r"^Pss:\s+(\d+)", open(f"/proc/{pid}/smaps_rollup").read(), re.M).group(1)
    report.add("watch_idle.memory", int(pss) * 1024 / 1e6, "MB", None, 30)
    report.add("watch_idle.cpu", spent * 100, "%", None, 0.1)


def with_s3(given, folder, act):
    with tempfile.TemporaryDirectory(prefix="s3-", dir=folder) as kept:
        store = S3(given.store, kept)
        try:
            act(store)
        finally:
            store.stop()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("programs")
    parser.add_argument("rclone")
    parser.add_argument("store")
    parser.add_argument("json")
    parser.add_argument("--files", type=int, default=BAR_FILES)
    parser.add_argument("--tree", default=os.path.join(os.environ.get("CARGO_HOME") or os.path.expanduser("~/.cargo"), "registry/src"))
    parser.add_argument("--only", default=",".join(PARTS))
    given = parser.parse_args()
    only, report = given.only.split(","), Report(given.json)
    if not set(only) <= set(PARTS):
        raise SystemExit(f"bench: --only takes {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="postern-bench-") as folder:
        os.chmod(folder, 0o711)
        tree = os.path.join(folder, "tree")
        total, source = copy_tree(given.tree, tree, given.files), f"of {given.tree}"
        if total is None:
            total, source = make_tree(tree, given.files, 1 << 10, 64 << 10), "made up"
        print(f"{given.files} files of 1 to 64 KiB, {source}, {total / 2**20:.0f} MiB", flush=True)
        for label, options in RCLONE + RCLONE_S3[2:]:
            print(f"rclone {label}: {options}", flush=True)
        if "small" in only:
            small(given, tree, folder, report, None)
        if "s3" in only:
            with_s3(given, folder, lambda store: small(given, tree, folder, report, store))
        if "large" in only:
            of_large = make_large(folder)
            large(given, of_large, folder, report, None)
            with_s3(given, folder, lambda store: large(given, of_large, folder, report, store))
        if {"changes", "idle"} & set(only):
            up = Up(given.programs, os.path.join(folder, "up"), {"POSTERN_FILES_CACHE_SIZE": "0"})
            try:
                if "changes" in only:
                    changes(up, report)
                if "idle" in only:
                    idle(up, tree, report)
            finally:
                up.stop()
    report.end()


if __name__ == "__main__":
    sys.exit(main())

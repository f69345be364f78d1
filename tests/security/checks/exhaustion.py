# SPDX-License-Identifier: Apache-2.0
"""Taking all there is: each must end at a bound. Whether this machine and a neighbour are
unharmed is looked at from outside, after each.

Each attempt takes somewhat more than the sandbox is allowed and calls that reached; outside,
the same succeeds. All of these break their sandbox, so they run in ones of their own.
"""

import errno
import mmap
import os
import resource
import signal
import tempfile
import threading
import time

from core import Stopped, check
from files import NEEDS_ROOT

MIB = 1 << 20


def fork_many(count):
    """Forks until refused; ends them all."""
    children = []
    try:
        for _ in range(count):
            child = os.fork()
            if child == 0:
                signal.pause()
                os._exit(0)
            children.append(child)
    except OSError as error:
        raise Stopped(f"{errno.errorcode[error.errno]} after {len(children)} processes") from None
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return f"made {count} processes"


@check("a fork bomb", "the pids cgroup; gVisor's RLIMIT_NPROC", breaks=True)
def fork_bomb(target):
    return fork_many(target["limits"]["pids"] + 16)


@check("a fork bomb that forks from its children", "the pids cgroup; gVisor's RLIMIT_NPROC", breaks=True)
def nested_fork_bomb(target):
    reader, writer = os.pipe()
    wanted = target["limits"]["pids"] + 16
    # A tree, not a chain: the kernel takes longer for each fork the deeper its parent stands.
    if os.fork() == 0:
        grow(writer, wanted.bit_length())
    reached, rest = 0, b""
    while reached < wanted:
        *lines, rest = (rest + os.read(reader, 4096)).split(b"\n")
        for number in map(int, lines):
            if number:
                raise Stopped(f"{errno.errorcode[number]} after {reached} processes")
            reached += 1
    return f"made a tree of {reached} processes"


def grow(writer, depth):
    """Tells of itself, then of the error that ended it; every process of it stays, and is killed with its group."""
    os.write(writer, b"0\n")
    for _ in range(2 if depth > 1 else 0):
        try:
            child = os.fork()
        except OSError as error:
            os.write(writer, b"%d\n" % error.errno)
            break
        if child == 0:
            grow(writer, depth - 1)
    while True:
        signal.pause()


@check("threads without end", "the pids cgroup; gVisor's RLIMIT_NPROC", breaks=True)
def threads(target):
    end, made = threading.Event(), 0
    threading.stack_size(64 << 10)
    try:
        for made in range(target["limits"]["pids"] + 16):
            threading.Thread(target=end.wait, daemon=True).start()
    except RuntimeError:
        raise Stopped(f"EAGAIN after {made} threads") from None
    finally:
        end.set()
    return f"made {made + 1} threads"


@check("memory of one process", "the memory cgroup", breaks=True)
def memory(target):
    size = target["limits"]["memory"] + 96 * MIB
    held = mmap.mmap(-1, size)
    for offset in range(0, size, mmap.PAGESIZE):
        held[offset] = 1
    return f"holds {size // MIB} MiB"


@check("memory that no process maps (memfd)", "the memory cgroup", breaks=True, also={errno.ENOSPC})
def hidden_memory(target):
    file = os.memfd_create("postern-escape")
    block = bytes(MIB)
    size = target["limits"]["memory"] // MIB + 96
    for _ in range(size):
        os.write(file, block)
    return f"holds {size} MiB"


def fill(folder, size):
    block, written, paths = bytes(MIB), 0, []
    try:
        while written < size:
            paths.append(os.path.join(folder, f"postern-fill-{len(paths)}"))
            with open(paths[-1], "wb", buffering=0) as file:
                for _ in range(64):
                    written += file.write(block)
    except OSError as error:
        raise Stopped(f"{errno.errorcode[error.errno]} after {written // MIB} MiB") from None
    finally:
        for path in paths:
            os.unlink(path)
    return f"wrote {written // MIB} MiB"


@check("filling /tmp, which is memory", "the size of the mount; the memory cgroup", breaks=True)
def fill_tmp(target):
    folder = target["scratch"] if target["is_control"] else "/tmp"
    return fill(folder, target["limits"]["memory"] + 96 * MIB)


@check("filling /dev/shm, which is memory", "the size of the mount; the memory cgroup", breaks=True)
def fill_shm(target):
    return fill("/dev/shm", target["limits"]["memory"] + 96 * MIB)


@check("filling the slot's disk", "an image of the limit's size", breaks=True)
def fill_disk(target):
    return fill(target["scratch"], target["limits"]["disk"] + 64 * MIB)


@check("one sparse file larger than this machine's disk", "the slot's own file system", breaks=True,
       also={errno.EFBIG, errno.ENOSPC, errno.EDQUOT})
def reserve_disk(target):
    with tempfile.NamedTemporaryFile(dir=target["scratch"]) as file:
        os.posix_fallocate(file.fileno(), 0, target["limits"]["disk"] + 64 * MIB)
    return "reserved more than the limit"


@check("inodes: small files without end", "the slot's own file system", breaks=True)
def inodes(target):
    folder = tempfile.mkdtemp(dir=target["scratch"])
    before = os.statvfs(folder)
    # What the slot has and some more, but within a bound: a big slot is judged by its own count.
    wanted = min(before.f_files + 16, 100_000) if not target["is_control"] else target["inodes"]
    made = 0
    try:
        for made in range(wanted):
            os.close(os.open(f"{folder}/{made}", os.O_CREAT | os.O_WRONLY))
    except OSError as error:
        raise Stopped(f"{errno.errorcode[error.errno]} after {made} files") from None
    finally:
        for name in os.listdir(folder):
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)
    if not target["is_control"] and 0 < before.f_files < target["host_inodes"]:
        raise Stopped(f"{made + 1} of its own {before.f_files} inodes; this machine's disk has others")
    return f"made {made + 1} files"


def raise_to(limit, value):
    try:
        resource.setrlimit(limit, (value, value))
    except ValueError:  # How Python says that it was not permitted.
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM)) from None


@check("open files beyond the bound of a process", "RLIMIT_NOFILE", excused=NEEDS_ROOT,
       breaks=True, also={errno.EINVAL})
def open_files(target):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if not 0 < hard <= MIB:
        return f"a process may open {hard} files"
    raise_to(resource.RLIMIT_NOFILE, hard + 1)
    return f"raised {hard} to {hard + 1}"


@check("raising other limits of one's own (setrlimit)", "no capability", excused=NEEDS_ROOT,
       breaks=True)
def raise_limits(target):
    resource.setrlimit(resource.RLIMIT_NPROC, (7, 7))
    raise_to(resource.RLIMIT_NPROC, resource.RLIM_INFINITY)
    return "raised RLIMIT_NPROC"


@check("all processors, with four processes that never rest", "the cpu cgroup", breaks=True,
       excused={0: "this machine is too small or too busy to give more than the limit"})
def processors(target):
    allowed = target["limits"]["cpu"] / 1000
    if target["is_control"]:
        try:
            os.nice(-15)  # This machine may be busy; as root the control makes itself heard.
        except OSError:
            pass
    begun = time.monotonic()
    before = os.times()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            while time.monotonic() < begun + 2:
                pass
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    after = os.times()
    used = (after.children_user + after.children_system - before.children_user - before.children_system)
    share = used / (time.monotonic() - begun)
    if share <= allowed * 1.3:
        raise Stopped(f"{share:.2f} processors of {allowed:.2f} allowed")
    return f"took {share:.2f} processors"

# SPDX-License-Identifier: Apache-2.0
"""What every check of the escape suite is made of.

A check is one attempt to get at something outside, written once and run twice: inside a sandbox,
where a wall must stop it, and as its control where that wall is missing, where it must succeed.
An attempt returns what it reached, or raises what stopped it. It knows nothing of either place
but the `target` that it is given: ports, paths and process ids that were made for it.

This file and the tables beside it are sent into the sandbox as they are, so they use nothing
but Python's standard library and raw system calls.
"""

import collections
import ctypes
import dataclasses
import errno
import hashlib
import json
import os
import platform
import select
import signal
import time

# Only these mean "no". EINVAL, EFAULT or EBADF would mean that the attempt itself was wrong, and
# a time-out that something may well have left; both are `undecided` and fail the suite.
REFUSALS = {
    errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOENT, errno.ESRCH, errno.EROFS, errno.ENXIO, errno.ENODEV,
    errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ECONNREFUSED, errno.EAFNOSUPPORT,
    errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EOPNOTSUPP, errno.ENOTDIR,
}
ATTEMPT_SECONDS = 60


class Stopped(Exception):
    """A wall that is not an error of a system call; its text says which."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One row of the table."""

    name: str
    tried: str
    wall: str
    attempt: collections.abc.Callable
    # Where the control runs: `host` (a plain process), `world` (a throw-away set of namespaces in
    # which we are root), `neighbour` (inside the sandbox that is attacked), on a cluster `pod` (in a
    # pod without walls) and `inward` (from there, into such a pod; the attempt goes into a sandbox).
    control: str
    # Whether a sandbox with a kernel of its own may grant this: it is then that kernel's, not ours.
    own_kernel: bool
    # Further error numbers that mean "no" for this attempt.
    also: frozenset
    # Error numbers of a control that excuse it, because this machine lacks the feature: {number: reason}.
    excused: dict
    # Runs in a sandbox of its own, which it may break.
    breaks: bool


TABLE = {}


def check(tried, wall, control="host", own_kernel=False, also=(), excused=None, breaks=False):
    """Adds an attempt to the table, as GROUP/NAME after its module and function."""

    def add(attempt):
        name = f"{attempt.__module__.rpartition('.')[2]}/{attempt.__name__.replace('_', '-')}"
        TABLE[name] = Check(name, tried, wall, attempt, control, own_kernel, frozenset(also), excused or {}, breaks)
        return attempt

    return add


def outcome(entry, target):
    """Runs an attempt in a process of its own, within a time: what it does to itself ends with it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setpgid(0, 0)
        os.write(writer, json.dumps(_try(entry, target)).encode()[:4000])
        os._exit(0)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], ATTEMPT_SECONDS)
    said = os.read(reader, 65536) if ready else b""
    os.close(reader)
    kill_group(child)
    _, status = os.waitpid(child, 0)
    if said:
        return json.loads(said)
    if not ready:
        return {"outcome": "undecided", "how": f"no answer within {ATTEMPT_SECONDS} s"}
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in (signal.SIGSYS, signal.SIGKILL):
        return {"outcome": "stopped", "how": f"killed by {signal.Signals(number).name}"}
    return {"outcome": "undecided", "how": f"ended without a word (status {status})"}


def _try(entry, target):
    try:
        return {"outcome": "reached", "how": str(entry.attempt(target))[:400]}
    except Stopped as wall:
        return {"outcome": "stopped", "how": str(wall)[:400]}
    except OSError as error:
        number = error.errno or 0
        name = errno.errorcode.get(number, type(error).__name__)
        kind = "stopped" if number in REFUSALS or number in entry.also else "undecided"
        return {"outcome": kind, "how": f"{name} ({error.strerror or error})", "errno": number}
    except MemoryError:
        return {"outcome": "stopped", "how": "ENOMEM (no memory is given)"}
    except Exception as mistake:  # A bug of the attempt must fail the suite, not end it.
        return {"outcome": "undecided", "how": f"{type(mistake).__name__}: {mistake}"}


def kill_group(leader):
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass


def main(names, target):
    """What runs inside: one JSON line for each check, as soon as it is known."""
    for name in names:
        print(json.dumps({"name": name, **outcome(TABLE[name], target)}), flush=True)


def digest(value):
    """Secrets are compared by digest, so that no attempt finds them in its own arguments."""
    return hashlib.sha256(value if isinstance(value, bytes) else value.encode()).hexdigest()


def until(condition, seconds=2.0):
    """Waits for a condition, at most this long, and returns its last value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


# Raw system calls. ------------------------------------------------------------------------------

_NUMBERS = {  # name: (x86_64, aarch64)
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "unshare": (272, 97), "setns": (308, 268), "clone3": (435, 435), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "fsopen": (430, 430), "open_tree": (428, 428),
    "bpf": (321, 280), "perf_event_open": (298, 241), "add_key": (248, 217), "keyctl": (250, 219),
    "io_uring_setup": (425, 425), "kexec_file_load": (320, 294), "finit_module": (313, 273), "userfaultfd": (323, 282),
    "personality": (135, 92), "reboot": (169, 142), "adjtimex": (159, 171), "sethostname": (170, 161),
    "syslog": (103, 116), "swapon": (167, 224), "ioperm": (173, None), "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "setpriority": (141, 140),
}
_LIBC = ctypes.CDLL(None, use_errno=True)


def syscall(name, *arguments):
    """Makes a system call; an error is raised as OSError. Bytes are passed as pointers to them."""
    number = _NUMBERS[name][0 if platform.machine() == "x86_64" else 1]
    if number is None:
        raise OSError(errno.ENOSYS, "not a call of this processor")
    passed = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) if isinstance(a, int) else a
              for a in arguments]
    ctypes.set_errno(0)
    result = _LIBC.syscall(ctypes.c_long(number), *passed)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def past(permission_errors, name, *arguments):
    """A call with arguments that do nothing: these errors come only after the permission was given."""
    try:
        syscall(name, *arguments)
    except OSError as error:
        if error.errno not in permission_errors:
            raise
    return f"{name} was permitted"

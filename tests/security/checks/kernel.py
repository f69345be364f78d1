# SPDX-License-Identifier: Apache-2.0
"""Processes of this machine, and the parts of its kernel that agents have no business with."""

import ctypes
import errno
import os
import signal
import socket
import struct

from core import Stopped, check, digest, past, syscall
from files import NEEDS_ROOT, first, open_for_writing

UNDUMPABLE = "process 1 is undumpable; seccomp"
OWN_PIDS = "a process namespace of its own"
SECCOMP = "seccomp; or another kernel answers"
PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17
CLONE_NEWUSER = 0x10000000


def seize(pid):
    syscall("ptrace", PTRACE_SEIZE, pid, 0, 0)
    return f"tracing {pid}"


@check("tracing process 1 (ptrace)", UNDUMPABLE, "world")
def trace_first(target):
    return seize(1)


@check("tracing a process of this machine (ptrace)", OWN_PIDS)
def trace_host(target):
    return seize(target["victim"])


@check("the memory of process 1, where the session token is (process_vm_readv)", UNDUMPABLE, "world")
def memory_of_first(target):
    local = ctypes.create_string_buffer(8)
    remote = ctypes.create_string_buffer(8)  # In a forked child the parent has the same address.
    here, there = (struct.pack("=QQ", ctypes.addressof(buffer), 8) for buffer in (local, remote))
    return f"read {syscall('process_vm_readv', 1, here, 1, there, 1, 0)} bytes"


@check("the memory of process 1 (/proc/1/mem, maps)", UNDUMPABLE, "world")
def mem_of_first(target):
    return first([lambda: f"opened {os.open('/proc/1/mem', os.O_RDONLY)}",
                  lambda: f"read {len(nonempty('/proc/1/maps'))} bytes of maps"])


def nonempty(path):
    with open(path, "rb") as file:
        text = file.read()
    if not text:
        raise Stopped(f"{path} is empty")
    return text


@check("the environment of process 1", UNDUMPABLE, "world")
def environment_of_first(target):
    return f"read {len(nonempty('/proc/1/environ'))} bytes"


@check("the open files of process 1 (/proc/1/fd)", UNDUMPABLE, "world")
def descriptors_of_first(target):
    for number in os.listdir("/proc/1/fd"):
        return f"descriptor {number} is {os.readlink(f'/proc/1/fd/{number}')}"
    raise Stopped("none is shown")


@check("taking a descriptor of process 1 (pidfd_getfd)", UNDUMPABLE, "world")
def steal_descriptor(target):
    return f"took {syscall('pidfd_getfd', syscall('pidfd_open', 1, 0), 0, 0)}"


@check("a session token in any process's environment, arguments or files", "the token is in process 1's memory only",
       "world")
def token_in_sight(target):
    places = [f"/proc/{pid}/{name}" for pid in os.listdir("/proc") if pid.isdigit() for name in ("environ", "cmdline")]
    for folder in ("/run", "/data", "/home", "/tmp", "/opt", "/etc"):
        places += [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names][:2000]
    begin = b"eyJ" + b"hbGciOi"  # How every JSON web token begins; in two parts, not to find itself.
    for place in places:
        try:
            if not os.path.islink(place) and (place.startswith("/proc") or os.path.isfile(place)):
                with open(place, "rb") as file:
                    if begin in file.read(1 << 20):
                        return f"a token is in {place}"
        except OSError:
            continue  # What cannot be read gives nothing away.
    raise Stopped(f"none in {len(places)} places")


@check("signalling a process of this machine", OWN_PIDS)
def signal_host(target):
    os.kill(target["victim"], 0)
    with open(f"/proc/{target['victim']}/cmdline", "rb") as file:
        if not any(digest(word) == target["victim_digest"] for word in file.read().split(b"\0")):
            raise Stopped("a process inside has that number")
    return f"may signal {target['victim']}"


@check("seeing a process of this machine in /proc", OWN_PIDS)
def see_host(target):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if any(digest(word) == target["victim_digest"] for word in file.read().split(b"\0")):
                    return f"process {pid} is it"
        except OSError:
            continue
    raise Stopped("it is not among them")


@check("a user namespace, to be root in it (unshare)", SECCOMP, "world", own_kernel=True)
def user_namespace(target):
    return f"made {syscall('unshare', CLONE_NEWUSER)}"


@check("a user namespace by clone3, whose flags no filter sees", SECCOMP, "world", own_kernel=True)
def user_namespace_clone3(target):
    arguments = struct.pack("=8Q", CLONE_NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    child = syscall("clone3", arguments, len(arguments))
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return f"made {child}"


@check("the namespaces of process 1 (setns)", UNDUMPABLE + "; no capability", "world", also={errno.EINVAL})
def enter_namespace(target):
    kinds = ("mnt", "net", "pid", "uts", "ipc")
    return first(lambda kind=kind: f"entered {kind} {syscall('setns', os.open(f'/proc/1/ns/{kind}', os.O_RDONLY), 0)}"
                 for kind in kinds)


@check("a bpf map", SECCOMP, excused=NEEDS_ROOT)
def bpf(target):
    attributes = struct.pack("=4I", 2, 4, 4, 1) + bytes(112)
    return f"made {syscall('bpf', 0, attributes, len(attributes))}"


@check("counting this machine's events (perf_event_open)", SECCOMP, excused={
    **NEEDS_ROOT, errno.ENOENT: "this kernel has no such counter", errno.ENOSYS: "this kernel has no perf"})
def perf(target):
    attributes = struct.pack("=IIQ", 1, 112, 0) + bytes(96)
    return f"opened {syscall('perf_event_open', attributes, -1, 0, -1, 0)}"


@check("a key in the kernel's keyring", SECCOMP, own_kernel=True, excused={errno.ENOSYS: "this kernel has no keyrings"})
def keyring(target):
    return f"added {syscall('add_key', b'user', b'postern-escape', b'x', 1, -2)}"  # The process's own ring.


@check("reading the session keyring (keyctl)", SECCOMP, own_kernel=True, excused={errno.ENOSYS: "this kernel has no keyrings"})
def session_keyring(target):
    return f"is {syscall('keyctl', 0, -3, 1)}"


@check("io_uring", SECCOMP, excused={
    errno.ENOSYS: "this kernel has no io_uring", errno.EPERM: "io_uring is turned off on this machine"})
def io_uring(target):
    return f"made {syscall('io_uring_setup', 1, ctypes.create_string_buffer(120))}"


@check("another kernel (kexec_file_load)", SECCOMP, excused={**NEEDS_ROOT, errno.ENOSYS: "this kernel has no kexec"})
def kexec(target):
    return past({errno.EBADF, errno.EINVAL}, "kexec_file_load", -1, -1, 0, b"", 0)


@check("a kernel module (finit_module)", SECCOMP, excused={**NEEDS_ROOT, errno.ENOSYS: "this kernel has no modules"})
def module(target):
    return past({errno.EBADF, errno.ENOEXEC, errno.EINVAL}, "finit_module", -1, b"", 0)


@check("userfaultfd, the tool of many kernel exploits", SECCOMP, excused={
    **NEEDS_ROOT, errno.ENOSYS: "this kernel has no userfaultfd"})
def userfaultfd(target):
    return f"opened {syscall('userfaultfd', 0)}"


@check("another execution domain (personality)", SECCOMP, own_kernel=True, also={errno.EINVAL})
def personality(target):
    return f"was {syscall('personality', 0x0400000)}"  # READ_IMPLIES_EXEC.


@check("rebooting this machine", SECCOMP + "; no capability", excused=NEEDS_ROOT)
def reboot(target):
    return past({errno.EINVAL}, "reboot", 1, 2, 3, 0)  # Not the magic numbers: nothing reboots.


@check("setting this machine's clock (adjtimex)", SECCOMP + "; no capability", excused=NEEDS_ROOT)
def clock(target):
    state = ctypes.create_string_buffer(256)
    try:
        syscall("adjtimex", state)
    except OSError:
        pass  # Even asking is refused here; so must be the next.
    tick = struct.unpack_from("=q", state, 88)[0] or 10000
    state = ctypes.create_string_buffer(256)
    struct.pack_into("=I", state, 0, 0x4000)  # ADJ_TICK, to what it is.
    struct.pack_into("=q", state, 88, tick)
    return f"was permitted {syscall('adjtimex', state)}"


@check("this machine's name (sethostname)", SECCOMP + "; no capability", "world")
def hostname(target):
    return f"was permitted {syscall('sethostname', b'escaped', 7)}"


@check("this machine's kernel log (syslog)", SECCOMP, excused=NEEDS_ROOT, own_kernel=True)
def kernel_log(target):
    return f"read {syscall('syslog', 3, ctypes.create_string_buffer(64), 64)} bytes"


@check("swapping to a file (swapon)", SECCOMP + "; no capability", excused=NEEDS_ROOT)
def swap(target):
    # Whoever may swap is told that this is a folder; others are refused first.
    return past({errno.EINVAL, errno.EISDIR}, "swapon", b"/", 0)


@check("the ports of this machine's hardware (ioperm)", SECCOMP + "; no capability", excused={
    **NEEDS_ROOT, errno.ENOSYS: "not a call of this processor or kernel"})
def hardware_ports(target):
    return f"was permitted {syscall('ioperm', 0x80, 1, 1)}"


@check("watching all file access (fanotify_init)", SECCOMP + "; no capability", excused={
    **NEEDS_ROOT, errno.ENOSYS: "this kernel has no fanotify"})
def fanotify(target):
    return f"opened {syscall('fanotify_init', 0, 0)}"


@check("the kernel's crypto by socket (AF_ALG)", SECCOMP, excused={
    errno.EAFNOSUPPORT: "this kernel offers no crypto sockets"})
def crypto_socket(target):
    with socket.socket(38, socket.SOCK_SEQPACKET) as attempt:
        return f"opened {attempt.fileno()}"


@check("any capability", "all capabilities are dropped", "world")
def capabilities(target):
    with open("/proc/self/status") as status:
        sets = {line.split()[0]: int(line.split()[1], 16) for line in status if line.startswith("Cap")}
    held = [name.rstrip(":") for name, value in sets.items() if value]
    if not held:
        raise Stopped("all five sets are empty")
    return f"{held} hold {max(sets.values()):#x}"


@check("real-time priority (sched_setscheduler)", "no capability; RLIMIT_RTPRIO", excused=NEEDS_ROOT, own_kernel=True,
       also={errno.EINVAL})
def real_time(target):
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    return "runs before every other process"


@check("a higher priority than this machine's processes (setpriority)", "no capability", excused=NEEDS_ROOT,
       own_kernel=True)
def priority(target):
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    return "nice is -20"


@check("being spared when memory runs out (oom_score_adj)", "no capability", excused=NEEDS_ROOT, own_kernel=True)
def out_of_memory_score(target):
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")
    return "is never killed"

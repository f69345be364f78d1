# SPDX-License-Identifier: Apache-2.0
"""Another sandbox of the same machine and tenant: nothing of it can be seen or touched.

The controls run the same attempt inside that other sandbox, or where all sandboxes lie.
"""

import ctypes
import errno
import os
import socket
import sys

from core import Stopped, check, digest
from files import NEEDS_ROOT, first, is_secret
from network import connect

OWN = "namespaces of its own for each sandbox"
IPC_CREAT = 0o1000
_LIBC = ctypes.CDLL(None, use_errno=True)


def called(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def live(token):
    """What the suite leaves running in the neighbour: one of everything that others could want.

    Prints `ready` and stays, without a terminal or pipe, until its sandbox ends."""
    port, open_port = 39871, 39872
    for path in ("/tmp", "/dev/shm", "/data/user", "/data/scratch", "/home/user"):
        with open(f"{path}/postern-neighbour", "w") as file:
            file.write(token)
    # The second is for whoever could come by network; where there is only loopback, nobody can.
    listeners = [socket.create_server(("127.0.0.1", port)), socket.create_server(("0.0.0.0", open_port))]
    for address in ("\0postern-neighbour", "/tmp/postern-neighbour.sock"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen()
        listeners.append(listener)
    for listener in listeners:
        listener.set_inheritable(True)
    called(_LIBC.shmget(0x504F5354, 4096, IPC_CREAT | 0o666))
    try:
        called(_LIBC.msgget(0x504F5354, IPC_CREAT | 0o666))
    except OSError:
        pass  # Not every kernel has queues; the control says so.
    if os.fork():
        return
    os.setsid()
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    while True:
        os.execv(sys.executable, [sys.executable, "-I", "-c", "import time; time.sleep(3600)", "postern-neighbour"])


@check("TCP to a server on the neighbour's loopback", OWN, "neighbour")
def loopback(target):
    return connect(socket.AF_INET, ("127.0.0.1", 39871))


@check("the neighbour's abstract unix socket", OWN, "neighbour")
def abstract_socket(target):
    return connect(socket.AF_UNIX, "\0postern-neighbour")


@check("the neighbour's unix socket in /tmp", OWN, "neighbour")
def socket_in_tmp(target):
    return connect(socket.AF_UNIX, "/tmp/postern-neighbour.sock")


@check("the neighbour's user files at the same path", "a slot of its own for each sandbox", "neighbour")
def user_files(target):
    return is_secret("/data/user/postern-neighbour", target["neighbour_digest"])


@check("the neighbour's scratch and home", "a slot of its own for each sandbox", "neighbour")
def scratch(target):
    return first(lambda path=path: is_secret(f"{path}/postern-neighbour", target["neighbour_digest"])
                 for path in ("/data/scratch", "/home/user"))


@check("the neighbour's /tmp and /dev/shm", "mounts of their own for each sandbox", "neighbour")
def shared_memory_files(target):
    return first(lambda path=path: is_secret(f"{path}/postern-neighbour", target["neighbour_digest"])
                 for path in ("/tmp", "/dev/shm"))


@check("the neighbour's System V shared memory", OWN, "neighbour")
def shared_memory(target):
    return f"is segment {called(_LIBC.shmget(0x504F5354, 4096, 0o666))}"


@check("the neighbour's System V message queue", OWN, "neighbour", excused={errno.ENOSYS: "no queues there"})
def message_queue(target):
    return f"is queue {called(_LIBC.msgget(0x504F5354, 0o666))}"


@check("seeing and signalling the neighbour's processes", OWN, "neighbour")
def processes(target):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read().endswith(b"\0postern-neighbour\0"):
                    os.kill(int(pid), 0)
                    return f"may signal {pid}"
        except FileNotFoundError:
            continue
    raise Stopped("none is to be seen")


@check("signalling the neighbour's runtime by its number on this machine", OWN, excused=NEEDS_ROOT)
def runtime_process(target):
    return first((lambda pid=pid: f"may signal {pid}{os.kill(pid, 0) or ''}" for pid in target["neighbour_pids"]),
                 "the neighbour has no process on this machine")


@check("the neighbour's slot by its path on this machine", "a root file system of its own", excused=NEEDS_ROOT)
def slot_path(target):
    return first((lambda path=path: f"{path} has {len(os.listdir(path))} entries" for path in target["neighbour_folders"]),
                 "the neighbour has no folder on this machine")


@check("the neighbour's gateway and control sockets by their paths on this machine", "a root file system of its own",
       excused=NEEDS_ROOT)
def socket_path(target):
    return first((lambda path=path: connect(socket.AF_UNIX, path) for path in target["neighbour_sockets"]),
                 "the neighbour has no socket on this machine")

# SPDX-License-Identifier: Apache-2.0
"""This machine's files, mounts and devices: none is there, and what is there cannot be changed."""

import ctypes
import errno
import os
import shutil
import stat
import struct
import subprocess

from core import Stopped, check, digest, past, syscall, until

OWN_ROOT = "a root file system of its own, without this machine's files"
READ_ONLY = "read-only mounts; Landlock; no write permission"
NO_CAPABILITY = "no capability; seccomp"
NEEDS_ROOT = dict.fromkeys((errno.EACCES, errno.EPERM), "the control needs root with all its capabilities")
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096


def is_secret(path, wanted):
    with open(path, "rb") as file:
        if digest(file.read(65536)) != wanted:
            raise Stopped(f"another file is at {path}")
    return f"read {path}"


def first(attempts, nothing="there was nothing to try"):
    """The first that gets through; else the last refusal."""
    refusal = Stopped(nothing)
    for attempt in attempts:
        try:
            return attempt()
        except (OSError, Stopped) as error:
            refusal = error
    raise refusal


def write_into(folder):
    path = os.path.join(folder, "postern-escape")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
    os.unlink(path)
    return f"wrote {path}"


def open_for_writing(path):
    os.close(os.open(path, os.O_WRONLY))  # Opened, never written: that is what the control may do too.
    return f"opened {path} for writing"


@check("a world-readable file of this machine's /etc", OWN_ROOT)
def etc(target):
    return is_secret(target["etc_file"], target["etc_digest"])


@check("this machine's passwords, /etc/shadow", OWN_ROOT, excused=NEEDS_ROOT)
def shadow(target):
    with open("/etc/shadow", "rb") as file:
        return f"read {len(file.read())} bytes"


@check("a secret file of this machine by its path", OWN_ROOT)
def host_file(target):
    return is_secret(target["secret"], target["secret_digest"])


@check("the same through ..", OWN_ROOT)
def host_file_by_dots(target):
    return is_secret("/tmp" + "/.." * 64 + target["secret"], target["secret_digest"])


@check("the home of root, /root", OWN_ROOT, excused=NEEDS_ROOT)
def root_home(target):
    return f"there are {len(os.listdir('/root'))} entries"


@check("other people's homes", OWN_ROOT, "world")
def homes(target):
    others = [name for name in os.listdir("/home") if name != "user"]
    if not others:
        raise Stopped("there is only user")
    return f"there are {others}"


@check("what this machine keeps in /var (packages, logs, sockets)", OWN_ROOT)
def var(target):
    found = [name for name in ("/var/lib", "/var/log", "/var/run/lock", "/boot", "/srv") if os.path.isdir(name)]
    if not found:
        raise Stopped("none is there")
    return f"there are {found}"


@check("what this machine's owner keeps in /usr/local and /usr/src", "empty folders mounted over them", "world")
def usr_local(target):
    found = [name for folder in ("/usr/local", "/usr/src") for name in os.listdir(folder)]
    if not found:
        raise Stopped("both are empty")
    return f"there are {found[:3]}"


@check("this machine's root through /proc/PID/root", "a process namespace of its own", "host")
def proc_root(target):
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    return first(lambda pid=pid: is_secret(f"/proc/{pid}/root{target['secret']}", target["secret_digest"]) for pid in pids)


@check("a folder that was left open: .. from every descriptor and working folder", "nothing is inherited", "host")
def leaked_folder(target):
    folders = ["/proc/self/cwd", "/proc/1/cwd"]
    for pid in ("self", "1"):
        try:
            folders += [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            pass  # Process 1 does not show them.
    folders = [folder for folder in folders if os.path.isdir(folder)]
    dots = "/.." * 64
    return first((lambda folder=folder: is_secret(folder + dots + target["secret"], target["secret_digest"])
                  for folder in folders), "no folder is open")


@check("a file written into /usr", READ_ONLY, "world")
def write_usr(target):
    return first(lambda folder=folder: write_into(folder) for folder in ("/usr", "/usr/bin", "/usr/lib", "/usr/local"))


@check("a file written into /, /etc, /opt or /var", READ_ONLY, "world")
def write_root(target):
    return first(lambda folder=folder: write_into(folder) for folder in ("/etc", "/opt", "/", "/var", "/home"))


@check("/etc/passwd and /etc/ld.so.preload changed", READ_ONLY, "world")
def write_passwd(target):
    return first([lambda: open_for_writing("/etc/passwd"), lambda: os.open("/etc/ld.so.preload", os.O_CREAT | os.O_WRONLY)])


@check("the program of process 1 changed, by path and by /proc/1/exe", READ_ONLY, "world", also={errno.ETXTBSY})
def write_sandboxd(target):
    in_pod = "/postern"  # On a cluster, where an init container has put it.
    return first([lambda: open_for_writing("/opt/postern/sandboxd"), lambda: write_into("/opt/postern"),
                  lambda: open_for_writing(f"{in_pod}/postern-sandboxd"), lambda: write_into(in_pod),
                  lambda: open_for_writing("/proc/1/exe")])


@check("mounting a tmpfs", NO_CAPABILITY, "world")
def mount_tmpfs(target):
    return f"mounted {syscall('mount', b'none', b'/tmp', b'tmpfs', 0, b'')}"


@check("remounting / and /usr for writing", NO_CAPABILITY, "world", also={errno.EINVAL})
def remount(target):
    flags = MS_REMOUNT | MS_BIND
    return first(lambda at=at: f"{at}: {syscall('mount', b'none', at, b'', flags, b'')}" for at in (b"/", b"/usr", b"/tmp"))


@check("binding / somewhere writable", NO_CAPABILITY, "world")
def bind_root(target):
    return f"bound {syscall('mount', b'/', b'/tmp', b'', MS_BIND, b'')}"


@check("mounting a proc of its own, without masks", NO_CAPABILITY, "world")
def mount_proc(target):
    return f"mounted {syscall('mount', b'proc', b'/tmp', b'proc', 0, b'')}"


@check("an overlay over /, to write through it", NO_CAPABILITY, "world",
       excused={errno.ENODEV: "this kernel has no overlay file system"})
def overlay(target):
    for name in ("upper", "work"):
        os.makedirs(f"/tmp/postern-overlay/{name}", exist_ok=True)
    options = b"lowerdir=/usr,upperdir=/tmp/postern-overlay/upper,workdir=/tmp/postern-overlay/work"
    try:
        return f"mounted {syscall('mount', b'overlay', b'/tmp', b'overlay', 0, options)}"
    finally:
        shutil.rmtree("/tmp/postern-overlay", ignore_errors=True)


@check("unmounting a mask", NO_CAPABILITY, "world")
def unmount_mask(target):
    return f"unmounted {syscall('umount2', b'/usr/local', 2)}"


@check("the new way to mount: fsopen, open_tree", NO_CAPABILITY, "world")
def new_mount_calls(target):
    return first([lambda: f"fsopen {syscall('fsopen', b'tmpfs', 0)}",
                  lambda: f"open_tree {syscall('open_tree', -100, b'/', 1)}"])


@check("chroot", NO_CAPABILITY, "world")
def chroot(target):
    return f"changed root {syscall('chroot', b'/tmp')}"


@check("pivot_root", NO_CAPABILITY, "world")
def pivot_root(target):
    return past({errno.EINVAL, errno.EBUSY}, "pivot_root", b"/tmp", b"/tmp")


@check("a device node made in the slot or /tmp, and read", "no capability; nodev mounts", excused=NEEDS_ROOT)
def device_node(target):
    def make(folder):
        path = os.path.join(folder, "postern-zero")
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        try:
            with open(path, "rb") as device:
                return f"read {len(device.read(4))} bytes of a device"
        finally:
            os.unlink(path)
    return first(lambda folder=folder: make(folder) for folder in ("/data/user", "/home/user", "/dev", "/tmp"))


@check("this machine's disks and memory: /dev/sd*, vd*, nvme*, loop*, mem, port, kmsg, kvm", "a /dev of its own",
       excused=NEEDS_ROOT)
def devices(target):
    return first(lambda name=name: f"opened {os.open('/dev/' + name, os.O_RDONLY | os.O_NONBLOCK)} ({name})"
                 for name in [*target["disks"], "mem", "port", "kmsg", "kvm", "loop-control"])


@check("a file system of one's own making (/dev/fuse)", "a /dev of its own", own_kernel=True,
       excused={**NEEDS_ROOT, errno.ENOENT: "this machine has no /dev/fuse"})
def fuse(target):
    return f"opened {os.open('/dev/fuse', os.O_RDWR)}"


@check("root by a set-user-id program of this machine", "nosuid mounts; no_new_privs; no root id inside",
       excused={0: "this machine has no set-user-id program to try"})
def set_user_id(target):
    if os.getuid() == 0:  # The control begins without rights too.
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    seen = "there is no such program"
    for program in ("/usr/bin/su", "/usr/bin/passwd", "/usr/bin/newgrp", "/usr/bin/chsh", "/usr/bin/mount"):
        if not os.path.exists(program) or not os.stat(program).st_mode & stat.S_ISUID:
            continue
        started = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if until(lambda: effective_user(started.pid) == "0", 0.5):
                return f"{program} runs as root"
        finally:
            started.kill()
            started.wait()
        seen = f"{program} runs as its caller"
    raise Stopped(seen)


def effective_user(pid):
    try:
        with open(f"/proc/{pid}/status") as status:
            return next(line.split()[2] for line in status if line.startswith("Uid:"))
    except (OSError, StopIteration):
        return None


@check("a capability given to a file of our own", NO_CAPABILITY, "world", also={errno.EINVAL})
def file_capability(target):
    path = f"{target['writable']}/postern-capability"
    with open(path, "w"):
        pass
    try:  # Version 3, CAP_SYS_ADMIN, permitted and effective.
        os.setxattr(path, "security.capability", struct.pack("=5I", 0x02000001, 1 << 21, 0, 0, 0))
        return "a file has CAP_SYS_ADMIN"
    finally:
        os.unlink(path)


@check("this machine's disks and network cards in /sys", "nothing is mounted there; gVisor's own /sys")
def sys(target):
    def shown(folder, names):
        found = set(os.listdir(folder)) & set(names)
        if not found:
            raise Stopped(f"{folder} shows none")
        return f"{folder} shows {sorted(found)[:3]}"
    return first([lambda: shown("/sys/block", target["disks"]), lambda: shown("/sys/class/net", target["interfaces"])])


@check("core_pattern, which names a program that this machine's root runs", "read-only /proc/sys; no capability",
       excused=NEEDS_ROOT)
def core_pattern(target):
    return open_for_writing("/proc/sys/kernel/core_pattern")


@check("other switches of this machine's kernel: modprobe, hotplug, ip_forward, sysrq", "read-only /proc/sys",
       excused=NEEDS_ROOT)
def kernel_switches(target):
    names = ["sys/kernel/modprobe", "sys/kernel/randomize_va_space", "sys/vm/overcommit_memory",
             "sys/kernel/core_uses_pid", "sysrq-trigger", "irq/default_smp_affinity"]
    return first(lambda name=name: open_for_writing(f"/proc/{name}") for name in names)


@check("this machine's kernel memory, keys and log in /proc", "files of /proc that are masked or not there",
       excused=NEEDS_ROOT)
def kernel_files(target):
    def read(name):
        with open(f"/proc/{name}", "rb") as file:
            if not file.read(64).strip(b"\0"):
                raise Stopped(f"/proc/{name} is empty")
        return f"read /proc/{name}"
    return first(lambda name=name: read(name) for name in ("kcore", "kallsyms", "modules", "keys", "key-users", "sched_debug"))


@check("the kernel's command line of this machine", "masked, or another kernel's")
def kernel_command_line(target):
    with open("/proc/cmdline", "rb") as file:
        text = file.read()
    if digest(text) == target["cmdline_digest"]:
        return f"read {len(text)} bytes"
    raise Stopped("it is empty" if not text.strip() else "it is another kernel's")


@check("cgroups of this machine: leaving one's own, release_agent", "no cgroup file system", excused=NEEDS_ROOT)
def cgroups(target):
    places = [f"{folder}/{name}" for folder, _, names in os.walk("/sys/fs/cgroup") for name in names
              if name in ("release_agent", "cgroup.procs")][:200]
    return first((lambda place=place: open_for_writing(place) for place in places), "no cgroup file is there")


@check("files by handle instead of path (open_by_handle_at)", NO_CAPABILITY, excused=NEEDS_ROOT,
       also={errno.ESTALE})
def by_handle(target):
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    folder = os.open(target["writable"], os.O_RDONLY)
    syscall("name_to_handle_at", -100, target["writable"].encode(), handle, ctypes.byref(mount), 0)
    return f"opened {syscall('open_by_handle_at', folder, handle, os.O_RDONLY)}"

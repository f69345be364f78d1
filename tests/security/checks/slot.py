# SPDX-License-Identifier: Apache-2.0
"""The slot (/data) and the user's folder in it: nothing in them leads out, nothing about them
can be turned against whoever reads, copies or removes them from outside.

What an agent plants here for others to trip over is in `planted.py`.
"""

import array
import errno
import fcntl
import os
import shutil
import stat
import subprocess

from core import Stopped, check, digest
from files import NEEDS_ROOT, first, is_secret

OWN_ROOT = "links are resolved in a root of its own"
FS_IMMUTABLE = 0x10
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602


def link_to(target, to, at="postern-link"):
    path = f"{target['writable']}/{at}"
    if os.path.lexists(path):
        os.unlink(path)
    os.symlink(to, path)
    return path


@check("a link in the slot to a file of this machine", OWN_ROOT)
def link_to_file(target):
    return is_secret(link_to(target, target["secret"]), target["secret_digest"])


@check("a link in the slot to a folder of this machine", OWN_ROOT)
def link_to_folder(target):
    folder, name = os.path.split(target["secret"])
    return is_secret(f"{link_to(target, folder)}/{name}", target["secret_digest"])


@check("a relative link that climbs out of the slot", OWN_ROOT)
def link_that_climbs(target):
    return is_secret(link_to(target, "../" * 64 + target["secret"].lstrip("/")), target["secret_digest"])


@check("climbing out of the slot by .. from an open folder", OWN_ROOT)
def climb(target):
    folder = os.open(target["writable"], os.O_RDONLY)
    for _ in range(64):
        folder = os.open("..", os.O_RDONLY, dir_fd=folder)
    with open(os.open(target["secret"].lstrip("/"), os.O_RDONLY, dir_fd=folder), "rb") as file:
        if digest(file.read()) == target["secret_digest"]:
            return "read the secret"
    raise Stopped("another file is there")


@check("a hard link in the slot to a program outside it", "mounts of their own", also={errno.EXDEV})
def hard_link(target):
    path = f"{target['writable']}/postern-hard-link"
    inside = ["/opt/postern/sandboxd", "/usr/bin/env", "/etc/passwd", "/run/postern/gateway.sock"]
    outside = [f"{os.path.dirname(target['secret'])}/beside/secret"] if target["is_control"] else []

    def link(to):
        os.link(to, path)
        os.unlink(path)
        return f"linked {to}"
    return first(lambda to=to: link(to) for to in outside or inside)


@check("a mount point moved away from under the slot (rename of /data)", "a mount point cannot be renamed", "world",
       also={errno.EBUSY, errno.EXDEV})
def rename_slot(target):
    os.rename("/data", "/postern-data")
    os.rename("/postern-data", "/data")
    return "moved"


@check("the gateway's socket replaced by one's own", "its folder is read-only", "world")
def replace_socket(target):
    os.rename("/run/postern/gateway.sock", "/run/postern/old.sock")
    return "moved"


@check("a file beside the gateway's socket", "its folder is read-only", "world")
def file_beside_socket(target):
    os.close(os.open("/run/postern/postern-escape", os.O_CREAT | os.O_WRONLY))
    return "written"


@check("a set-user-id program of root put into the slot", "nosuid; only its own user id exists", excused=NEEDS_ROOT,
       also={errno.EINVAL})
def set_user_id_in_slot(target):
    path = f"{target['writable']}/postern-id"
    shutil.copy("/usr/bin/id", path)
    try:
        os.chown(path, 0, 0)
        os.chmod(path, 0o6755)
        if os.stat(path).st_uid != 0 or not os.stat(path).st_mode & stat.S_ISUID:
            raise Stopped("it is no program of root")
        return f"made one; user {subprocess.check_output([path, '-u']).decode().strip()}"
    finally:
        os.unlink(path)


@check("an immutable file, which nobody could remove", "no capability", excused={
    **NEEDS_ROOT, errno.ENOTTY: "the control's disk has no such flag", errno.EOPNOTSUPP: "the control's disk has no such flag"},
       also={errno.ENOTTY})
def immutable_file(target):
    path = f"{target['writable']}/postern-immutable"
    with open(path, "w") as file:
        flags = array.array("l", [0])
        fcntl.ioctl(file, FS_IOC_GETFLAGS, flags)
        before = flags[0]
        try:
            fcntl.ioctl(file, FS_IOC_SETFLAGS, array.array("l", [before | FS_IMMUTABLE]))
            fcntl.ioctl(file, FS_IOC_SETFLAGS, array.array("l", [before]))
        finally:
            os.unlink(path)
    return "made one"


@check("the slot's files given to another user of this machine (chown)", "only its own user id exists",
       excused=NEEDS_ROOT, also={errno.EINVAL})
def give_away(target):
    path = f"{target['writable']}/postern-given"
    with open(path, "w"):
        pass
    try:
        os.chown(path, 65534, 65534)
        return "given to nobody"
    finally:
        os.unlink(path)

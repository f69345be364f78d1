# SPDX-License-Identifier: Apache-2.0
"""Traps left in the user's folder for whoever saves it from outside when the sandbox ends.

Each is planted in a sandbox of its own, which is then destroyed; what the user's next
conversation finds tells whether somebody stepped into it. The control steps into it on purpose:
a copier that follows paths, as a careless one would.
"""

import dataclasses
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time

import swaps
from api import ApiError

END_SECONDS = 40
HARVEST = """
import hashlib, os, sys
for at, folders, names in os.walk("/data/user", followlinks=False):
    for name in names:
        path = os.path.join(at, name)
        if os.path.isfile(path) and not os.path.islink(path):
            with open(path, "rb") as file:
                print(hashlib.sha256(file.read(1 << 20)).hexdigest(), path.encode(errors="replace"))
"""


@dataclasses.dataclass(frozen=True)
class Trap:
    """A shell script that plants it (USER is the user's folder, SECRET the file that is wanted), what
    it is, whether it is a file to steal or an end to prevent, and what a wall says that already
    keeps it from being planted."""

    name: str
    tried: str
    plant: str
    steals: bool = True
    walls: tuple = ()


TRAPS = [
    Trap("link-to-file", "a link to a file of this machine, saved as what it points to",
         'ln -s "$SECRET" "$USER/leak"'),
    Trap("link-to-folder", "a link to a folder of this machine, walked into",
         'ln -s "$(dirname "$SECRET")" "$USER/leak"'),
    Trap("link-that-climbs", "a relative link that climbs out of the slot",
         'ln -s "../../../../../../../../../../../..$SECRET" "$USER/leak"'),
    Trap("chain-of-links", "a link by way of /proc/self/root",
         'ln -s /proc/self/root "$USER/.root"; ln -s ".root$SECRET" "$USER/leak"'),
    Trap("folder-replaced", "the user's folder itself replaced by a link",
         'mv "$USER" "$USER.old" && ln -s "$(dirname "$SECRET")" "$USER"',
         walls=("Permission denied", "Read-only file system")),
    Trap("folder-within-replaced", "a folder in the user's folder replaced by a link",
         'mkdir "$USER/a" && mv "$USER/a" "$USER/a.old" && ln -s "$(dirname "$SECRET")" "$USER/a"'),
    Trap("race", "a folder that turns into a link and back while it is saved",
         'mkdir "$USER/a"; echo x >"$USER/a/secret"; ln -s "$(dirname "$SECRET")" "$USER/b"'),
    Trap("fifo", "a named pipe, which a careless reader waits for without end", 'mkfifo "$USER/pipe"', False),
    Trap("sparse", "a file of 64 GiB that takes no room", 'truncate -s 64G "$USER/sparse"', False),
    Trap("deep", "folders 3,000 deep, longer than any path",
         'python3 -I -c "import os\nos.chdir(os.environ[\'USER\'])\nfor _ in range(3000): os.mkdir(\'ddd\'); os.chdir(\'ddd\')"',
         False),
]
# Where swaps are counted inside, and how long enough of them may take.
COUNT = "/data/scratch/swaps"
SWAP_SECONDS = 30


def are_kept(api, like):
    """Whether a user's next conversation has the files of the last: without that, no trap is walked into."""
    user = f"escape-{secrets.token_hex(4)}"
    first = api.create(like, user)["sandbox_id"]
    api.run(first, ["/bin/sh", "-c", "echo kept >/data/user/kept"])
    api.destroy(first)
    second = api.create(like, user)["sandbox_id"]
    _, found, _ = api.python(second, HARVEST)
    api.destroy(second)
    return "/kept'" in found


def spring(api, like, trap, bait):
    """Plants a trap, ends the sandbox and looks at the user's next; returns (outcome, how)."""
    user = f"escape-{secrets.token_hex(4)}"
    first = api.create(like, user)["sandbox_id"]
    script = f"export USER=/data/user SECRET='{bait.secret}'; {trap.plant}"
    code, _, errors = api.run(first, ["/bin/sh", "-c", script])
    if code != 0 and any(wall in errors for wall in trap.walls):
        api.destroy(first)
        return "stopped", "it cannot be planted: `/data` itself is the host's"
    if code != 0:
        return "undecided", f"it could not be planted: {errors.strip()[-200:]}"
    if trap.name == "race" and (count := _race(api, first)) < swaps.LEAST:
        api.destroy(first)
        return "undecided", f"names changed places {count} times only"
    try:
        api.destroy(first, seconds=END_SECONDS)
    except ApiError as error:
        return "reached", f"the sandbox did not end: {error}"
    second = api.create(like, user)["sandbox_id"]
    try:
        _, found, _ = api.python(second, HARVEST)
    finally:
        api.destroy(second)
    if bait.target["secret_digest"] in found:
        return "reached", "the user's next conversation has this machine's secret"
    return "stopped", "it was saved as what it is, or left out"


def _race(api, sandbox):
    """Has names change places until the sandbox ends; how often they have when there were enough, or it is late."""
    command = f"SWAP=$1 FOLDER=/data/user COUNT={COUNT}; {swaps.CALL}"
    api.run(sandbox, ["/bin/sh", "-c", command, "sh", swaps.PROGRAM])
    end = time.monotonic() + SWAP_SECONDS
    while (count := swaps.told(api.run(sandbox, ["/bin/cat", COUNT])[1])) < swaps.LEAST and time.monotonic() < end:
        pass
    return count


def control(trap, bait):
    """Steps into the trap, in a folder of our own."""
    folder = tempfile.mkdtemp(dir="/var/tmp", prefix="postern-trap-")
    user = os.path.join(folder, "user")
    os.makedirs(user)
    try:
        subprocess.run(["/bin/sh", "-c", trap.plant], check=True, capture_output=True,
                       env={"USER": user, "SECRET": bait.secret, "PATH": "/usr/bin:/bin"})
        return _stepped_into(trap, user, bait)
    finally:
        subprocess.run(["/bin/rm", "-rf", folder], check=True)


def _stepped_into(trap, user, bait):
    if trap.name == "fifo":
        return "reached" if _waits(f"{user}/pipe") else "stopped", "a plain reader waits without end"
    if trap.name == "sparse":
        found = os.stat(f"{user}/sparse")
        return "reached" if found.st_size > found.st_blocks * 1024 else "stopped", "a plain copy would write 64 GiB"
    if trap.name == "deep":
        try:
            os.listdir(user + "/ddd" * 3000)
        except OSError as error:
            return "reached", f"a plain walk by paths ends with {error.strerror}"
        return "stopped", "a plain walk by paths gets through"
    if trap.name == "race":
        user = os.path.join(user, "b")  # As a careless copier may meet it.
    copy = os.path.join(os.path.dirname(os.path.abspath(user)), "copy")
    shutil.copytree(user, copy, ignore=lambda _, names: [name for name in names if name.endswith(".sock") or name == ".root"])
    for at, _, names in os.walk(copy):
        for name in names:
            with open(os.path.join(at, name)) as file, open(bait.secret) as secret:
                if file.read() == secret.read():
                    return "reached", "a plain copy holds the secret"
    return "stopped", "a plain copy does not hold the secret"


def _waits(path):
    reader = os.fork()
    if reader == 0:
        os.open(path, os.O_RDONLY)
        os._exit(0)
    try:
        os.kill(reader, 0)
        return os.waitpid(reader, os.WNOHANG)[0] == 0
    finally:
        os.kill(reader, signal.SIGKILL)
        os.waitpid(reader, 0)

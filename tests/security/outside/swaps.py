# SPDX-License-Identifier: Apache-2.0
"""A folder and a link that change places without a pause, and how often they did: where nothing was swapped,
nothing was tried.

Where the kernel exchanges no names (gVisor's says EINVAL), the link is put into the folder's place and taken
away again by renames.
"""

import subprocess
import sys

# Fewer than these tell nothing.
LEAST = 200
# How a script calls the program; FOLDER holds the folder `a` and the link `b`, COUNT is the file that is told.
CALL = 'python3 -I -c "$SWAP" "$FOLDER" "$COUNT"'
# Lives until its sandbox ends. The number is written over itself, and only grows.
PROGRAM = """import ctypes, os, shutil, sys
if os.fork(): os._exit(0)
os.setsid()
null = os.open('/dev/null', 2)
for i in range(3): os.dup2(null, i)
count, told = 0, os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY, 0o644)
os.chdir(sys.argv[1])
exchange = getattr(ctypes.CDLL(None), 'renameat2', None)
can = exchange is not None and exchange(-100, b'a', -100, b'b', 2) == 0
def rename():
    os.rename('a', 'c'); os.rename('b', 'a')
    os.rename('a', 'b'); os.rename('c', 'a')
def settle():
    # Whoever wrote into `a` when there was none may have made it.
    if os.path.islink('a'): os.rename('a', 'b')
    elif os.path.lexists('a'): shutil.rmtree('a')
    os.rename('c', 'a')
while True:
    for _ in range(50):
        try:
            if can: done = exchange(-100, b'a', -100, b'b', 2) == 0
            else: done = rename() is None
        except OSError:
            done = False
            try: settle() if os.path.lexists('c') else None
            except OSError: pass
        count += done
    os.pwrite(told, b'%d' % count, 0)
"""
HERE = PROGRAM.replace("if os.fork(): os._exit(0)\n", "")


def begin_here(folder, count):
    """The same on this machine, as a child that is to be killed."""
    return subprocess.Popen([sys.executable, "-I", "-c", HERE, folder, count])


def told(text):
    """How often, of what the file says."""
    return int(text) if text.strip().isdigit() else 0

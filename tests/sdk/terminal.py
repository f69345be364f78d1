# SPDX-License-Identifier: Apache-2.0
"""Drives a program through a terminal of its own, as a person would. Usage: terminal.py PROGRAM ARGUMENT...

Reads a line of JSON for each step from standard input, `{"type": TEXT}`, `{"size": [COLS, ROWS]}` or
`{"until": TEXT}`, and ends with a line of JSON: what was shown, and the program's exit code."""

import fcntl
import json
import os
import pty
import select
import struct
import sys
import termios
import time

PATIENCE = 60


def size(cols, rows):
    return struct.pack("HHHH", rows, cols, 0, 0)


def main():
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, size(91, 33))
        os.execvp(sys.argv[1], sys.argv[1:])
    before = termios.tcgetattr(terminal)
    shown = b""

    def read(deadline):
        nonlocal shown
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        try:
            some = os.read(terminal, 65536) if ready else b""
        except OSError:
            return False  # Linux says so when nobody is at the other end any more.
        shown += some
        return bool(some)

    for line in sys.stdin:
        step = json.loads(line)
        if "type" in step:
            os.write(terminal, step["type"].encode())
        if "size" in step:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, size(*step["size"]))
        if "until" in step:
            deadline = time.monotonic() + PATIENCE
            while step["until"].encode() not in shown:
                if not read(deadline):
                    break
    deadline = time.monotonic() + PATIENCE
    while read(deadline):
        pass
    try:
        after = termios.tcgetattr(terminal)
    except termios.error:
        after = before
    _, status = os.waitpid(pid, 0)
    text = shown.decode(errors="replace")
    print(json.dumps({"shown": text, "code": os.waitstatus_to_exitcode(status), "is_as_before": after == before}))


main()

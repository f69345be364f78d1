# SPDX-License-Identifier: Apache-2.0
"""Drives a program through a terminal of its own, as a person would. Usage: terminal.py PROGRAM ARGUMENT...

Reads a line of JSON for each step from standard input, `{"type": TEXT}`, `{"size": [COLS, ROWS]}` or
`{"until": TEXT}`, and ends with a line of JSON: what was shown, the program's exit code, whether the terminal
is as it was, and what it waited for in vain, if anything: then the program was killed."""

import fcntl
import json
import os
import select
import signal
import struct
import sys
import termios
import time

# For each step, and for the end.
PATIENCE = 30


class Late(Exception):
    pass


class Driven:
    def __init__(self, program):
        # The program's end of it stays open here, so that it can be looked at when the program has ended.
        self.terminal, self.held = os.openpty()
        resize(self.held, 91, 33)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.terminal)
            os.setsid()
            fcntl.ioctl(self.held, termios.TIOCSCTTY, 0)
            for stream in range(3):
                os.dup2(self.held, stream)
            os.execvp(program[0], program)
        self.shown, self.code = b"", None

    def read(self, deadline):
        """Takes what comes first until then; whether anything did."""
        ready, _, _ = select.select([self.terminal], [], [], max(0, min(0.1, deadline - time.monotonic())))
        some = os.read(self.terminal, 65536) if ready else b""
        self.shown += some
        return bool(some)

    def until(self, found, what):
        deadline = time.monotonic() + PATIENCE
        while not found():
            if time.monotonic() > deadline:
                raise Late(what)
            if not self.read(deadline) and self.has_ended() and not self.read(time.monotonic()):
                raise Late(f"{what}, and the program ended with {self.code}")

    def type(self, text):
        deadline, left = time.monotonic() + PATIENCE, text.encode()
        while left:
            # What is shown is read meanwhile: a program that waits for us to read does not read.
            self.read(time.monotonic())
            _, ready, _ = select.select([], [self.terminal], [], 0.1)
            if ready:
                left = left[os.write(self.terminal, left):]
            elif time.monotonic() > deadline:
                raise Late("the program to read")

    def has_ended(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def end(self):
        """The program's end, whose last words are read too."""
        deadline = time.monotonic() + PATIENCE
        while not self.has_ended():
            if time.monotonic() > deadline:
                raise Late("the program's end")
            self.read(time.monotonic() + 0.1)
        while self.read(time.monotonic()):
            pass

    def kill(self):
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            self.code = os.waitstatus_to_exitcode(status)


def resize(terminal, cols, rows):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def main():
    driven, late = Driven(sys.argv[1:]), None
    before = termios.tcgetattr(driven.held)
    try:
        for line in sys.stdin:
            step = json.loads(line)
            if "type" in step:
                driven.type(step["type"])
            if "size" in step:
                resize(driven.terminal, *step["size"])
            if "until" in step:
                wanted = step["until"].encode()
                driven.until(lambda: wanted in driven.shown, repr(step["until"]))
        driven.end()
    except Late as error:
        late = str(error)
        driven.kill()
    after = termios.tcgetattr(driven.held)
    told = {"shown": driven.shown.decode(errors="replace"), "code": driven.code, "late": late}
    print(json.dumps({**told, "is_as_before": after == before}))


main()

# SPDX-License-Identifier: Apache-2.0
"""An agent's work with the package `e2b`, unchanged, in its debug mode: files, commands, background
processes, a terminal, watched folders. Prints a line for each part; the first surprise ends it."""

import asyncio
import io
import os
import time

from e2b import AsyncSandbox, CommandExitException, FileType, FilesystemEventType, NotFoundException, PtySize, Sandbox, TimeoutException


def refused(kind, act):
    try:
        act()
    except kind as error:
        return error
    raise AssertionError(f"it was not refused with {kind.__name__}")


def until(what, is_so, seconds=30):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.05)


def files(sandbox):
    written = sandbox.files.write("notes/plan.txt", "first\n")
    assert written.path == "/home/user/notes/plan.txt" and written.type == FileType.FILE, written
    assert sandbox.files.read("notes/plan.txt") == "first\n"
    assert bytes(sandbox.files.read("notes/plan.txt", format="bytes")) == b"first\n"
    big = bytes(range(256)) * 20_000
    sandbox.files.write("big.bin", io.BytesIO(big))
    assert b"".join(sandbox.files.read("big.bin", format="stream")) == big
    sandbox.files.write("packed.bin", big, gzip=True)
    assert bytes(sandbox.files.read("packed.bin", format="bytes", gzip=True)) == big
    both = sandbox.files.write_files([{"path": "a.txt", "data": "a"}, {"path": "/data/user/b.txt", "data": b"b"}])
    assert [one.path for one in both] == ["/home/user/a.txt", "/data/user/b.txt"], both
    sandbox.files.write("odd name \"quoted\" ü.txt", "odd")
    assert sandbox.files.read("odd name \"quoted\" ü.txt") == "odd"
    info = sandbox.files.get_info("notes/plan.txt")
    assert (info.size, info.owner, info.permissions) == (6, "user", "-rw-r--r--"), info
    assert sandbox.files.exists("a.txt") and not sandbox.files.exists("none.txt")
    assert sandbox.files.make_dir("folder/deep") and not sandbox.files.make_dir("folder/deep")
    names = [(entry.name, entry.type) for entry in sandbox.files.list("notes")]
    assert names == [("plan.txt", FileType.FILE)], names
    assert len(sandbox.files.list("folder", depth=2)) == 1
    moved = sandbox.files.rename("a.txt", "folder/deep/a.txt")
    assert moved.path == "/home/user/folder/deep/a.txt"
    sandbox.files.remove("folder")
    assert not sandbox.files.exists("folder")
    noted = sandbox.files.write("noted.txt", "x", metadata={"author": "agent"})
    assert sandbox.files.get_info(noted.path).metadata == {"author": "agent"}
    refused(NotFoundException, lambda: sandbox.files.read("none.txt"))
    refused(NotFoundException, lambda: sandbox.files.list("none"))


def commands(sandbox):
    done = sandbox.commands.run("echo out; echo err >&2; pwd; echo $WHO", envs={"WHO": "agent"}, cwd="/data/user")
    assert (done.stdout, done.stderr, done.exit_code) == ("out\n/data/user\nagent\n", "err\n", 0), done
    failed = refused(CommandExitException, lambda: sandbox.commands.run("exit 7"))
    assert failed.exit_code == 7
    seen = []
    sandbox.commands.run("for i in 1 2 3; do echo $i; done", on_stdout=seen.append)
    assert "".join(seen) == "1\n2\n3\n", seen
    refused(TimeoutException, lambda: sandbox.commands.run("sleep 60", timeout=1))
    until("the command was killed", lambda: "sleep 60" not in sandbox.commands.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout)


def background(sandbox):
    server = sandbox.commands.run("python3 -u -m http.server 8765 --bind 127.0.0.1", background=True, cwd="/data/user")
    get = "python3 -c \"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8765/b.txt').read().decode())\""
    until("the server answers", lambda: sandbox.commands.run(f"{get} || true").stdout == "b\n")
    assert any(one.pid == server.pid for one in sandbox.commands.list())
    server.disconnect()
    assert sandbox.commands.run(get).stdout == "b\n", "it outlives its follower"
    again = sandbox.commands.connect(server.pid)
    assert again.pid == server.pid and sandbox.commands.kill(server.pid)
    assert not sandbox.commands.kill(server.pid), "it is gone"
    cat = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(cat.pid, "typed\n")
    sandbox.commands.close_stdin(cat.pid)
    assert cat.wait().stdout == "typed\n"


def terminal(sandbox):
    shell = sandbox.pty.create(PtySize(rows=30, cols=100), timeout=60)
    shown = bytearray()
    sandbox.pty.resize(shell.pid, PtySize(rows=41, cols=123))
    sandbox.pty.send_stdin(shell.pid, b"stty size; tty; exit 5\n")
    ended = refused(CommandExitException, lambda: shell.wait(on_pty=shown.extend))
    assert ended.exit_code == 5 and b"41 123" in shown and b"/dev/pts/" in shown, bytes(shown)


def watched(sandbox):
    sandbox.files.make_dir("watched")
    handle = sandbox.files.watch_dir("watched", recursive=True)
    sandbox.files.write("watched/deep/file.txt", "x")
    seen = []

    def is_told():
        seen.extend((event.type, event.name) for event in handle.get_new_events())
        return (FilesystemEventType.CREATE, "deep") in seen and any(name == "deep/file.txt" for _, name in seen)

    until(f"events in {seen}", is_told)
    handle.stop()


async def at_once():
    """The asynchronous client: a stream of events, and many commands at a time."""
    sandbox = await AsyncSandbox.create()
    seen = asyncio.Event()

    def note(event):
        if event.name == "late.txt" and event.type == FilesystemEventType.WRITE:
            seen.set()

    handle = await sandbox.files.watch_dir("watched", on_event=note)
    await sandbox.files.write("watched/late.txt", "y")
    await asyncio.wait_for(seen.wait(), 30)
    await handle.stop()
    done = await asyncio.gather(*(sandbox.commands.run(f"echo {number}") for number in range(20)))
    assert [one.stdout for one in done] == [f"{number}\n" for number in range(20)]


def main():
    sandbox = Sandbox.create()
    assert sandbox.is_running()
    for part in (files, commands, background, terminal, watched):
        part(sandbox)
        print(f"{part.__name__}: ok", flush=True)
    asyncio.run(at_once())
    print("at once: ok", flush=True)


main()
# The package's HTTP client has threads of its own (pyqwest 0.12). On a busy machine one of them aborts the
# process in one of ten ends of the interpreter, when all has been done and said: here it does not end.
os._exit(0)

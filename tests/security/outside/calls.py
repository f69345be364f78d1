# SPDX-License-Identifier: Apache-2.0
"""Traps that an agent lays for whoever uses the files calls of the REST API: what is read, written, listed
or removed through them must be the sandbox's own, wherever its links point and whenever they are swapped.

Each trap is laid inside a sandbox and stepped into through the API. The control steps into the same one on
this machine, with a program that follows paths, as a careless server would.
"""

import dataclasses
import http.client
import io
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.parse
from typing import Callable

import swaps

SWAP_SECONDS = 3
# Where the swaps are counted inside.
COUNT = "/data/scratch/swaps"


class Calls:
    """The files calls on one sandbox."""

    def __init__(self, api, sandbox):
        self.api, self.sandbox = api, sandbox

    def send(self, method, what, path, body=None):
        """The status and the body of an answer, whatever it is; the path goes as it stands."""
        url = urllib.parse.urlsplit(self.api.url)
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
        headers = {"Authorization": f"Bearer {self.api.key}"}
        if body is not None:
            headers["Content-Type"] = "application/octet-stream"
        try:
            connection.request(method, f"/sandbox/{self.sandbox}/{what}/{path}", body, headers)
            answer = connection.getresponse()
            try:
                return answer.status, answer.read()
            except http.client.IncompleteRead as cut:
                return answer.status, cut.partial
        finally:
            connection.close()


class Here:
    """The same calls on a folder of this machine, by a server that follows paths."""

    def send(self, method, what, path, body=None):
        path = "/" + urllib.parse.unquote(path)
        try:
            if (method, what) == ("GET", "files"):
                with open(path, "rb") as file:
                    return 200, file.read(1 << 20)
            if (method, what) == ("PUT", "files"):
                with open(path, "wb") as file:
                    return 204, b"" if file.write(body) else b""
            if (method, what) == ("GET", "folders"):
                return 200, " ".join(os.listdir(path)).encode()
            if (method, what) == ("DELETE", "files"):
                shutil.rmtree(os.path.realpath(path)) if os.path.isdir(path) else os.unlink(path)
                return 204, b""
            if (method, what) == ("GET", "trees"):
                packed = io.BytesIO()
                with tarfile.open(fileobj=packed, mode="w", dereference=True) as archive:
                    archive.add(path, ".")
                return 200, packed.getvalue()
            with tarfile.open(fileobj=io.BytesIO(body)) as archive:
                archive.extraction_filter = staticmethod(lambda member, _: member)
                archive.extractall(path)
            return 200, b""
        except OSError as error:
            return 400, str(error).encode()


def quoted(path):
    return urllib.parse.quote(path.lstrip("/"))


def tar(*entries):
    """An archive of (name, link, content)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, link, content in entries:
            member = tarfile.TarInfo(name)
            if link:
                member.type, member.linkname = tarfile.SYMTYPE, link
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def has_secret(place, answer):
    return answer[0] == 200 and place.secret in answer[1]


def read(path):
    return lambda place, calls: has_secret(place, calls.send("GET", "files", path(place)))


def write(path):
    def act(place, calls):
        calls.send("PUT", "files", path(place), place.mark)
        return place.is_marked()
    return act


def unpack(entries):
    def act(place, calls):
        calls.send("PUT", "trees", quoted(f"{place.user}/unpacked"), tar(*entries(place)))
        return place.is_marked()
    return act


def list_outside(place, calls):
    status, answer = calls.send("GET", "folders", quoted(f"{place.user}/leak"))
    return status == 200 and place.unique.encode() in answer


def pack(place, calls):
    return has_secret(place, calls.send("GET", "trees", quoted(place.user)))


def remove(place, calls):
    calls.send("DELETE", "files", quoted(f"{place.user}/leak"))
    return not os.path.exists(place.victim)


def race(once):
    """Whether one of many calls, while a folder and a link change places, gets out."""
    def act(place, calls):
        end = time.monotonic() + SWAP_SECONDS
        while time.monotonic() < end:
            if once(place, calls):
                return True
        return False
    return act


def read_in(place, calls):
    return has_secret(place, calls.send("GET", "files", quoted(f"{place.user}/a/{place.unique}")))


def write_in(place, calls):
    calls.send("PUT", "files", quoted(f"{place.user}/a/mark"), place.mark)
    return place.is_marked()


def list_in(place, calls):
    status, answer = calls.send("GET", "folders", quoted(f"{place.user}/a"))
    return status == 200 and place.unique.encode() in answer


def remove_in(place, calls):
    calls.send("DELETE", "files", quoted(f"{place.user}/a/{place.unique}"))
    return not os.path.exists(place.victim_file)


def memory(place, calls):
    """This process of the other end's own: process 1 of a sandbox, or the server."""
    status, answer = calls.send("GET", "files", quoted(f"{place.user}/leak"))
    return status == 200 and b"=" in answer


@dataclasses.dataclass(frozen=True)
class Trap:
    name: str
    tried: str
    lay: str
    step: Callable
    wall: str


SWAPPED = 'mkdir "$USER/a"; ln -s "$VICTIM" "$USER/b"; FOLDER=$USER; ' + swaps.CALL
OWN_FILES = "a sandbox's calls are answered inside, where this machine's files are not"
ONE_WAY = "a path is read in one way: dots are refused"
SIEVE = "archives are read and written anew"
TRAPS = [
    Trap("read-dots", "a file of this machine by `..` in a files call", "true",
         read(lambda place: quoted(place.user) + "/.." * 12 + "/" + quoted(place.victim_file)), ONE_WAY),
    Trap("read-hidden-dots", "the same with the dots and slashes encoded", "true",
         read(lambda place: quoted(place.user) + "%2f%2e%2e" * 12 + "%2f" + quoted(place.victim_file).replace("/", "%2f")), ONE_WAY),
    Trap("read-link", "a file of this machine through a link in the user's folder", 'ln -s "$VICTIM/$UNIQUE" "$USER/leak"',
         read(lambda place: quoted(f"{place.user}/leak")), OWN_FILES),
    Trap("read-folder-link", "the same through a link to its folder", 'ln -s "$VICTIM" "$USER/leak"',
         read(lambda place: quoted(f"{place.user}/leak/{place.unique}")), OWN_FILES),
    Trap("read-own-process", "what process 1 holds, through a link to its environment", 'ln -s /proc/self/environ "$USER/leak"',
         memory, "nothing of `/proc` is served"),
    Trap("write-link", "a file of this machine written through a link", 'ln -s "$VICTIM/mark" "$USER/leak"',
         write(lambda place: quoted(f"{place.user}/leak")), OWN_FILES),
    Trap("write-dots", "a file of this machine written by `..`", "true",
         write(lambda place: quoted(place.user) + "/.." * 12 + "/" + quoted(f"{place.victim}/mark")), ONE_WAY),
    Trap("list-link", "a folder of this machine listed through a link", 'ln -s "$VICTIM" "$USER/leak"', list_outside, OWN_FILES),
    Trap("remove-link", "a folder of this machine removed through a link", 'ln -s "$VICTIM" "$USER/leak"', remove, OWN_FILES),
    Trap("swap", "a file of this machine while a folder and a link change places", SWAPPED, race(read_in), OWN_FILES),
    Trap("swap-write", "a file of this machine written meanwhile", SWAPPED, race(write_in), OWN_FILES),
    Trap("swap-list", "a folder of this machine listed meanwhile", SWAPPED, race(list_in), OWN_FILES),
    Trap("swap-remove", "a file of this machine removed meanwhile", SWAPPED, race(remove_in), OWN_FILES),
    Trap("pack-links", "files of this machine in the archive of a tree with links", 'ln -s "$VICTIM" "$USER/leak"', pack, OWN_FILES),
    Trap("unpack-dots", "a file of this machine written by an archive whose names have `..`", 'mkdir "$USER/unpacked"',
         unpack(lambda place: [("../" * 14 + place.victim.lstrip("/") + "/mark", "", place.mark)]), SIEVE),
    Trap("unpack-absolute", "the same by an absolute name", "true",
         unpack(lambda place: [(f"{place.victim}/mark", "", place.mark)]), SIEVE),
    Trap("unpack-through-link", "the same through a link of the archive's own", "true",
         unpack(lambda place: [("l", place.victim, b""), ("l/mark", "", place.mark)]), SIEVE),
]


class Place:
    """What a trap is about: the folder of this machine that is not to be reached."""

    def __init__(self, user):
        self.user = user
        self.victim = tempfile.mkdtemp(dir="/var/tmp", prefix="postern-calls-")
        os.chmod(self.victim, 0o755)
        self.unique, self.secret, self.mark = secrets.token_hex(8), secrets.token_hex(16).encode(), secrets.token_hex(8).encode()
        self.victim_file = f"{self.victim}/{self.unique}"
        with open(self.victim_file, "wb") as file:
            file.write(self.secret)

    def is_marked(self):
        try:
            with open(f"{self.victim}/mark", "rb") as file:
                return file.read() == self.mark
        except FileNotFoundError:
            return False

    def environment(self):
        return {"USER": self.user, "VICTIM": self.victim, "UNIQUE": self.unique, "COUNT": COUNT, "PATH": "/usr/bin:/bin"}

    def gone(self):
        shutil.rmtree(self.victim, ignore_errors=True)


def spring(api, like, trap):
    """Lays a trap in a sandbox of its own and steps into it; returns (outcome, how)."""
    place = Place("/data/user")
    sandbox = api.create(like)["sandbox_id"]
    try:
        exports = "; ".join(f"export {name}='{value}'" for name, value in place.environment().items())
        code, _, errors = api.run(sandbox, ["/bin/sh", "-c", f"{exports}; SWAP=$1; {trap.lay}", "sh", swaps.PROGRAM])
        if code != 0:
            return "undecided", f"it could not be laid: {errors.strip()[-200:]}"
        if trap.step(place, Calls(api, sandbox)):
            return "reached", "this machine's file was read, written or removed"
        how = "nothing of this machine was reached"
        if swaps.CALL in trap.lay:
            count = swaps.told(api.run(sandbox, ["/bin/cat", COUNT])[1])
            if count < swaps.LEAST:
                return "undecided", f"names changed places {count} times only"
            how += f" while names changed places {count} times"
        code, said, _ = api.run(sandbox, ["/bin/echo", "alive"])
        return ("stopped", how) if said == "alive\n" else ("undecided", "the sandbox does not answer any more")
    finally:
        api.destroy(sandbox)
        place.gone()


def control(trap):
    """Steps into the same trap on this machine."""
    folder = tempfile.mkdtemp(dir="/var/tmp", prefix="postern-trap-")
    place = Place(folder)
    swapping = None
    try:
        lay = trap.lay.replace(swaps.CALL, "true")
        subprocess.run(["/bin/sh", "-c", lay], check=True, capture_output=True, env=place.environment())
        if lay != trap.lay:
            swapping = swaps.begin_here(folder, f"{place.victim}/swaps")
        reached = trap.step(place, Here())
        return ("reached", "a server that follows paths steps into it") if reached else ("stopped", "nothing was reached here either")
    finally:
        if swapping:
            swapping.kill()
            swapping.wait()
        place.gone()
        shutil.rmtree(folder, ignore_errors=True)

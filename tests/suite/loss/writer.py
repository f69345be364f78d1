# SPDX-License-Identifier: Apache-2.0
"""Writes files in a sandbox until it is told to stop. Usage: writer.py NAME ROUND

Its own files appear whole, by a rename; each tells in its first line what all of it must be. Into the
one file that it shares with another sandbox's writer it appends lines, and notes those that it found
there afterwards.
"""

import os
import sys
import time

name, round_ = sys.argv[1], sys.argv[2]
top, own = f"r{round_}", f"r{round_}/{name}"
aside = f"/data/scratch/{name}-{round_}"
os.chdir("/data/user")
os.makedirs(own, exist_ok=True)
os.makedirs("/data/scratch", exist_ok=True)


def content(path, number):
    size = number * 7919 % 30000
    if number % 16 == 5:
        size += 1 << 20
    if number % 64 == 23:
        size += 9 << 20
    head = f"{path} {number} {size}\n".encode()
    return head + (head * (size // len(head) + 1))[:size]


def put(path, number):
    with open(aside, "wb") as file:
        file.write(content(path, number))
    os.rename(aside, path)


def append(line):
    file = os.open(f"{top}/shared", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(file, line.encode())
    os.close(file)
    try:
        there = open(f"{top}/shared").read()
    except FileNotFoundError:
        return
    if line in there:
        with open(f"{aside}.seen", "a") as seen:
            seen.write(line)


number = 0
while not os.path.exists(f"/data/scratch/stop-{round_}"):
    number += 1
    kind = number % 4
    if kind in (1, 2):
        put(f"{own}/again-{number % 5}", number)
    elif kind == 3 and number > 20:
        os.unlink(f"{own}/once-{number - 15}")
    else:
        put(f"{own}/once-{number}", number)
    if number % 3 == 0:
        append(f"{name} {round_} {number}\n")
    time.sleep(0.002 + number * 37 % 11 / 1000)
with open(f"{aside}.done", "w") as done:
    done.write(str(number))

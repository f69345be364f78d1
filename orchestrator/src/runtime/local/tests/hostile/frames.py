#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""What a hostile process 1 begins with, whatever it then does (process_1.py, here and in tests/suite/hostile):
frames of HTTP/2, written by hand, because no library would write these."""
import os
import time

BEHAVIOUR = "@BEHAVIOUR@"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 4, 6, 8, 9
INITIAL_WINDOW_SIZE = 4
ACK, END_STREAM, END_HEADERS = 1, 1, 4
STATUS_200, STATUS_204 = b"\x88", b"\x89"
# What the shim takes unread: of each stream, and on top of that of some; of all together as stream 0, less what
# short answers took. The protocol begins with these numbers.
windows = {"each": 65535, 0: 65535 - 1024}


def frame(kind, flags, stream, payload=b"", length=None):
    length = len(payload) if length is None else length
    return length.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def message(text, length=None):
    return b"\0" + (len(text) if length is None else length).to_bytes(4, "big") + text


def send(data):
    while data:
        data = data[os.write(1, data):]


def read(length):
    data = b""
    while len(data) < length:
        more = os.read(0, length - len(data))
        if not more:
            os._exit(0)
        data += more
    return data


def receive():
    """The next frame's head, with what it opens counted and settings acknowledged."""
    head = read(9)
    body, stream = read(int.from_bytes(head[:3], "big")), int.from_bytes(head[5:], "big")
    if head[3] == WINDOW_UPDATE:
        windows[stream] = windows.get(stream, 0) + int.from_bytes(body, "big")
    elif head[3] == SETTINGS and not head[4] & ACK:
        for at in range(0, len(body), 6):
            if int.from_bytes(body[at : at + 2], "big") == INITIAL_WINDOW_SIZE:
                windows["each"] = int.from_bytes(body[at + 2 : at + 6], "big")
        send(frame(SETTINGS, ACK, 0))
    return head


def pour(stream, first, chunk):
    """An answer without an end, as fast as its window allows."""
    send(frame(HEADERS, END_HEADERS, stream, STATUS_200))
    if first:
        send(frame(DATA, 0, stream, first))
    sent = len(first)
    while True:
        while min(windows["each"] + windows.get(stream, 0), windows[0]) < sent + len(chunk):
            receive()
        send(frame(DATA, 0, stream, chunk))
        sent += len(chunk)

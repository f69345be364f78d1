#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""A process 1 that answers one health check and then misbehaves (see hostile.rs).

It writes HTTP/2 frames by hand, because no library would write these.
"""
import os
import time

BEHAVIOUR = "@BEHAVIOUR@"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 4, 6, 8, 9
INITIAL_WINDOW_SIZE = 4
ACK, END_STREAM, END_HEADERS = 1, 1, 4
STATUS_200, STATUS_204 = b"\x88", b"\x89"


def frame(kind, flags, stream, payload=b"", length=None):
    length = len(payload) if length is None else length
    return length.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


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


def send_forever(data):
    while True:
        send(data)


def output(stream):
    """Endless good messages, as fast as the window allows."""
    text = b'{"event":{"data":{"stdout":"' + b"QUFB" * 2500 + b'"}}}'
    message = b"\0" + len(text).to_bytes(4, "big") + text
    send(frame(HEADERS, END_HEADERS, stream, STATUS_200))
    sent = 0
    while True:
        while min(windows["each"] + windows.get(stream, 0), windows[0]) < sent + len(message):
            receive()
        send(frame(DATA, 0, stream, message))
        sent += len(message)


def misbehave(stream):
    if BEHAVIOUR == "headers":
        send(frame(HEADERS, 0, stream, STATUS_200))
        send_forever(frame(CONTINUATION, 0, stream, (b"\0\1a\x7e" + b"b" * 126) * 100))
    elif BEHAVIOUR == "frame":
        send(frame(DATA, 0, stream, b"", length=0xFFFFFF))
        send_forever(b"x" * 65536)
    elif BEHAVIOUR == "window":
        send(frame(HEADERS, END_HEADERS, stream, STATUS_200))
        send_forever(frame(DATA, 0, stream, b" " * 16384))
    elif BEHAVIOUR == "stream":
        send(frame(HEADERS, END_HEADERS, 1001, STATUS_200))
    elif BEHAVIOUR == "pings":
        send_forever(frame(PING, 0, 0, b"12345678") * 1000)
    elif BEHAVIOUR == "message":
        send(frame(HEADERS, END_HEADERS, stream, STATUS_200))
        send(frame(DATA, 0, stream, b"\0\xff\xff\xff\xff" + b"x" * 16000))
    elif BEHAVIOUR == "output":
        output(stream)
    elif BEHAVIOUR == "identity":
        other = b'{"sandbox":"sandbox-aaaaaaaaaaaa","pid":1}'
        send(frame(HEADERS, END_HEADERS, stream, STATUS_200) + frame(DATA, END_STREAM, stream, other))


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


# What the shim takes unread: of each stream, and on top of that of some; of all together as stream 0. The
# protocol begins with these numbers.
windows = {"each": 65535, 0: 65535}
read(24)
if BEHAVIOUR == "never":
    time.sleep(1000)
send(frame(SETTINGS, 0, 0))
is_healthy = False
while True:
    head = receive()
    if head[3] == HEADERS:
        stream = int.from_bytes(head[5:], "big")
        if is_healthy:
            misbehave(stream)
        else:
            is_healthy = True
            send(frame(HEADERS, END_HEADERS | END_STREAM, stream, STATUS_204))

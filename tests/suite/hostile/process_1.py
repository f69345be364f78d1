#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""A process 1 that answers one health check, takes its identity, and answers the next call with what never
ends or lies (see hostile.rs). It writes HTTP/2 frames by hand, because no library would write these.
"""
import os

BEHAVIOUR = "@BEHAVIOUR@"
DATA, HEADERS, SETTINGS, WINDOW_UPDATE = 0, 1, 4, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
STATUS_200, STATUS_204 = b"\x88", b"\x89"
# What the shim opened at the start (channel.rs), less what short answers took.
WINDOW, WHOLE = 256 << 10, (1 << 20) - 1024


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


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
    head = read(9)
    return head, read(int.from_bytes(head[:3], "big"))


def pour(stream, first, chunk):
    """An answer without an end, as fast as its window allows."""
    window, whole = WINDOW - len(first), WHOLE - len(first)
    send(frame(HEADERS, END_HEADERS, stream, STATUS_200))
    if first:
        send(frame(DATA, 0, stream, first))
    while True:
        while min(window, whole) < len(chunk):
            head, body = receive()
            if head[3] == WINDOW_UPDATE:
                more, of = int.from_bytes(body, "big"), int.from_bytes(head[5:], "big")
                if of == 0:
                    whole += more
                elif of == stream:
                    window += more
            elif head[3] == SETTINGS and not head[4] & ACK:
                send(frame(SETTINGS, ACK, 0))
        send(frame(DATA, 0, stream, chunk))
        window, whole = window - len(chunk), whole - len(chunk)


def misbehave(stream):
    begun = message(b'{"event":{"start":{"pid":7}}}')
    if BEHAVIOUR == "output":
        pour(stream, begun, message(b'{"event":{"data":{"stdout":"' + b"QUFB" * 2500 + b'"}}}'))
    elif BEHAVIOUR == "terminal":
        pour(stream, begun, message(b'{"event":{"data":{"pty":"' + b"QUFB" * 2500 + b'"}}}'))
    elif BEHAVIOUR == "lie":
        send(frame(HEADERS, END_HEADERS, stream, STATUS_200))
        send(frame(DATA, 0, stream, begun + message(b"x" * 16000, length=0xFFFFFFFF)))
    else:  # A file, a list, or what is to be said to an identity.
        pour(stream, b"", b" " * 16384)


read(24)
send(frame(SETTINGS, 0, 0))
calls = 0
while True:
    head, _ = receive()
    if head[3] == SETTINGS and not head[4] & ACK:
        send(frame(SETTINGS, ACK, 0))
    elif head[3] == HEADERS:
        calls, stream = calls + 1, int.from_bytes(head[5:], "big")
        if calls == 1:
            send(frame(HEADERS, END_HEADERS | END_STREAM, stream, STATUS_204))
        elif calls == 2 and BEHAVIOUR != "identity":
            send(frame(HEADERS, END_HEADERS, stream, STATUS_200) + frame(DATA, END_STREAM, stream, b"{}"))
        else:
            misbehave(stream)

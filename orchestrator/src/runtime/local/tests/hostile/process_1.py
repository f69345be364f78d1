#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""A process 1 that answers one health check and then misbehaves (see hostile.rs).

It writes HTTP/2 frames by hand, because no library would write these.
"""
import os
import time

BEHAVIOUR = "@BEHAVIOUR@"
DATA, HEADERS, SETTINGS, PING, CONTINUATION = 0, 1, 4, 6, 9
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
    # What the shim opened at the start (channel.rs).
    window, whole = 256 << 10, 1 << 20
    send(frame(HEADERS, END_HEADERS, stream, STATUS_200))
    while True:
        while min(window, whole) < len(message):
            head, body = receive()
            if head[3] == 8:
                more, of = int.from_bytes(body, "big"), int.from_bytes(head[5:], "big")
                window, whole = (window, whole + more) if of == 0 else (window + more, whole)
            elif head[3] == SETTINGS and not head[4] & ACK:
                send(frame(SETTINGS, ACK, 0))
        send(frame(DATA, 0, stream, message))
        window, whole = window - len(message), whole - len(message)


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
    head = read(9)
    return head, read(int.from_bytes(head[:3], "big"))


read(24)
if BEHAVIOUR == "never":
    time.sleep(1000)
send(frame(SETTINGS, 0, 0))
is_healthy = False
while True:
    head, _ = receive()
    if head[3] == SETTINGS and not head[4] & ACK:
        send(frame(SETTINGS, ACK, 0))
    elif head[3] == HEADERS:
        stream = int.from_bytes(head[5:], "big")
        if is_healthy:
            misbehave(stream)
        else:
            is_healthy = True
            send(frame(HEADERS, END_HEADERS | END_STREAM, stream, STATUS_204))

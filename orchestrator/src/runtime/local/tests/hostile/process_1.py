# SPDX-License-Identifier: Apache-2.0
"""Answers one health check and then misbehaves (see hostile.rs). It follows frames.py."""


def send_forever(data):
    while True:
        send(data)


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
        # Good messages, without an end.
        pour(stream, b"", message(b'{"event":{"data":{"stdout":"' + b"QUFB" * 2500 + b'"}}}'))
    elif BEHAVIOUR == "identity":
        other = b'{"sandbox":"sandbox-aaaaaaaaaaaa","pid":1}'
        send(frame(HEADERS, END_HEADERS, stream, STATUS_200) + frame(DATA, END_STREAM, stream, other))


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

# SPDX-License-Identifier: Apache-2.0
"""Answers one health check, takes its identity, and answers the next call with what never ends or lies (see
hostile.rs). It follows frames.py."""


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
    head = receive()
    if head[3] == HEADERS:
        calls, stream = calls + 1, int.from_bytes(head[5:], "big")
        if calls == 1:
            send(frame(HEADERS, END_HEADERS | END_STREAM, stream, STATUS_204))
        elif calls == 2 and BEHAVIOUR != "identity":
            send(frame(HEADERS, END_HEADERS, stream, STATUS_200) + frame(DATA, END_STREAM, stream, b"{}"))
        else:
            misbehave(stream)

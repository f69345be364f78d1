#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An agent of the support desk, as it runs inside its sandbox: standard library only, no key.

    agent.py METHOD PATH [BODY]    one request to the backend; prints {"status", "headers", "body"}
    agent.py flood COUNT PATH      many requests; prints how often each status came
    agent.py escape ADDRESS...     tries to get out; prints how each attempt ended
    agent.py remember TEXT         keeps a note in the user's files
    agent.py recall                reads it again

The gateway is at $GATEWAY_URL. The agent has no token: the sandbox attaches it on the way out.
"""

import json
import os
import socket
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NOTE = Path("/data/user/note.txt")


def request(method, path, body=None):
    headers = {"Content-Type": "application/json"} if body is not None else {}
    url = os.environ["GATEWAY_URL"] + "/support-desk" + path
    asked = urllib.request.Request(url, body and body.encode(), headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, lower(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, lower(refused.headers), refused.read().decode()


def lower(headers):
    """Names of headers have no case (RFC 9110 §5.1); dictionaries do."""
    return {name.lower(): value for name, value in headers.items()}


def once(method, path, body=None):
    status, headers, text = request(method, path, body)
    try:
        answer = json.loads(text)
    except ValueError:
        answer = text
    return {"status": status, "headers": headers, "body": answer}


def flood(count, path):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: request("GET", path), range(int(count))))
    counts = {}
    for status, _, _ in answers:
        counts[str(status)] = counts.get(str(status), 0) + 1
    waits = [headers.get("retry-after") for status, headers, _ in answers if status == 429]
    return {"counts": counts, "retry_after": waits[0] if waits else None}


def escape(*addresses):
    return {address: attempt(address) for address in addresses}


def attempt(address):
    """Connects to `tcp:HOST:PORT` or `unix:PATH`, resolves `dns:NAME`, or reads `file:PATH`."""
    kind, _, rest = address.partition(":")
    try:
        if kind == "tcp":
            host, _, port = rest.rpartition(":")
            socket.create_connection((host, int(port)), timeout=3).close()
        elif kind == "dns":
            socket.getaddrinfo(rest, 443)
        elif kind == "unix":
            with socket.socket(socket.AF_UNIX) as own:
                own.connect(rest.replace("@", "\0", 1) if rest.startswith("@") else rest)
        else:
            os.listdir(rest) if os.path.isdir(rest) else Path(rest).read_bytes()
    except OSError as error:
        return {"reached": False, "how": error.strerror or str(error) or type(error).__name__}
    return {"reached": True, "how": "it worked"}


def remember(text):
    NOTE.write_text(text)
    return {"kept": str(NOTE)}


def recall():
    return {"note": NOTE.read_text() if NOTE.exists() else None}


def main():
    verb, *rest = sys.argv[1:] or ["help"]
    verbs = {"flood": flood, "escape": escape, "remember": remember, "recall": recall}
    if verb in verbs:
        print(json.dumps(verbs[verb](*rest)))
    elif rest and verb.isupper():
        print(json.dumps(once(verb, *rest)))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()

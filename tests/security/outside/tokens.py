# SPDX-License-Identifier: Apache-2.0
"""A session token is good for its own sandbox's door only: others' are tried here, and from elsewhere.

The control of all is the same request with the sandbox's own token from its own place, which the
gateway takes: it gets past every question of identity.
"""

import http.client
import json
import urllib.parse

# Asks the gateway's socket itself, past the door, with whatever token is given.
ASK = """
import json, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.settimeout(10)
asked.connect("/run/postern/gateway.sock")
head = f"GET /postern-escape HTTP/1.1\\r\\nHost: gateway\\r\\nConnection: close\\r\\n"
if sys.argv[1]:
    head += f"Authorization: Bearer {sys.argv[1]}\\r\\n"
asked.sendall((head + "\\r\\n").encode())
answer = b""
while chunk := asked.recv(65536):
    answer += chunk
print(answer.decode(errors="replace"))
"""
TRIED = {
    "none": "the gateway's socket without the door and without a token",
    "neighbours": "a neighbour's token at one's own gateway socket",
    "altered": "one's own token with its signature changed",
    "unsigned": "one's own claims in a token of algorithm none",
    "from-elsewhere": "one's own token at the gateway's door over TCP, from this machine",
}
SESSION_CODES = ("token-", "session-unknown")


def ask_inside(api, sandbox, token):
    """The status and problem code of a request with this token at the gateway's socket inside."""
    _, answer, errors = api.python(sandbox, ASK, token)
    if not answer.startswith("HTTP/1."):
        return 0, errors.strip()[-200:] or "no answer"
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), code_of(body[body.find("{"):body.rfind("}") + 1])


def ask_outside(url, token):
    """The same at the gateway's door over TCP, from this machine."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port or 80, timeout=10)
    try:
        connection.request("GET", "/postern-escape", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, code_of(answer.read())
    finally:
        connection.close()


def code_of(body):
    try:
        return json.loads(body).get("code", "")
    except ValueError:
        return ""


def is_refused(status, code):
    return status in (401, 403) and code.startswith(SESSION_CODES)


def is_taken(status, code):
    return status != 0 and not code.startswith(SESSION_CODES) and status != 401


def outcomes(api, own, neighbour):
    """Whether the control was taken, and status and code of each kind that could be tried."""
    def ask(token):
        return ask_inside(api, own["sandbox_id"], token)
    found = {"none": ask(""), "neighbours": ask(neighbour["token"]), "altered": ask(altered(own["token"])),
             "unsigned": ask(unsigned(own["token"]))}
    if api.gateway:
        found["from-elsewhere"] = ask_outside(api.gateway, own["token"])
    return is_taken(*ask(own["token"])), found


def altered(token):
    head, claims, signature = token.split(".")
    return ".".join((head, claims, ("A" if signature[0] != "A" else "B") + signature[1:]))


def unsigned(token):
    # {"alg":"none","typ":"JWT"}
    return f"eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{token.split('.')[1]}."

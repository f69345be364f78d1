# SPDX-License-Identifier: Apache-2.0
"""The REST API, as far as the suite uses it."""

import base64
import http.client
import json
import os
import secrets
import urllib.error
import urllib.parse
import urllib.request


class ApiError(Exception):
    """A call that did not do what it should; its text is what the server said."""

    def __init__(self, status, text):
        super().__init__(f"{status}: {text[:500]}")
        self.status = status


class Api:
    """A server and the key to it."""

    def __init__(self, environment):
        folder = environment.get("POSTERN_DATA_DIR", ".postern")
        written, key = {}, environment.get("POSTERN_API_KEY")
        try:
            with open(os.path.join(folder, "connection.json")) as file:
                written = json.load(file)
        except FileNotFoundError:
            pass
        self.url = (environment.get("POSTERN_URL") or written.get("url") or "http://127.0.0.1:8080").rstrip("/")
        # The file's key is for the server that wrote it, and for no other.
        if not key and written.get("url", "").rstrip("/") == self.url:
            with open(written["key_file"]) as file:
                key = file.read().strip()
        if not key:
            raise SystemExit("validate_isolation: no key; set POSTERN_API_KEY, or POSTERN_DATA_DIR to the folder of `postern up`")
        self.key = key
        self.gateway = written.get("gateway")
        # In a sandbox of this machine it is this machine's; an image may have it anywhere.
        self.interpreter = "/usr/bin/python3"
        self.made = []

    def call(self, method, path, body=None, seconds=60):
        with self._open(method, path, body, seconds, "application/json") as response:
            answer = response.read()
        return json.loads(answer) if answer else {}

    def _open(self, method, path, body, seconds, accept):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.key}", "Accept": accept}
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        # No proxy of the environment comes between: a key must not leave this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            return opener.open(request, timeout=seconds)
        except urllib.error.HTTPError as error:
            raise ApiError(error.code, error.read().decode(errors="replace")) from None
        except OSError as error:
            raise ApiError(0, f"{method} {path}: {error}") from None

    def sandbox(self, sandbox):
        return self.call("GET", f"/sandbox/{urllib.parse.quote(sandbox, safe='')}")

    def create(self, like, user=None):
        """A sandbox of the same template; `destroy_all` removes it if nothing else did."""
        body = {"user_id": user or f"escape-{secrets.token_hex(4)}", "conversation_id": f"escape-{secrets.token_hex(8)}"}
        if like.get("template"):
            body["template"] = like["template"]
        made = self.call("POST", "/sandbox?wait=running", body)
        self.made.append(made["sandbox_id"])
        return made

    def destroy(self, sandbox, seconds=60):
        self.call("DELETE", f"/sandbox/{sandbox}", seconds=seconds)
        if sandbox in self.made:
            self.made.remove(sandbox)

    def destroy_all(self):
        for sandbox in list(self.made):
            try:
                self.destroy(sandbox)
            except ApiError:
                pass  # It may have ended by itself, which is what some attempts are for.

    def run(self, sandbox, command, seconds=60):
        """Runs a command inside; returns its exit code (None if a signal ended it), output and errors."""
        body = {"command": command, "timeout": f"{seconds}s"}
        streams, code = {"stdout": b"", "stderr": b""}, None
        try:
            with self._open("POST", f"/sandbox/{sandbox}/exec", body, seconds + 30, "text/event-stream") as response:
                for kind, event in events(response):
                    if kind in streams:
                        streams[kind] += base64.b64decode(event.get("data", ""))
                    elif kind == "exit":
                        code = event.get("code")
                    elif kind == "error":
                        raise ApiError(event.get("status", 0), json.dumps(event))
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(0, f"exec in {sandbox}: {error!r}") from None
        return code, *(said.decode(errors="replace") for said in streams.values())

    def python(self, sandbox, program, *arguments, seconds=60):
        return self.run(sandbox, [self.interpreter, "-I", "-c", program, *arguments], seconds)


def events(response):
    """The server-sent events of an answer: pairs of kind and JSON."""
    kind, lines = "message", []
    for line in response:
        text = line.decode().rstrip("\r\n")
        field, _, value = text.partition(": ")
        if field == "event":
            kind = value
        elif field == "data":
            lines.append(value)
        elif not text and lines:
            yield kind, json.loads("\n".join(lines))
            kind, lines = "message", []

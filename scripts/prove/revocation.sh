#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# How soon a second gateway process refuses a session that was ended: ROUNDS times (50), measured from
# the moment the call to end it is sent. Every round must be within a second; prints the median.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${CARGO_TARGET_DIR:?}"
exec python3 - "${ROUNDS:-50}" "$CARGO_TARGET_DIR/programs" "$PWD/examples/support-desk" <<'PYTHON'
import http.client, json, os, pathlib, shutil, signal, statistics, subprocess, sys, tempfile, time

rounds, programs, example = int(sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
folder = pathlib.Path(tempfile.mkdtemp(prefix="postern-revocation-"))
environment = {"PATH": os.environ["PATH"], "TOKEN_SIGNING_KEY": "0123456789abcdef0123456789abcdef-prove"}
children = []


def start(command, **more):
    child = subprocess.Popen(command, cwd=folder, env={**environment, **more}, stdout=subprocess.PIPE,
                             stderr=open(folder / f"log-{len(children)}", "w"), text=True)
    children.append(child)
    return child


def wait(what, found):
    end = time.monotonic() + 90
    while time.monotonic() < end:
        try:
            value = found()
        except (OSError, ValueError, KeyError):
            value = None
        if value:
            return value
        time.sleep(0.02)
    raise SystemExit(f"{what} did not come about; logs are in {folder}")


def call(address, method, path, bearer, body=None):
    host, _, port = address.removeprefix("http://").rstrip("/").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    headers = {"Authorization": f"Bearer {bearer}"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text else None


def main():
    backend = start([sys.executable, str(example / "backend.py"), "--port", "0"])
    port = json.loads(backend.stdout.readline())["listening"]
    shutil.copytree(example / "config", folder / "config")
    file = folder / "config/backends/support-desk/backend.toml"
    file.write_text(file.read_text().replace("127.0.0.1:9000", f"127.0.0.1:{port}"))
    start([str(programs / "postern"), "--data-dir", "data", "up", "--config", "config"])
    written = wait("postern up", lambda: json.loads((folder / "data/connection.json").read_text()))
    key = pathlib.Path(written["key_file"]).read_text().strip()
    api = written["url"]
    _, made = call(api, "POST", "/gateways", key, {"name": "second"})
    (folder / "credential").write_text(made["credential"])
    start([str(programs / "postern-gateway"), "--listen", "127.0.0.1:0", "--admin-listen", "off", "--data-dir", "edge"],
          POSTERN_GATEWAY_CREDENTIAL_FILE=str(folder / "credential"), POSTERN_ORCHESTRATOR=written["control"],
          POSTERN_UPSTREAMS_ALLOW=f"127.0.0.1:{port}", POSTERN_LOG_FORMAT="json")
    up = lambda: [line for line in (folder / "log-2").read_text().splitlines() if "postern-gateway is up" in line]
    gateway = json.loads(wait("postern-gateway", up)[0])["listen"]
    wait("the gateway's connection", lambda: call(api, "GET", "/gateways", key)[1]["gateways"][0]["connected"])
    took, failed = [], 0
    wanted = {"user_id": "alice", "conversation_id": "c1", "operations": ["support-desk/read"], "peer": "127.0.0.1"}
    for _ in range(rounds):
        _, session = call(api, "POST", "/sessions", key, wanted)
        ask = lambda: call(gateway, "GET", "/support-desk/orders", session["token"])
        wait("the session", lambda: ask()[0] == 200)
        begun = time.monotonic()
        call(api, "DELETE", f"/sessions/{session['session_id']}", key)
        while ask()[1].get("code") != "token-revoked":
            pass
        took.append(time.monotonic() - begun)
        failed += took[-1] > 1
    print(f"median {statistics.median(took) * 1000:.1f} ms, longest {max(took) * 1000:.1f} ms of {rounds}")
    print(f"{rounds - failed} passed, {failed} failed")
    return failed


failed = 1
try:
    failed = main()
finally:
    for child in reversed(children):
        child.send_signal(signal.SIGINT)
    for child in children:
        child.wait(60)
    if not failed:
        shutil.rmtree(folder)
sys.exit(1 if failed else 0)
PYTHON

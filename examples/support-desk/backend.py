#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The support desk: an ordinary service of a team, which knows nothing of sandboxes.

It believes `X-Customer-Id` and `customer_id`, as services behind a gateway do, and writes one
JSON line to standard output for each request that reaches it.
"""

import argparse
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

CUSTOMERS = {
    "alice": {"customer_id": "alice", "name": "Alice Archer", "plan": "gold"},
    "bob": {"customer_id": "bob", "name": "Bob Brewer", "plan": "silver"},
}
ORDERS = [
    {"order_id": "ord-1001", "customer_id": "alice", "item": "kettle", "total": 49.5},
    {"order_id": "ord-1002", "customer_id": "alice", "item": "lamp", "total": 180.0},
    {"order_id": "ord-2001", "customer_id": "bob", "item": "drill", "total": 99.0},
]
LOG_LOCK = threading.Lock()


class Desk(BaseHTTPRequestHandler):
    """One request to the desk."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self):
        url, body = self.begin()
        customer = self.customer(url, body)
        if match := re.fullmatch(r"/customers/([^/]+)", url.path):
            self.answer_one(CUSTOMERS.get(unquote(match[1])))
        elif url.path == "/orders":
            self.answer(200, [order for order in ORDERS if order["customer_id"] == customer])
        elif match := re.fullmatch(r"/orders/([^/]+)", url.path):
            own = (order for order in ORDERS if order["customer_id"] == customer)
            self.answer_one(next((order for order in own if order["order_id"] == match[1]), None))
        elif url.path == "/events":
            self.stream(customer)
        else:
            self.answer(404, {"error": "no such path"})

    def do_POST(self):
        url, body = self.begin()
        if url.path == "/refunds":
            refund = json.loads(body)
            self.answer(201, {"refund": refund["amount"], "customer_id": self.customer(url, body)})
        else:
            self.answer(404, {"error": "no such path"})

    def do_DELETE(self):
        self.begin()
        self.answer(200, {"closed": True})

    def begin(self):
        """Reads the request whole and logs that it came."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = {"at": time.time(), "method": self.command, "path": self.path, "headers": dict(self.headers), "body": body.decode("utf-8", "replace")}
        with LOG_LOCK:
            print(json.dumps(line), flush=True)
        return urlsplit(self.path), body

    def customer(self, url, body):
        """Whose data is asked for: body, query or header, whichever names somebody."""
        named = json.loads(body).get("customer_id") if body else None
        return named or parse_qs(url.query).get("customer_id", [self.headers.get("X-Customer-Id")])[0]

    def answer_one(self, found):
        self.answer(200, found) if found else self.answer(404, {"error": "not found"})

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, customer):
        """Server-sent events until the other end is gone, at most a minute."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for number in range(600):
                self.wfile.write(f"data: {json.dumps({'customer_id': customer, 'number': number})}\n\n".encode())
                self.wfile.flush()
                time.sleep(0.1)
        except OSError:
            return

    def log_message(self, format, *arguments):
        """The JSON lines of `begin` are the log."""


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=9000, help="0 takes a free one; the first line printed says which")
    chosen = options.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", chosen.port), Desk)
    print(json.dumps({"listening": server.server_address[1]}), flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()

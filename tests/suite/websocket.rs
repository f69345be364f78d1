// SPDX-License-Identifier: Apache-2.0
//! A WebSocket from inside a real sandbox: through `sandboxd`'s door and the gateway to a backend,
//! which hears the session's user whatever the agent says.

use crate::running::{Backend, Up, configured};
use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use tokio_tungstenite::tungstenite::accept_hdr;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

/// Asks for a WebSocket as somebody else, sends a message, and tells what came back.
const AGENT: &str = r#"
import json, os, socket, urllib.parse
door = urllib.parse.urlsplit(os.environ["GATEWAY_URL"])
s = socket.create_connection((door.hostname, door.port))
s.sendall(b"GET /feed/live HTTP/1.1\r\nHost: door\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
          b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
head = b""
while not head.endswith(b"\r\n\r\n"):
    head += s.recv(1) or exit("closed: " + repr(head))
text, mask = b"hello from inside", b"mask"
s.sendall(bytes([0x81, 0x80 | len(text)]) + mask + bytes(c ^ mask[i % 4] for i, c in enumerate(text)))
frame = b""
while len(frame) < 2 + len(text):
    frame += s.recv(100) or exit("closed: " + repr(frame))
print(json.dumps({"head": head.decode().lower(), "text": frame[2:].decode()}))
"#;

/// A backend that echoes, and tells whom it heard.
fn echo() -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (heard, hears) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            #[expect(clippy::result_large_err, reason = "the callback's type is the crate's")]
            let agree = |asking: &Request, agreeing: Response| {
                let user = asking.headers().get("x-user-id").and_then(|user| user.to_str().ok());
                drop(heard.send(user.unwrap_or_default().to_owned()));
                Ok(agreeing)
            };
            let Ok(mut socket) = accept_hdr(stream, agree) else { continue };
            while let Ok(message) = socket.read() {
                if message.is_text() && socket.send(message).is_err() {
                    break;
                }
            }
        }
    });
    (port, hears)
}

#[test]
fn an_agent_has_a_websocket_through_its_door() {
    let backend = Backend::start();
    let (port, hears) = echo();
    let folder = configured(&backend);
    let config = folder.path().join("config");
    fs::create_dir(config.join("backends/feed")).expect("a folder");
    let file = format!("url = \"http://127.0.0.1:{port}\"\nwebsockets = [\"get\"]\n");
    fs::write(config.join("backends/feed/backend.toml"), file).expect("writes");
    let policy = "@id(\"feed\") permit (principal, action == feed::Action::\"get\", resource);\n";
    fs::write(config.join("policies/feed.cedar"), policy).expect("writes");
    let template = config.join("templates/default.toml");
    let text = fs::read_to_string(&template).expect("reads");
    fs::write(&template, text.replace("\"support-desk/read\"", "\"support-desk/read\", \"feed/get\""))
        .expect("writes");
    let up = Up::on(Arc::new(folder));
    let sandbox = up.sandbox("alice", "live");
    let id = sandbox["sandbox_id"].as_str().expect("an id");
    let said = up.told(&["sandbox", "exec", id, "--", "python3", "-I", "-c", AGENT]);
    assert_eq!(said["text"], "hello from inside");
    let head = said["head"].as_str().expect("a head");
    assert!(head.starts_with("http/1.1 101 ") && head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    assert_eq!(hears.recv().expect("a handshake"), "alice");
    up.stop();
}

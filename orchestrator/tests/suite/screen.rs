// SPDX-License-Identifier: Apache-2.0
//! A terminal at the other end of a WebSocket: what it shows, and typing in it. The suite on Kubernetes
//! uses it too.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Socket = WebSocketStream<TcpStream>;

/// Waits until its process has begun, and says which that is.
pub(crate) async fn begun(socket: &mut Socket) -> i64 {
    let begun = shown(socket, "{\"start\":{\"pid\":").await;
    let pid = begun.chars().filter(char::is_ascii_digit).collect::<String>();
    pid.parse().expect("a number")
}

/// Reads until what is written, or said of it, holds `end`; all of that.
pub(crate) async fn shown(socket: &mut Socket, end: &str) -> String {
    let mut shown = String::new();
    while !shown.contains(end) {
        let next = timeout(PATIENCE, socket.next()).await;
        let next = next.unwrap_or_else(|_late| panic!("never came: {end}; it showed {shown:?}"));
        match next.unwrap_or_else(|| panic!("closed before {end}; it showed {shown:?}")).expect("good") {
            Message::Binary(bytes) => shown.push_str(&String::from_utf8_lossy(&bytes)),
            Message::Text(text) => shown.push_str(text.as_str()),
            _ => {}
        }
    }
    shown
}

pub(crate) async fn type_in(socket: &mut Socket, text: &str) {
    socket.send(Message::Binary(text.as_bytes().to_vec().into())).await.expect("is sent");
}

pub(crate) async fn say(socket: &mut Socket, said: &Value) {
    socket.send(Message::Text(said.to_string().into())).await.expect("is sent");
}

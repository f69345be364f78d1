// SPDX-License-Identifier: Apache-2.0
//! `postern sessions`: sessions that are bound to an address, for tests and for clients that are no
//! sandboxes. The token is printed once, alone on standard output.

use super::Server;
use crate::arguments::{AddSession, Sessions};
use crate::client::segment;
use crate::failure::Failure;
use anyhow::Context as _;
use serde_json::{Value, json};

/// Runs one of the commands.
pub(super) async fn run(server: &Server, wanted: Sessions) -> Result<(), Failure> {
    match wanted {
        Sessions::Add(wanted) => add(server, wanted).await,
        Sessions::Ls => server.list(
            &server.get("/sessions").await?,
            "sessions",
            &["session_id", "tenant", "user_id", "conversation_id", "peer", "expires_at"],
        ),
        Sessions::Rm { id } => {
            server.delete(&format!("/sessions/{}", segment(&id))).await?;
            let removed = json!({ "session_id": id, "removed": true });
            server.output.done(&removed, || format!("session {id} has ended"));
            Ok(())
        }
    }
}

async fn add(server: &Server, wanted: AddSession) -> Result<(), Failure> {
    let mut body = json!({
        "user_id": wanted.user,
        "conversation_id": wanted.conversation,
        "operations": wanted.operations,
        "peer": wanted.peer,
    });
    if let (Some(ttl), Some(body)) = (wanted.ttl, body.as_object_mut()) {
        body.insert("ttl".to_owned(), Value::from(ttl));
    }
    let made = server.post("/sessions", &body).await?;
    let token = made.get("token").and_then(Value::as_str).context("the answer holds no token")?;
    server.output.answer(&made, || token.to_owned());
    server.output.note("this token is not shown again; it is good from that address only");
    Ok(())
}

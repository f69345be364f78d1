// SPDX-License-Identifier: Apache-2.0
//! `postern key`: API keys. A new one is printed once, alone on standard output, so that it can be
//! piped to where it belongs.

use super::Server;
use crate::arguments::Key;
use crate::client::segment;
use crate::failure::Failure;
use anyhow::Context as _;
use serde_json::json;
use std::collections::BTreeMap;

/// Runs one of the commands.
pub(super) async fn run(server: &Server, wanted: Key) -> Result<(), Failure> {
    match wanted {
        Key::Create { role, label, operations, templates, only } => {
            let listed = |list: Vec<String>| (!list.is_empty()).then_some(list);
            let labels: BTreeMap<String, String> = only.into_iter().collect();
            let body = json!({ "role": role, "label": label, "operations": listed(operations),
                "templates": listed(templates), "labels": labels });
            let made = server.post("/keys", &body).await?;
            let key =
                made.get("key").and_then(serde_json::Value::as_str).context("the answer holds no key")?;
            server.output.answer(&made, || key.to_owned());
            server.output.note("this key is not shown again");
            Ok(())
        }
        Key::Ls => {
            server.list(&server.get("/keys").await?, "keys", &["key_id", "tenant", "role", "created_at"])
        }
        Key::Rm { id } => {
            server.delete(&format!("/keys/{}", segment(&id))).await?;
            let removed = json!({ "key_id": id, "removed": true });
            server.output.done(&removed, || format!("key {id} is revoked"));
            Ok(())
        }
    }
}

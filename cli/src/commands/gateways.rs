// SPDX-License-Identifier: Apache-2.0
//! `postern gateways`: which gateways of their own may follow this orchestrator. A credential is
//! printed once, alone on standard output, so that it can be piped to where it belongs.

use super::Server;
use crate::arguments::Gateways;
use crate::client::segment;
use crate::failure::Failure;
use anyhow::Context as _;
use serde_json::{Value, json};

/// Runs one of the commands.
pub(super) async fn run(server: &Server, wanted: Gateways) -> Result<(), Failure> {
    match wanted {
        Gateways::Add { name } => {
            let made = server.post("/gateways", &json!({ "name": name })).await?;
            let line =
                made.get("credential").and_then(Value::as_str).context("the answer holds no credential")?;
            server.output.answer(&made, || line.to_owned());
            server.output.note(
                "this credential is not shown again: put it into a file that only the gateway reads, \
                 and name it in POSTERN_GATEWAY_CREDENTIAL_FILE",
            );
            Ok(())
        }
        Gateways::Ls => server.list(
            &server.get("/gateways").await?,
            "gateways",
            &["name", "connected", "created_by", "created_at"],
        ),
        Gateways::Rm { name } => {
            server.delete(&format!("/gateways/{}", segment(&name))).await?;
            let removed = json!({ "name": name, "removed": true });
            server.output.done(&removed, || format!("gateway {name} is revoked and cut off"));
            Ok(())
        }
    }
}

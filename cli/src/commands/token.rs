// SPDX-License-Identifier: Apache-2.0
//! `postern token`: a fresh session token for a sandbox, printed once. The one before it stays good
//! for a minute.

use super::Server;
use crate::client::segment;
use crate::failure::Failure;
use anyhow::Context as _;
use serde_json::{Value, json};

/// Prints a fresh token.
pub(super) async fn run(server: &Server, id: &str) -> Result<(), Failure> {
    let answer = server.post(&format!("/tokens/{}/refresh", segment(id)), &json!({})).await?;
    let token = answer.get("token").and_then(Value::as_str).context("the answer holds no token")?;
    server.output.answer(&answer, || token.to_owned());
    Ok(())
}

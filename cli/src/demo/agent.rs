// SPDX-License-Identifier: Apache-2.0
//! Runs the example's agent inside a sandbox and reads what it prints.

use super::stage::Stage;
use crate::client::{Happened, segment};
use crate::output::Stream;
use anyhow::{Context as _, anyhow, bail, ensure};
use serde_json::{Value, json};

/// What the agent may print before it is stopped being listened to.
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;

/// One request of the agent, as it was answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// The status.
    pub status: u64,
    /// The body: JSON, or text.
    pub body: Value,
}

impl Answer {
    /// The code of a problem.
    pub(super) fn code(&self) -> &str {
        self.body.get("code").and_then(Value::as_str).unwrap_or_default()
    }

    /// What happened, in the answer's own words.
    pub(super) fn detail(&self) -> &str {
        self.body.get("detail").and_then(Value::as_str).unwrap_or_default()
    }

    /// Makes sure of the status and, for a refusal, the code.
    pub(super) fn expect(self, status: u64, code: &str) -> anyhow::Result<Self> {
        let is_right = self.status == status && (code.is_empty() || self.code() == code);
        ensure!(is_right, "expected {status} {code}, got {}: {}", self.status, self.body);
        Ok(self)
    }
}

/// Runs the agent with these arguments; the answer is the JSON that it prints.
pub(super) async fn run(stage: &Stage, sandbox: &str, arguments: &[&str]) -> anyhow::Result<Value> {
    let mut command = vec!["python3", "-I", "-c", stage.agent.as_str()];
    command.extend(arguments);
    let path = format!("/sandbox/{}/exec", segment(sandbox));
    let said = |failure: crate::failure::Failure| anyhow!("{failure}");
    let mut events = stage.client.events(&path, &json!({ "command": command })).await.map_err(said)?;
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    while let Some(event) = events.next().await.map_err(said)? {
        match Happened::in_event(&event).map_err(said)? {
            Happened::Output(Stream::Out, bytes) => out.extend(bytes),
            Happened::Output(Stream::Error, bytes) => errors.extend(bytes),
            Happened::Exit(0) => return serde_json::from_slice(&out).context("the agent printed no JSON"),
            Happened::Exit(code) => {
                bail!("the agent ended with {code}: {}", String::from_utf8_lossy(&errors))
            }
            Happened::Start(..) | Happened::Other => {}
        }
        ensure!(out.len() + errors.len() <= MAX_OUTPUT_BYTES, "the agent prints without end");
    }
    bail!("the agent's output broke off")
}

/// Lets the agent make one request to the backend.
pub(super) async fn request(
    stage: &Stage,
    sandbox: &str,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> anyhow::Result<Answer> {
    let arguments: Vec<_> = [method, path].into_iter().chain(body).collect();
    let said = run(stage, sandbox, &arguments).await?;
    let status = said.get("status").and_then(Value::as_u64).context("the agent says no status")?;
    Ok(Answer { status, body: said.get("body").cloned().unwrap_or_default() })
}

// SPDX-License-Identifier: Apache-2.0
//! Processes inside a sandbox: listed, fed, signalled, and followed by who did not start them.

use super::inside::{ANSWER_TIME, START_TIME, answered, enter, refused, silent};
use super::{Answer, Api, Call, empty, exec, input, json};
use crate::runtime::agent::{AgentError, Event};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::StreamExt;
use http::StatusCode;
use postern_common::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use serde_json::json as value;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// A list of 4096 processes with long arguments.
const LIST_BYTES: usize = 16 << 20;
/// What is handed over at a time.
const INPUT_BYTES: usize = 256 << 10;
/// How long a process may take to read what it was handed.
const INPUT_TIME: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Done {}

/// A process as the sandbox tells of it.
#[derive(Deserialize)]
struct Listed {
    pid: i32,
    #[serde(default)]
    tag: Option<String>,
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    cmd: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    cwd: Option<String>,
}

/// A process as the API shows it. Its environment is never shown.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(super) struct Shown {
    pid: i32,
    /// Program and arguments.
    command: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<String>,
    /// For `GET /sandbox/{id}/exec/{exec}`, where its output is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    exec_id: Option<String>,
}

/// `GET /sandbox/{id}/processes`.
pub(super) async fn list(api: Arc<Api>, call: Call) -> Answer {
    #[derive(Deserialize)]
    struct All {
        #[serde(default)]
        processes: Vec<Listed>,
    }
    #[derive(Serialize)]
    struct Page {
        processes: Vec<Shown>,
    }
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let nothing = value!({});
    let asked = agent.call_up_to::<All>(LIST_BYTES, "/process.Process/List", &nothing);
    let all = answered(&row.new.id, asked).await?;
    let shown = |listed: Listed| {
        let Config { cmd, args, cwd } = listed.config;
        Shown {
            pid: listed.pid,
            command: std::iter::once(cmd).chain(args).collect(),
            cwd,
            exec_id: listed.tag.filter(|tag| postern_common::execs::Execs::is_name(tag)),
        }
    };
    json(StatusCode::OK, &Page { processes: all.processes.into_iter().map(shown).collect() })
}

/// Signals that can be sent, as people name them.
const SIGNALS: [&str; 9] = ["TERM", "KILL", "INT", "HUP", "QUIT", "USR1", "USR2", "STOP", "CONT"];

/// `POST /sandbox/{id}/processes/{pid}/signal`.
pub(super) async fn signal(api: Arc<Api>, call: Call) -> Answer {
    let pid: i32 = call.path("pid")?;
    let mut fields = input::Fields::read(&call.body)?;
    let asked = fields.text("signal").unwrap_or_else(|| "TERM".to_owned());
    let upper = asked.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if !SIGNALS.contains(&name) {
        fields.mistake("/signal", format!("expected one of {}", SIGNALS.join(", ")));
    }
    fields.finish()?;
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let message = value!({ "process": { "pid": pid }, "signal": format!("SIGNAL_SIG{name}") });
    let Done {} = answered(&row.new.id, agent.call("/process.Process/SendSignal", &message)).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `POST /sandbox/{id}/processes/{pid}/stdin`: the body is what it reads next.
pub(super) async fn stdin(api: Arc<Api>, mut call: Call) -> Answer {
    let pid: i32 = call.path("pid")?;
    let is_last = call.query.flag("close")?;
    let mut content = call.content();
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let id = row.new.id;
    let fed = async |bytes: &[u8]| {
        let input = value!({ "process": { "pid": pid }, "input": { "stdin": BASE64.encode(bytes) } });
        match timeout(INPUT_TIME, agent.call::<Done>("/process.Process/SendInput", &input)).await {
            Ok(answer) => answer.map(|Done {}| ()).map_err(|error| refused(&id, error)),
            Err(_late) => {
                Err(Problem::new(Code::RequestTimeout, format!("process {pid} does not read its input"))
                    .hint("what was sent so far may have been read in part"))
            }
        }
    };
    let broken = || Problem::new(Code::RequestMalformed, "the body broke off or stood still");
    while let Some(bytes) = content.next().await {
        for piece in bytes.map_err(|_cut| broken())?.chunks(INPUT_BYTES) {
            fed(piece).await?;
        }
    }
    if is_last {
        let close = value!({ "process": { "pid": pid } });
        let Done {} = answered(&id, agent.call("/process.Process/CloseStdin", &close)).await?;
    }
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `GET /sandbox/{id}/processes/{pid}`: what it writes from now on.
pub(super) async fn attach(api: Arc<Api>, call: Call) -> Answer {
    let pid: i32 = call.path("pid")?;
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let id = row.new.id;
    let mut events = answered(&id, agent.attach(pid)).await?;
    match timeout(ANSWER_TIME, events.next()).await.map_err(|_late| silent(&id))? {
        Ok(Some(Event::Started { pid })) => {
            let start = value!({ "pid": pid });
            Ok(exec::stream(&api, (id, call.request_id.clone()), 0, Some(start), events))
        }
        Ok(Some(Event::Failed { code, message })) => Err(super::inside::ended(&id, &code, &message)),
        Err(error @ AgentError::Broken(_)) => Err(refused(&id, error)),
        _ => Err(silent(&id)),
    }
}

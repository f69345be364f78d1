// SPDX-License-Identifier: Apache-2.0
//! `GET /sandbox/{id}/terminal`: a process with a terminal, over a WebSocket.
//!
//! ```text
//! binary  ◀─▶  bytes of the terminal
//! text     ─▶  {"resize": {"cols": 120, "rows": 40}}   {"signal": "TERM"}
//! text    ◀─   {"start": {"pid": 7}}   {"exit": {"code": 0}}   {"exit": {"signal": 9}}   {"error": problem}
//! ```
//!
//! A reader that does not read stops the process; typing goes on meanwhile, so that Ctrl-C works. A
//! process that was started here is hung up when the socket closes, unless `keep` is asked for: then it
//! can be come back to by its `pid`.

use super::inside::{ANSWER_TIME, START_TIME, answered, ended, enter, refused, silent};
use super::{Answer, Api, Call, exec, input};
use crate::runtime::agent::{Event, Events, Process, TerminalSize};
use crate::runtime::{Agent, AgentError};
use axum::extract::ws::{Message, WebSocket};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use postern_common::id::SandboxId;
use postern_common::problem::{Code, FieldError, Problem};
use postern_common::tasks::Stop;
use serde::Deserialize;
use serde_json::{Value, json as value};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, interval_at, timeout};

/// The longest message of a client; what people paste is longer than what they type.
const MESSAGE_BYTES: usize = 1 << 20;
/// What may wait for a client that does not read, beside what its connection holds.
const WAITING_BYTES: usize = 256 << 10;
/// Signs of life keep connections open; a terminal in use is use of its sandbox.
const NOTE_EVERY: Duration = Duration::from_secs(15);
/// What a terminal has when its client does not say.
const SIZE: TerminalSize = TerminalSize { cols: 80, rows: 24 };
/// A login shell: bash where there is one.
const SHELL: &str = "command -v bash >/dev/null && exec bash -il; exec sh -il";
/// After this a client that does not answer our goodbye is left alone.
const GOODBYE_TIME: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Done {}

/// What a client says in text.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Resize(TerminalSize),
    Signal(String),
}

/// What a client wants.
struct Wanted {
    process: Process,
    /// There if it wants to come back to a process.
    pid: Option<i32>,
    keep: bool,
}

impl Wanted {
    fn read(call: &Call) -> Result<Self, Problem> {
        let size = TerminalSize {
            cols: call.query.parsed("cols")?.unwrap_or(SIZE.cols),
            rows: call.query.parsed("rows")?.unwrap_or(SIZE.rows),
        };
        let mut env = std::collections::BTreeMap::new();
        if let Some(kind) = call.query.text("term") {
            env.insert("TERM".to_owned(), kind.to_owned());
        }
        let mistakes: Vec<FieldError> = crate::check::environment_mistakes(&env)
            .into_iter()
            .map(|(_, message)| FieldError { pointer: "/query/term".to_owned(), message })
            .collect();
        if !mistakes.is_empty() {
            return Err(input::invalid(mistakes));
        }
        let command = call.query.text("command").unwrap_or(SHELL);
        if command.contains('\0') {
            return Err(input::mistaken("/query/command", "holds a zero byte"));
        }
        let process = Process {
            command: "/bin/sh".to_owned(),
            arguments: vec!["-c".to_owned(), command.to_owned()],
            env,
            folder: call.query.text("cwd").map(str::to_owned),
            terminal: Some(size),
            ..Process::default()
        };
        Ok(Self { process, pid: call.query.parsed("pid")?, keep: call.query.flag("keep")? })
    }
}

/// `GET /sandbox/{id}/terminal`.
pub(super) async fn open(api: Arc<Api>, call: Call) -> Answer {
    let wanted = Wanted::read(&call)?;
    let upgrade = call.upgrade()?;
    let (row, agent) = enter(&api, &call, START_TIME).await?;
    let id = row.new.id;
    let mut events = answered(&id, async {
        match wanted.pid {
            Some(pid) => agent.attach(pid).await,
            None => agent.start(&wanted.process).await,
        }
    })
    .await?;
    let pid = match timeout(ANSWER_TIME, events.next()).await.map_err(|_late| silent(&id))? {
        Ok(Some(Event::Started { pid })) => pid,
        Ok(Some(Event::Failed { code, message })) => return Err(ended(&id, &code, &message)),
        Err(error) => return Err(refused(&id, error)),
        Ok(_) => return Err(silent(&id)),
    };
    let terminal =
        Terminal { api: Arc::clone(&api), id, agent, pid, hangs_up: wanted.pid.is_none() && !wanted.keep };
    if let (Some(_), Some(size)) = (wanted.pid, wanted.process.terminal) {
        // Whoever comes back has a window of their own size.
        drop(terminal.resize(size).await);
    }
    let (opened, socket) = oneshot::channel();
    api.tasks.spawn(async move |stop: Stop| {
        match socket.await {
            Ok(socket) => drop(stop.run_until_cancelled(terminal.converse(socket, events)).await),
            // The client left before it was one.
            Err(_never_opened) => terminal.hang_up().await,
        }
    });
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES).max_write_buffer_size(WAITING_BYTES);
    Ok(upgrade.on_upgrade(async move |socket| drop(opened.send(socket))))
}

struct Terminal {
    api: Arc<Api>,
    id: SandboxId,
    agent: Agent,
    pid: i32,
    hangs_up: bool,
}

impl Terminal {
    async fn converse(self, socket: WebSocket, events: Events) {
        let (mut to, from) = socket.split();
        let is_over = tokio::select! {
            () = self.show(&mut to, events) => true,
            () = self.hear(from) => false,
        };
        if is_over {
            drop(timeout(GOODBYE_TIME, to.close()).await);
        } else {
            self.hang_up().await;
        }
    }

    async fn hang_up(&self) {
        if self.hangs_up {
            // It may have ended just now.
            drop(timeout(ANSWER_TIME, self.signal("HUP")).await);
        }
    }

    /// Shows what the process writes, to its end.
    async fn show(&self, to: &mut SplitSink<WebSocket, Message>, mut events: Events) {
        let mut note = interval_at(Instant::now() + NOTE_EVERY, NOTE_EVERY);
        if to.send(text(&value!({ "start": { "pid": self.pid } }))).await.is_err() {
            return;
        }
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = note.tick() => {
                    self.api.driver.touch(&self.id).await;
                    if to.send(Message::Ping(Bytes::new())).await.is_err() { return; }
                    continue;
                }
            };
            let (message, is_last) = match event {
                Ok(Some(Event::Stdout(bytes) | Event::Stderr(bytes))) => (Message::Binary(bytes), false),
                Ok(Some(Event::Started { .. })) => continue,
                Ok(Some(Event::Ended { exit_code, status })) => (text(&exit(exit_code, &status)), true),
                Ok(Some(Event::Failed { code, message })) => {
                    (text(&value!({ "error": ended(&self.id, &code, &message) })), true)
                }
                Ok(None) => return,
                Err(error) => (text(&value!({ "error": refused(&self.id, error) })), true),
            };
            if to.send(message).await.is_err() || is_last {
                return;
            }
        }
    }

    /// Does what the client types and says, until it leaves.
    async fn hear(&self, mut from: SplitStream<WebSocket>) {
        while let Some(Ok(message)) = from.next().await {
            let done = match message {
                Message::Binary(bytes) => self.type_in(&bytes).await,
                Message::Text(said) => match serde_json::from_str(said.as_str()) {
                    Ok(Said::Resize(size)) => self.resize(size).await,
                    Ok(Said::Signal(name)) => self.signal(&name).await,
                    // What is not understood is not guessed at.
                    Err(_unknown) => return,
                },
                Message::Close(_) => return,
                Message::Ping(_) | Message::Pong(_) => Ok(()),
            };
            match done {
                // Nobody is left at the terminal: its end is on its way.
                Ok(()) | Err(AgentError::Refused { .. }) => {}
                Err(AgentError::Broken(_) | AgentError::Malformed | AgentError::Unsigned) => return,
            }
        }
    }

    async fn type_in(&self, bytes: &[u8]) -> Result<(), AgentError> {
        self.tell("/process.Process/SendInput", "input", value!({ "pty": BASE64.encode(bytes) })).await
    }

    async fn resize(&self, size: TerminalSize) -> Result<(), AgentError> {
        self.tell("/process.Process/Update", "pty", value!({ "size": size })).await
    }

    async fn signal(&self, name: &str) -> Result<(), AgentError> {
        let name = name.to_ascii_uppercase();
        let name = name.strip_prefix("SIG").unwrap_or(&name);
        self.tell("/process.Process/SendSignal", "signal", format!("SIGNAL_SIG{name}").into()).await
    }

    async fn tell(&self, method: &'static str, what: &str, how: Value) -> Result<(), AgentError> {
        let message = value!({ "process": { "pid": self.pid }, what: how });
        self.agent.call::<Done>(method, &message).await.map(|Done {}| ())
    }
}

fn text(json: &Value) -> Message {
    Message::Text(json.to_string().into())
}

fn exit(exit_code: i32, status: &str) -> Value {
    match exec::end(exit_code, status) {
        (Some(code), _) => value!({ "exit": { "code": code } }),
        (None, signal) => value!({ "exit": { "signal": signal } }),
    }
}

/// What a request is told that wants no WebSocket.
pub(super) fn not_upgraded(why: &str) -> Problem {
    Problem::new(Code::UpgradeRefused, format!("this call is a WebSocket: {why}"))
        .hint("open it as `ws://…` or `wss://…`; `postern sandbox shell` does")
}

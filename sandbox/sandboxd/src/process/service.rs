// SPDX-License-Identifier: Apache-2.0
//! `process.Process` on the wire.

use super::start::{Start, start};
use super::terminal::Size;
use super::{Form, Process, ProcessConfig, Processes, Selector, follow};
use crate::connect::{self, Body, Code, Failure, Messages, Streamed};
use crate::control::unimplemented;
use crate::user;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, Response};
use hyper::body::Incoming;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

#[derive(Deserialize)]
struct StartRequest {
    process: ProcessConfig,
    #[serde(default)]
    pty: Option<Pty>,
    #[serde(default)]
    tag: Option<String>,
    /// Clients that are older than this field expect an open input.
    #[serde(default = "yes")]
    stdin: bool,
}

#[derive(Deserialize)]
struct Pty {
    size: Size,
}

#[derive(Deserialize)]
struct UpdateRequest {
    process: Selector,
    #[serde(default)]
    pty: Option<Pty>,
}

/// One message of `StreamInput`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum StreamInputRequest {
    Start { process: Selector },
    Data { input: Input },
    Keepalive {},
}

const fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct SelectRequest {
    process: Selector,
}

#[derive(Deserialize)]
struct SendInputRequest {
    process: Selector,
    input: Input,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Input {
    Stdin(String),
    Pty(String),
}

#[derive(Deserialize)]
struct SendSignalRequest {
    process: Selector,
    signal: SignalName,
}

/// The first two are the SDKs' own; the others are named alike.
#[derive(Deserialize)]
enum SignalName {
    #[serde(rename = "SIGNAL_SIGKILL")]
    Kill,
    #[serde(rename = "SIGNAL_SIGTERM")]
    Terminate,
    #[serde(rename = "SIGNAL_SIGINT")]
    Interrupt,
    #[serde(rename = "SIGNAL_SIGHUP")]
    HangUp,
    #[serde(rename = "SIGNAL_SIGQUIT")]
    Quit,
    #[serde(rename = "SIGNAL_SIGUSR1")]
    User1,
    #[serde(rename = "SIGNAL_SIGUSR2")]
    User2,
    #[serde(rename = "SIGNAL_SIGSTOP")]
    Stop,
    #[serde(rename = "SIGNAL_SIGCONT")]
    Continue,
}

#[derive(Serialize)]
struct Listed {
    processes: Vec<ProcessInfo>,
}

#[derive(Serialize)]
struct ProcessInfo {
    config: ProcessConfig,
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

#[derive(Serialize)]
struct Done {}

/// Answers one call of the service.
pub(crate) async fn answer(
    processes: &Processes,
    method: &str,
    headers: &HeaderMap,
    body: Incoming,
) -> Response<Body> {
    match method {
        "Start" => return connect::stream(start_process(processes, headers, body).await),
        "Connect" => return connect::stream(follow(processes, headers, body).await),
        "StreamInput" => return connect::one_of_stream(stream_input(processes, body).await),
        _ => {}
    }
    if let Err(failure) = user::of_header(headers) {
        return connect::unary::<()>(Err(failure));
    }
    match method {
        "List" => connect::unary(Ok(list(processes))),
        "SendInput" => connect::unary(connect::in_time(headers, send_input(processes, body)).await),
        "SendSignal" => connect::unary(send_signal(processes, body).await),
        "CloseStdin" => connect::unary(connect::in_time(headers, close_stdin(processes, body)).await),
        "Update" => connect::unary(update(processes, body).await),
        _ => connect::unary::<()>(Err(unimplemented(method))),
    }
}

async fn start_process(
    processes: &Processes,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Streamed, Failure> {
    user::of_header(headers)?;
    let timeout = connect::timeout(headers)?;
    let request: StartRequest = connect::read_envelope(body).await?;
    let StartRequest { process: config, tag, stdin: has_stdin, pty } = request;
    let terminal = pty.map(|pty| pty.size);
    let form = Form::of(headers);
    let envelopes = start(processes, Start { config, tag, has_stdin, terminal, timeout, form })?;
    Ok(Streamed::new(envelopes).alive(headers, &follow::sign_of_life()))
}

async fn follow(processes: &Processes, headers: &HeaderMap, body: Incoming) -> Result<Streamed, Failure> {
    let limit = connect::timeout(headers)?;
    let request: SelectRequest = connect::read_envelope(body).await?;
    let envelopes = processes.find(&request.process)?.follow(Form::of(headers))?;
    Ok(Streamed::new(envelopes).alive(headers, &follow::sign_of_life()).until(limit))
}

fn list(processes: &Processes) -> Listed {
    let info = |process: &Process| ProcessInfo {
        config: process.config.clone(),
        pid: process.pid.as_raw_pid(),
        tag: process.tag.clone(),
    };
    Listed { processes: processes.all().iter().map(|process| info(process)).collect() }
}

async fn send_input(processes: &Processes, body: Incoming) -> Result<Done, Failure> {
    let request: SendInputRequest = connect::read_unary(body).await?;
    let process = processes.find(&request.process)?;
    feed(&process, request.input).await.map(|()| Done {})
}

/// Waits until the process has taken the input, so a process that does not read holds its writer.
async fn feed(process: &Process, input: Input) -> Result<(), Failure> {
    let decode = |text: String| {
        let odd = |error| Failure::new(Code::InvalidArgument, format!("the input is not base64: {error}"));
        BASE64.decode(text).map_err(odd)
    };
    let refused = |why: &str| Failure::new(Code::FailedPrecondition, why);
    match input {
        Input::Stdin(text) => {
            let bytes = decode(text)?;
            let mut stdin = process.stdin.lock().await;
            let closed = || refused("the input of this process is closed");
            stdin.as_mut().ok_or_else(closed)?.write_all(&bytes).await.map_err(|_broken| closed())
        }
        Input::Pty(text) => {
            let bytes = decode(text)?;
            let terminal =
                process.terminal.as_ref().ok_or_else(|| refused("this process has no terminal"))?;
            let held = process.stdin.lock().await;
            let written = terminal.write(&bytes).await;
            drop(held);
            written.map_err(|_hung_up| refused("nobody is left at this terminal"))
        }
    }
}

async fn stream_input(processes: &Processes, body: Incoming) -> Result<Done, Failure> {
    let mut messages = Messages::new(body);
    let begun = || Failure::new(Code::InvalidArgument, "expected `start` first, and once");
    let Some(StreamInputRequest::Start { process }) = messages.next().await? else { return Err(begun()) };
    let process = processes.find(&process)?;
    while let Some(message) = messages.next().await? {
        match message {
            StreamInputRequest::Data { input } => feed(&process, input).await?,
            StreamInputRequest::Keepalive {} => {}
            StreamInputRequest::Start { .. } => return Err(begun()),
        }
    }
    Ok(Done {})
}

async fn update(processes: &Processes, body: Incoming) -> Result<Done, Failure> {
    let request: UpdateRequest = connect::read_unary(body).await?;
    let process = processes.find(&request.process)?;
    if let Some(pty) = request.pty {
        let missing = || Failure::new(Code::FailedPrecondition, "this process has no terminal");
        let terminal = process.terminal.as_ref().ok_or_else(missing)?;
        terminal.resize(pty.size).map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
    }
    Ok(Done {})
}

async fn close_stdin(processes: &Processes, body: Incoming) -> Result<Done, Failure> {
    let request: SelectRequest = connect::read_unary(body).await?;
    let process = processes.find(&request.process)?;
    if process.terminal.is_some() {
        let detail = "a terminal has no input to close; type Ctrl-D at it";
        return Err(Failure::new(Code::FailedPrecondition, detail));
    }
    drop(process.stdin.lock().await.take());
    Ok(Done {})
}

async fn send_signal(processes: &Processes, body: Incoming) -> Result<Done, Failure> {
    let request: SendSignalRequest = connect::read_unary(body).await?;
    let signal = match request.signal {
        SignalName::Kill => Signal::KILL,
        SignalName::Terminate => Signal::TERM,
        SignalName::Interrupt => Signal::INT,
        SignalName::HangUp => Signal::HUP,
        SignalName::Quit => Signal::QUIT,
        SignalName::User1 => Signal::USR1,
        SignalName::User2 => Signal::USR2,
        SignalName::Stop => Signal::STOP,
        SignalName::Continue => Signal::CONT,
    };
    processes.find(&request.process)?.signal(signal)?;
    Ok(Done {})
}

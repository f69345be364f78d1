// SPDX-License-Identifier: Apache-2.0
//! `process.Process` on the wire.

use super::start::{Start, start};
use super::{ProcessConfig, Processes, Selector};
use crate::connect::{self, Body, Code, Failure};
use crate::control::unimplemented;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, Response};
use hyper::body::Incoming;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

#[derive(Deserialize)]
struct StartRequest {
    process: ProcessConfig,
    #[serde(default)]
    pty: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    tag: Option<String>,
    /// Clients that are older than this field expect an open input.
    #[serde(default = "yes")]
    stdin: bool,
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
    Pty(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct SendSignalRequest {
    process: Selector,
    signal: SignalName,
}

#[derive(Deserialize)]
enum SignalName {
    #[serde(rename = "SIGNAL_SIGKILL")]
    Kill,
    #[serde(rename = "SIGNAL_SIGTERM")]
    Terminate,
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
        "Start" => connect::stream(start_process(processes, headers, body).await),
        "Connect" => connect::stream(follow(processes, body).await),
        "List" => connect::unary(Ok(list(processes))),
        "SendInput" => connect::unary(send_input(processes, body).await),
        "SendSignal" => connect::unary(send_signal(processes, body).await),
        "CloseStdin" => connect::unary(close_stdin(processes, body).await),
        _ => connect::unary::<()>(Err(unimplemented(method))),
    }
}

async fn start_process(
    processes: &Processes,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<mpsc::Receiver<Bytes>, Failure> {
    let timeout = connect::timeout(headers)?;
    let request: StartRequest = connect::read_envelope(body).await?;
    if request.pty.is_some() {
        return Err(unimplemented("pty"));
    }
    let StartRequest { process: config, tag, stdin: has_stdin, .. } = request;
    start(processes, Start { config, tag, has_stdin, timeout })
}

async fn follow(processes: &Processes, body: Incoming) -> Result<mpsc::Receiver<Bytes>, Failure> {
    let request: SelectRequest = connect::read_envelope(body).await?;
    processes.find(&request.process)?.follow()
}

fn list(processes: &Processes) -> Listed {
    let info = |process: &super::Process| ProcessInfo {
        config: process.config.clone(),
        pid: process.pid.as_raw_pid(),
        tag: process.tag.clone(),
    };
    Listed { processes: processes.all().iter().map(|process| info(process)).collect() }
}

/// Waits until the process has taken the input, so a process that does not read holds its writer.
async fn send_input(processes: &Processes, body: Incoming) -> Result<Done, Failure> {
    let request: SendInputRequest = connect::read_unary(body).await?;
    let Input::Stdin(text) = request.input else {
        return Err(unimplemented("pty"));
    };
    let bytes = BASE64
        .decode(text)
        .map_err(|error| Failure::new(Code::InvalidArgument, format!("`stdin` is not base64: {error}")))?;
    let process = processes.find(&request.process)?;
    let mut stdin = process.stdin.lock().await;
    let closed = || Failure::new(Code::FailedPrecondition, "the input of this process is closed");
    stdin.as_mut().ok_or_else(closed)?.write_all(&bytes).await.map_err(|_broken| closed())?;
    Ok(Done {})
}

async fn close_stdin(processes: &Processes, body: Incoming) -> Result<Done, Failure> {
    let request: SelectRequest = connect::read_unary(body).await?;
    drop(processes.find(&request.process)?.stdin.lock().await.take());
    Ok(Done {})
}

async fn send_signal(processes: &Processes, body: Incoming) -> Result<Done, Failure> {
    let request: SendSignalRequest = connect::read_unary(body).await?;
    let signal = match request.signal {
        SignalName::Kill => Signal::KILL,
        SignalName::Terminate => Signal::TERM,
    };
    processes.find(&request.process)?.signal(signal)?;
    Ok(Done {})
}

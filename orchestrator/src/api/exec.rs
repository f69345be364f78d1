// SPDX-License-Identifier: Apache-2.0
//! `POST /sandbox/{id}/exec`: runs a command and streams what it writes, or collects it. Events are
//! numbered, and the sandbox's shim, or its pod, keeps the last of them: who was cut off goes on from there.
//!
//! Everything that comes out of a sandbox is the agent's word: it is bounded and passed on as
//! data, never interpreted. A command outlives the caller who started it, unless `timeout` ends it.

use super::input::Fields;
use super::inside::{START_TIME as STARTED_TIME, refused, running, silent};
use super::problems::Refused;
use super::sandboxes::named;
use super::{Answer, Api, Call, idempotency, json, sse};
use crate::keys::{hex, random};
use crate::runtime::agent::{Event, Events, KeptAs, Process};
use crate::runtime::{Agent, AgentError, RuntimeError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::try_unfold;
use http::{HeaderMap, StatusCode, header};
use postern_common::execs::Execs;
use postern_common::id::{RequestId, SandboxId};
use postern_common::problem::{Code, Problem};
use serde::Serialize;
use serde_json::json as value;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, timeout};

/// What a collected answer holds of each output.
const COLLECTED_BYTES: usize = 10 << 20;
/// Events that may wait for a slow reader; each is at most 128 KiB of output.
const QUEUED_EVENTS: usize = 3;
/// How long a command may take to start.
const START_TIME: Duration = Duration::from_secs(10);
/// A running command counts as use of its sandbox, noted this often; also keeps connections alive.
const NOTE_EVERY: Duration = Duration::from_secs(15);
/// A collected answer is given up after this unless `timeout` says less.
const COLLECT_TIME: Duration = Duration::from_secs(3600);
/// Bytes of a command's own name: 128 bits, so that it cannot be guessed.
const NAME_BYTES: usize = 16;
/// Arguments of a command, together; the kernel's own bound is 2 MiB with the environment.
const COMMAND_BYTES: usize = 512 * 1024;

/// What a caller wants run.
struct Wanted {
    process: Process,
    stdin: Option<Vec<u8>>,
    collect: bool,
}

/// A command that has ended, with all that it wrote.
#[derive(Debug, Default, Serialize)]
struct Collected {
    /// Absent if a signal ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    timed_out: bool,
    /// Whether output was dropped.
    truncated: bool,
    #[serde(flatten)]
    outputs: BTreeMap<&'static str, String>,
}

/// `POST /sandbox/{id}/exec`.
pub(super) async fn run(api: Arc<Api>, call: Call) -> Answer {
    let row = named(&api, &call, "id").await?;
    let mut wanted = read(&call)?;
    let kept = kept_as(&api, &call, &row.new.id, wanted.process.has_stdin)?;
    let name = kept.name.clone();
    wanted.process.kept = Some(kept);
    let row = running(&api, &call, row, wanted.process.timeout.unwrap_or(STARTED_TIME)).await?;
    api.driver.used(&row).await;
    let id = row.new.id;
    let agent = api.host.connect(&id).await.map_err(Refused::from)?;
    let started = timeout(START_TIME, agent.start(&wanted.process)).await;
    let mut events = started.map_err(|_late| silent(&id))?.map_err(|source| refused(&id, source))?;
    let first = timeout(START_TIME, events.next()).await.map_err(|_late| silent(&id))?;
    let pid = match first {
        Ok(Some(Event::Started { pid })) => pid,
        // It was put to sleep since it was looked at.
        Ok(Some(Event::Failed { code, message })) if code == "unavailable" => {
            return Err(super::inside::ended(&id, &code, &message));
        }
        Ok(Some(Event::Failed { message, .. })) => return Err(not_started(&message)),
        _ => return Err(silent(&id)),
    };
    if let Some(stdin) = wanted.stdin {
        feed(&api, agent, pid, stdin);
    }
    if wanted.collect {
        // That a command ends with its `timeout` is the sandbox's word.
        let limit = wanted.process.timeout.map_or(COLLECT_TIME, |time| time.saturating_add(START_TIME));
        return collect(&api, &id, events, limit.min(COLLECT_TIME)).await;
    }
    let start = value!({ "pid": pid, "exec_id": name });
    Ok(stream(&api, (id, call.request_id.clone()), 0, Some(start), events))
}

/// `GET /sandbox/{id}/exec/{exec}`: goes on with a command's events after `Last-Event-ID`.
pub(super) async fn follow(api: Arc<Api>, call: Call) -> Answer {
    let row = named(&api, &call, "id").await?;
    let name: String = call.path("exec")?;
    let row = running(&api, &call, row, STARTED_TIME).await?;
    if !Execs::is_name(&name) {
        return Err(no_command(&name));
    }
    let last = call.headers.get("last-event-id").and_then(|value| value.to_str().ok()).unwrap_or("0");
    let after = last.parse().map_err(|_no_number| {
        Problem::new(Code::RequestMalformed, "the header `Last-Event-ID` is no number")
            .hint("send the `id` of the last event that came, or leave it out to begin at the start")
    })?;
    api.driver.used(&row).await;
    let id = row.new.id;
    let agent = api.host.connect(&id).await.map_err(Refused::from)?;
    let followed = timeout(START_TIME, agent.follow(&name, after)).await.map_err(|_late| silent(&id))?;
    let events = followed.map_err(|source| match source {
        AgentError::Refused { status: StatusCode::NOT_FOUND, .. } => no_command(&name),
        AgentError::Refused { status: StatusCode::PRECONDITION_FAILED, .. } => Problem::new(
            Code::PreconditionFailed,
            format!("what command `{name}` wrote after event {after} is no more kept"),
        )
        .hint("the last 1 MiB is kept: follow a command without long pauses, or have it write to a file"),
        source => refused(&id, source),
    })?;
    Ok(stream(&api, (id, call.request_id.clone()), after, None, events))
}

fn no_command(name: &str) -> Problem {
    Problem::new(Code::NotFound, format!("there is no command `{}`", name.escape_debug()))
        .hint("what an ended command wrote is kept for a minute")
}

/// A command's name: of the call's key, so that a repeat finds it, or one of its own.
fn kept_as(api: &Api, call: &Call, sandbox: &SandboxId, has_stdin: bool) -> Result<KeptAs, Problem> {
    if let Some(key) = idempotency::read(&api.keys, call)? {
        if has_stdin {
            return Err(Problem::new(
                Code::InvalidInput,
                "a command with `stdin` takes no `Idempotency-Key`",
            )
            .hint("a repeat would send it twice: write the input to a file first, and read that"));
        }
        let name = api.keys.digest(format!("{sandbox} {}", key.key).as_bytes());
        return Ok(KeptAs { name, wish: key.fingerprint });
    }
    let name = random(NAME_BYTES).map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(KeptAs { name: hex(name.reveal()), wish: String::new() })
}

/// The events after number `after` as an answer; `start` is the first of all.
pub(super) fn stream(
    api: &Arc<Api>,
    (id, request_id): (SandboxId, RequestId),
    after: u64,
    start: Option<serde_json::Value>,
    events: Events,
) -> axum::response::Response {
    let (sender, receiver) = mpsc::channel(QUEUED_EVENTS);
    let touch = {
        let (api, id) = (Arc::clone(api), id.clone());
        move || {
            let (api, id) = (Arc::clone(&api), id.clone());
            async move { api.driver.touch(&id).await }
        }
    };
    let stream = Stream { id, request_id, sender, number: after };
    let events = try_unfold(events, async |mut events: Events| {
        let next = events.next().await?;
        Ok::<_, AgentError>(next.map(|event| (event, events)))
    });
    api.tasks.spawn(async move |stop| {
        // At shutdown the reader sees the stream end without `exit`.
        let _ = stop.run_until_cancelled(stream.carry(start, events, touch)).await;
    });
    sse::response(receiver)
}

fn read(call: &Call) -> Result<Wanted, Problem> {
    let mut fields = Fields::read(&call.body)?;
    let (command, arguments) = match fields.take("command") {
        // As a shell runs it; the list form needs none.
        Some(serde_json::Value::String(text)) => ("/bin/sh".to_owned(), vec!["-c".to_owned(), text]),
        Some(serde_json::Value::Array(words)) => {
            let mut words: Vec<String> = words
                .into_iter()
                .enumerate()
                .filter_map(|(place, word)| match word {
                    serde_json::Value::String(word) => Some(word),
                    _ => {
                        fields.mistake(format!("/command/{place}"), "expected a string");
                        None
                    }
                })
                .collect();
            if words.is_empty() {
                fields.mistake("/command", "the list is empty");
                words.push(String::new());
            }
            let program = words.remove(0);
            (program, words)
        }
        _ => {
            fields.mistake("/command", "expected a string for the shell, or a list of program and arguments");
            Default::default()
        }
    };
    if command.len() + arguments.iter().map(String::len).sum::<usize>() > COMMAND_BYTES {
        fields.mistake("/command", "is too long");
    }
    if std::iter::once(&command).chain(&arguments).any(|word| word.contains('\0')) {
        fields.mistake("/command", "holds a zero byte");
    }
    let env = fields.texts("env").unwrap_or_default();
    for (pointer, message) in crate::check::environment_mistakes(&env) {
        fields.mistake(format!("/env{pointer}"), message);
    }
    let folder = fields.text("cwd");
    let time = fields.duration("timeout");
    // The whole input, or `true`: it comes by calls of its own.
    let (stdin, is_open) = match fields.take("stdin") {
        None | Some(serde_json::Value::Bool(false)) => (None, false),
        Some(serde_json::Value::Bool(true)) => (None, true),
        Some(serde_json::Value::String(text)) => (Some(text.into_bytes()), false),
        Some(_) => {
            fields.mistake("/stdin", "expected the input as a string, or `true` to send it later");
            (None, false)
        }
    };
    let is_collected = fields.flag("collect").unwrap_or(false);
    fields.finish()?;
    let has_stdin = stdin.is_some() || is_open;
    let process =
        Process { command, arguments, env, folder, has_stdin, terminal: None, timeout: time, kept: None };
    let collect = is_collected || call.query.flag("collect")? || wants_json(&call.headers);
    Ok(Wanted { process, stdin, collect })
}

/// Whether the caller accepts JSON but no events.
fn wants_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepted.contains("application/json") && !accepted.contains("text/event-stream")
}

/// Hands the caller's input over and closes it. In a task: a command that does not read holds up
/// nobody.
fn feed(api: &Arc<Api>, agent: Agent, pid: i32, stdin: Vec<u8>) {
    #[derive(serde::Deserialize)]
    struct Done {}
    api.tasks.spawn(async move |stop| {
        let fed = async {
            let process = value!({ "pid": pid });
            let input = value!({ "process": process, "input": { "stdin": BASE64.encode(stdin) } });
            agent.call::<Done>("/process.Process/SendInput", &input).await?;
            let close = value!({ "process": process });
            agent.call::<Done>("/process.Process/CloseStdin", &close).await.map(|Done {}| ())
        };
        if let Some(Err(error)) = stop.run_until_cancelled(fed).await {
            // The command may have ended without reading all of it.
            tracing::debug!(error = &error as &dyn std::error::Error, "input was not taken");
        }
    });
}

/// How a command ended, from what the sandbox says: its code, or the signal that ended it.
pub(super) fn end(exit_code: i32, status: &str) -> (Option<i32>, Option<i32>) {
    if exit_code >= 0 {
        return (Some(exit_code), None);
    }
    let number = status.chars().skip_while(|character| !character.is_ascii_digit());
    let number: String = number.take_while(char::is_ascii_digit).take(3).collect();
    (None, Some(number.parse().unwrap_or(9)))
}

async fn collect(api: &Api, id: &SandboxId, mut events: Events, limit: Duration) -> Answer {
    let mut collected = Collected::default();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + limit;
    let mut note = interval_at(Instant::now() + NOTE_EVERY, NOTE_EVERY);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = note.tick() => { api.driver.touch(id).await; continue; }
            () = tokio::time::sleep_until(deadline) => return Err(silent(id)),
        };
        match event.map_err(|source| Refused::from(RuntimeError::Agent { sandbox: id.clone(), source }))? {
            Some(Event::Stdout(bytes)) => collected.truncated |= append(&mut stdout, &bytes),
            Some(Event::Stderr(bytes)) => collected.truncated |= append(&mut stderr, &bytes),
            Some(Event::Ended { exit_code, status }) => {
                (collected.exit_code, collected.signal) = end(exit_code, &status);
            }
            Some(Event::Failed { code, .. }) if code == "deadline_exceeded" => collected.timed_out = true,
            Some(Event::Failed { message, .. }) => return Err(not_started(&message)),
            Some(Event::Started { .. }) => {}
            None => break,
        }
    }
    for (text_name, base64_name, bytes) in
        [("stdout", "stdout_base64", stdout), ("stderr", "stderr_base64", stderr)]
    {
        match String::from_utf8(bytes) {
            Ok(text) => collected.outputs.insert(text_name, text),
            Err(error) => collected.outputs.insert(base64_name, BASE64.encode(error.as_bytes())),
        };
    }
    json(StatusCode::OK, &collected)
}

/// Appends up to the bound; `true` if something was dropped.
fn append(all: &mut Vec<u8>, bytes: &[u8]) -> bool {
    let room = COLLECTED_BYTES.saturating_sub(all.len());
    all.extend(bytes.iter().take(room));
    bytes.len() > room
}

/// A command's events on their way to the caller.
struct Stream {
    id: SandboxId,
    request_id: RequestId,
    sender: mpsc::Sender<Bytes>,
    number: u64,
}

impl Stream {
    /// Carries them to the last; `touch` notes that the sandbox is in use.
    async fn carry<Touching: Future<Output = ()>>(
        mut self,
        start: Option<serde_json::Value>,
        events: impl futures_util::Stream<Item = Result<Event, AgentError>>,
        touch: impl Fn() -> Touching,
    ) {
        if let Some(start) = start
            && !self.send("start", &start).await
        {
            return;
        }
        let mut events = pin!(events);
        let mut note = interval_at(Instant::now() + NOTE_EVERY, NOTE_EVERY);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = note.tick() => {
                    touch().await;
                    if self.sender.send(sse::KEEP_ALIVE).await.is_err() { return; }
                    continue;
                }
                // The caller left; the command goes on.
                () = self.sender.closed() => return,
            };
            match event {
                Some(Ok(event)) => {
                    if !self.pass(event).await {
                        return;
                    }
                }
                None => return,
                Some(Err(error)) => return self.broken(error).await,
            }
        }
    }

    /// Passes an event on; `false` if there is nobody to pass more to.
    async fn pass(&mut self, event: Event) -> bool {
        match event {
            Event::Started { .. } => true,
            Event::Stdout(bytes) => self.output("stdout", &bytes).await,
            Event::Stderr(bytes) => self.output("stderr", &bytes).await,
            Event::Ended { exit_code, status } => {
                let ended = match end(exit_code, &status) {
                    (Some(code), _) => value!({ "code": code }),
                    (None, signal) => value!({ "signal": signal }),
                };
                self.send("exit", &ended).await
            }
            Event::Failed { code, .. } if code == "deadline_exceeded" => {
                let problem = Problem::new(
                    Code::RequestTimeout,
                    "the command ran longer than its `timeout` and was ended",
                );
                self.fail(problem.hint("give it more time, or less to do")).await
            }
            Event::Failed { message, .. } => self.fail(not_started(&message)).await,
        }
    }

    async fn broken(&mut self, error: AgentError) {
        tracing::warn!(sandbox = %self.id, error = &error as &dyn std::error::Error, "a command's stream broke");
        let problem =
            Problem::new(Code::RuntimeUnavailable, format!("sandbox `{}` broke off the stream", self.id))
                .hint("look at the sandbox's `status` and `reason`");
        self.fail(problem).await;
    }

    async fn fail(&mut self, mut problem: Problem) -> bool {
        problem.request_id = Some(self.request_id.clone());
        // Our own type is a map with string keys: it always serializes.
        self.send("error", &serde_json::to_value(problem).unwrap_or_default()).await
    }

    async fn output(&mut self, kind: &str, written: &[u8]) -> bool {
        self.number += 1;
        self.sender.send(sse::output(self.number, kind, written)).await.is_ok()
    }

    async fn send(&mut self, kind: &str, json: &serde_json::Value) -> bool {
        self.number += 1;
        self.sender.send(sse::event(self.number, kind, json)).await.is_ok()
    }
}

/// The sandbox's own words, which are the agent's: bounded and escaped.
fn not_started(message: &str) -> Problem {
    const SHOWN: usize = 200;
    let said: String = message.chars().take(SHOWN).flat_map(char::escape_default).collect();
    Problem::new(Code::InvalidInput, format!("the command did not start: {said}"))
        .hint("check `command`, `cwd` and `env`; a string runs in `/bin/sh`, a list runs as it is")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn an_end_is_a_code_or_a_signal() {
        assert_eq!(end(7, "exit status 7"), (Some(7), None));
        assert_eq!(end(-1, "signal: 15"), (None, Some(15)));
        assert_eq!(end(-1, "?"), (None, Some(9)));
        assert_eq!(end(-1, "signal: 99999999999"), (None, Some(999)));
    }

    #[test]
    fn collected_output_is_bounded() {
        let mut all = vec![0; COLLECTED_BYTES - 3];
        assert!(!append(&mut all, b"abc"));
        assert!(append(&mut all, b"d"));
        assert_eq!(all.len(), COLLECTED_BYTES);
    }

    /// What a command did, each so many seconds after its start.
    fn happening(events: Vec<(u64, Event)>) -> impl futures_util::Stream<Item = Result<Event, AgentError>> {
        let begun = Instant::now();
        futures_util::stream::iter(events).then(move |(at, event)| async move {
            tokio::time::sleep_until(begun + Duration::from_secs(at)).await;
            Ok(event)
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_hears_every_15_seconds_that_a_quiet_command_is_there() {
        let (sender, mut receiver) = mpsc::channel(QUEUED_EVENTS);
        let id = SandboxId::parse("sandbox-aaaaaaaaaaaa").expect("an id");
        let stream = Stream { id, request_id: RequestId::generate(), sender, number: 0 };
        let touched = AtomicUsize::new(0);
        let touch = || async {
            touched.fetch_add(1, Ordering::Relaxed);
        };
        let ended = Event::Ended { exit_code: 0, status: "exit status 0".to_owned() };
        let events = happening(vec![(40, Event::Stdout(Bytes::from_static(b"x"))), (46, ended)]);
        let begun = Instant::now();
        let reading = async {
            let mut seen = Vec::new();
            while let Some(bytes) = receiver.recv().await {
                let text = String::from_utf8(bytes.to_vec()).expect("is text");
                let line = text.lines().find(|line| !line.starts_with("id:")).expect("a line").to_owned();
                seen.push(((Instant::now() - begun).as_secs(), line));
            }
            seen
        };
        let ((), seen) = tokio::join!(stream.carry(Some(value!({ "pid": 7 })), events, touch), reading);
        let wanted = [
            (0, "event: start"),
            (15, ": still here"),
            (30, ": still here"),
            (40, "event: stdout"),
            (45, ": still here"),
            (46, "event: exit"),
        ];
        assert_eq!(seen, wanted.map(|(at, line)| (at, line.to_owned())));
        assert_eq!(touched.into_inner(), 3, "and its sandbox counts as used");
    }

    #[tokio::test(start_paused = true)]
    async fn who_left_is_carried_no_more() {
        let (sender, receiver) = mpsc::channel(QUEUED_EVENTS);
        let id = SandboxId::parse("sandbox-aaaaaaaaaaaa").expect("an id");
        let stream = Stream { id, request_id: RequestId::generate(), sender, number: 0 };
        drop(receiver);
        let begun = Instant::now();
        stream.carry(None, futures_util::stream::pending(), || async {}).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "at once, not with the next comment");
    }
}

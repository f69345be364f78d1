// SPDX-License-Identifier: Apache-2.0
//! A connection to `sandboxd`: our own control calls, starting processes, and raw requests for
//! everything else that it serves.
//!
//! What comes back is untrusted. Answers are bounded here; a stream is read as fast as its reader
//! reads, never faster.

mod seal;

pub(crate) use seal::Seal;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use postern_common::id::{ConversationId, SandboxId};
use postern_common::secret::Secret;
use postern_common::tasks::Tasks;
use postern_shim::control::{AFTER, EXEC, WISH};
use seal::Whole;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// The body of a request to a sandbox.
pub type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// The longest answer of a call that is not a stream.
const ANSWER_BYTES: usize = 1 << 20;
/// The longest message of a stream; `sandboxd` sends 16 KiB of output at a time, as base64.
const MESSAGE_BYTES: usize = 256 << 10;
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
const HEADER_BYTES: u32 = 32 << 10;
const ENVELOPE_HEAD: usize = 5;
const END_OF_STREAM: u8 = 0b10;

/// A sandbox did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The connection broke, or could not be made.
    #[error("the connection to the sandbox broke")]
    Broken(#[source] hyper::Error),
    /// It refused.
    #[error("the sandbox refused with {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// What it said, at most 200 characters, control characters escaped.
        message: String,
    },
    /// It said something that is no answer, or too much.
    #[error("the sandbox's answer is malformed or longer than it may be")]
    Malformed,
    /// What was to be said could not be signed.
    #[error("a message to the sandbox could not be signed")]
    Unsigned,
}

/// Who a sandbox is told that it is.
#[derive(Debug)]
pub struct Identity {
    /// Its id.
    pub sandbox_id: SandboxId,
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The session token, for the door.
    pub token: Secret<String>,
    /// Environment of every process: the template's and the create call's.
    pub env: BTreeMap<String, String>,
}

/// A process to be started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Process {
    /// The program, found in `PATH` if it is a bare name.
    pub command: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// More environment.
    pub env: BTreeMap<String, String>,
    /// Its working folder; relative ones begin at the home folder.
    pub folder: Option<String>,
    /// Whether its input stays open for [`Agent::call`]s of `SendInput`.
    pub has_stdin: bool,
    /// After this it is killed.
    pub timeout: Option<Duration>,
    /// Under which name its output is kept; `None`: it is not.
    pub kept: Option<KeptAs>,
}

/// The name under which a process's output is kept, so that it can be followed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptAs {
    /// The name: letters and digits, at most 64. A process that has it is followed, not started anew.
    pub name: String,
    /// What it is for: one of this name that is for something else is refused.
    pub wish: String,
}

/// What a process did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It runs.
    Started {
        /// Its id inside.
        pid: i32,
    },
    /// It wrote to its standard output.
    Stdout(Bytes),
    /// It wrote to its standard error.
    Stderr(Bytes),
    /// It ended: `exit_code` is -1 if by a signal.
    Ended {
        /// Its exit code.
        exit_code: i32,
        /// In words.
        status: String,
    },
    /// The stream ended with an error, such as `deadline_exceeded`.
    Failed {
        /// The Connect error code.
        code: String,
        /// In words.
        message: String,
    },
}

/// A connection to one `sandboxd`. Clones share it.
#[derive(Debug, Clone)]
pub struct Agent {
    sender: http2::SendRequest<Body>,
    /// Where others could speak too: who we are, and where the sandbox's requests go.
    remote: Option<Arc<Remote>>,
}

/// What a sandbox that is reached over a network needs besides.
#[derive(Debug)]
pub(crate) struct Remote {
    /// Signs each request.
    pub(crate) seal: Seal,
    /// Where the gateway is, told with the identity.
    pub(crate) gateway: Option<GatewayAt>,
}

/// A gateway that is reached over the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GatewayAt {
    /// Its address: a sandbox can ask for no names.
    pub address: SocketAddr,
    /// How its certificate is known; `None`: it speaks plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<GatewayTls>,
}

/// How a gateway's certificate is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GatewayTls {
    /// The name in it.
    pub name: String,
    /// Who signs it, in PEM.
    pub ca: String,
}

impl Agent {
    /// Speaks HTTP/2 on `stream` from now on; the connection's task is one of `tasks`.
    pub(crate) async fn on(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        tasks: &Tasks,
    ) -> Result<Self, AgentError> {
        let (sender, connection) = http2::Builder::new(Owned(tasks.clone()))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(AgentError::Broken)?;
        tasks.spawn(async move |stop| {
            // Its end is seen by whoever waits for an answer.
            drop(stop.run_until_cancelled(connection).await);
        });
        Ok(Self { sender, remote: None })
    }

    /// The same over a network: each request is signed, and the identity names the gateway.
    #[must_use]
    pub(crate) fn remote(self, remote: Remote) -> Self {
        Self { remote: Some(Arc::new(remote)), ..self }
    }

    /// Sends a request as it is.
    ///
    /// # Errors
    /// [`AgentError::Broken`], or [`AgentError::Unsigned`].
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, AgentError> {
        if let Some(remote) = &self.remote {
            remote.seal.put(&mut request)?;
        }
        self.sender.clone().send_request(request).await.map_err(AgentError::Broken)
    }

    /// A call with one JSON message and one answer, such as `/process.Process/SendSignal`.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn call<Answer: serde::de::DeserializeOwned>(
        &self,
        path: &'static str,
        message: &(impl Serialize + Sync),
    ) -> Result<Answer, AgentError> {
        let json = serde_json::to_vec(message).map_err(|_never| AgentError::Malformed)?;
        let response = self.send(post(path, "application/json", json)).await?;
        let status = response.status();
        let answer = bounded(response).await?;
        if status.is_success() {
            return serde_json::from_slice(&answer).map_err(|_malformed| AgentError::Malformed);
        }
        Err(AgentError::Refused { status, message: legible(&answer) })
    }

    /// Tells the sandbox who it is. It takes that once.
    ///
    /// # Errors
    /// [`AgentError`]; refused if it has an identity already.
    pub async fn identify(&self, identity: &Identity) -> Result<(), AgentError> {
        let mut message = serde_json::json!({
            "sandbox_id": identity.sandbox_id,
            "conversation_id": identity.conversation_id,
            "token": identity.token.reveal(),
            "env": identity.env,
        });
        if let Some(gateway) = self.remote.as_ref().and_then(|remote| remote.gateway.as_ref()) {
            let gateway = serde_json::to_value(gateway).map_err(|_never| AgentError::Malformed)?;
            message.as_object_mut().map(|message| message.insert("gateway".to_owned(), gateway));
        }
        self.call::<Done>("/postern.Control/Identify", &message).await.map(|Done {}| ())
    }

    /// Replaces the session token at the door.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn rotate(&self, token: &Secret<String>) -> Result<(), AgentError> {
        let message = serde_json::json!({ "token": token.reveal() });
        self.call::<Done>("/postern.Control/Token", &message).await.map(|Done {}| ())
    }

    /// Starts a process and follows it. It lives on when the stream is dropped.
    ///
    /// # Errors
    /// [`AgentError`]; that it could not be started is the stream's first event.
    pub async fn start(&self, process: &Process) -> Result<Events, AgentError> {
        let message = serde_json::json!({
            "process": {
                "cmd": process.command, "args": process.arguments, "envs": process.env, "cwd": process.folder,
            },
            "stdin": process.has_stdin,
        });
        let json = serde_json::to_vec(&message).map_err(|_never| AgentError::Malformed)?;
        let mut envelope = BytesMut::with_capacity(ENVELOPE_HEAD + json.len());
        envelope.put_u8(0);
        envelope.put_u32(u32::try_from(json.len()).map_err(|_too_long| AgentError::Malformed)?);
        envelope.put_slice(&json);
        let mut request = post("/process.Process/Start", "application/connect+json", envelope.freeze());
        if let Some(timeout) = process.timeout {
            let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).clamp(1, 9_999_999_999);
            request.headers_mut().insert("connect-timeout-ms", HeaderValue::from(milliseconds));
        }
        if let Some(KeptAs { name, wish }) = &process.kept {
            for (header, value) in [(EXEC, name), (WISH, wish)] {
                let value = HeaderValue::from_str(value).map_err(|_no_text| AgentError::Malformed)?;
                request.headers_mut().insert(header, value);
            }
        }
        events(self.send(request).await?).await
    }

    /// Follows a process whose output is kept, from the event after number `after` on: its start has
    /// number 1, and each further event one more.
    ///
    /// # Errors
    /// [`AgentError`]; refused with 404 if there is none of this name, with 412 if what is wanted
    /// is no more kept.
    pub async fn follow(&self, name: &str, after: u64) -> Result<Events, AgentError> {
        let mut request = Request::new(full(Bytes::new()));
        let uri =
            Uri::builder().scheme("http").authority("sandbox").path_and_query(format!("/shim/exec/{name}"));
        *request.uri_mut() = uri.build().map_err(|_no_name| AgentError::Malformed)?;
        request.headers_mut().insert(AFTER, HeaderValue::from(after));
        events(self.send(request).await?).await
    }
}

async fn events(response: Response<Incoming>) -> Result<Events, AgentError> {
    match response.status() {
        StatusCode::OK => Ok(Events { body: response.into_body(), unread: BytesMut::new(), is_over: false }),
        status => Err(AgentError::Refused { status, message: legible(&bounded(response).await?) }),
    }
}

/// The events of one process. Reading slowly slows the process.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    unread: BytesMut,
    is_over: bool,
}

impl Events {
    /// The next event; `None` after the last. Cancelling loses nothing.
    ///
    /// # Errors
    /// [`AgentError`], after which there is no more.
    pub async fn next(&mut self) -> Result<Option<Event>, AgentError> {
        while !self.is_over {
            match self.message()? {
                Some((flags, message)) if flags & END_OF_STREAM != 0 => {
                    self.is_over = true;
                    return failure(&message);
                }
                Some((_, message)) => {
                    if let Some(event) = event(&message)? {
                        return Ok(Some(event));
                    }
                }
                None => self.read().await?,
            }
        }
        Ok(None)
    }

    /// Takes a whole message off what has been read.
    fn message(&mut self) -> Result<Option<(u8, Bytes)>, AgentError> {
        let Some([flags, length @ ..]) = self.unread.first_chunk::<ENVELOPE_HEAD>().copied() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MESSAGE_BYTES {
            self.is_over = true;
            return Err(AgentError::Malformed);
        }
        if self.unread.len() < ENVELOPE_HEAD + length {
            return Ok(None);
        }
        self.unread.advance(ENVELOPE_HEAD);
        Ok(Some((flags, self.unread.split_to(length).freeze())))
    }

    async fn read(&mut self) -> Result<(), AgentError> {
        let frame = self.body.frame().await;
        match frame {
            Some(Ok(frame)) => {
                self.unread.extend_from_slice(frame.data_ref().map_or(&[][..], |bytes| bytes));
                Ok(())
            }
            Some(Err(error)) => {
                self.is_over = true;
                Err(AgentError::Broken(error))
            }
            // A stream that stops without its last message was cut.
            None => {
                self.is_over = true;
                Err(AgentError::Malformed)
            }
        }
    }
}

#[derive(Deserialize)]
struct Done {}

#[derive(Deserialize)]
struct Message {
    event: WireEvent,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum WireEvent {
    Start {
        pid: i32,
    },
    Data(Chunk),
    End {
        #[serde(rename = "exitCode", default)]
        exit_code: i32,
        #[serde(default)]
        status: String,
    },
    Keepalive {},
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Chunk {
    Stdout(String),
    Stderr(String),
    Pty(String),
}

fn event(json: &[u8]) -> Result<Option<Event>, AgentError> {
    let decode = |text: &str| BASE64.decode(text).map(Bytes::from).map_err(|_invalid| AgentError::Malformed);
    let message: Message = serde_json::from_slice(json).map_err(|_malformed| AgentError::Malformed)?;
    Ok(Some(match message.event {
        WireEvent::Start { pid } => Event::Started { pid },
        WireEvent::Data(Chunk::Stdout(text) | Chunk::Pty(text)) => Event::Stdout(decode(&text)?),
        WireEvent::Data(Chunk::Stderr(text)) => Event::Stderr(decode(&text)?),
        WireEvent::End { exit_code, status } => Event::Ended { exit_code, status },
        WireEvent::Keepalive {} => return Ok(None),
    }))
}

fn failure(json: &[u8]) -> Result<Option<Event>, AgentError> {
    #[derive(Deserialize)]
    struct End {
        error: Option<Failure>,
    }
    #[derive(Deserialize)]
    struct Failure {
        code: String,
        #[serde(default)]
        message: String,
    }
    let end: End = serde_json::from_slice(json).map_err(|_malformed| AgentError::Malformed)?;
    Ok(end.error.map(|Failure { code, message }| Event::Failed { code, message }))
}

fn post(path: &'static str, content_type: &'static str, body: impl Into<Bytes>) -> Request<Body> {
    let body = body.into();
    let mut request = Request::new(full(body.clone()));
    request.extensions_mut().insert(Whole(body));
    *request.method_mut() = Method::POST;
    // The authority is never looked at; HTTP/2 wants one.
    let uri = Uri::builder().scheme("http").authority("sandbox").path_and_query(path).build();
    *request.uri_mut() = uri.unwrap_or_default();
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    request
}

/// A body that is all there.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

async fn bounded(response: Response<Incoming>) -> Result<Bytes, AgentError> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
    Ok(body.map_err(|_cut_or_too_long| AgentError::Malformed)?.to_bytes())
}

/// A sandbox's words for an error message.
fn legible(bytes: &[u8]) -> String {
    const SHOWN: usize = 200;
    String::from_utf8_lossy(bytes).chars().take(SHOWN).flat_map(char::escape_default).collect()
}

/// Lets hyper start its tasks within ours.
#[derive(Debug, Clone)]
struct Owned(Tasks);

impl<Task> hyper::rt::Executor<Task> for Owned
where
    Task: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: Task) {
        self.0.spawn(|_stop| task);
    }
}

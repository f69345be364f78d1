// SPDX-License-Identifier: Apache-2.0
//! A connection to `sandboxd`: our own control calls, starting processes, and raw requests for
//! everything else that it serves.
//!
//! What comes back is untrusted. Answers are bounded here; a stream is read as fast as its reader
//! reads, never faster.

mod envelopes;
mod seal;

pub(crate) use envelopes::Next;
pub use envelopes::{Envelopes, Event, Events};
pub(crate) use seal::Seal;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use postern_common::execs::{AFTER, EXEC, FOLLOW, WISH};
use postern_common::files::orders::{Begin, Order};
use postern_common::id::{ConversationId, SandboxId};
use postern_common::output::{self, CONNECTION_WINDOW_BYTES, FRAME_BYTES, STREAM_WINDOW_BYTES};
use postern_common::secret::Secret;
use postern_common::tasks::Tasks;
use seal::Whole;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// The body of a request to a sandbox.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The longest answer of a call that is not a stream.
const ANSWER_BYTES: usize = 1 << 20;
const HEADER_BYTES: u32 = 32 << 10;
const ENVELOPE_HEAD: usize = 5;

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
    /// There if it is to have a terminal instead of inputs and outputs of its own.
    pub terminal: Option<TerminalSize>,
    /// After this it is killed.
    pub timeout: Option<Duration>,
    /// Under which name its output is kept; `None`: it is not.
    pub kept: Option<KeptAs>,
}

/// How large a terminal is, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// The name under which a process's output is kept, so that it can be followed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptAs {
    /// The name: letters and digits, at most 64. A process that has it is followed, not started anew.
    pub name: String,
    /// What it is for: one of this name that is for something else is refused.
    pub wish: String,
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
            .max_frame_size(FRAME_BYTES)
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
        self.call_up_to(ANSWER_BYTES, path, message).await
    }

    /// [`Agent::call`] whose answer may be longer than most.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn call_up_to<Answer: serde::de::DeserializeOwned>(
        &self,
        bytes: usize,
        path: &'static str,
        message: &(impl Serialize + Sync),
    ) -> Result<Answer, AgentError> {
        let json = serde_json::to_vec(message).map_err(|_never| AgentError::Malformed)?;
        let response = self.send(post(path, "application/json", json)).await?;
        let answer = bounded(accepted(response).await?, bytes).await?;
        serde_json::from_slice(&answer).map_err(|_malformed| AgentError::Malformed)
    }

    /// A call with one JSON message and a stream of answers, such as `/filesystem.Filesystem/WatchDir`.
    ///
    /// # Errors
    /// [`AgentError`]; that the sandbox refused is what the stream says first.
    pub async fn stream(
        &self,
        path: &'static str,
        message: &(impl Serialize + Sync),
    ) -> Result<Envelopes, AgentError> {
        let request = post(path, "application/connect+json", enveloped(message)?);
        Ok(Envelopes::new(accepted(self.send(request).await?).await?.into_body()))
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

    /// Has everything in the sandbox stand still, and its door wait, until it is given a token or an
    /// identity. Asking again changes nothing.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn sleep(&self) -> Result<(), AgentError> {
        let nothing = serde_json::json!({});
        self.call::<Done>("/postern.Control/Sleep", &nothing).await.map(|Done {}| ())
    }

    /// Has the sync beside a pod's sandbox begin, and follows it until it has brought everything in, or
    /// flushed. That it was refused is what the stream says first.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) async fn begin_sync(&self, begin: &Begin) -> Result<Envelopes, AgentError> {
        let gateway = self.remote.as_ref().and_then(|remote| remote.gateway.as_ref());
        let message = serde_json::json!({ "begin": begin, "gateway": gateway });
        self.stream("/postern.Sync/Begin", &message).await
    }

    /// Gives that sync its next token.
    ///
    /// # Errors
    /// [`AgentError`]; refused if none runs.
    pub(crate) async fn sync_token(&self, token: &Secret<String>) -> Result<(), AgentError> {
        self.call::<Done>("/postern.Sync/Token", &Order::Token(token.clone())).await.map(|Done {}| ())
    }

    /// Starts a process and follows it. It lives on when the stream is dropped.
    ///
    /// # Errors
    /// [`AgentError`]; that it could not be started is the stream's first event.
    pub async fn start(&self, process: &Process) -> Result<Events, AgentError> {
        // What is `null` is not wanted.
        let message = serde_json::json!({
            "process": {
                "cmd": process.command, "args": process.arguments, "envs": process.env, "cwd": process.folder,
            },
            "stdin": process.has_stdin,
            "pty": process.terminal.map(|size| serde_json::json!({ "size": size })),
            "tag": process.kept.as_ref().map(|kept| kept.name.as_str()),
        });
        let mut request = following("/process.Process/Start", &message)?;
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

    /// Follows a process from now on, whoever started it.
    ///
    /// # Errors
    /// [`AgentError`]; that there is none is the stream's first event.
    pub async fn attach(&self, pid: i32) -> Result<Events, AgentError> {
        let message = serde_json::json!({ "process": { "pid": pid } });
        events(self.send(following("/process.Process/Connect", &message)?).await?).await
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
            Uri::builder().scheme("http").authority("sandbox").path_and_query(format!("{FOLLOW}{name}"));
        *request.uri_mut() = uri.build().map_err(|_no_name| AgentError::Malformed)?;
        request.headers_mut().insert(AFTER, HeaderValue::from(after));
        events(self.send(request).await?).await
    }
}

/// A call that is answered by what a process does; what it writes is wanted as it is. One of before does not know
/// that wish, and answers in JSON.
fn following(path: &'static str, message: &serde_json::Value) -> Result<Request<Body>, AgentError> {
    let mut request = post(path, "application/connect+json", enveloped(message)?);
    request.headers_mut().insert(output::HEADER, HeaderValue::from_static(output::BYTES));
    Ok(request)
}

async fn events(response: Response<Incoming>) -> Result<Events, AgentError> {
    Ok(Events::new(Envelopes::new(accepted(response).await?.into_body())))
}

/// An answer that is no refusal.
///
/// # Errors
/// [`AgentError::Refused`], with the sandbox's words.
pub(crate) async fn accepted(response: Response<Incoming>) -> Result<Response<Incoming>, AgentError> {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let answer = bounded(response, ANSWER_BYTES).await?;
    let message = match serde_json::from_slice::<Refusal>(&answer) {
        Ok(refusal) => legible(refusal.message.as_bytes()),
        Err(_other) => legible(&answer),
    };
    Err(AgentError::Refused { status, message })
}

fn enveloped(message: &impl Serialize) -> Result<Bytes, AgentError> {
    let json = serde_json::to_vec(message).map_err(|_never| AgentError::Malformed)?;
    let mut envelope = BytesMut::with_capacity(ENVELOPE_HEAD + json.len());
    envelope.put_u8(0);
    envelope.put_u32(u32::try_from(json.len()).map_err(|_too_long| AgentError::Malformed)?);
    envelope.put_slice(&json);
    Ok(envelope.freeze())
}

#[derive(Deserialize)]
struct Done {}

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

/// A request of `sandboxd`'s own HTTP calls, `/files` and `/tree`, about a path inside.
pub(crate) fn about_path(
    method: Method,
    what: &str,
    path: &str,
    body: Body,
) -> Result<Request<Body>, AgentError> {
    let target = format!("{what}?path={}", utf8_percent_encode(path, NON_ALPHANUMERIC));
    let uri = Uri::builder().scheme("http").authority("sandbox").path_and_query(target).build();
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri.map_err(|_too_long| AgentError::Malformed)?;
    Ok(request)
}

/// A body that is all there.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

async fn bounded(response: Response<Incoming>, bytes: usize) -> Result<Bytes, AgentError> {
    let body = Limited::new(response.into_body(), bytes).collect().await;
    Ok(body.map_err(|_cut_or_too_long| AgentError::Malformed)?.to_bytes())
}

/// A sandbox's words for an error message: bounded and escaped.
pub(crate) fn legible(bytes: &[u8]) -> String {
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

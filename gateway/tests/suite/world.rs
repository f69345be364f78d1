// SPDX-License-Identifier: Apache-2.0
//! One gateway with its orchestrator's end, a backend that records every byte, and sandboxes.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use postern_common::clock::{now, unix_seconds};
use postern_common::control::{
    Applied, BackendConfig, Change, DeliverySender, EndedSession, Message, Publisher, State, TenantConfig,
    link,
};
use postern_common::decision::{DecisionRecord, FilterLine, Versions};
use postern_common::id::{
    BackendName, ConversationId, PolicyName, SandboxId, SecretName, TemplateName, TenantId, UserId,
};
use postern_common::secret::Secret;
use postern_common::session::{AcceptedToken, Isolation, Peer, Session};
use postern_common::tasks::Tasks;
use postern_common::token::{AUDIENCE, Claims, ISSUER, SigningKey};
use postern_gateway::{Config, Gateway, Running, Settings, UpstreamRules};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn key() -> SigningKey {
    SigningKey::new(vec![7; 32]).expect("long enough")
}

/// What reached the backend.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) connections: AtomicUsize,
    bytes: Mutex<Vec<u8>>,
    /// Streams of server-sent events that are open.
    events: Mutex<Vec<mpsc::Sender<Bytes>>>,
}

impl Recorded {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no panic")).into_owned()
    }

    pub(crate) fn assert_untouched(&self, what: &str) {
        assert_eq!(self.connections.load(Ordering::SeqCst), 0, "{what}: a connection reached the backend");
        assert_eq!(self.text(), "", "{what}: bytes reached the backend");
    }

    /// Sends on every open stream; those that are closed are forgotten.
    pub(crate) async fn send_event(&self, event: &'static str) -> usize {
        let streams = std::mem::take(&mut *self.events.lock().expect("no panic"));
        let mut open = Vec::new();
        for stream in streams {
            if stream.send(Bytes::from_static(event.as_bytes())).await.is_ok() {
                open.push(stream);
            }
        }
        let count = open.len();
        self.events.lock().expect("no panic").extend(open);
        count
    }

    pub(crate) fn open_streams(&self) -> usize {
        let mut streams = self.events.lock().expect("no panic");
        streams.retain(|stream| !stream.is_closed());
        streams.len()
    }
}

/// A stream whose incoming bytes are recorded.
struct Tapped(TcpStream, Arc<Recorded>);

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.0).poll_read(context, into);
        self.1.bytes.lock().expect("no panic").extend_from_slice(&into.filled()[before..]);
        polled
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

type BackendBody = http_body_util::Either<Full<Bytes>, StreamBody<tokio_stream::Events>>;

mod tokio_stream {
    use super::{Bytes, Context, Frame, Infallible, Pin, Poll, mpsc};

    /// A channel as a stream of frames.
    pub(crate) struct Events(pub(crate) mpsc::Receiver<Bytes>);

    impl futures_util::Stream for Events {
        type Item = Result<Frame<Bytes>, Infallible>;
        fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            self.0.poll_recv(context).map(|event| event.map(|event| Ok(Frame::data(event))))
        }
    }
}

/// Echoes what arrived as JSON; `…/events` streams what the test sends; `…/redirect` redirects.
async fn backend(
    request: Request<Incoming>,
    recorded: Arc<Recorded>,
) -> Result<Response<BackendBody>, Infallible> {
    let (head, body) = request.into_parts();
    if head.uri.path().ends_with("/events") {
        let (sender, receiver) = mpsc::channel(16);
        recorded.events.lock().expect("no panic").push(sender);
        let body = StreamBody::new(tokio_stream::Events(receiver));
        let mut response = Response::new(http_body_util::Either::Right(body));
        response.headers_mut().insert("content-type", "text/event-stream".parse().expect("a value"));
        return Ok(response);
    }
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let headers: BTreeMap<&str, Vec<&str>> = head
        .headers
        .keys()
        .map(|name| {
            (
                name.as_str(),
                head.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect(),
            )
        })
        .collect();
    let echo = json!({
        "method": head.method.as_str(),
        "target": head.uri.to_string(),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    let mut response = Response::new(http_body_util::Either::Left(Full::new(echo.to_string().into())));
    if head.uri.path().ends_with("/redirect") {
        *response.status_mut() = StatusCode::FOUND;
        response.headers_mut().insert("location", "http://169.254.169.254/latest".parse().expect("a value"));
    }
    response.headers_mut().insert("set-cookie", "session=backend".parse().expect("a value"));
    response.headers_mut().insert("x-user-id", "somebody".parse().expect("a value"));
    Ok(response)
}

/// Starts a backend; the port is where it listens.
pub(crate) async fn start_backend(tasks: &Tasks) -> (u16, Arc<Recorded>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let recorded = Arc::<Recorded>::default();
    let (seen, owner) = (Arc::clone(&recorded), tasks.clone());
    tasks.spawn(move |stop| async move {
        while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
            seen.connections.fetch_add(1, Ordering::SeqCst);
            let recorded = Arc::clone(&seen);
            owner.spawn(move |stop| async move {
                let tapped = TokioIo::new(Tapped(stream, Arc::clone(&recorded)));
                let service = service_fn(move |request| backend(request, Arc::clone(&recorded)));
                let serving = hyper::server::conn::http1::Builder::new().serve_connection(tapped, service);
                drop(stop.run_until_cancelled(serving).await);
            });
        }
    });
    (port, recorded)
}

/// The document of the backend `desk`.
pub(crate) const DOCUMENT: &str = include_str!("desk.yaml");

/// A gateway, its orchestrator and a backend, on this machine alone.
pub(crate) struct World {
    pub(crate) tasks: Tasks,
    /// The gateway's own, to stop it alone.
    pub(crate) gateway_tasks: Tasks,
    pub(crate) running: Running,
    pub(crate) rules: UpstreamRules,
    pub(crate) port: u16,
    pub(crate) recorded: Arc<Recorded>,
    decided: Mutex<Option<mpsc::Receiver<DecisionRecord>>>,
    lines: Mutex<mpsc::Receiver<FilterLine>>,
    redials: Option<mpsc::Receiver<DeliverySender>>,
    sender: Option<DeliverySender>,
    version: AtomicU64,
    folder: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.stop();
        self.gateway_tasks.stop();
    }
}

impl World {
    /// A gateway that has an empty snapshot.
    pub(crate) async fn empty() -> Self {
        Self::with_staleness(postern_gateway::STALENESS).await
    }

    pub(crate) async fn with_staleness(staleness: Duration) -> Self {
        Self::with(|settings| settings.staleness = staleness).await
    }

    /// A gateway with other settings than the suite's own.
    pub(crate) async fn with(adjust: impl FnOnce(&mut Settings)) -> Self {
        let tasks = Tasks::new();
        let (port, recorded) = start_backend(&tasks).await;
        let rules = UpstreamRules::new(&[format!("127.0.0.1:{port}")], &[]).expect("rules");
        let mut settings = Settings::new(vec![key()], rules.clone());
        settings.tcp = Some(([127, 0, 0, 1], 0).into());
        settings.admin = Some(([127, 0, 0, 1], 0).into());
        adjust(&mut settings);
        let config = Config::check(settings).expect("good settings");
        let (publisher, follower) = link();
        let gateway_tasks = Tasks::new();
        let running = Gateway::start(config, follower, &gateway_tasks).await.expect("starts");
        let sender = publisher.sender();
        let Publisher { redials, decisions, lines, .. } = publisher;
        let folder = tempfile::tempdir().expect("a folder");
        let world = Self {
            tasks,
            gateway_tasks,
            running,
            rules,
            port,
            recorded,
            decided: Mutex::new(Some(decisions)),
            lines: Mutex::new(lines),
            redials: Some(redials),
            sender: Some(sender),
            version: AtomicU64::new(0),
            folder,
        };
        assert_eq!(world.send(Change::Snapshot(Box::<State>::default())).await, Applied::InForce);
        world
    }

    /// A gateway with tenant `acme`, its documented backend `desk` and the baseline's permit.
    pub(crate) async fn desk() -> Self {
        let world = Self::empty().await;
        let config = world.config("acme", &[("desk", world.described())], None);
        assert_eq!(world.put(config).await, Applied::InForce);
        world
    }

    /// `backend.toml` of the recording backend, with a document.
    pub(crate) fn described(&self) -> Value {
        json!({ "url": format!("http://127.0.0.1:{}/api", self.port), "openapi": "openapi.yaml" })
    }

    /// The same without one.
    pub(crate) fn plain(&self) -> Value {
        json!({ "url": format!("http://127.0.0.1:{}", self.port) })
    }

    pub(crate) fn config(
        &self,
        tenant: &str,
        backends: &[(&str, Value)],
        policies: Option<&str>,
    ) -> TenantConfig {
        let backends = backends.iter().map(|(name, file)| {
            let document = file.get("openapi").map(|_| Arc::from(DOCUMENT));
            let file = serde_json::from_value(file.clone()).expect("a backend file");
            (BackendName::parse(name).expect("a name"), BackendConfig { file, document })
        });
        let policies = policies
            .map(|text| BTreeMap::from([(PolicyName::parse("desk").expect("a name"), text.to_owned())]));
        TenantConfig {
            tenant: TenantId::parse(tenant).expect("a tenant"),
            revision: 1,
            versions: Versions::default(),
            backends: backends.collect(),
            default_backend: None,
            policies,
            shadow_policies: BTreeMap::new(),
            filters: BTreeMap::new(),
            secrets: BTreeMap::from([(
                SecretName::parse("desk-key").expect("a name"),
                Secret::new("hunter2".to_owned()),
            )]),
            limits: Default::default(),
        }
    }

    pub(crate) async fn put(&self, config: TenantConfig) -> Applied {
        self.send(Change::Tenant(Arc::new(config))).await
    }

    pub(crate) async fn send(&self, change: Change) -> Applied {
        let version = self.version.fetch_add(1, Ordering::SeqCst) + 1;
        self.send_as(Message { epoch: 1, version, change }).await
    }

    pub(crate) async fn send_as(&self, message: Message) -> Applied {
        let sender = self.sender.as_ref().expect("connected");
        let answer = sender.send(message).await.expect("a gateway");
        tokio::time::timeout(PATIENCE, answer).await.expect("answers in time").expect("an answer")
    }

    /// Opens a session of `user` with its own socket, and gives its sandbox.
    pub(crate) async fn sandbox(&self, user: &str, operations: &[&str]) -> Sandbox {
        self.sandbox_of("acme", user, operations).await
    }

    pub(crate) async fn sandbox_of(&self, tenant: &str, user: &str, operations: &[&str]) -> Sandbox {
        self.sandbox_with(tenant, user, operations, |_| {}).await
    }

    /// Opens a session that is not quite like the others.
    pub(crate) async fn sandbox_with(
        &self,
        tenant: &str,
        user: &str,
        operations: &[&str],
        adjust: impl FnOnce(&mut Session),
    ) -> Sandbox {
        let number = self.version.load(Ordering::SeqCst);
        let mut random = [0; 12];
        random[..8].copy_from_slice(&number.to_be_bytes());
        // `from_random` keeps five bits of each byte.
        random[8] = u8::try_from(number / 32 % 32).expect("below 32");
        let id = SandboxId::from_random(random);
        let path = self.folder.path().join(format!("{id}.sock"));
        let mut session = session(tenant, user, operations, id, Peer::Socket(path.clone()));
        adjust(&mut session);
        assert_eq!(self.send(Change::Session(Box::new(session.clone()))).await, Applied::InForce);
        let token = mint(&claims(&session));
        Sandbox { session, path, token }
    }

    pub(crate) async fn end(&self, sandbox: &Sandbox) {
        let until = now() + jiff::SignedDuration::from_hours(1);
        let ended = EndedSession { sandbox_id: sandbox.session.sandbox_id.clone(), until };
        assert_eq!(self.send(Change::SessionEnded(ended)).await, Applied::InForce);
    }

    /// Closes the orchestrator's end for good.
    pub(crate) fn disconnect(&mut self) {
        self.sender = None;
        self.redials = None;
        *self.decided.lock().expect("no panic") = None;
    }

    /// Drops the link, as an orchestrator does with a gateway that takes no messages.
    pub(crate) fn drop_link(&mut self) {
        self.sender = None;
    }

    /// Takes the link that the gateway opens again.
    pub(crate) async fn take_redial(&mut self) {
        let redial = self.redials.as_mut().expect("connected").recv();
        self.sender = tokio::time::timeout(PATIENCE, redial).await.expect("redials in time");
    }

    /// What filters logged.
    pub(crate) fn lines(&self) -> Vec<FilterLine> {
        let mut lines = self.lines.lock().expect("no panic");
        std::iter::from_fn(|| lines.try_recv().ok()).collect()
    }

    /// The records that have come home.
    pub(crate) fn decisions(&self) -> Vec<DecisionRecord> {
        let mut decided = self.decided.lock().expect("no panic");
        let decided = decided.as_mut().expect("connected");
        std::iter::from_fn(|| decided.try_recv().ok()).collect()
    }
}

/// A session with one token `first`.
pub(crate) fn session(tenant: &str, user: &str, operations: &[&str], id: SandboxId, peer: Peer) -> Session {
    let end = now() + jiff::SignedDuration::from_mins(30);
    Session {
        sandbox_id: id,
        tenant: TenantId::parse(tenant).expect("a tenant"),
        user_id: UserId::parse(user).expect("a user"),
        conversation_id: ConversationId::parse("talk-1").expect("a conversation"),
        operations: operations.iter().map(|grant| grant.parse().expect("a grant")).collect(),
        tokens: vec![AcceptedToken { jti: "first".into(), until: end }],
        peer,
        expires_at: end,
        template: TemplateName::parse("default").expect("a name"),
        isolation: Isolation::Namespaces,
        labels: BTreeMap::new(),
        claims: serde_json::Map::new(),
    }
}

/// The claims of a session's token, with nothing more than the session has.
pub(crate) fn claims(session: &Session) -> Claims {
    let seconds = unix_seconds(now());
    Claims {
        iss: ISSUER.into(),
        aud: AUDIENCE.into(),
        sub: session.sandbox_id.clone(),
        sandbox_id: session.sandbox_id.clone(),
        tenant: session.tenant.clone(),
        user_id: session.user_id.clone(),
        conversation_id: session.conversation_id.clone(),
        operations: session.operations.clone(),
        jti: "first".into(),
        iat: seconds,
        nbf: seconds,
        exp: seconds + 600,
    }
}

pub(crate) fn mint(claims: &Claims) -> String {
    key().mint(claims).expect("mints").reveal().clone()
}

/// A sandbox: where its door is, and its token.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    pub(crate) session: Session,
    pub(crate) path: PathBuf,
    pub(crate) token: String,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// The problem's code; empty if it is none.
    pub(crate) fn code(&self) -> &str {
        self.body.get("code").and_then(Value::as_str).unwrap_or_default()
    }

    /// What the backend saw under a header's name.
    pub(crate) fn seen_header(&self, name: &str) -> Vec<String> {
        let values = self.body["headers"].get(name).and_then(Value::as_array).cloned().unwrap_or_default();
        values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
    }

    pub(crate) fn seen_body(&self) -> Value {
        serde_json::from_str(self.body["body"].as_str().unwrap_or_default()).unwrap_or(Value::Null)
    }

    pub(crate) fn target(&self) -> &str {
        self.body["target"].as_str().unwrap_or_default()
    }
}

impl Sandbox {
    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.call("GET", target, &[], b"").await
    }

    pub(crate) async fn post(&self, target: &str, body: &Value) -> Answer {
        self.call("POST", target, &[("content-type", "application/json")], body.to_string().as_bytes()).await
    }

    /// One request with the sandbox's token.
    pub(crate) async fn call(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let mut all = vec![("authorization", bearer.as_str())];
        all.extend(headers);
        self.bare(method, target, &all, body).await
    }

    /// One request with just these headers and `Host`, written byte by byte.
    pub(crate) async fn bare(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut text = format!("{method} {target} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            text.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        let mut bytes = (text + "\r\n").into_bytes();
        bytes.extend_from_slice(body);
        self.raw(&bytes).await
    }

    /// Sends bytes as they are and reads one answer until the connection closes.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> Answer {
        let stream = UnixStream::connect(&self.path).await.expect("the door is open");
        exchange(stream, bytes).await
    }

    /// A connection to write on by hand.
    pub(crate) async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.expect("the door is open")
    }

    pub(crate) fn head(&self, method: &str, target: &str, rest: &str) -> String {
        format!(
            "{method} {target} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {}\r\n{rest}\r\n",
            self.token
        )
    }
}

pub(crate) async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> Answer {
    // A gateway that refuses early may close before all is written.
    drop(stream.write_all(bytes).await);
    let mut read = Vec::new();
    let reading = stream.read_to_end(&mut read);
    drop(tokio::time::timeout(PATIENCE, reading).await.expect("an answer in time"));
    parse(&read)
}

pub(crate) fn parse(read: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(read);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.split("\r\n");
    let status =
        lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok()).unwrap_or(0);
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        headers.append(
            http::HeaderName::from_bytes(name.as_bytes()).expect("a name"),
            value.parse().expect("a value"),
        );
    }
    let body = serde_json::from_str(body).unwrap_or(Value::Null);
    Answer { status, headers, body }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A moment that has passed.
pub(crate) fn past(seconds: i64) -> Timestamp {
    now() - jiff::SignedDuration::from_secs(seconds)
}

/// Reads until `wanted` has come; gives all that came.
pub(crate) async fn read_until(stream: &mut UnixStream, wanted: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    let reading = async {
        while !text.contains(wanted) {
            let count = stream.read(&mut buffer).await.expect("reads");
            assert_ne!(count, 0, "the stream ended: {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("in time");
    text
}

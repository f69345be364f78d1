// SPDX-License-Identifier: Apache-2.0
//! A gateway under load: processor time of its thread for each request, with and without filters.

use crate::engine::HEADER_MANIFEST;
use crate::plugins::{compiled, key, sign};
use crate::report::{Report, median};
use anyhow::{Context as _, Result, bail};
use postern_common::clock::{now, unix_seconds};
use postern_common::control::{
    Applied, BackendConfig, Change, DeliverySender, FilterArtefact, Message, State, TenantConfig, link,
};
use postern_common::decision::Versions;
use postern_common::id::{
    BackendName, ConversationId, FilterName, SandboxId, TemplateName, TenantId, UserId,
};
use postern_common::session::{AcceptedToken, Isolation, Peer, Session};
use postern_common::tasks::Tasks;
use postern_common::token::{AUDIENCE, Claims, ISSUER, SigningKey};
use postern_gateway::{Config, Gateway, Settings, UpstreamRules};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

const SESSIONS: usize = 1_000;
const ROUTES: usize = 20;
const CONNECTIONS: usize = 16;
/// Requests of one round of one row, and rounds, of which the median counts.
const REQUESTS: usize = 4_000;
const ROUNDS: usize = 9;
const BODY_BYTES: usize = 64 << 10;

/// Backends, which differ only in their filters.
const ROWS: [(&str, &[&str]); 5] = [
    ("none", &[]),
    ("read", &["read"]),
    ("set", &["set"]),
    ("three", &["read", "read", "read"]),
    ("body", &["body"]),
];

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let world = runtime.block_on(World::start(1))?;
    runtime.block_on(async {
        let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let kinds = [
            ("none", false),
            ("read", false),
            ("set", false),
            ("three", false),
            ("none", true),
            ("body", true),
        ];
        for round in 0..=ROUNDS {
            for (backend, has_body) in kinds {
                let time = world.round(backend, has_body).await?;
                // The first round warms up.
                if round > 0 {
                    times.entry(format!("{backend}{has_body}")).or_default().push(time);
                }
            }
        }
        let of = |name: &str| times.get(name).cloned().map_or(f64::NAN, median);
        let (none, none_body) = (of("nonefalse"), of("nonetrue"));
        let header = of("readfalse") - none;
        report.add("header_filter", header, "µs", Some(none), "bar: 11 µs, aim: 7");
        report.add("header_filter.changes", of("setfalse") - none, "µs", Some(none), "judged again");
        report.add("chain_of_3", of("threefalse") - none, "µs", Some(header), "bar: 2.5 x header_filter");
        report.add("body_64k_filter", of("bodytrue") - none_body, "µs", Some(none_body), "bar: 30 µs");
        Ok::<_, anyhow::Error>(())
    })?;
    world.tasks.stop();
    Ok(())
}

/// A gateway on a thread of its own, a backend on another, and what is needed to ask.
pub(crate) struct World {
    pub(crate) tasks: Tasks,
    pub(crate) door: SocketAddr,
    pub(crate) tokens: Vec<String>,
    pub(crate) sender: DeliverySender,
    pub(crate) backend: SocketAddr,
    pub(crate) version: u64,
    clock: mpsc::Sender<oneshot::Sender<Duration>>,
}

impl World {
    /// `workers`: the threads that serve; one is measured by its own clock.
    pub(crate) async fn start(workers: usize) -> Result<Self> {
        let tasks = Tasks::new();
        let (started, backend) = oneshot::channel();
        let backend_tasks = tasks.clone();
        thread("backend", 1, move || async move { serve_backend(&backend_tasks, started).await });
        let backend: SocketAddr = backend.await?;
        let (started, gateway) = oneshot::channel();
        let (clock, mut asked) = mpsc::channel::<oneshot::Sender<Duration>>(1);
        let gateway_tasks = tasks.clone();
        thread("gateway", workers, move || async move {
            drop(started.send(start_gateway(backend, &gateway_tasks).await));
            while let Some(answer) = asked.recv().await {
                let _heard = answer.send(thread_time()).is_ok();
            }
        });
        let (door, sender, decisions) = gateway.await??;
        tasks.spawn(move |_| drain(decisions));
        let mut world = Self { tasks, door, tokens: Vec::new(), sender, backend, version: 0, clock };
        world.send(Change::Snapshot(Box::<State>::default())).await?;
        world.send(Change::Tenant(Arc::new(tenant(backend)?))).await?;
        for number in 0..SESSIONS {
            let token = world.open("acme", number).await?;
            world.tokens.push(token);
        }
        Ok(world)
    }

    /// Tells the gateway something that it must take.
    pub(crate) async fn send(&mut self, change: Change) -> Result<()> {
        self.version += 1;
        let message = Message { epoch: 1, version: self.version, change };
        if let Applied::Refused(mistakes) = self.sender.send(message).await?.await? {
            bail!("the gateway refused: {mistakes:?}");
        }
        Ok(())
    }

    /// Opens a session; its token.
    pub(crate) async fn open(&mut self, tenant: &str, number: usize) -> Result<String> {
        let session = session(tenant, number)?;
        let token = mint(&session)?;
        self.send(Change::Session(Box::new(session))).await?;
        Ok(token)
    }

    /// Microseconds of the gateway's thread for each request.
    async fn round(&self, backend: &str, has_body: bool) -> Result<f64> {
        let before = self.gateway_time().await?;
        let load = (0..CONNECTIONS).map(|connection| self.load(backend, has_body, connection));
        futures_util::future::try_join_all(load).await?;
        let took = self.gateway_time().await?.saturating_sub(before);
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        Ok(took.as_secs_f64() * 1e6 / REQUESTS as f64)
    }

    async fn gateway_time(&self) -> Result<Duration> {
        let (answer, time) = oneshot::channel();
        self.clock.send(answer).await?;
        Ok(time.await?)
    }

    async fn load(&self, backend: &str, has_body: bool, connection: usize) -> Result<()> {
        let mut stream = TcpStream::connect(self.door).await?;
        stream.set_nodelay(true)?;
        let filler = "x".repeat(BODY_BYTES.saturating_sub(11));
        let body = if has_body { format!("{{\"text\":\"{filler}\"}}") } else { String::new() };
        let mut buffer = vec![0; 16 * 1024];
        let mut request = String::new();
        for turn in 0..REQUESTS / CONNECTIONS {
            let number = turn * CONNECTIONS + connection;
            let token = self.tokens.get(number % self.tokens.len()).context("a token")?;
            let route = number % ROUTES;
            request.clear();
            let (method, rest) = if has_body {
                ("POST", format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()))
            } else {
                ("GET", String::new())
            };
            write!(
                request,
                "{method} /{backend}/r{route}/{number}?q={number}-{turn} HTTP/1.1\r\nhost: gateway\r\n\
                 authorization: Bearer {token}\r\naccept: application/json\r\nuser-agent: bench/1\r\n\
                 x-tier: gold\r\nx-a: some value of a usual length\r\nx-b: some value of a usual length\r\n\
                 x-c: some value of a usual length\r\nx-d: some value of a usual length\r\n{rest}\r\n{body}"
            )?;
            stream.write_all(request.as_bytes()).await?;
            answered(&mut stream, &mut buffer).await?;
        }
        Ok(())
    }
}

/// Reads one answer: a head, and the backend's two bytes.
pub(crate) async fn answered(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<()> {
    let mut read = 0;
    loop {
        let count = stream.read(buffer.get_mut(read..).context("room")?).await?;
        read += count;
        let text = buffer.get(..read).context("what was read")?;
        if count == 0 || !text.starts_with(b"HTTP/1.1 200") {
            bail!("refused: {}", String::from_utf8_lossy(text));
        }
        if text.ends_with(b"\r\n\r\nok") {
            return Ok(());
        }
    }
}

fn thread<Run: Future<Output = ()>>(name: &str, workers: usize, run: impl FnOnce() -> Run + Send + 'static) {
    let body = move || {
        let runtime = match workers {
            1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
            _ => tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build(),
        };
        if let Ok(runtime) = runtime {
            runtime.block_on(run());
        }
    };
    // It ends with the process.
    drop(std::thread::Builder::new().name(name.to_owned()).spawn(body));
}

type Started = Result<(SocketAddr, DeliverySender, mpsc::Receiver<postern_common::decision::DecisionRecord>)>;

async fn start_gateway(backend: SocketAddr, tasks: &Tasks) -> Started {
    let rules =
        UpstreamRules::new(&[backend.to_string()], &[]).map_err(|wrong| anyhow::anyhow!("{wrong:?}"))?;
    let mut settings = Settings::new(vec![token_key()?], rules);
    settings.tcp = Some(([127, 0, 0, 1], 0).into());
    settings.artefact_key = Some(*key().verifying_key().as_bytes());
    let config = Config::check(settings).map_err(|mistakes| anyhow::anyhow!("{mistakes:?}"))?;
    let (publisher, follower) = link();
    let running = Gateway::start(config, follower, tasks).await?;
    let sender = publisher.sender();
    Ok((running.tcp.context("a door")?, sender, publisher.decisions))
}

async fn drain(mut decisions: mpsc::Receiver<postern_common::decision::DecisionRecord>) {
    let mut batch = Vec::new();
    while decisions.recv_many(&mut batch, 1024).await > 0 {
        batch.clear();
    }
}

async fn serve_backend(tasks: &Tasks, started: oneshot::Sender<SocketAddr>) {
    let Ok(listener) = TcpListener::bind("127.0.0.1:0").await else { return };
    let Ok(address) = listener.local_addr() else { return };
    let _heard = started.send(address).is_ok();
    while let Ok((stream, _)) = listener.accept().await {
        tasks.spawn(move |_| async move {
            let service =
                hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    use http_body_util::BodyExt as _;
                    drop(request.into_body().collect().await);
                    Ok::<_, std::convert::Infallible>(http::Response::new("ok".to_owned()))
                });
            let io = hyper_util::rt::TokioIo::new(stream);
            drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
        });
    }
}

fn document() -> String {
    let mut text = "openapi: 3.1.0\ninfo: { title: bench, version: \"1\" }\npaths:\n".to_owned();
    for route in 0..ROUTES {
        let parameters = "parameters: [{ name: id, in: path, required: true, schema: { type: string } }, { name: q, in: query, schema: { type: string } }]";
        text.push_str(&format!(
            "  /r{route}/{{id}}:\n    {parameters}\n    get:\n      operationId: get{route}\n      responses: {{ \"200\": {{ description: ok }} }}\n    post:\n      operationId: post{route}\n      requestBody:\n        content:\n          application/json:\n            schema: {{ type: object, required: [text], properties: {{ text: {{ type: string }} }} }}\n      responses: {{ \"200\": {{ description: ok }} }}\n"
        ));
    }
    text
}

pub(crate) fn tenant(backend: SocketAddr) -> Result<TenantConfig> {
    let document: Arc<str> = document().into();
    let mut backends = BTreeMap::new();
    for (name, ways) in ROWS {
        let filters: Vec<_> = ways
            .iter()
            .map(|way| json!({ "name": if *way == "body" { "body" } else { "header" }, "config": { "way": way } }))
            .collect();
        let file =
            json!({ "url": format!("http://{backend}"), "openapi": "openapi.yaml", "filters": filters });
        let config =
            BackendConfig { file: serde_json::from_value(file)?, document: Some(Arc::clone(&document)) };
        backends.insert(BackendName::parse(name)?, config);
    }
    let body_manifest = "phases = [\"request\"]\nbody = { request = \"128KiB\" }";
    let mut filters = BTreeMap::new();
    for (name, manifest) in [("header", HEADER_MANIFEST), ("body", body_manifest)] {
        let artefact = sign(&compiled("bench-guest"), ("acme", name), 1, manifest);
        let artefact = FilterArtefact { manifest: manifest.into(), artefact: artefact.into(), version: 1 };
        filters.insert(FilterName::parse(name)?, artefact);
    }
    let rate = json!({ "per_second": 1e6, "burst": 1_000_000, "concurrent": 1_000 });
    Ok(TenantConfig {
        revision: 1,
        tenant: TenantId::parse("acme")?,
        versions: Versions::default(),
        backends,
        default_backend: None,
        policies: None,
        shadow_policies: BTreeMap::new(),
        filters,
        secrets: BTreeMap::new(),
        limits: serde_json::from_value(json!({ "session": rate, "tenant": rate }))?,
    })
}

fn token_key() -> Result<SigningKey> {
    SigningKey::new(vec![7; 32]).map_err(|wrong| anyhow::anyhow!("{wrong:?}"))
}

fn session(tenant: &str, number: usize) -> Result<Session> {
    let mut random = [0; 12];
    for (place, byte) in random.iter_mut().enumerate() {
        *byte = u8::try_from((number >> (5 * place.min(4))) & 31)?;
    }
    let end = now() + jiff::SignedDuration::from_mins(30);
    Ok(Session {
        sandbox_id: SandboxId::from_random(random),
        tenant: TenantId::parse(tenant)?,
        user_id: UserId::parse(&format!("user-{number}"))?,
        conversation_id: ConversationId::parse(&format!("talk-{number}"))?,
        operations: vec!["*".parse().map_err(|wrong| anyhow::anyhow!("{wrong:?}"))?],
        tokens: vec![AcceptedToken { jti: "first".into(), until: end }],
        peer: Peer::Address([127, 0, 0, 1].into()),
        expires_at: end,
        template: TemplateName::parse("default")?,
        isolation: Isolation::Namespaces,
        labels: BTreeMap::new(),
        claims: serde_json::Map::new(),
    })
}

fn mint(session: &Session) -> Result<String> {
    let seconds = unix_seconds(now());
    let claims = Claims {
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
        exp: seconds + 1_200,
    };
    let token = token_key()?.mint(&claims).map_err(|wrong| anyhow::anyhow!("{wrong:?}"))?;
    Ok(token.reveal().clone())
}

/// Processor time of this thread.
pub(crate) fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

// SPDX-License-Identifier: Apache-2.0
//! The control stream as a gateway lives it: an orchestrator in the test says what a true one says,
//! and what an attacker would. Each attack has its control: the same connection without it.

mod attacks;
mod swapped;

use crate::world::{Answer, PATIENCE, claims, exchange, key, mint, session, start_backend};
use crate::world::{DOCUMENT, Recorded};
use postern_common::clock::now;
use postern_common::control::{
    BackendConfig, Change, EndedSession, Message, State, TenantConfig, distant_link,
};
use postern_common::decision::{Verdict, Versions};
use postern_common::id::{BackendName, GatewayName, SandboxId, SecretName, TenantId};
use postern_common::secret::Secret;
use postern_common::session::{Peer, Session};
use postern_common::stream::chain::{Carried, Sending};
use postern_common::stream::frame::{self, Kind};
use postern_common::stream::{
    AppliedFrame, Credential, Decisions, Hello, Kept, PROTOCOL, Ping, Refusal, SERVER_NAME, Signer,
};
use postern_common::tasks::Tasks;
use postern_gateway::{Config, Gateway, Running, Settings, UpstreamRules, stream};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// An orchestrator that says what a test wants.
struct Orchestrator {
    listener: TcpListener,
    tls: TlsAcceptor,
    signer: Arc<Signer>,
    credential: Credential,
}

impl Orchestrator {
    async fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = authority.self_signed(&key).expect("signs");
        let issuer = Issuer::new(authority, key);
        let own = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(vec![SERVER_NAME.to_owned()]).expect("parameters");
        let leaf = leaf.signed_by(&own, &issuer).expect("signs");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("speaks it")
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::try_from(own.serialize_der()).expect("a key"),
            )
            .expect("fits");
        let signer = Arc::new(Signer::from_seed(&[5; 32]).expect("a seed"));
        let credential = Credential {
            name: GatewayName::parse("edge").expect("a name"),
            secret: Secret::new("s3cret".into()),
            authority: root.der().to_vec(),
            signer: signer.key(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self { listener, tls: TlsAcceptor::from(Arc::new(tls)), signer, credential }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("bound")
    }

    /// The next connection, after its hello.
    async fn accept(&self) -> Connection {
        let accepting = async {
            loop {
                // One that gave up waiting for us may still be in the queue.
                let (socket, _) = self.listener.accept().await.expect("accepts");
                let Ok(mut tls) = self.tls.accept(socket).await else { continue };
                let Ok((Kind::Hello, body)) = frame::read(&mut tls, frame::SMALL_BYTES).await else {
                    continue;
                };
                let hello: Hello = frame::parse(&body).expect("a hello");
                assert_eq!((hello.protocol, hello.secret.reveal().as_str()), (PROTOCOL, "s3cret"));
                let to = (hello.name.clone(), hello.nonce);
                let (sending, welcome) =
                    Sending::begin(Arc::clone(&self.signer), to, hello.wrapping, now()).expect("begins");
                return Connection { tls, hello, sending, welcome, decisions: Vec::new(), keeps: true };
            }
        };
        timeout(PATIENCE, accepting).await.expect("a gateway connects in time")
    }

    /// The next connection, welcome and with a snapshot in force.
    async fn follow(&self, version: u64, state: State) -> Connection {
        let mut connection = self.accept().await;
        connection.welcome().await;
        connection.tell(version, Change::Snapshot(Box::new(state))).await;
        connection.beat().await;
        connection
    }
}

struct Connection {
    tls: TlsStream<TcpStream>,
    hello: Hello,
    sending: Sending,
    welcome: Vec<u8>,
    decisions: Vec<postern_common::decision::DecisionRecord>,
    keeps: bool,
}

impl Connection {
    async fn put(&mut self, kind: Kind, body: &[u8]) {
        frame::write(&mut self.tls, kind, body).await.expect("is sent");
    }

    async fn welcome(&mut self) {
        let welcome = self.welcome.clone();
        self.put(Kind::Welcome, &welcome).await;
    }

    fn seal(&mut self, version: u64, change: Change) -> Vec<u8> {
        self.sending.message(&Message { epoch: 1, version, change }, now()).expect("is sealed").1
    }

    /// Sends a change and waits until it is in force.
    async fn tell(&mut self, version: u64, change: Change) {
        let bytes = self.seal(version, change);
        self.put(Kind::Message, &bytes).await;
        let applied = self.until(Kind::Applied).await.expect("an answer");
        let AppliedFrame { refused, .. } = frame::parse(&applied).expect("an answer");
        assert_eq!(refused, Vec::<String>::new());
    }

    /// Answers pings and decisions until a frame of this kind comes; `None` when the gateway has
    /// closed the connection.
    async fn until(&mut self, wanted: Kind) -> Option<Vec<u8>> {
        let reading = async {
            loop {
                let (kind, body) = frame::read(&mut self.tls, frame::GATEWAY_BYTES).await.ok()?;
                match kind {
                    Kind::Ping => {
                        let Ping { echo, .. } = frame::parse(&body).expect("a ping");
                        let heartbeat =
                            self.sending.heartbeat(echo, Carried::default(), now()).expect("is signed");
                        // The gateway may have closed already.
                        drop(frame::write(&mut self.tls, Kind::Heartbeat, &heartbeat).await);
                    }
                    Kind::Decisions => {
                        let Decisions { batch, records } = frame::parse(&body).expect("decisions");
                        self.decisions.extend(records);
                        if self.keeps {
                            let kept = frame::body(&Kept { batch }).expect("has a form");
                            drop(frame::write(&mut self.tls, Kind::Kept, &kept).await);
                        }
                    }
                    _ => {}
                }
                if kind == wanted {
                    return Some(body);
                }
            }
        };
        timeout(PATIENCE, reading).await.expect("in time")
    }

    /// Two more heartbeats: the second is asked for after the first was heard.
    async fn beat(&mut self) {
        for _ in 0..2 {
            self.until(Kind::Ping).await.expect("is connected");
        }
    }

    async fn is_closed(&mut self) -> bool {
        self.until(Kind::Welcome).await.is_none()
    }
}

/// A gateway that follows an orchestrator of the test's, with a backend.
struct World {
    orchestrator: Orchestrator,
    folder: tempfile::TempDir,
    port: u16,
    recorded: Arc<Recorded>,
    tasks: Tasks,
    gateway: Option<(Running, Tasks, Tasks)>,
    staleness: Duration,
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.stop();
        if let Some((_, gateway, stream)) = &self.gateway {
            gateway.stop();
            stream.stop();
        }
    }
}

impl World {
    async fn new(staleness: Duration) -> Self {
        let tasks = Tasks::new();
        let (port, recorded) = start_backend(&tasks).await;
        let orchestrator = Orchestrator::new().await;
        let folder = tempfile::tempdir().expect("a folder");
        let mut world = Self { orchestrator, folder, port, recorded, tasks, gateway: None, staleness };
        world.start().await;
        world
    }

    async fn start(&mut self) {
        let upstreams = UpstreamRules::new(&[format!("127.0.0.1:{}", self.port)], &[]).expect("rules");
        let mut settings = Settings::new(vec![key()], upstreams.clone());
        settings.tcp = Some(([127, 0, 0, 1], 0).into());
        settings.admin = Some(([127, 0, 0, 1], 0).into());
        settings.staleness = self.staleness;
        settings.artefact_key = Some(*crate::plugins::key().verifying_key().as_bytes());
        let (publisher, follower, heard) = distant_link();
        let (gateway_tasks, stream_tasks) = (Tasks::new(), Tasks::new());
        let config = Config::check(settings).expect("good settings");
        let running = Gateway::start(config, follower, &gateway_tasks).await.expect("starts");
        let follow = stream::Settings {
            orchestrator: self.orchestrator.address().to_string(),
            credential: self.orchestrator.credential.clone(),
            folder: self.folder.path().to_owned(),
            staleness: self.staleness,
            spool_bytes: stream::SPOOL_BYTES,
            serves_sockets: false,
            upstreams,
        };
        stream::follow(follow, publisher, heard, running.audit.clone(), &stream_tasks).expect("follows");
        self.gateway = Some((running, gateway_tasks, stream_tasks));
    }

    /// Ends the gateway as its program does.
    async fn stop(&mut self) {
        let (_, gateway, stream) = self.gateway.take().expect("runs");
        gateway.shut_down(PATIENCE).await.expect("ends");
        stream.shut_down(PATIENCE).await.expect("ends");
    }

    fn running(&self) -> &Running {
        &self.gateway.as_ref().expect("runs").0
    }

    fn config(&self, credential: Option<&str>) -> TenantConfig {
        let mut file =
            json!({ "url": format!("http://127.0.0.1:{}/api", self.port), "openapi": "openapi.yaml" });
        if let Some(credential) = credential {
            file["credential"] = json!(credential);
        }
        let backend = BackendConfig {
            file: serde_json::from_value(file).expect("a backend"),
            document: Some(Arc::from(DOCUMENT)),
        };
        TenantConfig {
            tenant: TenantId::parse("acme").expect("a tenant"),
            revision: 1,
            versions: Versions::default(),
            backends: BTreeMap::from([(BackendName::parse("desk").expect("a name"), backend)]),
            default_backend: None,
            policies: None,
            shadow_policies: BTreeMap::new(),
            filters: BTreeMap::new(),
            secrets: BTreeMap::from([(
                SecretName::parse("desk-key").expect("a name"),
                Secret::new("hunter2".to_owned()),
            )]),
            limits: Default::default(),
        }
    }

    /// Tenant `acme` and alice's session.
    fn state(&self) -> State {
        State { tenants: vec![Arc::new(self.config(None))], sessions: vec![alice()], ended: Vec::new() }
    }

    async fn ask(&self, session: &Session) -> Answer {
        let token = mint(&claims(session));
        let address = self.running().tcp.expect("listens");
        let request = format!(
            "GET /orders HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
        );
        exchange(TcpStream::connect(address).await.expect("listens"), request.as_bytes()).await
    }

    async fn admin(&self, path: &str) -> u16 {
        let address = self.running().admin.expect("listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        exchange(TcpStream::connect(address).await.expect("listens"), request.as_bytes()).await.status
    }

    /// Waits until alice is answered like this.
    async fn until(&self, status: u16, code: &str) {
        let asking = async {
            loop {
                let answer = self.ask(&alice()).await;
                if answer.status == status && answer.code() == code {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never: {status} {code}"));
    }
}

fn alice() -> Session {
    let id = SandboxId::from_random([7; 12]);
    session("acme", "alice", &["*"], id, Peer::Address([127, 0, 0, 1].into()))
}

fn alice_ends() -> Change {
    let until = now() + jiff::SignedDuration::from_hours(1);
    Change::SessionEnded(EndedSession { sandbox_id: alice().sandbox_id, until })
}

/// Long enough never to matter in a test that is not about it.
const LONG: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn what_the_orchestrator_says_is_in_force_and_decisions_come_home() {
    let world = World::new(LONG).await;
    assert_eq!(world.ask(&alice()).await.code(), "state-stale");
    assert_eq!((world.admin("/healthz").await, world.admin("/readyz").await), (200, 503));
    let mut connection = world.orchestrator.follow(1, world.state()).await;
    world.until(200, "").await;
    assert_eq!(world.admin("/readyz").await, 200);
    connection.tell(2, alice_ends()).await;
    let answer = world.ask(&alice()).await;
    assert_eq!((answer.status, answer.code()), (401, "token-revoked"));
    while !connection.decisions.iter().any(|it| it.verdict == Verdict::Allow)
        || !connection.decisions.iter().any(|it| it.code.is_some_and(|code| code.as_str() == "token-revoked"))
    {
        connection.until(Kind::Decisions).await.expect("is connected");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_tried_out_is_judged_and_not_put_in_force() {
    let world = World::new(LONG).await;
    let mut connection = world.orchestrator.follow(1, world.state()).await;
    world.until(200, "").await;
    let mut config = world.config(None);
    config.policies = Some(BTreeMap::new());
    connection.tell(2, Change::Try(Arc::new(config.clone()))).await;
    assert_eq!(world.ask(&alice()).await.status, 200, "good, and not in force");
    connection.tell(3, Change::Tenant(Arc::new(config.clone()))).await;
    assert_eq!(world.ask(&alice()).await.status, 403, "the control: in force it permits nothing");
    config.backends.values_mut().for_each(|backend| backend.document = Some(Arc::from("no document")));
    let bytes = connection.seal(4, Change::Try(Arc::new(config)));
    connection.put(Kind::Message, &bytes).await;
    let applied = connection.until(Kind::Applied).await.expect("an answer");
    let AppliedFrame { refused, .. } = frame::parse(&applied).expect("an answer");
    assert!(!refused.is_empty(), "what is wrong with it is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapped_secret_reaches_the_backend_and_never_the_disk() {
    let world = World::new(LONG).await;
    let state = State { tenants: vec![Arc::new(world.config(Some("desk-key")))], ..world.state() };
    let mut connection = world.orchestrator.follow(1, state).await;
    let answer = world.ask(&alice()).await;
    assert_eq!(answer.seen_header("authorization"), ["Bearer hunter2"]);
    connection.beat().await;
    let mut found = 0;
    let mut folders = vec![world.folder.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = std::fs::read(&path) {
                found += 1;
                let shown = path.display();
                assert!(!bytes.windows(7).any(|window| window == b"hunter2"), "{shown}");
            }
        }
    }
    assert!(found >= 2, "state and pulse are kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_cut_off_refuses_after_the_bound_and_serves_again_after_it() {
    let world = World::new(Duration::from_secs(3)).await;
    let mut connection = world.orchestrator.follow(1, world.state()).await;
    world.until(200, "").await;
    // Half a frame, then silence: the connection is there, the orchestrator is not.
    connection.tls.write_all(&[0, 0, 1, 0, 18]).await.expect("is sent");
    world.until(503, "state-stale").await;
    assert_eq!((world.admin("/healthz").await, world.admin("/readyz").await), (200, 503));
    drop(connection);
    let _again = world.orchestrator.follow(2, world.state()).await;
    world.until(200, "").await;
    assert_eq!(world.admin("/readyz").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_gateway_says_so_and_asks_again() {
    let world = World::new(LONG).await;
    let mut connection = world.orchestrator.accept().await;
    let refusal = frame::body(&Refusal::Credential).expect("has a form");
    connection.put(Kind::Refusal, &refusal).await;
    assert!(connection.is_closed().await);
    let _later = world.orchestrator.follow(1, world.state()).await;
    world.until(200, "").await;
}

/// Refuses every connection: nobody is at the orchestrator's address.
fn away(world: &mut World) -> Orchestrator {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let listener = TcpListener::from_std({
        gone.set_nonblocking(true).expect("can be set");
        gone
    });
    let truth = &world.orchestrator;
    let silent = Orchestrator {
        listener: listener.expect("listens"),
        tls: truth.tls.clone(),
        signer: Arc::clone(&truth.signer),
        credential: truth.credential.clone(),
    };
    std::mem::replace(&mut world.orchestrator, silent)
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_without_its_orchestrator_it_serves_what_needs_no_credential_while_the_bound_lasts() {
    let mut world = World::new(LONG).await;
    let mut connection = world.orchestrator.follow(1, world.state()).await;
    let bob = session("other", "bob", &["*"], SandboxId::from_random([8; 12]), alice().peer);
    let mut guarded = world.config(Some("desk-key"));
    guarded.tenant = TenantId::parse("other").expect("a tenant");
    connection.tell(2, Change::Tenant(Arc::new(guarded))).await;
    connection.tell(3, Change::Session(Box::new(bob.clone()))).await;
    assert_eq!(world.ask(&bob).await.status, 200, "the secret is there");
    connection.beat().await;
    world.stop().await;
    drop(connection);
    let _truth = away(&mut world);
    world.start().await;
    world.until(200, "").await;
    assert_eq!(world.admin("/readyz").await, 200);
    let answer = world.ask(&bob).await;
    assert_eq!((answer.status, answer.code()), (503, "state-stale"), "the secret was in memory only");
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_without_its_orchestrator_and_too_old_it_is_alive_and_not_ready() {
    let mut world = World::new(LONG).await;
    let mut connection = world.orchestrator.follow(1, world.state()).await;
    connection.beat().await;
    world.stop().await;
    drop(connection);
    let truth = away(&mut world);
    world.staleness = Duration::ZERO;
    world.start().await;
    let answer = world.ask(&alice()).await;
    assert_eq!((answer.status, answer.code()), (503, "state-stale"));
    assert!(answer.body["detail"].as_str().is_some_and(|text| text.contains("orchestrator")), "{answer:?}");
    assert_eq!((world.admin("/healthz").await, world.admin("/readyz").await), (200, 503));
    // What it had seen it still knows: nobody can take it back behind that.
    world.stop().await;
    world.orchestrator = truth;
    world.staleness = LONG;
    world.start().await;
    assert_eq!(world.orchestrator.accept().await.hello.last, Some((1, 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn tampered_state_on_disk_is_not_used() {
    let mut world = World::new(LONG).await;
    let mut connection = world.orchestrator.follow(1, world.state()).await;
    connection.beat().await;
    world.stop().await;
    drop(connection);
    let _truth = away(&mut world);
    let file = world.folder.path().join("state/state");
    let good = std::fs::read(&file).expect("was kept");
    let text = |from: &str, to: &str| {
        let at = good.windows(from.len()).position(|it| it == from.as_bytes()).expect(from);
        let mut changed = good.clone();
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        changed
    };
    for (name, bytes) in [
        ("another user", text("\"alice\"", "\"bobby\"")),
        ("another tenant", text("\"acme\"", "\"evil\"")),
        ("nothing", Vec::new()),
        ("noise", vec![7; 4096]),
    ] {
        std::fs::write(&file, bytes).expect("is written");
        world.start().await;
        let answer = world.ask(&alice()).await;
        assert_eq!((answer.status, answer.code()), (503, "state-stale"), "{name}");
        world.stop().await;
    }
    std::fs::write(&file, &good).expect("is written");
    world.start().await;
    world.until(200, "").await;
    assert!(Path::new(&file).is_file(), "the control: the same as it was is used");
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_that_were_not_acknowledged_come_after_a_restart() {
    let mut world = World::new(LONG).await;
    let mut connection = world.orchestrator.follow(1, world.state()).await;
    connection.keeps = false;
    world.until(200, "").await;
    connection.until(Kind::Decisions).await.expect("come");
    let sent = connection.decisions.clone();
    world.stop().await;
    drop(connection);
    world.start().await;
    let mut connection = world.orchestrator.follow(2, world.state()).await;
    while !sent.iter().all(|record| connection.decisions.iter().any(|it| it.id == record.id)) {
        connection.until(Kind::Decisions).await.expect("come again");
    }
}

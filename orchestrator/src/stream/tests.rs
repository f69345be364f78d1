// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::keys::GivenKeys;
use crate::store::tests::Database;
use crate::store::{Action, Actor, DecisionFilter};
use postern_common::control::budgets::Demand;
use postern_common::control::{Change, EndedSession, State};
use postern_common::decision::{DecisionRecord, FilterLine, Verdict};
use postern_common::id::{FilterName, SandboxId, TenantId};
use postern_common::session::{Isolation, Peer, Session};
use postern_common::stream::chain::Following;
use postern_common::stream::frame::{self, Kind};
use postern_common::stream::secrets::UnwrappingKey;
use postern_common::stream::{
    AppliedFrame, Decisions, Hello, Kept, Lines, Nonce, PROTOCOL, Ping, Refusal, SERVER_NAME,
};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::collections::BTreeMap;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    stream: Arc<ControlStream>,
    gateways: Gateways,
    address: SocketAddr,
    tasks: Tasks,
    database: Database,
    _folder: tempfile::TempDir,
}

fn name(text: &str) -> GatewayName {
    GatewayName::parse(text).expect("a name")
}

fn audit(action: Action) -> AuditEntry {
    AuditEntry::new(clock::now(), None, action, Actor::Orchestrator)
}

impl World {
    async fn new(state: State) -> Self {
        let (database, tasks) = (Database::sqlite().await, Tasks::new());
        let folder = tempfile::tempdir().expect("a folder");
        let keys = InstallationKeys::open(GivenKeys::default(), folder.path(), &database.store).await;
        let keys = Arc::new(keys.expect("keys"));
        let (gateways, _uses) = Gateways::start(7, state, database.store.clone(), &tasks);
        let stream = ControlStream::open(
            database.store.clone(),
            keys,
            gateways.clone(),
            Heard::new(database.store.clone()),
        )
        .await;
        let stream = Arc::new(stream.expect("opens"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        Arc::clone(&stream).serve(listener, &tasks);
        Self { stream, gateways, address, tasks, database, _folder: folder }
    }

    async fn add(&self, gateway: &str) -> Credential {
        let added = self.stream.add(&name(gateway), "test".into(), &audit(Action::GatewayAdded)).await;
        let (_, line) = added.expect("a database").expect("is new");
        Credential::parse(line.reveal()).expect("is one")
    }

    async fn dial(&self, authority: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority.to_vec())).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("speaks it")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let socket = TcpStream::connect(self.address).await.expect("listens");
        let server = ServerName::try_from(SERVER_NAME).expect("a name");
        TlsConnector::from(Arc::new(config)).connect(server, socket).await
    }

    /// The first answer to a hello.
    async fn greet(
        &self,
        credential: &Credential,
        change: impl FnOnce(&mut Hello),
    ) -> (Client, Kind, Vec<u8>) {
        let own = UnwrappingKey::generate().expect("random");
        let mut hello = Hello {
            assertions: None,
            protocol: PROTOCOL,
            name: credential.name.clone(),
            secret: credential.secret.clone(),
            nonce: Nonce::generate().expect("random"),
            wrapping: own.public(),
            engine: "test".into(),
            last: None,
            serves_sockets: false,
        };
        change(&mut hello);
        let mut tls = self.dial(&credential.authority).await.expect("shakes hands");
        put(&mut tls, Kind::Hello, &hello).await;
        let (kind, body) = get(&mut tls).await;
        (Client { tls, own, hello, following: None }, kind, body)
    }

    async fn follow(&self, credential: &Credential) -> Client {
        self.follow_as(credential, |_| {}).await
    }

    async fn follow_as(&self, credential: &Credential, change: impl FnOnce(&mut Hello)) -> Client {
        let (mut client, kind, welcome) = self.greet(credential, change).await;
        assert_eq!(kind, Kind::Welcome);
        let to = (&client.hello.name, client.hello.nonce);
        let begun = Following::begin(credential.signer, to, client.own.public(), None, &welcome);
        client.following = Some(begun.expect("is believed").0);
        client
    }

    async fn refusal(&self, credential: &Credential, change: impl FnOnce(&mut Hello)) -> Refusal {
        let (_, kind, body) = self.greet(credential, change).await;
        assert_eq!(kind, Kind::Refusal);
        frame::parse(&body).expect("a refusal")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

async fn put(tls: &mut TlsStream<TcpStream>, kind: Kind, value: &impl serde::Serialize) {
    let body = frame::body(value).expect("has a form");
    frame::write(tls, kind, &body).await.expect("is sent");
}

async fn get(tls: &mut TlsStream<TcpStream>) -> (Kind, Vec<u8>) {
    let read = timeout(PATIENCE, frame::read(tls, frame::ORCHESTRATOR_BYTES)).await;
    read.expect("in time").expect("a frame")
}

struct Client {
    tls: TlsStream<TcpStream>,
    own: UnwrappingKey,
    hello: Hello,
    following: Option<Following>,
}

impl Client {
    /// The next message, answered as in force.
    async fn change(&mut self) -> Change {
        let (kind, body) = get(&mut self.tls).await;
        assert_eq!(kind, Kind::Message);
        let following = self.following.as_mut().expect("was welcome");
        let accepted = following.message(&body, Some(&self.own)).expect("is believed");
        let answer = AppliedFrame { sequence: accepted.sequence, refused: Vec::new() };
        put(&mut self.tls, Kind::Applied, &answer).await;
        accepted.message.change
    }
}

fn ended(number: u8) -> Change {
    let sandbox_id = SandboxId::from_random([number; 12]);
    Change::SessionEnded(EndedSession { sandbox_id, until: Timestamp::MAX })
}

fn session(number: u8, peer: Peer) -> Session {
    Session {
        sandbox_id: SandboxId::from_random([number; 12]),
        tenant: "acme".parse().expect("a tenant"),
        user_id: "alice".parse().expect("a user"),
        conversation_id: "c1".parse().expect("a conversation"),
        operations: Vec::new(),
        tokens: Vec::new(),
        peer,
        expires_at: Timestamp::MAX,
        template: "default".parse().expect("a name"),
        isolation: Isolation::Gvisor,
        labels: BTreeMap::new(),
        claims: serde_json::Map::new(),
    }
}

#[tokio::test]
async fn a_gateway_with_its_credential_gets_a_snapshot_and_each_change_and_answers() {
    let world = World::new(State::default()).await;
    let mut client = world.follow(&world.add("edge").await).await;
    assert!(matches!(client.change().await, Change::Snapshot(_)));
    put(&mut client.tls, Kind::Ping, &Ping { echo: 3, demand: Demand::new() }).await;
    let (kind, heartbeat) = get(&mut client.tls).await;
    assert_eq!(kind, Kind::Heartbeat);
    let following = client.following.as_ref().expect("was welcome");
    assert_eq!(following.heartbeat(&heartbeat).expect("is believed").echo, 3);
    let (told, change) = tokio::join!(world.gateways.publish(ended(1), PATIENCE), client.change());
    assert!(matches!(change, Change::SessionEnded(_)));
    assert_eq!((told.in_force, told.pending), (1, 0));
    assert_eq!(world.stream.connected().len(), 1);
}

#[tokio::test]
async fn a_wrong_or_anothers_credential_is_refused_and_does_not_say_which() {
    let world = World::new(State::default()).await;
    let (edge, other) = (world.add("edge").await, world.add("other").await);
    let wrong = Secret::new("wrong".to_owned());
    assert_eq!(world.refusal(&edge, |hello| hello.secret = wrong.clone()).await, Refusal::Credential);
    assert_eq!(world.refusal(&edge, |hello| hello.secret = other.secret.clone()).await, Refusal::Credential);
    assert_eq!(world.refusal(&edge, |hello| hello.name = name("nobody")).await, Refusal::Credential);
    assert_eq!(
        world.refusal(&edge, |hello| hello.secret = Secret::new(String::new())).await,
        Refusal::Credential
    );
    assert_eq!(world.refusal(&edge, |hello| hello.protocol = PROTOCOL + 1).await, Refusal::Protocol);
    assert_eq!(world.gateways.connected(), 0, "none of them was told anything");
}

#[tokio::test]
async fn a_gateway_of_another_installation_does_not_shake_hands() {
    let (world, other) = (World::new(State::default()).await, World::new(State::default()).await);
    let foreign = other.add("edge").await;
    world.dial(&foreign.authority).await.expect_err("is another authority");
}

#[tokio::test]
async fn revocation_cuts_the_connection_and_the_credential_is_good_no_more() {
    let world = World::new(State::default()).await;
    let credential = world.add("edge").await;
    let mut client = world.follow(&credential).await;
    client.change().await;
    assert!(world.stream.revoke(&name("edge"), &audit(Action::GatewayRevoked)).await.expect("a database"));
    let (kind, body) = get(&mut client.tls).await;
    assert_eq!((kind, frame::parse::<Refusal>(&body).expect("one")), (Kind::Refusal, Refusal::Revoked));
    frame::read(&mut client.tls, 10).await.expect_err("is cut");
    assert_eq!(world.refusal(&credential, |_| {}).await, Refusal::Credential);
    // Whoever gets the name next gets a secret of its own.
    let next = world.add("edge").await;
    assert_eq!(world.refusal(&credential, |_| {}).await, Refusal::Credential);
    world.follow(&next).await;
}

#[tokio::test]
async fn sessions_bound_to_sockets_are_told_to_gateways_that_serve_sockets_only() {
    let socket = session(1, Peer::Socket("/run/a.sock".into()));
    let address = session(2, Peer::Address([10, 0, 0, 1].into()));
    let state = State { sessions: vec![socket.clone(), address.clone()], ..State::default() };
    let world = World::new(state).await;
    let credential = world.add("edge").await;
    let (mut distant, mut local) = (
        world.follow(&credential).await,
        world.follow_as(&credential, |hello| hello.serves_sockets = true).await,
    );
    let sessions = |change: Change| match change {
        Change::Snapshot(state) => state.sessions.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!((sessions(distant.change().await), sessions(local.change().await)), (1, 2));
    let publish = async |session: &Session| {
        world.gateways.publish(Change::Session(Box::new(session.clone())), PATIENCE).await
    };
    let (told, _) = tokio::join!(publish(&socket), local.change());
    assert_eq!((told.in_force, told.pending), (1, 0), "nobody waits for the other");
    let ((_, change), _) =
        tokio::join!(async { tokio::join!(publish(&address), distant.change()) }, local.change());
    assert!(
        matches!(change, Change::Session(told) if told.peer == address.peer),
        "the next that it hears of"
    );
}

#[tokio::test]
async fn decisions_are_kept_before_they_are_acknowledged() {
    let world = World::new(State::default()).await;
    let mut client = world.follow(&world.add("edge").await).await;
    client.change().await;
    let record = DecisionRecord { verdict: Verdict::Deny, ..DecisionRecord::begin(clock::now(), "GET") };
    // Twice, as a gateway does that missed the first answer.
    for _ in 0..2 {
        put(&mut client.tls, Kind::Decisions, &Decisions { batch: 4, records: vec![record.clone()] }).await;
        let (kind, body) = get(&mut client.tls).await;
        assert_eq!((kind, frame::parse::<Kept>(&body).expect("one")), (Kind::Kept, Kept { batch: 4 }));
        let kept = world.database.store.decisions(&DecisionFilter::default()).await.expect("a database");
        assert_eq!(kept.len(), 1);
    }
}

#[tokio::test]
async fn strangers_of_one_address_take_a_bounded_number_of_places() {
    let world = World::new(State::default()).await;
    let credential = world.add("edge").await;
    let follows = world.follow(&credential).await;
    let mut silent = Vec::new();
    for _ in 0..GREETINGS {
        silent.push(TcpStream::connect(world.address).await.expect("is accepted"));
    }
    let mut one_more = TcpStream::connect(world.address).await.expect("is accepted");
    let read = timeout(PATIENCE, tokio::io::AsyncReadExt::read(&mut one_more, &mut [0; 1])).await;
    assert!(matches!(read.expect("in time"), Ok(0) | Err(_)), "and closed at once");
    drop((silent, follows));
}

#[tokio::test]
async fn what_filters_log_elsewhere_reaches_their_authors() {
    let world = World::new(State::default()).await;
    let credential = world.add("edge").await;
    let mut client = world.follow(&credential).await;
    client.change().await;
    let (tenant, filter) =
        (TenantId::parse("acme").expect("a name"), FilterName::parse("f").expect("a name"));
    let (_, mut new) = world.gateways.filter_log().follow(&tenant, &filter);
    let line = FilterLine {
        at: clock::now(),
        tenant,
        filter,
        sandbox_id: SandboxId::from_random([1; 12]),
        level: "warn".into(),
        message: "no plan".to_owned(),
    };
    put(&mut client.tls, Kind::Lines, &Lines { lines: vec![line.clone()] }).await;
    let heard = timeout(PATIENCE, new.recv()).await.expect("in time").expect("a line");
    assert_eq!(*heard, line);
}

#[tokio::test]
async fn what_only_an_orchestrator_sends_ends_the_connection() {
    let world = World::new(State::default()).await;
    let credential = world.add("edge").await;
    for kind in [Kind::Welcome, Kind::Message, Kind::Heartbeat, Kind::Hello] {
        let mut client = world.follow(&credential).await;
        client.change().await;
        put(&mut client.tls, kind, &Ping { echo: 1, demand: Demand::new() }).await;
        let read = timeout(PATIENCE, frame::read(&mut client.tls, 100)).await.expect("in time");
        assert!(read.is_err(), "{kind:?}");
    }
}

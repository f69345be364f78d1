// SPDX-License-Identifier: Apache-2.0
use super::*;
use postern_common::control::{Change, EndedSession, State, TenantConfig};
use postern_common::decision::Versions;
use postern_common::folder::LimitsFile;
use postern_common::id::{SandboxId, TenantId};
use postern_common::stream::chain::{Carried, Sending};
use postern_common::stream::secrets::UnwrappingKey;
use postern_common::stream::{Nonce, Signer};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn name(text: &str) -> GatewayName {
    GatewayName::parse(text).expect("a name")
}

fn ended(number: u8) -> Change {
    let sandbox_id = SandboxId::from_random([number; 12]);
    Change::SessionEnded(EndedSession { sandbox_id, until: Timestamp::MAX })
}

struct Orchestrator {
    signer: Arc<Signer>,
    sending: Sending,
    welcome: Vec<u8>,
    version: u64,
}

impl Orchestrator {
    fn new(seed: u8, gateway: &str) -> Self {
        let signer = Arc::new(Signer::from_seed(&[seed; 32]).expect("a seed"));
        let wrapping = UnwrappingKey::generate().expect("random").public();
        let to = (name(gateway), Nonce::generate().expect("random"));
        let (sending, welcome) = Sending::begin(Arc::clone(&signer), to, wrapping, at(100)).expect("begins");
        Self { signer, sending, welcome, version: 0 }
    }

    fn message(&mut self, change: Change, second: i64) -> Vec<u8> {
        self.version += 1;
        let message = Message { epoch: 3, version: self.version, change };
        self.sending.message(&message, at(second)).expect("is sealed").1
    }
}

/// A folder with a snapshot of second 100 and messages of 101 to 103.
struct World {
    folder: tempfile::TempDir,
    orchestrator: Orchestrator,
    files: Files,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut orchestrator = Orchestrator::new(1, "edge");
        let mut files = Files { folder: folder.path().to_owned(), state: None };
        let snapshot = orchestrator.message(Change::Snapshot(Box::<State>::default()), 100);
        let snapshot = without_secrets(&snapshot).expect("a message");
        files.keep(Keep::Begin { welcome: orchestrator.welcome.clone(), snapshot });
        for number in 1..=3 {
            let message = orchestrator.message(ended(number), 100 + i64::from(number));
            files.keep(Keep::Message(without_secrets(&message).expect("a message")));
        }
        Self { folder, orchestrator, files }
    }

    fn load(&self) -> Result<Kept, NothingKept> {
        load(self.folder.path(), self.orchestrator.signer.key(), &name("edge"))
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join(STATE)).expect("is there")
    }

    fn write(&self, bytes: &[u8]) {
        std::fs::write(self.folder.path().join(STATE), bytes).expect("is written");
    }
}

#[test]
fn what_was_kept_comes_back_as_of_the_signed_time() {
    let mut world = World::new();
    let kept = world.load().expect("is believed");
    assert_eq!((kept.messages.len(), kept.at, kept.last), (4, at(103), Some((3, 4))));
    let pulse = world.orchestrator.sending.heartbeat(1, Carried::default(), at(160)).expect("is signed");
    world.files.keep(Keep::Pulse(pulse));
    assert_eq!(world.load().expect("is believed").at, at(160));
    for file in [STATE, PULSE] {
        let mode = std::fs::metadata(world.folder.path().join(file)).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn what_was_only_tried_out_is_not_put_in_force_by_a_restart() {
    let mut world = World::new();
    let config = TenantConfig {
        tenant: TenantId::parse("acme").expect("a name"),
        revision: 1,
        versions: Versions::default(),
        backends: BTreeMap::new(),
        default_backend: None,
        policies: None,
        shadow_policies: BTreeMap::new(),
        filters: BTreeMap::new(),
        secrets: BTreeMap::new(),
        limits: LimitsFile::default(),
    };
    let tried = world.orchestrator.message(Change::Try(Arc::new(config)), 104);
    world.files.keep(Keep::Message(without_secrets(&tried).expect("a message")));
    let after = world.orchestrator.message(ended(9), 105);
    world.files.keep(Keep::Message(without_secrets(&after).expect("a message")));
    let kept = world.load().expect("is there");
    assert_eq!((kept.messages.len(), kept.last), (5, Some((3, 6))), "the chain goes on over it");
    assert!(!kept.messages.iter().any(|message| matches!(message.change, Change::Try(_))));
}

#[test]
fn a_revocation_that_is_cut_off_makes_the_state_old_not_young() {
    let mut world = World::new();
    world.files.keep(Keep::Pulse(
        world.orchestrator.sending.heartbeat(1, Carried::default(), at(160)).expect("is signed"),
    ));
    let bytes = world.bytes();
    let mut ends = vec![0];
    let mut rest = bytes.as_slice();
    while let Some((_, after)) = record(rest) {
        ends.push(bytes.len() - after.len());
        rest = after;
    }
    assert_eq!(ends.len(), 6, "welcome, snapshot and three messages");
    world.write(&bytes[..ends[4]]);
    let kept = world.load().expect("was once so");
    assert_eq!((kept.messages.len(), kept.at), (3, at(102)), "the pulse is of a later state");
}

#[test]
fn a_message_that_was_half_written_ends_the_file() {
    let world = World::new();
    let bytes = world.bytes();
    for cut in 1..40 {
        world.write(&bytes[..bytes.len() - cut]);
        assert_eq!(world.load().expect("the rest is whole").messages.len(), 3, "cut by {cut}");
    }
}

#[test]
fn a_changed_byte_is_never_believed() {
    let world = World::new();
    let bytes = world.bytes();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        world.write(&changed);
        // A changed length may look like a message that was half written: then less comes back,
        // never anything else.
        if let Ok(kept) = world.load() {
            assert!(kept.messages.len() < 4, "byte {at}");
        }
    }
}

#[test]
fn messages_in_another_order_or_of_another_connection_are_forgeries() {
    let world = World::new();
    let bytes = world.bytes();
    let mut records = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some((record, after)) = record(rest) {
        records.push(record.to_vec());
        rest = after;
    }
    let joined = |records: &[&Vec<u8>]| -> Vec<u8> {
        records.iter().flat_map(|it| [&length(it).expect("short")[..], it].concat()).collect()
    };
    let other = World::new().bytes();
    let foreign = record(&other).expect("a welcome").0.to_vec();
    let [welcome, snapshot, first, second, third] = &records[..] else { panic!("five records") };
    for forged in [
        joined(&[welcome, snapshot, second, first, third]),
        joined(&[welcome, snapshot, second]),
        joined(&[welcome, snapshot, first, first]),
        joined(&[&foreign, snapshot, first]),
    ] {
        world.write(&forged);
        assert!(matches!(world.load(), Err(NothingKept::Refused(_))));
    }
    world.write(&joined(&[welcome, snapshot, first, second, third]));
    world.load().expect("the control: the same as it was");
}

#[test]
fn state_of_another_gateway_or_installation_is_not_used() {
    let world = World::new();
    let loaded = load(world.folder.path(), world.orchestrator.signer.key(), &name("other"));
    assert!(matches!(loaded, Err(NothingKept::Refused(Refused::OtherGateway(_)))), "{loaded:?}");
    let loaded = load(world.folder.path(), Orchestrator::new(2, "edge").signer.key(), &name("edge"));
    assert!(matches!(loaded, Err(NothingKept::Refused(Refused::Signature))), "{loaded:?}");
    let empty = tempfile::tempdir().expect("a folder");
    let loaded = load(empty.path(), world.orchestrator.signer.key(), &name("edge"));
    assert!(matches!(loaded, Err(NothingKept::Absent)), "{loaded:?}");
}

#[test]
fn the_file_is_begun_anew_when_it_has_grown() {
    let mut growth = Growth::of_snapshot(1000);
    assert!(!growth.is_due(GROWTH_BYTES));
    assert!(!growth.is_due(4000));
    assert!(growth.is_due(1));
}

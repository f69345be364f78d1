// SPDX-License-Identifier: Apache-2.0
//! Filters that somebody swaps: on the stream, or in the state on the gateway's disk. What was put
//! there never runs, the reason is told, and with the orchestrator back the good one serves.

use super::*;
use crate::filters::{artefact, name, patient};
use crate::logged;
use crate::plugins::{compiled, sign};
use crate::world::{eventually, past};
use postern_common::control::FilterArtefact;

const FILTER: &str = "claim-injection";
/// What is said of code that is not the one that the message's signature covers.
const OTHER_CODE: &str = "its secrets or filters are not those that were signed";

/// Alice's session with a claim for the filter to show.
fn planned() -> Session {
    let mut session = alice();
    session.claims.insert("plan".into(), json!("free"));
    session
}

/// The manifest of a version, which shows the plan in a header of its own.
fn manifest(version: u64) -> String {
    patient(FILTER).replace("X-User-Plan", &format!("X-Plan-{version}"))
}

fn version(version: u64) -> FilterArtefact {
    artefact(FILTER, "acme", version, &manifest(version))
}

/// Tenant `acme` with this artefact attached.
fn filtered(world: &World, revision: u64, artefact: FilterArtefact) -> TenantConfig {
    let mut config = world.config(None);
    config.revision = revision;
    for backend in config.backends.values_mut() {
        backend.file.filters = serde_json::from_value(json!([FILTER])).expect("attached");
    }
    config.filters.insert(name(FILTER), artefact);
    config
}

fn state(world: &World, of: u64) -> State {
    let config = filtered(world, of, version(of));
    State { tenants: vec![Arc::new(config)], sessions: vec![planned()], ended: Vec::new() }
}

/// Waits until requests are served, and then by this version of the filter.
async fn assert_runs(world: &World, version: u64, what: &str) {
    world.until(200, "").await;
    let answer = world.ask(&planned()).await;
    assert_eq!(answer.status, 200, "{what}: {:?}", answer.body);
    assert_eq!(answer.seen_header(&format!("x-plan-{version}")), ["free"], "{what}");
}

/// These bytes with one artefact in the place of another, which has the same length.
fn swapped(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from).expect("is in it");
    let mut swapped = bytes.to_vec();
    swapped[at..at + to.len()].copy_from_slice(to);
    swapped
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artefact_that_is_swapped_on_the_disk_never_runs_and_the_reason_is_logged() {
    logged::begin();
    let told = || logged::count(&["kept state is not used", OTHER_CODE]);
    let mut world = World::new(LONG).await;
    let mut connection = world.orchestrator.follow(1, state(&world, 1)).await;
    assert_runs(&world, 1, "with its orchestrator").await;
    connection.beat().await;
    world.stop().await;
    drop(connection);
    let truth = away(&mut world);
    world.start().await;
    assert_runs(&world, 1, "the control: alone, from the state as it was kept").await;
    world.stop().await;

    let file = world.folder.path().join("state/state");
    let good = std::fs::read(&file).expect("was kept");
    let own = version(1).artefact;
    let mut flipped = own.to_vec();
    *flipped.last_mut().expect("has code") ^= 1;
    let other = version(2).artefact;
    for (what, artefact) in [("changed code", &flipped[..]), ("another signed version", &other)] {
        std::fs::write(&file, swapped(&good, &own, artefact)).expect("is written");
        let before = told();
        world.start().await;
        eventually(what, || told() > before).await;
        let answer = world.ask(&planned()).await;
        assert_eq!((answer.status, answer.code()), (503, "state-stale"), "{what}: alone it fails closed");
        world.stop().await;
    }
    world.orchestrator = truth;
    world.start().await;
    let _connection = world.orchestrator.follow(2, state(&world, 1)).await;
    assert_runs(&world, 1, "with the orchestrator back").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_state_in_the_place_of_the_newest_is_as_old_as_its_signature() {
    let mut world = World::new(LONG).await;
    let mut connection = world.orchestrator.accept().await;
    connection.welcome().await;
    let change = Change::Snapshot(Box::new(state(&world, 1)));
    let message = Message { epoch: 1, version: 1, change };
    let (_, snapshot) = connection.sending.message(&message, past(7200)).expect("is sealed");
    connection.put(Kind::Message, &snapshot).await;
    connection.until(Kind::Applied).await.expect("an answer");
    connection.beat().await;
    assert_runs(&world, 1, "two hours ago").await;
    let file = world.folder.path().join("state/state");
    eventually("the state is kept", || file.is_file()).await;
    let older = std::fs::read(&file).expect("was kept");
    drop(connection);
    let mut connection = world.orchestrator.follow(2, state(&world, 2)).await;
    assert_runs(&world, 2, "now").await;
    connection.beat().await;
    world.stop().await;
    drop(connection);

    let truth = away(&mut world);
    let newest = std::fs::read(&file).expect("was kept");
    std::fs::write(&file, &older).expect("is written");
    world.start().await;
    let answer = world.ask(&planned()).await;
    assert_eq!((answer.status, answer.code()), (503, "state-stale"), "alone it fails closed");
    world.stop().await;
    std::fs::write(&file, &newest).expect("is written");
    world.start().await;
    assert_runs(&world, 2, "the control: the newest serves").await;
    world.stop().await;

    std::fs::write(&file, &older).expect("is written");
    world.orchestrator = truth;
    world.start().await;
    let _connection = world.orchestrator.follow(3, state(&world, 2)).await;
    assert_runs(&world, 2, "with the orchestrator back").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artefact_that_is_swapped_on_the_stream_is_refused_and_the_one_in_force_runs_on() {
    logged::begin();
    let told = || logged::count(&["the control stream is not believed", OTHER_CODE]);
    let world = World::new(LONG).await;
    let mut connection = world.orchestrator.follow(1, state(&world, 1)).await;
    assert_runs(&world, 1, "before").await;
    // On its way: the message's signature covers the code.
    let sent = connection.seal(2, Change::Tenant(Arc::new(filtered(&world, 2, version(2)))));
    let before = told();
    connection.put(Kind::Message, &swapped(&sent, &version(2).artefact, &version(3).artefact)).await;
    assert!(connection.is_closed().await, "the connection goes on");
    eventually("the reason is logged", || told() > before).await;
    assert_runs(&world, 1, "swapped on its way").await;

    // Before the message was signed: the artefact has a signature of its own.
    let mut connection = world.orchestrator.follow(10, state(&world, 1)).await;
    let (code, text) = (compiled(FILTER), manifest(2));
    let mut changed = version(2).artefact.to_vec();
    *changed.last_mut().expect("has code") ^= 1;
    let cases = [
        ("unsigned code", code.to_vec(), "form"),
        ("changed code", changed, "code has been changed"),
        ("another tenant's", sign(&code, ("evil", FILTER), 2, &text), "tenant `evil`"),
        ("another filter's", sign(&code, ("acme", "card-guard"), 2, &text), "filter `card-guard`"),
        ("an older version", sign(&code, ("acme", FILTER), 1, &text), "version 1"),
    ];
    for (number, (what, bytes, words)) in (11..).zip(cases) {
        let artefact = FilterArtefact { manifest: Arc::from(&*text), artefact: bytes.into(), version: 2 };
        let config = filtered(&world, number, artefact);
        let bytes = connection.seal(number, Change::Tenant(Arc::new(config)));
        connection.put(Kind::Message, &bytes).await;
        let applied = connection.until(Kind::Applied).await.expect("an answer");
        let AppliedFrame { refused, .. } = frame::parse(&applied).expect("an answer");
        assert!(refused.len() == 1 && refused[0].contains(words), "{what}: {refused:?}");
        assert_runs(&world, 1, what).await;
    }
    connection.tell(20, Change::Tenant(Arc::new(filtered(&world, 20, version(2))))).await;
    assert_runs(&world, 2, "the control: the good one is taken").await;
}

// SPDX-License-Identifier: Apache-2.0
//! What the real runtime cannot be told to do: to hold on in the middle, and to lose files. So the
//! host is a stand-in here, whose calls wait until a test lets them go; all else is real.

use super::*;
use crate::control::Gateways;
use crate::files::{Bounds, Owned};
use crate::host::{PreparedSync, UserFolder};
use crate::keys::GivenKeys;
use crate::lifecycle::Outcome;
use crate::runtime::{Agent, Create, Enforced, Found, Probed, Runtime, Swept};
use crate::sessions::sync::SyncSessions;
use crate::storage::{Quota, Storage, StorageSettings};
use crate::store::tests::{Database, make, sandbox};
use crate::store::{AuditFilter, Kept, SessionRow, SyncSessionRow, Terms};
use futures_util::future::BoxFuture;
use jiff::SignedDuration;
use postern_common::session::{AcceptedToken, Peer};
use postern_common::settings::Storage as Chosen;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use tempfile::TempDir;
use tokio::sync::Semaphore;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host that makes nothing, holds on where it is told to, and remembers what it was asked for.
#[derive(Debug)]
pub(crate) struct Stand {
    made: Mutex<BTreeSet<SandboxId>>,
    aside: Mutex<Vec<SandboxId>>,
    /// Closed doors: who wants to pass waits for a permit.
    making: Semaphore,
    connecting: Semaphore,
    files: Mutex<Option<PathBuf>>,
    is_shared: bool,
    has_syncs: AtomicBool,
    has_no_doors: AtomicBool,
    /// How often a sync was to be begun.
    begun: AtomicUsize,
    keeps_memory: AtomicBool,
    fails_to_end: AtomicBool,
    is_silent: AtomicBool,
    /// Syncs are beside its sandboxes, and cannot be reached: how often that was tried.
    has_beside: AtomicBool,
    tried: AtomicUsize,
    /// Its pods are being deleted, until there is a permit; who waits for that.
    is_leaving: AtomicBool,
    waits: AtomicUsize,
    leaving: Semaphore,
}

impl Stand {
    pub(crate) fn new(is_shared: bool) -> Arc<Self> {
        Arc::new(Self {
            made: Mutex::default(),
            aside: Mutex::default(),
            making: Semaphore::new(0),
            connecting: Semaphore::new(0),
            files: Mutex::default(),
            is_shared,
            has_syncs: AtomicBool::new(false),
            has_no_doors: AtomicBool::new(false),
            begun: AtomicUsize::new(0),
            keeps_memory: AtomicBool::new(false),
            fails_to_end: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
            has_beside: AtomicBool::new(false),
            tried: AtomicUsize::new(0),
            is_leaving: AtomicBool::new(false),
            waits: AtomicUsize::new(0),
            leaving: Semaphore::new(0),
        })
    }

    fn made(&self) -> BTreeSet<SandboxId> {
        self.made.lock().expect("no panic").clone()
    }
}

impl Runtime for Stand {
    fn probe(&self) -> BoxFuture<'_, Vec<Probed>> {
        Box::pin(async { Vec::new() })
    }
    fn create(&self, create: Create) -> BoxFuture<'_, Result<Running, RuntimeError>> {
        Box::pin(async move {
            self.made.lock().expect("no panic").insert(create.sandbox.clone());
            let failed = |_closed| RuntimeError::NotRunning { sandbox: create.sandbox.clone() };
            drop(self.making.acquire().await.map_err(failed)?);
            let Create { sandbox, limits, .. } = create;
            Ok(Running { sandbox, isolation: Isolation::Namespaces, limits, enforced: Enforced::default() })
        })
    }
    fn connect<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<Agent, RuntimeError>> {
        Box::pin(async {
            drop(self.connecting.acquire().await.expect("is open"));
            Err(RuntimeError::NotRunning { sandbox: sandbox.clone() })
        })
    }
    fn status<'a>(&'a self, _sandbox: &'a SandboxId) -> BoxFuture<'a, Option<Found>> {
        Box::pin(async { None })
    }
    fn list(&self) -> BoxFuture<'_, Vec<Found>> {
        let is_silent = self.is_silent.load(Ordering::Relaxed);
        let found = move |sandbox| {
            if is_silent { Found::Silent { sandbox } } else { Found::Ended { sandbox, exit: None } }
        };
        Box::pin(async move { self.made().into_iter().map(found).collect() })
    }
    fn pause<'a>(&'a self, _sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async { Ok(()) })
    }
    fn resume<'a>(&'a self, _sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async { Ok(()) })
    }
    fn keeps_files(&self) -> bool {
        true
    }
    fn keeps_memory(&self, _level: Isolation) -> bool {
        self.keeps_memory.load(Ordering::Relaxed)
    }
    fn end<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async {
            if self.fails_to_end.load(Ordering::Relaxed) {
                return Err(RuntimeError::NotRunning { sandbox: sandbox.clone() });
            }
            Ok(())
        })
    }
    fn destroy<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async {
            self.made.lock().expect("no panic").remove(sandbox);
            Ok(())
        })
    }
    fn sweep<'a>(&'a self, _known: &'a [SandboxId]) -> BoxFuture<'a, Vec<Swept>> {
        Box::pin(async { Vec::new() })
    }
}

impl Host for Stand {
    fn door(&self, sandbox: &SandboxId) -> Result<Peer, RuntimeError> {
        if self.has_no_doors.load(Ordering::Relaxed) {
            return Err(RuntimeError::NotRunning { sandbox: sandbox.clone() });
        }
        Ok(self.place_of_door(sandbox))
    }
    fn place_of_door(&self, _sandbox: &SandboxId) -> Peer {
        Peer::Socket("/nowhere".into())
    }
    fn user_folder<'a>(
        &'a self,
        _sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<UserFolder>, RuntimeError>> {
        let path = self.files.lock().expect("no panic").clone();
        Box::pin(async { Ok(path.map(|path| UserFolder { path, owner: None, is_torn: false })) })
    }
    fn set_aside<'a>(
        &'a self,
        sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<PathBuf>, RuntimeError>> {
        self.aside.lock().expect("no panic").push(sandbox.clone());
        Box::pin(async { Ok(Some("/aside".into())) })
    }
    fn name(&self) -> &'static str {
        "local"
    }
    fn is_shared(&self) -> bool {
        self.is_shared
    }
    fn sync<'a>(
        &'a self,
        _sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<PreparedSync>, RuntimeError>> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(None) })
    }
    fn has_syncs(&self) -> bool {
        self.has_syncs.load(Ordering::Relaxed)
    }
    fn is_sync_beside(&self, _sandbox: &SandboxId) -> bool {
        self.has_beside.load(Ordering::Relaxed)
    }
    fn until_sync_left<'a>(&'a self, _sandbox: &'a SandboxId) -> BoxFuture<'a, ()> {
        Box::pin(async {
            if self.is_leaving.load(Ordering::Relaxed) {
                self.waits.fetch_add(1, Ordering::Relaxed);
                drop(self.leaving.acquire().await);
            }
        })
    }
    fn sync_beside<'a>(
        &'a self,
        sandbox: &'a SandboxId,
    ) -> BoxFuture<'a, Result<Option<(Agent, Peer)>, RuntimeError>> {
        Box::pin(async {
            self.tried.fetch_add(1, Ordering::Relaxed);
            drop(self.connecting.acquire().await.expect("is open"));
            Err(RuntimeError::NotRunning { sandbox: sandbox.clone() })
        })
    }
}

mod beginning;
mod replicas;
mod stopping;
mod syncs;

struct Bench {
    driver: Driver,
    host: Arc<Stand>,
    store: Store,
    folder: TempDir,
    tasks: Tasks,
    _database: Option<Database>,
}

impl Bench {
    async fn new() -> Self {
        let database = Database::sqlite().await;
        let host = Stand::new(false);
        make(&database.store, sandbox(1, "c1").tenant.as_str()).await;
        let bench = Self::on(database.store.clone(), host).await;
        Self { _database: Some(database), ..bench }
    }

    async fn on(store: Store, host: Arc<Stand>) -> Self {
        let (folder, tasks) = (tempfile::tempdir().expect("a folder"), Tasks::new());
        // As several orchestrators on one database have it.
        let given = GivenKeys { master: Some(Secret::new(vec![7; 32])), ..GivenKeys::default() };
        let keys = InstallationKeys::open(given, &folder.path().join("keys"), &store).await;
        let keys = Arc::new(keys.expect("opens"));
        let state = postern_common::control::State::default();
        let (gateways, _uses) = Gateways::start(1, state, store.clone(), &tasks);
        let sync_sessions =
            SyncSessions::new(store.clone(), Arc::clone(&keys), gateways.clone(), Duration::from_secs(3600));
        let settings = StorageSettings { chosen: Chosen::default(), data_dir: folder.path().join("objects") };
        let storage = Storage::new(settings.connect().expect("opens"), store.clone(), Quota::default());
        let syncs = Syncs::new(Arc::clone(&host) as Arc<dyn Host>, sync_sessions, storage, tasks.clone());
        let driver = Driver::new(Parts {
            syncs,
            spares_unknown: false,
            store: store.clone(),
            host: Arc::clone(&host) as Arc<dyn Host>,
            sessions: Sessions::new(store.clone(), Arc::clone(&keys), gateways, Duration::from_secs(3600)),
            pool: Pool::new(store.clone(), Arc::clone(&host) as Arc<dyn Host>, tasks.clone()),
            files: UserFiles::new(folder.path().join("files"), Bounds::default()),
            memory: Memory::new(Arc::clone(&keys.data), folder.path().join("memory")),
            keys,
            tasks: tasks.clone(),
        });
        Self { driver, host, store, folder, tasks, _database: None }
    }

    fn open_all_doors(&self) {
        self.host.making.add_permits(1000);
        self.host.connecting.add_permits(1000);
    }

    async fn create(&self, new: NewSandbox) -> Result<(SandboxRow, Secret<String>), DriveError> {
        self.driver.create(wish(new, Quotas::default()), Cause::own("")).await
    }

    /// A sandbox that counts as running, with its session.
    async fn running(&self) -> SandboxRow {
        let new = NewSandbox { env_sealed: None, ..sandbox(1, "c1") };
        let audit = entry(&new, Action::SandboxCreated, &Cause::own(""));
        self.store.add_sandbox(&new, &Terms::default(), &audit).await.expect("answers");
        let row = self.row(&new.id).await;
        let peer = self.host.door(&new.id).expect("has one");
        let opened = self.driver.parts().sessions.open(&row, peer, Isolation::Namespaces, clock::now()).await;
        opened.expect("opens");
        let (from, to) = (State::Creating, State::Running);
        let transition = Transition { from, to, reason: None, running: None, is_claimed: false };
        assert!(self.store.move_sandbox(&new.id, &transition, &audit).await.expect("answers"));
        self.row(&new.id).await
    }

    /// A create whose caller waits until it is written down, and leaves at once.
    async fn create_and_leave(&self, new: NewSandbox) -> SandboxId {
        let id = new.id.clone();
        let mut create = std::pin::pin!(self.create(new));
        let mut has_answer = false;
        until("it is written down", async || {
            has_answer = has_answer || poll_once(create.as_mut()).await.is_ready();
            self.store.sandbox(&id).await.expect("answers").is_some()
        })
        .await;
        id
    }

    async fn row(&self, id: &SandboxId) -> SandboxRow {
        self.store.sandbox(id).await.expect("answers").expect("is there")
    }

    async fn session(&self, id: &SandboxId) -> Option<SessionRow> {
        self.store.session(id).await.expect("answers")
    }

    async fn destroy(&self, id: &SandboxId) {
        self.driver.happen(id, Event::Destroy, None, Cause::own("a test")).await.expect("is possible");
    }

    async fn over(&self, id: &SandboxId) -> SandboxRow {
        let row = self.driver.wait(id, State::is_over, PATIENCE).await.expect("is there");
        assert!(row.state.is_over(), "{:?}", row.state);
        row
    }

    async fn reasons(&self, action: Action) -> Vec<String> {
        let events = self.store.events(&AuditFilter::default()).await.expect("answers");
        let of = events.into_iter().filter(|event| event.action == action.as_str());
        of.map(|event| event.reason.unwrap_or_default()).collect()
    }
}

fn wish(new: NewSandbox, quotas: Quotas) -> Wish {
    Wish { new, quotas, level: Isolation::Namespaces, key: None, start: First::default(), claim: None }
}

fn new(number: u8) -> NewSandbox {
    NewSandbox { env_sealed: None, ..sandbox(number, &format!("c{number}")) }
}

/// Lets a caller go on as far as it can now.
async fn poll_once<Answer>(mut caller: Pin<&mut impl Future<Output = Answer>>) -> Poll<Answer> {
    std::future::poll_fn(|context| Poll::Ready(caller.as_mut().poll(context))).await
}

/// Waits until `is_so`, within [`PATIENCE`].
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_create_whose_caller_leaves_goes_on() {
    let bench = Bench::new().await;
    for number in 0..8 {
        let id = bench.create_and_leave(new(number)).await;
        until("it is being made", async || bench.host.made().contains(&id)).await;
    }
    bench.open_all_doors();
    for number in 0..8 {
        // It has no agent, so it cannot become more than failed.
        assert_eq!(bench.over(&new(number).id).await.state, State::Failed);
    }
    assert_eq!(bench.host.made(), BTreeSet::new());
}

#[tokio::test]
async fn destroying_what_is_being_created_leaves_neither_a_sandbox_nor_a_session() {
    let bench = Bench::new().await;
    bench.open_all_doors();
    for number in 0..8 {
        let new = new(number);
        let id = new.id.clone();
        let mut create = std::pin::pin!(bench.create(new));
        let mut has_answer = false;
        until("it is written down", async || {
            has_answer = has_answer || poll_once(create.as_mut()).await.is_ready();
            bench.store.sandbox(&id).await.expect("answers").is_some()
        })
        .await;
        bench.destroy(&id).await;
        bench.over(&id).await;
        let turn = bench.driver.0.lanes.turn(&id).await;
        assert_eq!(bench.session(&id).await, None, "round {number}");
        assert_eq!(bench.host.made(), BTreeSet::new(), "round {number}");
        drop(turn);
    }
}

#[tokio::test]
async fn an_old_creating_row_that_nobody_works_on_is_ended() {
    let bench = Bench::new().await;
    let (old, fresh) = (new(1), new(2));
    for (new, age) in [(&old, SignedDuration::from_mins(10)), (&fresh, SignedDuration::ZERO)] {
        let mut audit = entry(new, Action::SandboxCreated, &Cause::own(""));
        audit.at = clock::now().saturating_sub(age).expect("in range");
        bench.store.add_sandbox(new, &Terms::default(), &audit).await.expect("answers");
    }
    // A maker is in the lane: however long it takes, it goes on.
    let turn = bench.driver.0.lanes.turn(&old.id).await;
    bench.driver.sweep().await.expect("answers");
    assert_eq!(bench.row(&old.id).await.state, State::Creating);
    drop(turn);
    bench.driver.sweep().await.expect("answers");
    let row = bench.over(&old.id).await;
    assert_eq!((row.state, row.reason.as_deref()), (State::Failed, Some("making it was interrupted")));
    assert_eq!(bench.row(&fresh.id).await.state, State::Creating);
}

#[tokio::test]
async fn a_sandbox_that_is_destroyed_before_it_is_made_is_not_made() {
    let bench = Bench::new().await;
    bench.open_all_doors();
    let row = bench.running().await;
    bench.destroy(&row.new.id).await;
    bench.over(&row.new.id).await;
    let token = Secret::new("t".to_owned());
    let written = Written { row, token, warm: None, start: First::default() };
    Box::pin(bench.driver.start(written, Isolation::Namespaces, &Stop::new())).await;
    assert_eq!(bench.host.made(), BTreeSet::new());
}

#[tokio::test]
async fn revocation_does_not_wait_for_what_goes_on_in_the_lane() {
    let bench = Bench::new().await;
    let id = bench.running().await.new.id;
    assert!(bench.session(&id).await.is_some());
    let turn = bench.driver.0.lanes.turn(&id).await;
    bench.destroy(&id).await;
    until("its session has ended", async || bench.session(&id).await.is_none()).await;
    assert_eq!(bench.row(&id).await.state, State::Destroying(Outcome::Destroyed));
    drop(turn);
    bench.over(&id).await;
}

#[tokio::test]
async fn a_session_that_outlived_its_sandbox_is_ended_by_the_sweep() {
    let bench = Bench::new().await;
    let row = bench.running().await;
    let id = &row.new.id;
    for (from, to) in [
        (State::Running, State::Destroying(Outcome::Destroyed)),
        (State::Destroying(Outcome::Destroyed), State::Destroyed),
    ] {
        let transition = Transition { from, to, reason: None, running: None, is_claimed: false };
        let audit = entry(&row.new, Action::SandboxChanged, &Cause::own(""));
        assert!(bench.store.move_sandbox(id, &transition, &audit).await.expect("answers"));
    }
    assert!(bench.session(id).await.is_some());
    bench.driver.sweep().await.expect("answers");
    assert_eq!(bench.session(id).await, None);
}

#[tokio::test]
async fn a_refresh_whose_caller_leaves_is_begun_again_in_time() {
    let bench = Bench::new().await;
    let id = bench.running().await.new.id;
    let before = bench.session(&id).await.expect("has one");
    {
        let mut refresh = std::pin::pin!(bench.driver.refresh(&id, Cause::own("")));
        until("its token is replaced", async || {
            assert!(poll_once(refresh.as_mut()).await.is_pending());
            bench.session(&id).await.expect("has one").tokens != before.tokens
        })
        .await;
    }
    // The sandbox never took it: its old token ends in a minute.
    let soon = clock::now().saturating_add(SignedDuration::from_secs(30)).expect("in range");
    assert!(bench.session(&id).await.expect("has one").rotate_at < soon);
    let due = bench.store.sessions_to_rotate(soon).await.expect("answers");
    assert_eq!(due, [id]);
}

#[tokio::test]
async fn files_that_cannot_be_kept_are_set_aside_and_the_sandbox_ends() {
    let bench = Bench::new().await;
    let id = bench.running().await.new.id;
    let slot = bench.folder.path().join("slot");
    std::fs::create_dir(&slot).expect("makes");
    std::fs::write(slot.join("work"), "of hours").expect("writes");
    *bench.host.files.lock().expect("no panic") = Some(slot);
    // The store is none.
    std::fs::write(bench.folder.path().join("files"), "in its place").expect("writes");
    bench.destroy(&id).await;
    let mut sweeps = 0;
    until("it is over", async || {
        bench.driver.sweep().await.expect("answers");
        sweeps += 1;
        bench.row(&id).await.state.is_over()
    })
    .await;
    assert!(sweeps + 1 >= keep::KEEP_ATTEMPTS, "only after {sweeps} tries");
    assert_eq!(*bench.host.aside.lock().expect("no panic"), [id]);
    assert_eq!(bench.reasons(Action::FilesSetAside).await.len(), 1);
}

#[tokio::test]
async fn files_that_are_gone_from_the_machine_are_an_event() {
    let bench = Bench::new().await;
    let row = bench.running().await;
    let slot = bench.folder.path().join("slot");
    std::fs::create_dir(&slot).expect("makes");
    let owned: Owned = keep::owned(&row);
    bench
        .driver
        .parts()
        .files
        .hydrate(&owned, UserFolder { path: slot, owner: None, is_torn: false })
        .await
        .expect("copies");
    bench.destroy(&row.new.id).await;
    bench.over(&row.new.id).await;
    assert_eq!(bench.reasons(Action::FilesLost).await.len(), 1);
}

#[tokio::test]
async fn what_is_stopped_has_no_token_and_what_could_not_be_woken_is_stopped_again() {
    let bench = Bench::new().await;
    bench.open_all_doors();
    let id = bench.running().await.new.id;
    let stopped = bench.driver.stop(&id, Keep::Best, Cause::own("")).await.expect("is stopped");
    assert_eq!((stopped.state, stopped.kept), (State::Stopped, Some(Kept::Files)));
    assert_eq!(bench.session(&id).await.expect("is there still").tokens, []);
    let far = clock::now().saturating_add(SignedDuration::from_hours(48)).expect("in range");
    assert_eq!(bench.store.sessions_to_rotate(far).await.expect("answers"), [], "nobody makes it one");
    assert!(matches!(bench.driver.refresh(&id, Cause::own("")).await, Err(DriveError::Stopped(_))));
    // It has no agent, so it cannot be told who it is.
    bench.driver.wake(&id, Cause::own("")).await.expect_err("does not wake");
    until("nothing of the try is left", async || {
        !bench.driver.0.lanes.is_busy(&id) && bench.session(&id).await.expect("is there").tokens.is_empty()
    })
    .await;
    assert_eq!(bench.row(&id).await.state, State::Stopped);
    bench.destroy(&id).await;
    assert_eq!(bench.over(&id).await.state, State::Destroyed);
}

#[tokio::test]
async fn a_sandbox_that_was_used_meanwhile_is_not_stopped_as_unused() {
    let bench = Bench::new().await;
    let id = bench.running().await.new.id;
    bench.driver.stop_if_unused(&id, Cause::own("")).await.expect("is left alone");
    assert_eq!(bench.row(&id).await.state, State::Running);
    bench.driver.stop(&id, Keep::Best, Cause::own("")).await.expect("the control: it can be stopped");
    assert_eq!(bench.row(&id).await.state, State::Stopped);
}

#[tokio::test]
async fn files_that_cannot_go_to_the_store_yet_stay_where_a_stopped_sandbox_has_them() {
    let bench = Bench::new().await;
    let id = bench.running().await.new.id;
    bench.driver.parts().files.note_given(&id).expect("is noted");
    std::fs::write(bench.folder.path().join("files/tenants"), "the store is none").expect("writes");
    let slot = bench.folder.path().join("slot");
    std::fs::create_dir(&slot).expect("makes");
    *bench.host.files.lock().expect("no panic") = Some(slot);
    bench.host.has_syncs.store(true, Ordering::Relaxed);
    bench.driver.stop(&id, Keep::Best, Cause::own("")).await.expect("is stopped");
    let failed = bench.driver.try_to_keep(&bench.row(&id).await).await;
    failed.expect_err("the control: they cannot be kept");
    for _ in 0..keep::KEEP_ATTEMPTS + 1 {
        bench.driver.keep_files_of_rest(&id).await;
    }
    assert_eq!(*bench.host.aside.lock().expect("no panic"), []);
}

#[tokio::test]
async fn what_is_refused_leaves_nothing_behind() {
    let bench = Bench::new().await;
    bench.create(new(1)).await.expect("is made");
    let before = bench.driver.0.lanes.count();
    let again = NewSandbox { id: new(2).id, ..new(1) };
    assert!(matches!(bench.create(again).await, Err(DriveError::Taken)));
    let quotas = Quotas { sandboxes: Some(1), ..Quotas::default() };
    let refused = bench.driver.create(wish(new(3), quotas), Cause::own("")).await;
    let refused = refused.expect_err("is one too many").to_string();
    assert_eq!(refused, "the quota `sandboxes` of 1 would be exceeded: 1 are used, 1 more wanted");
    assert_eq!(bench.driver.0.lanes.count(), before);
}

// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::artefacts::Artefacts;
use crate::configuration::{DEFAULT_TENANT, Edit, Edition, Parts};
use crate::control::Gateways;
use crate::keys::{GivenKeys, InstallationKeys};
use crate::store::tests::Database;
use crate::store::{Action, Actor, AuditEntry, Owner, Store};
use postern_common::clock;
use postern_common::control::{Applied, Follower, State, TenantConfig, link};
use postern_common::folder::{FilterFiles, TenantFiles};
use postern_common::id::{FilterName, SecretName};
use postern_common::tasks::Tasks;
use postern_filter_engine::Digest;
use postern_filter_engine::artefact::Compiled;
use postern_filter_engine::settings::fingerprint;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A configuration over a real database, and the far end of its control stream.
struct Room {
    configuration: Configuration,
    database: Database,
    follower: Follower,
    keys: Arc<InstallationKeys>,
    gateways: Gateways,
    tasks: Tasks,
    folder: TempDir,
}

const COMPONENT: &[u8] = b"a component";

/// A program that compiles [`COMPONENT`]. Where there is a file `fail` beside it, it takes that away
/// and answers nonsense.
fn compiler(folder: &Path) -> PathBuf {
    let compiled = Compiled { fingerprint: fingerprint(), component: Digest::of(COMPONENT), code: b"code" };
    let (answer, program) = (folder.join("answer"), folder.join("compiler"));
    std::fs::write(&answer, compiled.to_bytes()).expect("writes");
    let (answer, fail) = (answer.display(), folder.join("fail"));
    let fail = fail.display();
    let script = format!(
        "#!/bin/sh\n/bin/cat > /dev/null\nif /bin/rm {fail} 2> /dev/null; then echo nonsense; else /bin/cat {answer}; fi\n"
    );
    std::fs::write(&program, script).expect("writes");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("sets");
    program
}

impl Room {
    async fn open() -> Self {
        let (database, tasks) = (Database::sqlite().await, Tasks::new());
        let folder = tempfile::tempdir().expect("a folder");
        let store = database.store.clone();
        let keys = InstallationKeys::open(GivenKeys::default(), &folder.path().join("keys"), &store).await;
        let keys = Arc::new(keys.expect("makes keys"));
        let (gateways, _uses) = Gateways::start(1, State::default(), store.clone(), &tasks);
        let parts = parts((&store, &keys, &gateways, &tasks), folder.path(), "artefacts");
        let configuration = Configuration::new(parts);
        configuration.publish_all().await.expect("publishes");
        let (publisher, follower) = link();
        gateways.connect(publisher).await;
        let mut room = Self { configuration, database, follower, keys, gateways, tasks, folder };
        assert!(matches!(room.next().await, Change::Snapshot(_)));
        room
    }

    /// The same configuration as an orchestrator has it that has compiled nothing yet.
    fn another(&self) -> Configuration {
        let of = (&self.database.store, &self.keys, &self.gateways, &self.tasks);
        Configuration::new(parts(of, self.folder.path(), "other artefacts"))
    }

    /// The next message; it is put in force at once.
    async fn next(&mut self) -> Change {
        let received = tokio::time::timeout(PATIENCE, self.follower.deliveries.recv()).await;
        let delivery = received.expect("in time").expect("connected");
        let _ = delivery.applied.send(Applied::InForce).is_ok();
        delivery.message.change
    }

    async fn next_of_tenant(&mut self) -> Arc<TenantConfig> {
        match self.next().await {
            Change::Tenant(tenant) => tenant,
            other => panic!("{other:?}"),
        }
    }

    /// Sets a secret in the database; it is the caller's to have it told.
    fn set(&self) -> impl Future<Output = Result<bool, StoreError>> + Send + 'static {
        let store = self.database.store.clone();
        async move {
            let audit = AuditEntry::new(clock::now(), Some(tenant()), Action::SecretSet, Actor::Orchestrator);
            let name = SecretName::parse("desk").expect("a name");
            store.set_secret(&tenant(), &name, vec![1], &audit).await
        }
    }
}

fn parts(
    (store, keys, gateways, tasks): (&Store, &Arc<InstallationKeys>, &Gateways, &Tasks),
    folder: &Path,
    artefacts: &str,
) -> Parts {
    let artefacts = Artefacts::new(Some(compiler(folder)), folder.join(artefacts), keys).expect("has a key");
    Parts {
        store: store.clone(),
        keys: Arc::clone(keys),
        gateways: gateways.clone(),
        artefacts,
        backend_url: None,
        caps: Default::default(),
        made_on: crate::check::MadeOn::Machine,
        tasks: tasks.clone(),
    }
}

fn tenant() -> TenantId {
    TenantId::parse(DEFAULT_TENANT).expect("a name")
}

#[tokio::test]
async fn a_change_is_told_also_when_its_caller_leaves_before() {
    let mut room = Room::open().await;
    let (open, gate) = oneshot::channel::<()>();
    let set = room.set();
    let configuration = room.configuration.clone();
    let name = tenant();
    let mut asking = Box::pin(configuration.commit(&name, |done| *done, async move {
        gate.await.expect("opens");
        set.await
    }));
    // Asked for, and then the caller is gone before the change is written.
    assert!(futures_util::poll!(asking.as_mut()).is_pending());
    drop(asking);
    open.send(()).expect("somebody waits");
    let told = room.next_of_tenant().await;
    let row = room.database.store.tenant(&name).await.expect("answers").expect("is there");
    assert_eq!(told.revision, u64::try_from(row.revision).expect("positive"));
    room.tasks.shut_down(PATIENCE).await.expect("ends");
}

#[tokio::test]
async fn whoever_is_told_first_is_told_the_newest_and_nobody_waits_for_another_telling() {
    let mut room = Room::open().await;
    let before = room.database.store.tenant(&tenant()).await.expect("answers").expect("is there").revision;
    for _ in 0..3 {
        assert!(room.set().await.expect("answers"));
    }
    let told: Vec<Telling> = (0..3).map(|_| room.configuration.tell(&tenant())).collect();
    let first = room.next_of_tenant().await;
    assert_eq!(i64::try_from(first.revision).expect("fits"), before + 3, "the newest, not each");
    for telling in told {
        let outcome = tokio::select! {
            outcome = telling.outcome() => outcome,
            never = async { loop { room.next().await; } } => never,
        };
        assert_eq!((outcome.in_force, outcome.pending), (1, 0));
    }
    room.tasks.shut_down(PATIENCE).await.expect("ends");
}

#[tokio::test]
async fn a_tenant_that_is_gone_is_told_as_gone() {
    let mut room = Room::open().await;
    let acme = TenantId::parse("acme").expect("a name");
    let telling = room.configuration.tell(&acme);
    assert!(matches!(room.next().await, Change::TenantRemoved(name) if name == acme));
    assert_eq!(telling.outcome().await.in_force, 1);
    room.tasks.shut_down(PATIENCE).await.expect("ends");
}

#[tokio::test]
async fn what_could_not_be_compiled_once_is_told_when_it_can_be() {
    let mut room = Room::open().await;
    let guard =
        FilterFiles { manifest: "phases = [\"request\"]\n".to_owned(), component: COMPONENT.to_vec() };
    let name = FilterName::parse("guard").expect("a name");
    let files = TenantFiles { filters: BTreeMap::from([(name.clone(), guard)]), ..TenantFiles::default() };
    let edit = Edit::Whole { files: Box::new(files), prune: false, expected: None };
    let edition = Edition { owner: Owner::Api, actor: Actor::Orchestrator, request: None, dry_run: false };
    let (configuration, of) = (room.configuration.clone(), tenant());
    let edited = tokio::select! {
        edited = configuration.edit(&of, &edit, &edition) => edited,
        never = async { loop { room.next().await; } } => never,
    };
    assert_eq!(edited.expect("is put").gateways_in_force, 1, "the control: it compiles");

    let (another, fail) = (room.another(), room.folder.path().join("fail"));
    std::fs::write(&fail, "").expect("writes");
    let telling = another.tell(&of);
    let told = room.next_of_tenant().await;
    assert!(!fail.exists(), "the first attempt failed");
    assert_eq!(told.filters.keys().collect::<Vec<_>>(), [&name]);
    assert_eq!(telling.outcome().await.in_force, 1);
    room.tasks.shut_down(PATIENCE).await.expect("ends");
}

#[test]
fn pauses_grow_to_a_bound_and_are_never_all_the_same() {
    let rounds: Vec<Vec<Duration>> = (0..20)
        .map(|_| {
            let mut pauses = Pauses::default();
            (0..20).map(|_| pauses.next()).collect()
        })
        .collect();
    for pauses in &rounds {
        let mut longest = FIRST_PAUSE;
        for pause in pauses {
            assert!((longest / 2..=longest).contains(pause), "{pause:?} of {longest:?}");
            longest = (longest * 2).min(LONGEST_PAUSE);
        }
    }
    assert!(rounds.iter().any(|pauses| pauses != &rounds[0]), "all come at the same times");
}

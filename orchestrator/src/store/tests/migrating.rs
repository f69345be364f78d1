// SPDX-License-Identifier: Apache-2.0
//! The tables down and up again with data in them, by us and by golang-migrate itself.
//!
//! `scripts/migrate.sh` builds that; `POSTERN_ALLOW_SKIP=1` leaves it out.

use super::*;
use crate::store::migrations::{MIGRATIONS, Migrations, advisory_lock};
use std::ffi::OsString;
use std::process::{Command, Stdio};

on_each_database!(
    each_step_goes_down_and_up_again_with_data_in_the_tables,
    what_was_there_before_a_step_down_is_there_after_the_step_up,
);

fn newest() -> i64 {
    MIGRATIONS.last().expect("some").version
}

/// A database that is at one of these does the steps after it and no other.
const RELEASED: [i64; 27] =
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19, 22, 24, 28, 29, 36, 37, 38, 40, 41];

#[test]
fn steps_are_added_at_the_end_only() {
    let versions: Vec<i64> = MIGRATIONS.iter().map(|step| step.version).collect();
    assert!(versions.is_sorted());
    assert_eq!(versions[..RELEASED.len()], RELEASED);
}

async fn version(store: &Store) -> i64 {
    Migrations::of(store).status().await.expect("answers").version
}

/// Fills the tables that everything else hangs on.
async fn fill(store: &Store, tenant_name: &str) {
    make(store, tenant_name).await;
    let mut new = sandbox(1, "c1");
    let number = u8::try_from(tenant_name.len()).expect("short");
    (new.id, new.tenant) =
        (SandboxId::from_random([number; 12]), TenantId::parse(tenant_name).expect("a name"));
    assert_eq!(added(store, &new, &Quotas::default()).await, AddedSandbox::Added);
    store.fact("installation", b"here".to_vec()).await.expect("answers");
    store
        .set_secret(
            &new.tenant,
            &SecretName::parse("desk").expect("a name"),
            vec![1],
            &audit(Action::SecretSet),
        )
        .await
        .expect("answers");
}

async fn each_step_goes_down_and_up_again_with_data_in_the_tables(store: &Store) {
    let migrations = Migrations::of(store);
    let count = u32::try_from(MIGRATIONS.len()).expect("few");
    for steps in 1..=count {
        fill(store, &"t".repeat(usize::try_from(steps).expect("few"))).await;
        migrations.down(steps, |_| {}).await.expect("goes down");
        assert_eq!(
            version(store).await,
            if steps == count { 0 } else { MIGRATIONS[MIGRATIONS.len() - 1 - steps as usize].version }
        );
        migrations.up(None, |_| {}).await.expect("goes up again");
        assert_eq!(version(store).await, newest());
    }
    migrations.down(1, |_| {}).await.expect("goes down");
    migrations.up(Some(newest()), |_| {}).await.expect("goes up");
    assert!(matches!(migrations.up(Some(11), |_| {}).await, Err(MigrateError::Unknown(11))));
    migrations::check(store).await.expect("is up to date");
    fill(store, "last").await;
}

async fn what_was_there_before_a_step_down_is_there_after_the_step_up(store: &Store) {
    fill(store, "acme").await;
    let before =
        store.audit_lines(&audit::line_filter(postern_common::audit::Log::Sandboxes)).await.expect("answers");
    let migrations = Migrations::of(store);
    migrations.down(1, |_| {}).await.expect("goes down");
    let behind = migrations::check(store).await.expect_err("a step is missing").to_string();
    assert!(behind.contains("postern migrate up") && behind.contains("POSTERN_MIGRATE"), "{behind}");
    migrations.up(None, |_| {}).await.expect("goes up");
    store.record(&audit(Action::ResourcePut)).await.expect("is written");
    let after =
        store.audit_lines(&audit::line_filter(postern_common::audit::Log::Sandboxes)).await.expect("answers");
    assert_eq!(after[..before.len()], before[..]);
    assert!(audit::verified(store).await.iter().all(|chain| chain.mistaken == 0), "the chain goes on");
    assert!(store.tenant(&tenant()).await.expect("answers").is_some());
}

/// golang-migrate on a database, with the migrations of this work tree.
struct Other {
    program: PathBuf,
    folder: PathBuf,
    url: String,
}

impl Other {
    fn find(database: &Database) -> Option<Self> {
        let variable = |name: &str| std::env::var_os(name);
        let home = || variable("HOME").map(|home| PathBuf::from(home).join(".cache/postern"));
        let cache = variable("POSTERN_CACHE").map(PathBuf::from).or_else(home).expect("HOME is set");
        let program = cache.join("migrate/migrate");
        if !program.exists() {
            let may_skip = variable("POSTERN_ALLOW_SKIP") == Some(OsString::from("1"));
            let shown = program.display();
            assert!(
                may_skip,
                "no golang-migrate at {shown}: run scripts/migrate.sh, or set POSTERN_ALLOW_SKIP=1"
            );
            return None;
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
        let url = database.url.reveal().clone();
        let (folder, url) = match database.store.dialect {
            Dialect::Sqlite => (folder.join("sqlite"), url),
            // Its driver takes a name before the `@` for the host, whatever comes after.
            Dialect::Postgres => (folder, format!("{}&sslmode=disable", url.replace("@localhost/", "@/"))),
        };
        Some(Self { program, folder, url })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-path").arg(&self.folder).args(["-database", &self.url]).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.command(arguments).output().expect("runs");
        let told =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        if output.status.success() { Ok(told) } else { Err(told) }
    }
}

/// Either tool goes on where the other stopped, in both directions.
async fn takes_turns(database: &Database) {
    let (store, migrations) = (&database.store, Migrations::of(&database.store));
    let Some(other) = Other::find(database) else { return };
    fill(store, "acme").await;
    other.run(&["down", "3"]).expect("it goes down from what we did");
    let half = version(store).await;
    assert!(half < newest());
    migrations.up(None, |_| {}).await.expect("we go on");
    assert!(other.run(&["version"]).expect("answers").contains(&newest().to_string()));
    migrations.down(u32::MAX, |_| {}).await.expect("we go down");
    other.run(&["up", "5"]).expect("it goes up from nothing");
    migrations.up(None, |_| {}).await.expect("we go on");
    fill(store, "beta").await;
    other.run(&["down", "-all"]).expect("all the way down");
    other.run(&["up"]).expect("all the way up");
    migrations::check(store).await.expect("is what we need");
    fill(store, "gamma").await;
    assert!(audit::verified(store).await.iter().all(|chain| chain.mistaken == 0));
    // What it leaves half done it marks so, and we say how to mend it.
    let mark = format!(
        "UPDATE schema_migrations SET dirty = {}",
        if store.dialect == Dialect::Sqlite { "1" } else { "TRUE" }
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(mark)).execute(&store.pool).await.expect("writes");
    let dirty = migrations.up(None, |_| {}).await.expect_err("is refused").to_string();
    let before = MIGRATIONS[MIGRATIONS.len() - 2].version;
    assert!(dirty.contains(&format!("postern migrate force {before}")), "{dirty}");
    assert!(other.run(&["up"]).is_err(), "the other tool refuses too");
    migrations.force(newest()).await.expect("is mended");
    assert!(other.run(&["up"]).expect("nothing to do").contains("no change"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_tool_goes_on_where_the_other_stopped_on_sqlite() {
    takes_turns(&Database::sqlite().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_tool_goes_on_where_the_other_stopped_on_postgres() {
    match Database::postgres().await {
        Some(database) => takes_turns(&database).await,
        None => println!("left out: Postgres is not installed"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_tool_waits_for_the_lock_that_we_take() {
    let Some(database) = Database::postgres().await else { return };
    let Some(other) = Other::find(&database) else { return };
    let store = &database.store;
    let mut held = store.change().await.expect("begins");
    let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(advisory_lock("postgres", "public"));
    lock.execute(&mut *held.0).await.expect("is free");
    let mut waiting = other.command(&["up"]).stderr(Stdio::null()).spawn().expect("runs");
    let look = "SELECT COUNT(*) AS waiting FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while sqlx::query(look)
        .fetch_one(&store.pool)
        .await
        .expect("answers")
        .number("waiting")
        .expect("a number")
        == 0
    {
        assert!(std::time::Instant::now() < deadline, "it takes another lock");
        assert!(waiting.try_wait().expect("can be asked").is_none(), "it did not wait");
        tokio::task::yield_now().await;
    }
    held.commit().await.expect("ends");
    assert!(waiting.wait().expect("ends").success());
}

#[tokio::test]
async fn a_role_of_its_own_works_and_changes_nothing_of_what_it_wrote() {
    let Some(database) = Database::postgres().await else { return };
    sqlx::raw_sql("CREATE ROLE app LOGIN").execute(&database.store.pool).await.expect("a superuser may");
    Migrations::of(&database.store).grant("app").await.expect("is granted");
    let missing =
        Migrations::of(&database.store).grant("nobody\"; --").await.expect_err("there is none").to_string();
    assert!(missing.contains("must exist"), "{missing}");
    let url = Secret::new(database.url.reveal().replace("postgres@", "app@"));
    let store = Store::open_at(&url, None).await.expect("is up to date");
    fill(&store, "acme").await;
    audit::write_files(&store, 10).await;
    for attack in [
        "DELETE FROM file_audit_log",
        "UPDATE sandbox_audit_log SET actor = 'nobody'",
        "TRUNCATE file_audit_log",
        "DELETE FROM audit_marks",
        "UPDATE schema_migrations SET version = 1",
        "ALTER TABLE file_audit_log DISABLE TRIGGER ALL",
        "DROP TABLE file_audit_log",
    ] {
        let refused = sqlx::raw_sql(attack).execute(&store.pool).await.expect_err(attack).to_string();
        assert!(
            refused.contains("permission denied") || refused.contains("must be owner"),
            "{attack}: {refused}"
        );
    }
    let before = Timestamp::MAX;
    let log = postern_common::audit::Log::Files;
    assert_eq!(
        store.forget_lines(log, before, 4, &audit::sign).await.expect("a cut"),
        4,
        "what a mark says may go"
    );
    assert!(audit::verified(&store).await.iter().all(|chain| chain.mistaken == 0));
    store.close().await;
}

#[tokio::test]
async fn a_database_that_is_behind_is_not_opened_where_others_use_it_too() {
    let Some(database) = Database::postgres().await else { return };
    Migrations::of(&database.store).down(1, |_| {}).await.expect("goes down");
    let refused = Store::open_at(&database.url, None).await.expect_err("is behind").to_string();
    assert!(refused.contains("postern migrate up"), "{refused}");
    let store = Store::open_at(&database.url, Some(AtStart::Auto)).await.expect("is mended");
    assert_eq!(version(&store).await, newest());
    store.close().await;
}

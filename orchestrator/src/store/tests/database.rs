// SPDX-License-Identifier: Apache-2.0
//! Databases of a test's own: a file, or a real Postgres server.

use crate::store::Store;
use postern_common::secret::Secret;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A database of its own, gone with the test.
pub(crate) struct Database {
    pub(crate) store: Store,
    pub(crate) url: Secret<String>,
    _folder: TempDir,
    _server: Option<Server>,
}

/// A Postgres server that ends with its test.
pub(super) struct Server(pub(super) Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Its data goes with the folder: it need not end well.
        let _ = self.0.kill().is_ok() && self.0.wait().is_ok();
    }
}

impl Database {
    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = Secret::new(format!("sqlite://{}/test.db", folder.path().display()));
        Self { store: Store::open(&url).await.expect("opens"), url, _folder: folder, _server: None }
    }

    /// `None` where Postgres is left out on purpose.
    pub(crate) async fn postgres() -> Option<Self> {
        let bin = postgres_programs()?;
        let folder = tempfile::tempdir().expect("a folder");
        let user = postgres_user(folder.path());
        let (data, socket) = (folder.path().join("data"), folder.path().display().to_string());
        let mut init = user.command(&bin.join("initdb"));
        init.args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"]).arg(&data);
        assert!(init.stdout(Stdio::null()).status().expect("initdb runs").success());
        let mut server = user.command(&bin.join("postgres"));
        server.args(["-c", "listen_addresses=", "-c", "fsync=off", "-k", &socket, "-D"]).arg(&data);
        let server =
            Server(server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("postgres runs"));
        let url = Secret::new(format!(
            "postgres://postgres@localhost/postgres?host={}",
            socket.replace('/', "%2F")
        ));
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        let store = loop {
            match Store::open(&url).await {
                Ok(store) => break store,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        Some(Self { store, url, _folder: folder, _server: Some(server) })
    }
}

/// Where the programs of a Postgres server are; `None` where they are left out on purpose.
pub(super) fn postgres_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let usual = ["/usr/lib/postgresql/15/bin", "/usr/local/bin", "/usr/bin"].map(PathBuf::from);
    let mut places = usual.into_iter().chain(versions.map(|version| version.path().join("bin")));
    let found = places.find(|bin| bin.join("initdb").is_file() && bin.join("postgres").is_file());
    let may_skip = std::env::var_os("POSTERN_ALLOW_SKIP").is_some_and(|value| value == "1");
    assert!(
        found.is_some() || may_skip,
        "Postgres is not installed: `scripts/setup.sh test` does so, POSTERN_ALLOW_SKIP=1 leaves it out"
    );
    found
}

/// Postgres refuses to run as root: then it runs as `nobody`.
pub(super) enum PostgresUser {
    Own,
    Nobody,
}

pub(super) fn postgres_user(folder: &Path) -> PostgresUser {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return PostgresUser::Own;
    }
    std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY)).expect("root may");
    PostgresUser::Nobody
}

impl PostgresUser {
    pub(super) fn command(&self, program: &Path) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(program);
        command.current_dir("/");
        if matches!(self, Self::Nobody) {
            command.uid(65534).gid(65534);
        }
        command
    }
}

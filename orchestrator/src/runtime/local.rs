// SPDX-License-Identifier: Apache-2.0
//! Sandboxes on this one machine: one shim each, which outlives this process.
//!
//! Nothing is remembered here. A sandbox is what its folder, its shim's socket, its cgroup and its
//! mounts say, all of which bear the installation's id.
//!
//! ```text
//! run root/<sandbox>/   spec.json control.sock gateway/gateway.sock disk/{data,home} exit.json   (gone at boot)
//! slot root/<sandbox>/  disk.img or files/                                                       (on a real disk)
//! slot root/set-aside/  slots whose files could not be kept; the operator's, for a month
//! ```

mod aside;
mod images;
mod memory;
mod probe;
mod remains;
mod start;
mod sync;
#[cfg(test)]
mod tests;
mod told;

use super::{
    Agent, AgentError, Create, Exit, Found, Isolation, Kind, Probed, Running, Runtime, RuntimeError, Swept,
    Usage,
};
use futures_util::future::{BoxFuture, join_all};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
pub(crate) use images::is_name as is_image_name;
use images::{Bounds, Images};
use postern_common::id::SandboxId;
use postern_common::tasks::Tasks;
use postern_shim::cgroup::{Cgroups, Parents};
use postern_shim::folder::RunFolder;
pub use postern_shim::kernel::has_landlock;
use postern_shim::rootfs::{SkeletonError, make_skeleton};
pub use postern_shim::spec::Installation;
use postern_shim::spec::{IsolatedBy, guest_uid};
use postern_shim::{disk, processes};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use told::Told;

/// What this runtime can do, best first.
const BEST_FIRST: [Isolation; 2] = [Isolation::Gvisor, Isolation::Namespaces];
/// How long a shim may take to answer for itself. It never waits for the sandbox to do so.
const SHIM_TIME: Duration = Duration::from_secs(5);
/// How long a shim may take to end its sandbox before we do it ourselves.
const END_TIME: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(2);
const STATUS_BYTES: usize = 64 << 10;
/// How many shims are asked at once: one that does not answer in time holds up few others.
const ASKED_AT_ONCE: usize = 16;

/// What the local runtime is given.
#[derive(Debug, Clone)]
pub struct LocalSettings {
    /// Whose sandboxes these are.
    pub installation: Installation,
    /// A folder of this installation alone, with a short path (sockets lie in it) that every user
    /// may pass through; as root `/run/postern/<installation>` does.
    pub run_root: PathBuf,
    /// Where sandboxes' disks are kept, on a real disk.
    pub slot_root: PathBuf,
    /// Where the operator puts images; a folder that is not there holds none.
    pub images: PathBuf,
    /// Where copies of images are kept, on a real disk.
    pub unpacked: PathBuf,
    /// The program `postern-shim`.
    pub shim: PathBuf,
    /// The program `postern-sandboxd`, static.
    pub sandboxd: PathBuf,
    /// The program `postern-sync`; without it files are carried when sandboxes begin and end only.
    pub sync: Option<PathBuf>,
    /// gVisor, if it is not to be looked for.
    pub runsc: Option<PathBuf>,
    /// Where `runsc` and `bwrap` are looked for.
    pub search_path: Vec<PathBuf>,
}

/// The local runtime could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder of it.
    #[error("could not prepare `{}` for sandboxes; choose another folder or free some space", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The root that sandboxes share.
    #[error(transparent)]
    Skeleton(#[from] SkeletonError),
}

/// Sandboxes on this machine.
#[derive(Debug)]
pub struct LocalRuntime {
    settings: LocalSettings,
    /// The copy of `sandboxd` that every sandbox's user can reach.
    sandboxd: PathBuf,
    process_1: memory::ProcessOne,
    /// The copy of `postern-sync` that every sandbox's user can reach.
    sync: Option<PathBuf>,
    skeleton: PathBuf,
    images: Images,
    /// As root each sandbox is a user of its own outside; otherwise all are us.
    is_root: bool,
    cgroups: Parents,
    probed: OnceCell<Vec<Probed>>,
    tasks: Tasks,
}

impl LocalRuntime {
    /// Prepares the folders. Its tasks only watch: stopping them ends no sandbox.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(settings: LocalSettings, tasks: Tasks) -> Result<Self, OpenError> {
        // What is laid out for sandboxes' users must be theirs to read, whatever whoever started us wants of their
        // own files. What nobody else may read is made so by name.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        let folder = |path: &Path, mode| {
            let made = fs::create_dir_all(path)
                .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)));
            made.map_err(|source| OpenError::Folder { path: path.to_owned(), source })
        };
        // Others may pass through but not look: a sandbox's user reaches only its own folder.
        folder(&settings.run_root, 0o711)?;
        folder(&settings.slot_root, 0o700)?;
        let shared = settings.run_root.join("shared");
        folder(&shared, 0o755)?;
        let skeleton = shared.join("root");
        make_skeleton(&skeleton)?;
        let sandboxd = shared.join("sandboxd");
        install(&settings.sandboxd, &sandboxd)
            .map_err(|source| OpenError::Folder { path: sandboxd.clone(), source })?;
        let sync = settings.sync.as_ref().map(|program| {
            let path = shared.join("sync");
            let installed = install(program, &path);
            installed.map(|()| path.clone()).map_err(|source| OpenError::Folder { path, source })
        });
        let sync = sync.transpose()?;
        let is_root = rustix::process::geteuid().is_root();
        let cgroups = Parents::find();
        let (sources, unpacked, run_root) =
            (settings.images.clone(), settings.unpacked.clone(), settings.run_root.clone());
        let images = Images::new(sources, unpacked, run_root, Bounds::default());
        Ok(Self {
            settings,
            sandboxd,
            process_1: memory::ProcessOne::default(),
            sync,
            skeleton,
            images,
            is_root,
            cgroups,
            probed: OnceCell::new(),
            tasks,
        })
    }

    /// Makes a sandbox's folders, before it exists, and returns where the gateway must listen for
    /// it. The socket must be writable by everybody (0666): only this sandbox's user and root can
    /// reach its folder.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`].
    pub fn prepare(&self, sandbox: &SandboxId) -> Result<PathBuf, RuntimeError> {
        let folder = self.folder(sandbox);
        let failed =
            |source| RuntimeError::Machine { sandbox: sandbox.clone(), what: "make the folder", source };
        fs::create_dir_all(folder.gateway()).map_err(failed)?;
        if self.is_root {
            disk::open_to(folder.path(), guest_uid(sandbox)).map_err(failed)?;
            disk::open_below(&folder.gateway()).map_err(failed)?;
        } else {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
        Ok(folder.gateway_socket())
    }

    /// Where [`LocalRuntime::prepare`] will tell the gateway to listen.
    #[must_use]
    pub fn gateway_socket(&self, sandbox: &SandboxId) -> PathBuf {
        self.folder(sandbox).gateway_socket()
    }

    /// The user's files of a sandbox as this machine sees them (`/data/user` inside), from its
    /// creation until it is destroyed, and who must own them. While it runs the agent changes
    /// this folder under any reader's eyes: open nothing in it by path.
    #[must_use]
    pub fn user_files(&self, sandbox: &SandboxId) -> (PathBuf, Option<u32>) {
        (self.folder(sandbox).disk().join("data/user"), self.is_root.then(|| guest_uid(sandbox)))
    }

    /// [`LocalRuntime::user_files`] once its processes have ended; `None` if there are none. After
    /// a restart of the machine, when its disk is mounted no more, that is done again, read-only.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`] if there is a disk that cannot be shown.
    pub async fn find_user_files(
        &self,
        sandbox: &SandboxId,
    ) -> Result<Option<(PathBuf, Option<u32>)>, RuntimeError> {
        let found = self.blocking(sandbox, "show the disk", remains::show_files).await?;
        Ok(found.map(|path| (path, self.is_root.then(|| guest_uid(sandbox)))))
    }

    /// Whether the files of a sandbox, once they were found, may lack what was written: the machine
    /// stopped while they were, or its disk failed. Then nothing that is missing was deleted by the agent.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`] if the machine cannot say.
    pub async fn is_disk_torn(&self, sandbox: &SandboxId) -> Result<bool, RuntimeError> {
        self.blocking(sandbox, "look whether the disk is whole", remains::is_torn).await
    }

    /// Brings all files of a sandbox whose processes have ended to this machine's disk: from then on it keeps
    /// them whatever happens. Its disk is shown no more.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`] if it does not, or not all of them.
    pub async fn settle_disk(&self, sandbox: &SandboxId) -> Result<(), RuntimeError> {
        self.blocking(sandbox, "bring the disk to the machine's", remains::settle).await
    }

    /// Notes that the files of a sandbox are what it made of them, though [`LocalRuntime::is_disk_torn`]: they were
    /// compared with the store.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`].
    pub async fn believe_disk(&self, sandbox: &SandboxId) -> Result<(), RuntimeError> {
        self.blocking(sandbox, "note what was compared", remains::believe).await
    }

    /// Moves the slot of an ended sandbox to where [`Runtime::destroy`] does not look, and tells where;
    /// `None` if there is none. [`Runtime::sweep`] removes it after a month, or after a day when the disk is full.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`].
    pub async fn set_slot_aside(&self, sandbox: &SandboxId) -> Result<Option<PathBuf>, RuntimeError> {
        self.blocking(sandbox, "set the slot aside", aside::set_aside).await
    }

    /// Removes what [`LocalRuntime::set_slot_aside`] moved; whether there was anything.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`].
    pub async fn forget_slot_aside(&self, sandbox: &SandboxId) -> Result<bool, RuntimeError> {
        self.blocking(sandbox, "remove what was set aside", aside::forget).await
    }

    /// Whether its sandboxes can be paused: it needs groups that the kernel freezes.
    #[must_use]
    pub const fn can_pause(&self) -> bool {
        self.cgroups.can_freeze()
    }

    fn folder(&self, sandbox: &SandboxId) -> RunFolder {
        RunFolder::new(self.settings.run_root.join(sandbox.as_str()))
    }

    fn slot(&self, sandbox: &SandboxId) -> PathBuf {
        self.settings.slot_root.join(sandbox.as_str())
    }

    /// The image that a sandbox is to have for its root, if any.
    async fn root(&self, create: &Create) -> Result<Option<PathBuf>, RuntimeError> {
        self.image(create.image.as_deref())
            .await
            .map_err(|why| RuntimeError::Start { sandbox: create.sandbox.clone(), why })
    }

    /// The folder of an image.
    async fn image(&self, name: Option<&str>) -> Result<Option<PathBuf>, String> {
        let Some(name) = name.map(str::to_owned) else { return Ok(None) };
        let images = self.images.clone();
        let found =
            tokio::task::spawn_blocking(move || images.root(&name).map_err(|error| error.to_string()));
        found.await.unwrap_or_else(|panicked| Err(panicked.to_string())).map(Some)
    }

    fn groups(&self, sandbox: &SandboxId) -> Cgroups {
        Cgroups::existing(&self.cgroups, &self.settings.installation.name_of(sandbox))
    }

    /// The program of a level, or what to do to get it.
    fn program(&self, level: Isolation) -> Result<IsolatedBy, String> {
        let found = |name: &str| {
            self.settings.search_path.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
        };
        match level {
            Isolation::Gvisor => match self.settings.runsc.clone().or_else(|| found("runsc")) {
                Some(runsc) => Ok(IsolatedBy::Gvisor { runsc }),
                None => Err("there is no `runsc`; `make gvisor` builds it, or install gVisor".to_owned()),
            },
            Isolation::Namespaces => match found("bwrap") {
                Some(bwrap) => Ok(IsolatedBy::Namespaces { bwrap }),
                None => Err("there is no `bwrap`; install it (`apt install bubblewrap`)".to_owned()),
            },
            Isolation::Kata => Err("a virtual machine takes a cluster".to_owned()),
        }
    }

    async fn agent(&self, sandbox: &SandboxId) -> Result<Agent, RuntimeError> {
        let gone = |_error| RuntimeError::NotRunning { sandbox: sandbox.clone() };
        let stream = UnixStream::connect(self.folder(sandbox).control_socket()).await.map_err(gone)?;
        Agent::on(stream, &self.tasks).await.map_err(failed(sandbox))
    }

    /// One of the shim's own calls.
    async fn ask(
        &self,
        sandbox: &SandboxId,
        method: Method,
        path: &'static str,
    ) -> Result<Vec<u8>, RuntimeError> {
        self.ask_within(SHIM_TIME, sandbox, method, path).await
    }

    async fn ask_within(
        &self,
        time: Duration,
        sandbox: &SandboxId,
        method: Method,
        path: &'static str,
    ) -> Result<Vec<u8>, RuntimeError> {
        let answered = tokio::time::timeout(time, async {
            let mut request = Request::new(super::agent::full(bytes::Bytes::new()));
            *request.method_mut() = method;
            *request.uri_mut() = Uri::from_static(path);
            let response = self.agent(sandbox).await?.send(request).await.map_err(failed(sandbox))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), STATUS_BYTES).collect().await;
            let body = body.map_err(|_cut| AgentError::Malformed).map_err(failed(sandbox))?.to_bytes();
            if status.is_success() { Ok(body.to_vec()) } else { Err(refused(sandbox, status, &body)) }
        });
        answered.await.unwrap_or_else(|_late| Err(RuntimeError::NotRunning { sandbox: sandbox.clone() }))
    }

    async fn shim_status(&self, sandbox: &SandboxId) -> Result<Told, RuntimeError> {
        let json = self.ask(sandbox, Method::GET, "http://shim/shim/status").await?;
        serde_json::from_slice(&json).map_err(|_malformed| AgentError::Malformed).map_err(failed(sandbox))
    }

    async fn look(&self, sandbox: &SandboxId) -> Option<Found> {
        let folder = self.folder(sandbox);
        let ended = |exit| Found::Ended { sandbox: sandbox.clone(), exit };
        // A shim answers until it has told how its sandbox ended, and a moment longer.
        if let Some(exit) = Exit::read(&folder) {
            return Some(ended(Some(exit)));
        }
        if let Ok(told) = self.shim_status(sandbox).await {
            return Some(told.found());
        }
        let has_no_shim = has_no_shim(&folder).await;
        match Exit::read(&folder) {
            Some(exit) => Some(ended(Some(exit))),
            None if !has_no_shim => Some(Found::Silent { sandbox: sandbox.clone() }),
            None => (folder.path().is_dir() || self.slot(sandbox).is_dir()).then(|| ended(None)),
        }
    }

    /// Asks the shim to end it and waits; then makes sure.
    async fn end_all(&self, sandbox: &SandboxId) -> Result<Vec<Kind>, RuntimeError> {
        let folder = self.folder(sandbox);
        if self.ask(sandbox, Method::POST, "http://shim/shim/stop").await.is_ok() {
            let deadline = Instant::now() + END_TIME;
            while !folder.exit().exists() && Instant::now() < deadline {
                tokio::time::sleep(POLL).await;
            }
        }
        self.blocking(sandbox, "end the processes", remains::end).await
    }

    async fn remove(&self, sandbox: &SandboxId) -> Result<Vec<Kind>, RuntimeError> {
        let mut removed = self.end_all(sandbox).await?;
        removed.extend(self.blocking(sandbox, "remove the folders", remains::remove).await?);
        Ok(removed)
    }

    async fn blocking<Answer: Send + 'static>(
        &self,
        sandbox: &SandboxId,
        what: &'static str,
        act: fn(&remains::Remains) -> io::Result<Answer>,
    ) -> Result<Answer, RuntimeError> {
        let remains = remains::Remains {
            folder: self.folder(sandbox),
            slot: self.slot(sandbox),
            cgroups: self.groups(sandbox),
        };
        let acted = tokio::task::spawn_blocking(move || act(&remains)).await;
        let acted = acted.unwrap_or_else(|error| Err(io::Error::other(error)));
        acted.map_err(|source| RuntimeError::Machine { sandbox: sandbox.clone(), what, source })
    }
}

impl Runtime for LocalRuntime {
    fn probe(&self) -> BoxFuture<'_, Vec<Probed>> {
        Box::pin(async { self.probed.get_or_init(|| probe::all(self)).await.clone() })
    }

    fn create(&self, create: Create) -> BoxFuture<'_, Result<Running, RuntimeError>> {
        Box::pin(async move {
            let (isolation, holds) = probe::choose(self, create.isolation).await?;
            let root = self.root(&create).await?;
            start::start(self, &create.sandbox, (isolation, root), (create.limits, holds), false).await
        })
    }

    fn keeps_files(&self) -> bool {
        true
    }

    fn keeps_memory(&self, level: Isolation) -> bool {
        // gVisor restores for root only.
        self.is_root && level == Isolation::Gvisor
    }

    fn fingerprint<'a>(&'a self, image: Option<&'a str>) -> BoxFuture<'a, io::Result<String>> {
        Box::pin(memory::fingerprint(self, image))
    }

    fn picture<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<PathBuf, RuntimeError>> {
        Box::pin(memory::picture(self, sandbox))
    }

    fn place_for_picture<'a>(
        &'a self,
        sandbox: &'a SandboxId,
        memory_bytes: u64,
    ) -> BoxFuture<'a, Result<PathBuf, RuntimeError>> {
        Box::pin(memory::place(self, sandbox, memory_bytes))
    }

    fn forget_picture<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(memory::forget(self, sandbox))
    }

    fn restore(&self, create: Create) -> BoxFuture<'_, Result<Running, RuntimeError>> {
        Box::pin(async move {
            let (isolation, holds) = probe::choose(self, create.isolation).await?;
            let root = self.root(&create).await?;
            start::start(self, &create.sandbox, (isolation, root), (create.limits, holds), true).await
        })
    }

    fn connect<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<Agent, RuntimeError>> {
        Box::pin(self.agent(sandbox))
    }

    fn status<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Option<Found>> {
        Box::pin(self.look(sandbox))
    }

    fn list(&self) -> BoxFuture<'_, Vec<Found>> {
        Box::pin(async {
            let all: Vec<SandboxId> = remains::all(&self.settings, &self.cgroups).into_iter().collect();
            let mut found = Vec::new();
            for some in all.chunks(ASKED_AT_ONCE) {
                let looked = join_all(some.iter().map(|sandbox| self.look(sandbox))).await;
                found.extend(looked.into_iter().flatten());
            }
            found
        })
    }

    fn usage<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<Option<Usage>, RuntimeError>> {
        Box::pin(async {
            let json = self.ask(sandbox, Method::GET, "http://shim/shim/usage").await?;
            let usage = serde_json::from_slice(&json).map_err(|_malformed| AgentError::Malformed);
            usage.map(Some).map_err(failed(sandbox))
        })
    }

    fn pause<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async { self.ask(sandbox, Method::POST, "http://shim/shim/pause").await.map(drop) })
    }

    fn resume<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async { self.ask(sandbox, Method::POST, "http://shim/shim/resume").await.map(drop) })
    }

    fn end<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async { self.end_all(sandbox).await.map(drop) })
    }

    fn destroy<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async { self.remove(sandbox).await.map(drop) })
    }

    fn sweep<'a>(&'a self, known: &'a [SandboxId]) -> BoxFuture<'a, Vec<Swept>> {
        Box::pin(async move {
            let mut swept = Vec::new();
            for sandbox in remains::all(&self.settings, &self.cgroups) {
                if known.contains(&sandbox) {
                    continue;
                }
                match self.remove(&sandbox).await {
                    Ok(kinds) => {
                        swept.extend(kinds.into_iter().map(|kind| Swept { sandbox: sandbox.clone(), kind }));
                    }
                    Err(error) => {
                        tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "could not sweep");
                    }
                }
            }
            let slots = self.settings.slot_root.clone();
            let tidied = tokio::task::spawn_blocking(move || {
                aside::tidy(&slots, postern_common::clock::now(), aside::Bounds::default())
            });
            if let Err(error) = tidied.await.map_err(io::Error::other).and_then(|tidied| tidied) {
                tracing::warn!(error = &error as &dyn std::error::Error, "could not tidy what was set aside");
            }
            swept.sort_unstable();
            swept.dedup();
            swept
        })
    }
}

/// Whether nothing serves a sandbox any more: its socket refuses, or is gone, and no shim of it runs. One
/// that is only slow, or was stopped for a while, is there.
async fn has_no_shim(folder: &RunFolder) -> bool {
    if !folder.path().is_dir() {
        return true;
    }
    let connected = tokio::time::timeout(SHIM_TIME, UnixStream::connect(folder.control_socket())).await;
    let Ok(Err(refused)) = connected else { return false };
    if !matches!(refused.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) {
        return false;
    }
    let path = folder.path().to_owned();
    matches!(tokio::task::spawn_blocking(move || processes::shim_of(&path)).await, Ok(None))
}

fn failed(sandbox: &SandboxId) -> impl Fn(AgentError) -> RuntimeError {
    |source| RuntimeError::Agent { sandbox: sandbox.clone(), source }
}

fn refused(sandbox: &SandboxId, status: StatusCode, body: &[u8]) -> RuntimeError {
    let message = String::from_utf8_lossy(body).into_owned();
    failed(sandbox)(AgentError::Refused { status, message })
}

/// Copies a program to where every user can execute it, unless that very one is there.
fn install(from: &Path, to: &Path) -> io::Result<()> {
    let stamp = |path: &Path| fs::metadata(path).and_then(|found| Ok((found.len(), found.modified()?)));
    if let (Ok(have), Ok(want)) = (stamp(to), stamp(from))
        && have == want
    {
        return Ok(());
    }
    // Sandboxes that run the old one keep it: it is replaced, not written into.
    let draft = to.with_extension("draft");
    fs::copy(from, &draft)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
    fs::File::options().write(true).open(&draft)?.set_modified(fs::metadata(from)?.modified()?)?;
    fs::rename(draft, to)
}

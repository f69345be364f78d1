// SPDX-License-Identifier: Apache-2.0
//! What the story is played on: the support desk's backend and `postern up`, both children of this
//! process, in a folder that goes with it.

use super::remains;
use crate::arguments::Demo;
use crate::client::Client;
use crate::connection::{self, Connection, Written};
use anyhow::{Context as _, anyhow, bail, ensure};
use postern_common::secret::Secret;
use postern_common::settings;
use postern_common::tasks::Tasks;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use url::Url;

/// `up` tries each isolation for real before it is ready, on a machine that may be busy.
const READY_TIME: Duration = Duration::from_secs(90);
/// `up` gives requests and sandboxes their grace when it is told to end.
const END_TIME: Duration = Duration::from_secs(45);
/// How often a child is looked at while it starts.
const LOOK: Duration = Duration::from_millis(20);
/// Lines that are kept of what a child says.
const MAX_LINES: usize = 10_000;
/// The address in the example's `backend.toml`.
const EXAMPLE_URL: &str = "http://127.0.0.1:9000";

/// Lines that a child wrote, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    /// Follows a child's output until it closes it.
    fn follow(output: impl AsyncRead + Unpin + Send + 'static, tasks: &Tasks) -> Self {
        let lines = Self::default();
        let kept = lines.clone();
        tasks.spawn(async move |_stop| {
            let mut reader = BufReader::new(output).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                let mut all = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
                if all.len() < MAX_LINES {
                    all.push(line);
                }
            }
        });
        lines
    }

    /// All lines so far.
    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn last(&self, count: usize) -> String {
        let all = self.all();
        all.iter().skip(all.len().saturating_sub(count)).cloned().collect::<Vec<_>>().join("\n  ")
    }
}

/// Everything that runs for the story.
#[derive(Debug)]
pub(super) struct Stage {
    /// The agent's script.
    pub agent: String,
    /// How to reach the API and the gateway.
    pub written: Written,
    /// Talks to the API as its admin.
    pub client: Client,
    backend_log: Lines,
    up: Child,
    up_log: Lines,
    // Killed when it is dropped.
    _backend: Child,
    folder: TempDir,
    isolation: String,
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "API at {}, isolation {}", self.written.url, self.isolation)
    }
}

impl Stage {
    /// Starts the backend and `up`, and waits until both answer.
    pub(super) async fn set(wanted: &Demo) -> anyhow::Result<Self> {
        let tasks = Tasks::new();
        let folder = tempfile::Builder::new().prefix("postern-demo-").tempdir()?;
        let agent = read(&wanted.example.join("agent.py"))?;
        let (backend, backend_log, port) = start_backend(&wanted.example, &tasks).await?;
        let config = folder.path().join("config");
        copy_folder(&wanted.example.join("config"), &config)?;
        point_at(&config.join("backends/support-desk/backend.toml"), port)?;
        let data = folder.path().join("data");
        let (mut up, up_log) = start_up(&config, &data, &wanted.isolation, &tasks)?;
        let written = ready(&mut up, &data, &up_log).await?;
        let key = Secret::new(read(&written.key_file)?.trim_end().to_owned());
        let client = Client::new(Connection { url: written.url.clone(), key });
        let isolation = wanted.isolation.clone();
        Ok(Self { agent, written, client, backend_log, up, up_log, _backend: backend, folder, isolation })
    }

    /// The requests that have reached the backend.
    pub(super) fn reached(&self) -> Vec<Value> {
        self.backend_log.all().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The data folder of `up`.
    pub(super) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Presses Ctrl-C, waits, and looks for anything that is left. An `up` that has ended by itself
    /// is started again for that: else its sandboxes would have nobody to end them, since the data
    /// folder goes with us.
    pub(super) async fn strike(mut self) -> anyhow::Result<String> {
        let (status, told) = self.interrupt().await?;
        if !status.success() {
            let (config, data) = (self.folder.path().join("config"), self.data());
            let (up, log) = start_up(&config, &data, &self.isolation, &Tasks::new())?;
            (self.up, self.up_log) = (up, log);
            self.written = ready(&mut self.up, &data, &self.up_log).await?;
            let (again, told_again) = self.interrupt().await?;
            ensure!(again.success(), "`postern up` ended with {again}:\n  {told_again}");
            self.nothing_remains()?;
            bail!("`postern up` had ended by itself with {status}; what it left was removed:\n  {told}");
        }
        self.nothing_remains()?;
        Ok("no process, mount, socket or cgroup is left".to_owned())
    }

    /// Presses Ctrl-C, unless it has ended already: how it ended, and the last that it said. One that
    /// was killed may take a moment to be gone.
    async fn interrupt(&mut self) -> anyhow::Result<(ExitStatus, String)> {
        if let Some(pid) = self.up.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            kill_process(pid, Signal::INT)?;
        }
        let ended = timeout(END_TIME, self.up.wait()).await;
        let Ok(status) = ended else {
            bail!("`postern up` did not end within {} s:\n  {}", END_TIME.as_secs(), self.up_log.last(10));
        };
        Ok((status?, self.up_log.last(10)))
    }

    fn nothing_remains(&self) -> anyhow::Result<()> {
        let remains = remains::of(&[&self.data(), &self.written.run])?;
        ensure!(remains.is_empty(), "left behind: {}", remains.join(", "));
        Ok(())
    }
}

async fn start_backend(example: &Path, tasks: &Tasks) -> anyhow::Result<(Child, Lines, u64)> {
    let script = example.join("backend.py");
    let mut backend = Command::new("python3")
        .arg(&script)
        .args(["--port", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("`python3 {}` cannot be started; install python3", script.display()))?;
    let log = Lines::follow(backend.stdout.take().context("the backend's output")?, tasks);
    let begun = Instant::now();
    loop {
        let first = log.all().into_iter().next();
        if let Some(first) = first {
            let line: Value = serde_json::from_str(&first).context("the backend's first line")?;
            let port = line.get("listening").and_then(Value::as_u64).context("the backend says no port")?;
            return Ok((backend, log, port));
        }
        if let Some(status) = backend.try_wait()? {
            bail!("the backend ended with {status}");
        }
        ensure!(begun.elapsed() < READY_TIME, "the backend did not start in time");
        sleep(LOOK).await;
    }
}

/// This very program as `up`, in the reader's environment but without the reader's settings.
fn start_up(config: &Path, data: &Path, isolation: &str, tasks: &Tasks) -> anyhow::Result<(Child, Lines)> {
    let own = std::env::current_exe().context("this program does not know where it is")?;
    let mut command = Command::new(own);
    for setting in settings::ALL.iter().filter(|setting| setting.key != settings::name::RUNSC.key) {
        command.env_remove(setting.variable).env_remove(format!("{}_FILE", setting.variable));
    }
    let mut up = command
        .args(["up", "--isolation", isolation, "--config"])
        .arg(config)
        .arg("--data-dir")
        .arg(data)
        .current_dir(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A Ctrl-C at the terminal is ours to pass on, after the story.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("`postern up` cannot be started")?;
    let log = Lines::follow(up.stderr.take().context("the log of `postern up`")?, tasks);
    Ok((up, log))
}

/// Waits until `up` has written where it is, which it does once it serves.
async fn ready(up: &mut Child, data: &Path, log: &Lines) -> anyhow::Result<Written> {
    let begun = Instant::now();
    loop {
        // One before it may have left the file.
        let written = connection::read(data).map_err(|failure| anyhow!("{failure}"))?;
        if let Some(written) = written.filter(|written| Some(written.pid) == up.id()) {
            return Ok(written);
        }
        if let Some(status) = up.try_wait()? {
            // Its last words may still be on their way.
            sleep(LOOK).await;
            bail!("`postern up` ended with {status}:\n  {}", log.last(20));
        }
        ensure!(begun.elapsed() < READY_TIME, "`postern up` was not ready in time:\n  {}", log.last(20));
        sleep(LOOK).await;
    }
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    let entries = std::fs::read_dir(from).with_context(|| format!("`{}` cannot be read", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Points the copied `backend.toml` at the backend that really runs.
fn point_at(file: &Path, port: u64) -> anyhow::Result<()> {
    let text = read(file)?;
    ensure!(text.contains(EXAMPLE_URL), "`{}` does not name {EXAMPLE_URL}", file.display());
    let url = Url::parse(&format!("http://127.0.0.1:{port}"))?;
    Ok(std::fs::write(file, text.replace(EXAMPLE_URL, url.as_str()))?)
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("`{}` cannot be read; run this in the project's folder", path.display()))
}

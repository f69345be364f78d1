// SPDX-License-Identifier: Apache-2.0
//! Programs as children that end with us, whatever becomes of us; and where everything lies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program that is asked to end may take.
const ENDING_TIME: Duration = Duration::from_secs(20);

/// Where everything of one run lies: removed and made anew at the next.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("k8s")
}

/// A program of the cluster, as `scripts/k8s.sh` has built it.
pub(crate) fn program(name: &str) -> PathBuf {
    cache().join(name)
}

/// The folder of `scripts/k8s.sh`.
pub(crate) fn cache() -> PathBuf {
    let cache = std::env::var_os("POSTERN_CACHE").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache/postern");
    cache.unwrap_or_else(home).join("k8s")
}

/// A child whose output goes to a file of its name.
#[derive(Debug)]
pub(crate) struct Part {
    name: String,
    child: Child,
}

impl Part {
    /// Starts it. It is killed when this process ends, however that comes about.
    pub(crate) fn start(name: &str, command: &Command) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(log(name)).expect("a log file");
        let errors = log.try_clone().expect("is a file");
        let mut with_us = Command::new("setpriv");
        with_us.args(["--pdeathsig", "KILL"]).arg(command.get_program()).args(command.get_args());
        // Nothing of ours but what a program is found by.
        with_us.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        with_us.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let folder = command.get_current_dir().map_or_else(folder, Path::to_owned);
        let child = with_us.current_dir(folder).stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
        Self { name: name.to_owned(), child: child.unwrap_or_else(|error| panic!("{name}: {error}")) }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it leave its core at once to whoever else wants one, or take part again as others do.
    pub(crate) fn make_way(&self, does: bool) {
        let class = if does { "--idle" } else { "--other" };
        must("chrt", &["--all-tasks", class, "--pid", "0", &self.pid().to_string()]);
    }

    /// What it has written.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(log(&self.name)).unwrap_or_default()
    }

    /// Fails if it has ended.
    pub(crate) fn must_run(&mut self) {
        let ended = self.child.try_wait().expect("can be asked");
        assert!(ended.is_none(), "{} ended: {ended:?}\n{}", self.name, self.log());
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Kills it as a crash would.
    pub(crate) fn crash(mut self) {
        self.end();
    }

    /// Asks it to end (SIGINT), and kills it only if it does not.
    pub(crate) fn interrupt(mut self) {
        let process = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        let is_asked =
            process.is_some_and(|it| rustix::process::kill_process(it, rustix::process::Signal::INT).is_ok());
        let deadline = Instant::now() + ENDING_TIME;
        while is_asked && self.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.end();
    }

    fn end(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.end();
    }
}

fn log(name: &str) -> PathBuf {
    folder().join(format!("{name}.log"))
}

/// Runs a command that must do what it is told.
pub(crate) fn must(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

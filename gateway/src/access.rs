// SPDX-License-Identifier: Apache-2.0
//! The access log: one line of JSON for each request, as decisions are recorded, without what a
//! policy read of it.
//!
//! Requests never wait for it: where the writer cannot keep up, lines are dropped and counted.

use postern_common::decision::DecisionRecord;
use postern_common::tasks::{Stop, Tasks};
use prometheus_client::metrics::counter::Counter;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// Lines that may wait for the writer.
const LINES: usize = 8192;
/// Lines that are written at once.
const LINES_AT_ONCE: usize = 512;

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    /// To standard output.
    Stdout,
    /// To the end of a file (0600), which is opened for each batch: it may be moved away at any time.
    File(PathBuf),
}

/// Takes lines for the access log. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct AccessLines {
    lines: mpsc::Sender<Vec<u8>>,
    dropped: Counter,
}

impl AccessLines {
    /// Begins to write; what still waits when `tasks` are stopped is written first.
    pub(crate) fn start(to: AccessLog, dropped: Counter, tasks: &Tasks) -> Self {
        let (lines, received) = mpsc::channel(LINES);
        tasks.spawn(move |stop| write(to, received, stop));
        Self { lines, dropped }
    }

    /// Adds a request's line.
    pub(crate) fn note(&self, record: &DecisionRecord) {
        // What policies read is left out: it holds what people wrote.
        let record = DecisionRecord { evidence: None, ..record.clone() };
        let line = serde_json::to_vec(&record).map(|mut line| {
            line.push(b'\n');
            line
        });
        let is_kept = line.is_ok_and(|line| self.lines.try_send(line).is_ok());
        if !is_kept {
            self.dropped.inc();
        }
    }
}

async fn write(to: AccessLog, mut lines: mpsc::Receiver<Vec<u8>>, stop: Stop) {
    let mut is_told = false;
    loop {
        let mut batch = Vec::new();
        if stop.run_until_cancelled(lines.recv_many(&mut batch, LINES_AT_ONCE)).await.is_none() {
            lines.close();
            while lines.recv_many(&mut batch, LINES_AT_ONCE).await > 0 {}
        }
        if batch.is_empty() {
            return;
        }
        let (place, text) = (to.clone(), batch.concat());
        let written = tokio::task::spawn_blocking(move || append(&place, &text)).await;
        match written {
            Ok(Ok(())) => is_told = false,
            // Told once: it would be told for every request.
            Ok(Err(error)) if !is_told => {
                is_told = true;
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    ?to,
                    "the access log is not written"
                );
            }
            Ok(Err(_)) => {}
            Err(_panicked) => return,
        }
    }
}

fn append(to: &AccessLog, text: &[u8]) -> io::Result<()> {
    match to {
        AccessLog::Stdout => io::stdout().lock().write_all(text),
        AccessLog::File(path) => open(path)?.write_all(text),
    }
}

fn open(path: &Path) -> io::Result<std::fs::File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Draft;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    fn record() -> DecisionRecord {
        Draft::new(postern_common::clock::now(), &http::Method::GET).allowed()
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).expect("is there");
        text.lines().map(|line| serde_json::from_str(line).expect("is JSON")).collect()
    }

    #[tokio::test]
    async fn every_request_has_a_line_even_at_the_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let (tasks, dropped) = (Tasks::new(), Counter::default());
        let log = AccessLines::start(AccessLog::File(path.clone()), dropped.clone(), &tasks);
        (0..1000).for_each(|_| log.note(&record()));
        tasks.shut_down(Duration::from_secs(10)).await.expect("ends");
        let written = lines(&path);
        assert_eq!((written.len(), dropped.get()), (1000, 0));
        assert!(written.iter().all(|line| line["verdict"] == "allow" && line.get("evidence").is_none()));
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn lines_that_find_no_room_are_counted() {
        let (lines, _received) = mpsc::channel(1);
        let log = AccessLines { lines, dropped: Counter::default() };
        (0..3).for_each(|_| log.note(&record()));
        assert_eq!(log.dropped.get(), 2);
    }
}

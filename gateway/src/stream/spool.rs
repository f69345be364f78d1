// SPDX-License-Identifier: Apache-2.0
//! Decisions on their way home: on disk until the orchestrator has kept them.
//!
//! A batch is one file, written whole, sent whole, removed when it is acknowledged; so a crash
//! loses nothing that was written, and at most repeats a batch, which the orchestrator notices.
//! The spool is bounded. When it is full, records of allowed requests go first, the oldest before
//! the newest; what is lost is counted. Before that it says that it is nearly full, so that an
//! operator may have requests refused instead.

use crate::Audit;
use postern_common::decision::{DecisionRecord, Verdict};
use postern_common::tasks::Stop;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};

/// Records of one batch.
const BATCH: usize = 512;
/// A batch's file; larger batches are split, so that each fits a frame of the stream.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// The part of the bound from which the spool counts as full: what is in flight has room left.
const FULL_PERCENT: u64 = 90;
const ENDING: &str = ".json";

/// The spool.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    bound: u64,
    audit: Audit,
    /// Held for file operations by blocking threads only, never across a wait.
    files: Mutex<Files>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Files {
    /// Bytes of each batch, by number.
    batches: BTreeMap<u64, u64>,
    next: u64,
}

impl Files {
    fn bytes(&self) -> u64 {
        self.batches.values().sum()
    }
}

impl Spool {
    /// Opens the folder with what a process of before left in it.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn open(folder: &Path, bound: u64, audit: Audit) -> io::Result<Arc<Self>> {
        let mut files = Files::default();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(ENDING)?.parse::<u64>().ok());
            match number {
                Some(number) => {
                    files.batches.insert(number, entry.metadata()?.len());
                }
                // Half written when the process died: its records were never in the spool.
                None => drop(std::fs::remove_file(entry.path())),
            }
        }
        files.next = files.batches.keys().next_back().map_or(1, |last| last + 1);
        let (folder, files) = (folder.to_owned(), Mutex::new(files));
        let spool = Self { folder, bound, audit, files, changed: watch::Sender::new(()) };
        spool.tell(&spool.files());
        Ok(Arc::new(spool))
    }

    fn files(&self) -> std::sync::MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, files: &Files) {
        let bytes = files.bytes();
        self.audit.spool_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        let is_full = bytes.saturating_mul(100) >= self.bound.saturating_mul(FULL_PERCENT);
        self.audit.is_full.store(is_full, Ordering::Relaxed);
        self.changed.send_replace(());
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:020}{ENDING}"))
    }

    /// Adds records, making room if need be. Blocking.
    fn add(&self, records: Vec<DecisionRecord>) {
        let mut files = self.files();
        for batch in split(records) {
            self.add_batch(&mut files, batch);
        }
        self.tell(&files);
    }

    fn add_batch(&self, files: &mut Files, mut records: Vec<DecisionRecord>) {
        let mut text = json(&records);
        if !self.has_room(files, &text) {
            self.drop_allowed(files, text.len());
        }
        if !self.has_room(files, &text) {
            self.lose(retain_refused(&mut records));
            text = json(&records);
        }
        if records.is_empty() {
            return;
        }
        if !self.has_room(files, &text) {
            return self.lose(records.len());
        }
        let number = files.next;
        match self.write(number, &text) {
            Ok(()) => {
                files.batches.insert(number, text.len() as u64);
                files.next += 1;
                self.audit.is_failing.store(false, Ordering::Relaxed);
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, lost = records.len(), "decisions could not be written to the spool");
                self.lose(records.len());
                self.fail();
            }
        }
    }

    fn has_room(&self, files: &Files, text: &[u8]) -> bool {
        files.bytes().saturating_add(text.len() as u64) <= self.bound
    }

    fn lose(&self, records: usize) {
        self.audit.dropped.inc_by(records as u64);
    }

    /// Records were lost although there was room: nobody may go on as if there were.
    fn fail(&self) {
        self.audit.is_failing.store(true, Ordering::Relaxed);
    }

    /// Takes records of allowed requests out of waiting batches, the oldest first, until `wanted`
    /// bytes are free.
    fn drop_allowed(&self, files: &mut Files, wanted: usize) {
        let numbers: Vec<u64> = files.batches.keys().copied().collect();
        for number in numbers {
            if files.bytes().saturating_add(wanted as u64) <= self.bound {
                return;
            }
            let Some(mut records) = self.read(number) else { continue };
            let lost = retain_refused(&mut records);
            if lost == 0 {
                continue;
            }
            self.lose(lost);
            if records.is_empty() {
                self.forget(files, number);
            } else {
                let text = json(&records);
                if self.write(number, &text).is_ok() {
                    files.batches.insert(number, text.len() as u64);
                }
            }
        }
    }

    fn read(&self, number: u64) -> Option<Vec<DecisionRecord>> {
        serde_json::from_slice(&std::fs::read(self.path(number)).ok()?).ok()
    }

    /// Writes a batch (0600) whole or not at all; it survives a power cut.
    fn write(&self, number: u64, text: &[u8]) -> io::Result<()> {
        let draft = self.folder.join(format!("{number:020}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(text)?;
        file.sync_data()?;
        std::fs::rename(draft, self.path(number))
    }

    fn forget(&self, files: &mut Files, number: u64) {
        files.batches.remove(&number);
        drop(std::fs::remove_file(self.path(number)));
    }

    /// The oldest batch, with its number; waits until there is one.
    pub(super) async fn oldest(self: &Arc<Self>) -> (u64, Vec<DecisionRecord>) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let spool = Arc::clone(self);
            let found = tokio::task::spawn_blocking(move || spool.first()).await;
            if let Ok(Some(found)) = found {
                return found;
            }
            // The sender lives as long as we do.
            let _ = changed.changed().await.is_ok();
        }
    }

    fn first(&self) -> Option<(u64, Vec<DecisionRecord>)> {
        let mut files = self.files();
        while let Some(number) = files.batches.keys().next().copied() {
            if let Some(records) = self.read(number) {
                return Some((number, records));
            }
            tracing::error!(batch = number, "a batch of decisions in the spool cannot be read; it is lost");
            self.lose(1);
            self.forget(&mut files, number);
            self.tell(&files);
        }
        None
    }

    /// The orchestrator has kept a batch. Blocking, for a file's removal.
    pub(super) fn kept(&self, number: u64) {
        let mut files = self.files();
        self.forget(&mut files, number);
        self.tell(&files);
    }
}

fn json(records: &[DecisionRecord]) -> Vec<u8> {
    // Records are texts and numbers: they always have a JSON form.
    serde_json::to_vec(records).unwrap_or_default()
}

/// Keeps what was not allowed, and tells how many went.
fn retain_refused(records: &mut Vec<DecisionRecord>) -> usize {
    let before = records.len();
    records.retain(|record| record.verdict != Verdict::Allow);
    before - records.len()
}

/// Batches whose files are not too large. A single record is some kilobytes at most.
fn split(records: Vec<DecisionRecord>) -> Vec<Vec<DecisionRecord>> {
    let mut batches = vec![records];
    while let Some(large) = batches.iter().position(|it| it.len() > 1 && json(it).len() > BATCH_BYTES) {
        let half = batches.get(large).map_or(0, |it| it.len() / 2);
        if let Some(batch) = batches.get_mut(large) {
            let rest = batch.split_off(half);
            batches.insert(large + 1, rest);
        }
    }
    batches
}

/// Takes what the gateway decides, until it is gone and all is on disk, or the process must end.
pub(super) async fn collect(spool: Arc<Spool>, mut decisions: mpsc::Receiver<DecisionRecord>, stop: Stop) {
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        match stop.run_until_cancelled(decisions.recv_many(&mut batch, BATCH)).await {
            Some(0) => return,
            Some(_) => {}
            // What is in the channel is still written.
            None => {
                decisions.close();
                while decisions.recv_many(&mut batch, BATCH).await > 0 {}
                if batch.is_empty() {
                    return;
                }
            }
        }
        let adding = Arc::clone(&spool);
        drop(tokio::task::spawn_blocking(move || adding.add(batch)).await);
    }
}

#[cfg(test)]
mod tests;

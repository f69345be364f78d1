// SPDX-License-Identifier: Apache-2.0
//! How far something that takes long has got: one line on a terminal, nothing anywhere else.

use crate::output::escaped;
use http::HeaderValue;
use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::time::interval_at;

/// The line is written anew this often at most, in milliseconds.
const EVERY: u64 = 100;

/// What is waited for is told from then on, and this often.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Waits for something of unknown length, and tells what, and for how long by now.
pub(super) async fn waiting<Done>(what: &str, work: impl Future<Output = Done>) -> Done {
    let is_shown = std::io::stderr().is_terminal();
    let what = escaped(what);
    telling(&what, work, |line| {
        if is_shown {
            // Carriage return and "erase to the end of the line": the line is ours.
            drop(write!(std::io::stderr().lock(), "\r\u{1b}[K{line}"));
        }
    })
    .await
}

/// Tells it to `show`; an empty line in the end, if there was any.
async fn telling<Done>(what: &str, work: impl Future<Output = Done>, mut show: impl FnMut(&str)) -> Done {
    let begun = tokio::time::Instant::now();
    let mut told = interval_at(begun + TOLD_EVERY, TOLD_EVERY);
    let mut is_told = false;
    let mut work = std::pin::pin!(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            now = told.tick() => {
                is_told = true;
                show(&format!("{what}: {} s", (now - begun).as_secs()));
            }
        }
    };
    if is_told {
        show("");
    }
    done
}

/// Bytes that were carried, and how many there are if that is known.
#[derive(Debug)]
pub(super) struct Progress {
    carried: AtomicU64,
    expected: AtomicU64,
    shown_at: AtomicU64,
    began: Instant,
    is_shown: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        let none = || AtomicU64::new(0);
        let is_shown = std::io::stderr().is_terminal();
        Self { carried: none(), expected: none(), shown_at: none(), began: Instant::now(), is_shown }
    }

    /// What a header says of the whole.
    pub(super) fn expect(&self, length: Option<&HeaderValue>) {
        let length = length.and_then(|length| length.to_str().ok()).and_then(|text| text.parse().ok());
        self.expect_length(length.unwrap_or(0));
    }

    pub(super) fn expect_length(&self, length: u64) {
        self.expected.store(length, Ordering::Relaxed);
    }

    pub(super) fn add(&self, bytes: usize) {
        self.carried.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.is_shown && now >= self.shown_at.load(Ordering::Relaxed) + EVERY {
            self.shown_at.store(now, Ordering::Relaxed);
            self.show();
        }
    }

    fn show(&self) {
        let of = match self.expected.load(Ordering::Relaxed) {
            0 => String::new(),
            expected => format!(" of {}", size(expected)),
        };
        // Carriage return and "erase to the end of the line": the line is ours.
        drop(write!(std::io::stderr().lock(), "\r\u{1b}[K{}{of}", self.text()));
    }

    /// Takes the line away.
    pub(super) fn end(&self) {
        if self.is_shown && self.shown_at.load(Ordering::Relaxed) > 0 {
            drop(write!(std::io::stderr().lock(), "\r\u{1b}[K"));
        }
    }

    /// What was carried, in bytes.
    pub(super) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// What was carried, for people.
    pub(super) fn text(&self) -> String {
        size(self.carried())
    }
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        assert_eq!([0, 1023, 1024, 1_572_864].map(size), ["0 B", "1023 B", "1.0 KiB", "1.5 MiB"]);
    }

    async fn told_of(work: impl Future<Output = u8>) -> (u8, Vec<String>) {
        let mut lines = Vec::new();
        let done = telling("stopping x", work, |line| lines.push(line.to_owned())).await;
        (done, lines)
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_told_and_its_line_taken_away() {
        let long = async {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            7
        };
        assert_eq!(
            told_of(long).await,
            (7, ["stopping x: 1 s", "stopping x: 2 s", ""].map(str::to_owned).to_vec())
        );
        assert_eq!(told_of(async { 3 }).await, (3, Vec::new()), "what is quick leaves no line");
    }
}

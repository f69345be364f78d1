// SPDX-License-Identifier: Apache-2.0
//! How far something that takes long has got: one line on a terminal, nothing anywhere else.

use http::HeaderValue;
use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The line is written anew this often at most, in milliseconds.
const EVERY: u64 = 100;

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

    /// What was carried, for people.
    pub(super) fn text(&self) -> String {
        size(self.carried.load(Ordering::Relaxed))
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
}

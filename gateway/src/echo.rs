// SPDX-License-Identifier: Apache-2.0
//! Keeps a backend that answers with what it was sent from telling the sandbox our credential.
//!
//! Each exact occurrence is overwritten by as many asterisks, so that lengths stay true. Of a body
//! whose length is told, as many bytes wait for the next part as could begin one that is cut in two:
//! always the same number, whatever they are, or what waits would tell a sandbox how much of its guess
//! is right. A body without a length may be an event that somebody waits for: its parts are read one
//! by one. What is asked for from a backend with a credential is never compressed.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use memchr::memmem::Finder;
use postern_common::secret::Secret;
use prometheus_client::metrics::counter::Counter;
use std::sync::Arc;

/// What is shorter is no secret, and found by chance.
const SHORTEST: usize = 8;
const COVER: u8 = b'*';

/// What a backend's credential looks like where it is echoed.
pub(crate) struct Needles {
    finders: Vec<Finder<'static>>,
    echoed: Counter,
}

impl std::fmt::Debug for Needles {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Needles(…)")
    }
}

impl Needles {
    /// Looks for any of these; counts into `echoed`. `None` if none is long enough to look for.
    pub(crate) fn new(texts: &[&Secret<String>], echoed: Counter) -> Option<Arc<Self>> {
        let long = texts.iter().map(|text| text.reveal().as_bytes()).filter(|text| text.len() >= SHORTEST);
        let finders: Vec<_> = long.map(|text| Finder::new(text).into_owned()).collect();
        (!finders.is_empty()).then(|| Arc::new(Self { finders, echoed }))
    }

    /// Covers what is found, where it stands.
    fn cover(&self, bytes: &mut BytesMut) {
        for finder in &self.finders {
            let length = finder.needle().len();
            let found: Vec<usize> = finder.find_iter(bytes).collect();
            for at in found {
                if let Some(place) = bytes.get_mut(at..at + length) {
                    place.fill(COVER);
                    self.echoed.inc();
                }
            }
        }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        self.finders.iter().any(|finder| finder.find(bytes).is_some())
    }

    /// Covers it in the values of headers.
    pub(crate) fn clean(&self, headers: &mut HeaderMap) {
        for value in headers.values_mut() {
            if self.is_in(value.as_bytes()) {
                let mut bytes = BytesMut::from(value.as_bytes());
                self.cover(&mut bytes);
                // Asterisks in place of visible bytes: always a value.
                *value = HeaderValue::from_maybe_shared(bytes.freeze())
                    .unwrap_or_else(|_never| HeaderValue::from_static(""));
            }
        }
    }

    /// The most that could begin an occurrence.
    fn longest_start(&self) -> usize {
        self.finders.iter().map(|finder| finder.needle().len() - 1).max().unwrap_or(0)
    }
}

/// Reads one body as it passes.
#[derive(Debug)]
pub(crate) struct EchoGuard {
    needles: Arc<Needles>,
    /// How many bytes wait.
    waiting: usize,
    held: BytesMut,
}

impl EchoGuard {
    /// For a body whose length is told, or not.
    pub(crate) fn new(needles: Arc<Needles>, has_length: bool) -> Self {
        let waiting = if has_length { needles.longest_start() } else { 0 };
        Self { needles, waiting, held: BytesMut::new() }
    }

    /// The next part, without the credential; perhaps nothing yet.
    pub(crate) fn pass(&mut self, part: Bytes) -> Bytes {
        if self.waiting == 0 && !self.needles.is_in(&part) {
            return part;
        }
        self.held.extend_from_slice(&part);
        let needles = Arc::clone(&self.needles);
        needles.cover(&mut self.held);
        let passed = self.held.len().saturating_sub(self.waiting);
        self.held.split_to(passed).freeze()
    }

    /// What was held back, when nothing more comes.
    pub(crate) fn rest(&mut self) -> Option<Bytes> {
        let rest = self.held.split().freeze();
        (!rest.is_empty()).then_some(rest)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: &str = "hunter2-hunter2";

    fn needles(echoed: &Counter) -> Arc<Needles> {
        Needles::new(&[&Secret::new(SECRET.to_owned())], echoed.clone()).expect("long enough")
    }

    fn passed(parts: &[&[u8]], echoed: &Counter) -> Vec<u8> {
        let mut guard = EchoGuard::new(needles(echoed), true);
        let mut out: Vec<u8> =
            parts.iter().flat_map(|part| guard.pass(Bytes::copy_from_slice(part))).collect();
        out.extend(guard.rest().into_iter().flatten());
        assert!(guard.is_empty());
        out
    }

    #[test]
    fn an_echo_is_covered_wherever_the_body_is_cut() {
        let body = format!("token={SECRET}; again {SECRET}{SECRET} hunter2-hunter");
        let cover = "*".repeat(SECRET.len());
        let wanted = body.replace(SECRET, &cover);
        for cut in 0..body.len() {
            let echoed = Counter::default();
            let (one, two) = body.as_bytes().split_at(cut);
            assert_eq!(String::from_utf8_lossy(&passed(&[one, two], &echoed)), wanted, "{cut}");
            assert_eq!(echoed.get(), 3);
        }
        let bytes: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
        assert_eq!(passed(&bytes, &Counter::default()), wanted.as_bytes());
    }

    #[test]
    fn what_waits_tells_nothing_of_what_it_is() {
        let lengths = |parts: &[&str]| -> Vec<usize> {
            let mut guard = EchoGuard::new(needles(&Counter::default()), true);
            parts.iter().map(|part| guard.pass(Bytes::copy_from_slice(part.as_bytes())).len()).collect()
        };
        let (right, wrong) = ("a file that ends with hunter2-", "a file that ends with wrong-x-");
        assert_eq!(lengths(&[right, "and more"]), lengths(&[wrong, "and more"]));
    }

    #[test]
    fn an_event_passes_at_once_and_whole() {
        let mut guard = EchoGuard::new(needles(&Counter::default()), false);
        for part in ["data: hunter3\n\n", "data: hun", "ter2-"] {
            assert_eq!(guard.pass(Bytes::copy_from_slice(part.as_bytes())), part);
        }
        let covered = guard.pass(Bytes::from(format!("data: {SECRET}\n\n")));
        assert_eq!(covered, format!("data: {}\n\n", "*".repeat(SECRET.len())));
        assert!(Needles::new(&[&Secret::new("short".to_owned())], Counter::default()).is_none());
    }

    #[test]
    fn headers_are_covered_too() {
        let mut headers = HeaderMap::new();
        headers.insert("x-debug", HeaderValue::from_static("Bearer hunter2-hunter2"));
        headers.insert("x-other", HeaderValue::from_static("hunter2"));
        needles(&Counter::default()).clean(&mut headers);
        assert_eq!(headers["x-debug"], "Bearer ***************");
        assert_eq!(headers["x-other"], "hunter2");
    }

    proptest! {
        #[test]
        fn nothing_but_echoes_is_changed(parts in prop::collection::vec("(hunter2-|hunter2|h|x| ){0,6}", 0..8)) {
            let parts: Vec<&[u8]> = parts.iter().map(String::as_bytes).collect();
            let whole = String::from_utf8(parts.concat()).expect("text");
            let found = String::from_utf8(passed(&parts, &Counter::default())).expect("text");
            prop_assert_eq!(found.len(), whole.len());
            prop_assert!(!found.contains(SECRET));
            prop_assert!(found.bytes().zip(whole.bytes()).all(|(found, was)| found == was || found == COVER));
        }
    }
}

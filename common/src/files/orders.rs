// SPDX-License-Identifier: Apache-2.0
//! What the orchestrator tells a sync process on its standard input, and hears on its output: one
//! JSON object a line.
//!
//! ```text
//! begin ──▶ hydrating ── hydrated ──▶ watching ── (token, flush) ──▶ flushed, exit
//! begin {only: flush} ─────────────▶ flushed, exit
//! ```
//! The end of its input ends it at once: what was not told `flushed` may not be in the store.

use super::{Bounds, Report};
use crate::secret::Secret;
use serde::{Deserialize, Serialize};

/// The list of files that were put into a sandbox's tree before its sync began: an [`Entry`] a line,
/// in the sync's own folder.
///
/// [`Entry`]: super::Entry
pub const FILLED: &str = "filled";

/// The longest line in either direction.
pub const LINE_BYTES: usize = 1 << 20;

/// An order.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Order {
    /// Comes first, and once.
    Begin(Begin),
    /// The token to use from now on.
    Token(#[serde(with = "shown")] Secret<String>),
    /// Bring everything to the store, tell, and exit.
    Flush {
        /// How long that may take.
        within_millis: u64,
    },
}

/// What a sync process needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// Its session's token.
    #[serde(with = "shown")]
    pub token: Secret<String>,
    /// Whether there is nothing to bring in and to watch: the sandbox has ended.
    pub only_flush: bool,
    /// Whether the machine stopped while the sandbox's disk was written, or writing it failed: what the
    /// sync remembers is then not believed, and nothing replaces or removes what the store has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_torn: bool,
    /// How much is carried at most.
    pub bounds: Bounds,
    /// Whether to tell each file that is in the store.
    pub tells_each: bool,
}

/// What a sync process tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Told {
    /// How far it is with bringing in or flushing.
    Progress {
        /// Files that are done.
        files: u64,
        /// Of so many.
        of_files: u64,
        /// Bytes that are done.
        bytes: u64,
        /// Of so many.
        of_bytes: u64,
    },
    /// Everything is here.
    Hydrated(Report),
    /// A change that was acknowledged by the store, if [`Begin::tells_each`].
    Synced {
        /// Where.
        path: String,
        /// The content's digest, if it is a file.
        digest: Option<super::Digest>,
    },
    /// Changes were carried while it watched: all since the last of these.
    Carried {
        /// What.
        report: Report,
        /// From the first event to the store's answer.
        lag_millis: u64,
    },
    /// Everything is in the store, but for what the report names.
    Flushed(Report),
    /// It could not be done; the process ends.
    Failed {
        /// Why, for the operator.
        why: String,
    },
}

/// Tokens are secret everywhere but on this channel, which is a pipe between two processes.
mod shown {
    use crate::secret::Secret;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(token: &Secret<String>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(token.reveal())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Secret<String>, D::Error> {
        String::deserialize(from).map(Secret::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_one_line_and_shows_its_token_there_only() {
        let begin = Begin {
            token: Secret::new("a.b.c".to_owned()),
            only_flush: false,
            is_torn: false,
            bounds: Bounds::default(),
            tells_each: false,
        };
        let line = serde_json::to_string(&Order::Begin(begin)).expect("JSON");
        assert!(line.contains("a.b.c") && !line.contains('\n'));
        let read: Order = serde_json::from_str(&line).expect("reads");
        assert!(!format!("{read:?}").contains("a.b.c"), "{read:?}");
        assert!(matches!(read, Order::Begin(begin) if begin.token.reveal() == "a.b.c"));
    }

    #[test]
    fn names_with_line_breaks_stay_on_one_line() {
        let told = Told::Synced { path: "a\nb".to_owned(), digest: None };
        assert!(!serde_json::to_string(&told).expect("JSON").contains('\n'));
    }
}

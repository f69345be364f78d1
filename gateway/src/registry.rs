// SPDX-License-Identifier: Apache-2.0
//! The sessions that live, as the control stream tells them.
//!
//! A good signature is not enough to be let in: the session must be here and live, be bound to the
//! peer that sent the token, and have all that the token claims. Ended sessions stay as bare ids
//! until their last token has expired, so memory stays bounded.
//!
//! ```text
//!            open                  end, or expires_at           until
//! unknown ─────────▶ live ──────────────────────────▶ ended ─────────▶ unknown
//!                    └─ open again: new tokens, peer, end (streams in flight go on)
//! ```

use crate::authorize::EntityCache;
use crate::identify::Caller;
use crate::limits::SessionLimiter;
use crate::reject::Reject;
use jiff::Timestamp;
use postern_common::control::EndedSession;
use postern_common::id::SandboxId;
use postern_common::session::{AcceptedToken, Grant, Peer, Session};
use postern_common::token::Claims;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Where a connection came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// The unix socket at this path, which one sandbox alone can reach.
    Socket(Arc<Path>),
    /// A TCP peer.
    Address(IpAddr),
}

/// Replaced tokens of one session that are remembered, to tell an old token from a forged one.
const REPLACED_TOKENS: usize = 8;

/// Tokens of one admitted session that are known besides the newest.
const ADMITTED_TOKENS: usize = 255;
/// Sessions that may be admitted by their own tokens, at some 2 KiB each.
const ADMITTED_SESSIONS: usize = 200_000;

/// A session that lives, with what belongs to it alone.
#[derive(Debug)]
pub(crate) struct LiveSession {
    pub(crate) session: Arc<Session>,
    /// Cancelled when the session ends; everything in flight listens to it.
    pub(crate) ended: CancellationToken,
    pub(crate) limiter: Arc<SessionLimiter>,
    /// What policies know of the session.
    pub(crate) entities: EntityCache,
    /// Of an admitted session: what is in flight with each of its tokens.
    token_ends: Arc<TokenEnds>,
    replaced: Vec<String>,
}

/// Ends what is in flight with one token, when the token's own time is over or it is denied: a
/// session that its tokens vouch for lives longer than each of them.
#[derive(Debug, Default)]
struct TokenEnds(Mutex<BTreeMap<String, (Timestamp, CancellationToken)>>);

impl TokenEnds {
    fn ends(&self) -> MutexGuard<'_, BTreeMap<String, (Timestamp, CancellationToken)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends and forgets the tokens that `is_over` names.
    fn end(&self, is_over: impl Fn(&str, Timestamp) -> bool) {
        self.ends().retain(|jti, (until, end)| {
            let is_over = is_over(jti, *until);
            if is_over {
                end.cancel();
            }
            !is_over
        });
    }
}

impl LiveSession {
    fn new(session: Session, before: Option<&Self>) -> Self {
        let mut replaced = Vec::new();
        if let Some(before) = before {
            let gone = before.session.tokens.iter().map(|token| &token.jti);
            let gone = gone.filter(|jti| session.tokens.iter().all(|token| token.jti != **jti));
            replaced.extend(gone.chain(&before.replaced).take(REPLACED_TOKENS).cloned());
        }
        Self {
            session: Arc::new(session),
            ended: before.map_or_else(CancellationToken::new, |before| before.ended.clone()),
            limiter: before.map_or_else(Arc::default, |before| Arc::clone(&before.limiter)),
            entities: EntityCache::default(),
            token_ends: before.map_or_else(Arc::default, |before| Arc::clone(&before.token_ends)),
            replaced,
        }
    }

    /// Whether this is the session of the same principal. Anything else of it (operations, labels,
    /// tokens, peer, end) may change while it lives.
    fn is_same_principal(&self, other: &Session) -> bool {
        self.session.tenant == other.tenant
            && self.session.user_id == other.user_id
            && self.session.conversation_id == other.conversation_id
    }

    /// Whether requests of this session may come from `source`.
    pub(crate) fn is_bound_to(&self, source: &Source) -> bool {
        match (&self.session.peer, source) {
            (Peer::Socket(own), Source::Socket(path)) => **own == **path,
            (Peer::Pod { addresses, .. }, Source::Address(address)) => addresses.contains(address),
            (Peer::Address(own), Source::Address(address)) => own == address,
            (Peer::Unbound, Source::Address(_)) => true,
            (Peer::Socket(_), Source::Address(_))
            | (Peer::Pod { .. } | Peer::Address(_) | Peer::Unbound, Source::Socket(_)) => false,
        }
    }

    /// Whether the token is one of this session's and claims no more than it.
    ///
    /// # Errors
    /// [`Reject::TokenClaimsMore`] is also what a stolen signing key comes to.
    pub(crate) fn accepts(&self, claims: &Claims, now: Timestamp) -> Result<(), Reject> {
        let session = &self.session;
        if claims.tenant != session.tenant {
            return Err(Reject::TokenClaimsMore("tenant"));
        }
        if claims.user_id != session.user_id {
            return Err(Reject::TokenClaimsMore("user"));
        }
        if claims.conversation_id != session.conversation_id {
            return Err(Reject::TokenClaimsMore("conversation"));
        }
        let has = |grant: &Grant| {
            session.operations.contains(grant)
                || (*grant != Grant::FilesSync && session.operations.contains(&Grant::Everything))
        };
        if !claims.operations.iter().all(has) {
            return Err(Reject::TokenClaimsMore("list of operations"));
        }
        match session.tokens.iter().find(|token| token.jti == claims.jti) {
            Some(AcceptedToken { until, .. }) if *until > now => {}
            Some(_) => return Err(Reject::TokenReplaced),
            None if self.replaced.contains(&claims.jti) => return Err(Reject::TokenReplaced),
            None => return Err(Reject::TokenClaimsMore("id")),
        }
        if session.expires_at <= now { Err(Reject::SessionExpired) } else { Ok(()) }
    }

    /// Ends with this token, at the latest with the session.
    pub(crate) fn end_of_token(&self, jti: &str, until: Timestamp) -> CancellationToken {
        let mut ends = self.token_ends.ends();
        let (_, end) = ends.entry(jti.to_owned()).or_insert_with(|| (until, self.ended.child_token()));
        end.clone()
    }

    /// Whether this is a token that is accepted, and not one that was replaced.
    pub(crate) fn has_token(&self, jti: &str) -> bool {
        self.session.tokens.iter().any(|token| token.jti == jti)
    }

    fn knows_token(&self, jti: &str) -> bool {
        self.has_token(jti) || self.replaced.iter().any(|old| old == jti)
    }
}

#[derive(Debug)]
enum Entry {
    Live(Arc<LiveSession>),
    Ended { until: Timestamp },
}

/// What is known of a sandbox's session.
#[derive(Debug, Clone)]
pub(crate) enum Lookup {
    Live(Arc<LiveSession>),
    Ended,
    Unknown,
}

/// All sessions of this gateway.
#[derive(Debug)]
pub(crate) struct Registry {
    entries: RwLock<Entries>,
    /// Counts changes, for whoever waits for one.
    changes: watch::Sender<u64>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { entries: RwLock::default(), changes: watch::Sender::new(0) }
    }
}

type Entries = HashMap<SandboxId, Entry>;

fn open(entries: &mut Entries, session: Session) -> Option<Arc<LiveSession>> {
    let before = match entries.get(&session.sandbox_id) {
        Some(Entry::Ended { .. }) => return None,
        Some(Entry::Live(before)) if before.is_same_principal(&session) => Some(Arc::clone(before)),
        Some(Entry::Live(other)) => {
            // Ids are never reused; if one is, nothing of the other session may go on.
            other.ended.cancel();
            None
        }
        None => None,
    };
    let id = session.sandbox_id.clone();
    let live = Arc::new(LiveSession::new(session, before.as_deref()));
    entries.insert(id, Entry::Live(Arc::clone(&live)));
    Some(live)
}

fn end(entries: &mut Entries, ended: EndedSession) {
    let before = entries.insert(ended.sandbox_id, Entry::Ended { until: ended.until });
    if let Some(Entry::Live(live)) = before {
        live.ended.cancel();
    }
}

impl Registry {
    /// Opens a session, or changes one that lives. A session that ended stays ended.
    ///
    /// Returns it as it is now; `None` if it had ended.
    pub(crate) fn open(&self, session: Session) -> Option<Arc<LiveSession>> {
        self.change(|entries| open(entries, session))
    }

    /// Opens a session that its own token vouches for, or adds token and operations to the one that
    /// lives; each token is still judged by what it claims itself.
    ///
    /// Returns it as it is now; `None` if it had ended, or there are too many.
    pub(crate) fn admit(&self, mut session: Session, now: Timestamp) -> Option<Arc<LiveSession>> {
        self.change(|entries| {
            match entries.get(&session.sandbox_id) {
                Some(Entry::Live(live)) if live.is_same_principal(&session) => {
                    let known = &live.session;
                    let tokens = known.tokens.iter().filter(|token| token.until > now);
                    session.tokens.extend(tokens.take(ADMITTED_TOKENS).cloned());
                    let more = known.operations.iter().filter(|grant| !session.operations.contains(grant));
                    let more: Vec<Grant> = more.cloned().collect();
                    session.operations.extend(more);
                    session.expires_at = session.expires_at.max(known.expires_at);
                }
                None if entries.len() >= ADMITTED_SESSIONS => return None,
                _ => {}
            }
            open(entries, session)
        })
    }

    /// Ends the sessions that `is_cut` names and forgets them: whoever of them may still come is
    /// admitted anew.
    pub(crate) fn cut(&self, is_cut: impl Fn(&Session) -> bool) {
        self.change(|entries| {
            entries.retain(|_, entry| match entry {
                Entry::Live(live) if is_cut(&live.session) => {
                    live.ended.cancel();
                    false
                }
                Entry::Live(_) | Entry::Ended { .. } => true,
            });
        });
    }

    /// Ends a session: everything in flight stops, and its tokens are refused by name.
    pub(crate) fn end(&self, ended: EndedSession) {
        self.change(|entries| end(entries, ended));
    }

    /// Makes the registry hold exactly these, in one change. Sessions that live before and after
    /// go on.
    ///
    /// Returns each session as it is now, in order; `None` where it had ended. Cost: linear.
    pub(crate) fn replace(
        &self,
        sessions: Vec<Session>,
        ended: Vec<EndedSession>,
    ) -> Vec<Option<Arc<LiveSession>>> {
        let keep: HashSet<SandboxId> = sessions.iter().map(|session| session.sandbox_id.clone()).collect();
        self.change(|entries| {
            entries.retain(|id, entry| match entry {
                Entry::Live(live) if !keep.contains(id) => {
                    live.ended.cancel();
                    false
                }
                Entry::Live(_) | Entry::Ended { .. } => true,
            });
            ended.into_iter().for_each(|session| end(entries, session));
            sessions.into_iter().map(|session| open(entries, session)).collect()
        })
    }

    /// Ends what is in flight with the tokens that `is_over` names, by id and end.
    pub(crate) fn end_tokens(&self, is_over: impl Fn(&str, Timestamp) -> bool) {
        self.read(|entries| {
            let live = entries.values().filter_map(|entry| match entry {
                Entry::Live(live) => Some(live),
                Entry::Ended { .. } => None,
            });
            live.for_each(|live| live.token_ends.end(&is_over));
        });
    }

    /// Ends sessions whose time is over, and forgets ended ones whose tokens have all expired.
    pub(crate) fn sweep(&self, now: Timestamp) {
        self.end_tokens(|_jti, until| until <= now);
        let is_due = |entry: &Entry| match entry {
            Entry::Live(live) => live.session.expires_at <= now,
            Entry::Ended { until } => *until <= now,
        };
        if !self.read(|entries| entries.values().any(is_due)) {
            return;
        }
        self.change(|entries| {
            entries.retain(|_, entry| match entry {
                Entry::Live(live) if live.session.expires_at <= now => {
                    live.ended.cancel();
                    let last = live.session.tokens.iter().map(|token| token.until).max().unwrap_or(now);
                    let was_kept = last > now;
                    *entry = Entry::Ended { until: last };
                    was_kept
                }
                Entry::Ended { until } => *until > now,
                Entry::Live(_) => true,
            });
        });
    }

    /// What is known now.
    pub(crate) fn find(&self, id: &SandboxId) -> Lookup {
        self.read(|entries| match entries.get(id) {
            Some(Entry::Live(live)) => Lookup::Live(Arc::clone(live)),
            Some(Entry::Ended { .. }) => Lookup::Ended,
            None => Lookup::Unknown,
        })
    }

    /// Waits at most `bound` for a session that knows this token; then says what is known.
    pub(crate) async fn find_with_token(&self, id: &SandboxId, jti: &str, bound: Duration) -> Lookup {
        let mut changes = self.changes.subscribe();
        let is_settled = |found: &Lookup| match found {
            Lookup::Live(live) => live.knows_token(jti),
            Lookup::Ended => true,
            Lookup::Unknown => false,
        };
        let wait = async {
            loop {
                let found = self.find(id);
                if is_settled(&found) || changes.changed().await.is_err() {
                    return found;
                }
            }
        };
        match tokio::time::timeout(bound, wait).await {
            Ok(found) => found,
            Err(_elapsed) => self.find(id),
        }
    }

    /// Judges a caller again by what is known of its session now: minutes may have passed, in
    /// which the session ended, lost operations or its token, or was bound to another peer.
    ///
    /// # Errors
    /// As when the caller was let in.
    pub(crate) fn judge_again(&self, caller: &Caller, now: Timestamp) -> Result<(), Reject> {
        let live = match self.find(&caller.session.session.sandbox_id) {
            Lookup::Live(live) => live,
            Lookup::Ended | Lookup::Unknown => return Err(Reject::SessionEnded),
        };
        // Looked at after the entry: another session of this id cancels the one before it.
        if caller.ended.is_cancelled() {
            return Err(Reject::SessionEnded);
        }
        live.accepts(&caller.claims, now)?;
        if live.is_bound_to(&caller.source) { Ok(()) } else { Err(Reject::WrongPeer) }
    }

    fn read<Found>(&self, look: impl FnOnce(&Entries) -> Found) -> Found {
        look(&self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<Changed>(&self, apply: impl FnOnce(&mut Entries) -> Changed) -> Changed {
        let changed = apply(&mut self.entries.write().unwrap_or_else(PoisonError::into_inner));
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
        changed
    }
}

#[cfg(test)]
mod tests;

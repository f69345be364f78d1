// SPDX-License-Identifier: Apache-2.0
//! Connections that are open: how many, of whom, and which of them do nothing.
//!
//! When there are too many, one that does nothing gives way to a new one: the one that has done so
//! for longest, of the peer that has most. So peers that hold connections without using them lose
//! them first, and nobody keeps others out by holding on.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What one connection does.
#[derive(Debug)]
pub(super) struct Activity {
    opened: Instant,
    streams: AtomicUsize,
    has_begun: AtomicBool,
    /// Nanoseconds from `opened` to when its last stream ended.
    idle_since: AtomicU64,
    /// Cancelled when it must make room for another.
    pub(super) evicted: CancellationToken,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            opened: Instant::now(),
            streams: AtomicUsize::new(0),
            has_begun: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
            evicted: CancellationToken::new(),
        }
    }
}

impl Activity {
    /// A request begins; it ends with what comes back, which goes into its answer's body.
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.streams.fetch_add(1, Ordering::AcqRel);
        self.has_begun.store(true, Ordering::Release);
        InFlight(Arc::clone(self))
    }

    /// Since when nothing is in flight; `None` if something is.
    fn idle_since(&self) -> Option<Instant> {
        let is_idle = self.streams.load(Ordering::Acquire) == 0;
        is_idle.then(|| self.opened + Duration::from_nanos(self.idle_since.load(Ordering::Acquire)))
    }

    /// Resolves when nothing has been in flight for `first` without any request so far, or for
    /// `between` after one.
    pub(super) async fn idle(&self, first: Duration, between: Duration) {
        loop {
            let bound = if self.has_begun.load(Ordering::Acquire) { between } else { first };
            let now = Instant::now();
            let wait = match self.idle_since() {
                Some(since) if now.duration_since(since) >= bound => return,
                Some(since) => bound.saturating_sub(now.duration_since(since)),
                None => bound,
            };
            tokio::time::sleep(wait).await;
        }
    }
}

/// A request that is being answered, or what came of it.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let since = u64::try_from(self.0.opened.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.idle_since.store(since, Ordering::Release);
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An answer's body, which keeps its request in flight.
#[derive(Debug)]
pub(super) struct Tracked<Inner> {
    body: Inner,
    _in_flight: InFlight,
}

impl<Inner> Tracked<Inner> {
    pub(super) const fn new(body: Inner, in_flight: InFlight) -> Self {
        Self { body, _in_flight: in_flight }
    }
}

impl<Inner: Body<Data = Bytes> + Unpin> Body for Tracked<Inner> {
    type Data = Bytes;
    type Error = Inner::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Inner::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[derive(Debug, Default)]
struct Open {
    count: usize,
    next: u64,
    peers: HashMap<IpAddr, HashMap<u64, Arc<Activity>>>,
}

impl Open {
    fn remove(&mut self, address: IpAddr, id: u64) -> Option<Arc<Activity>> {
        let of_peer = self.peers.get_mut(&address)?;
        let removed = of_peer.remove(&id)?;
        if of_peer.is_empty() {
            self.peers.remove(&address);
        }
        self.count = self.count.saturating_sub(1);
        Some(removed)
    }

    /// The connection of one peer that has done nothing for longest.
    fn idlest(&self, address: IpAddr) -> Option<u64> {
        let idle = self.peers.get(&address)?.iter();
        idle.filter_map(|(id, activity)| Some((activity.idle_since()?, *id))).min().map(|(_, id)| id)
    }

    /// The peer that has most connections, of those that have one that does nothing.
    fn busiest(&self) -> Option<IpAddr> {
        let mut peers: Vec<_> = self.peers.iter().map(|(address, own)| (own.len(), *address)).collect();
        peers.sort_unstable_by(|one, other| other.cmp(one));
        peers.into_iter().map(|(_, address)| address).find(|address| self.idlest(*address).is_some())
    }

    /// Makes an idle connection of this peer go; `false` if it has none.
    fn evict_of(&mut self, address: IpAddr) -> bool {
        let victim = self.idlest(address).and_then(|id| self.remove(address, id));
        victim.map(|activity| activity.evicted.cancel()).is_some()
    }
}

/// All open connections of a listener.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    most_of_peer: usize,
    open: Mutex<Open>,
}

/// How a new connection came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entered {
    Freely,
    /// Another one had to go.
    Instead,
}

/// One connection, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    connections: Arc<Connections>,
    address: IpAddr,
    id: u64,
    pub(super) activity: Arc<Activity>,
}

impl Connections {
    pub(super) fn new(most: usize, most_of_peer: usize) -> Arc<Self> {
        Arc::new(Self { most, most_of_peer, open: Mutex::default() })
    }

    /// Counts a new connection, in place of an idle one if there are too many; `None` if none is
    /// idle. Cost: grows with the number of peers when all places are taken.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<(Counted, Entered)> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = open.peers.get(&address).map_or(0, HashMap::len);
        let full = match () {
            () if of_peer >= self.most_of_peer => Some(address),
            () if open.count >= self.most => Some(open.busiest()?),
            () => None,
        };
        let entered = if full.is_some() { Entered::Instead } else { Entered::Freely };
        if full.is_some_and(|address| !open.evict_of(address)) {
            return None;
        }
        let id = open.next;
        open.next = open.next.wrapping_add(1);
        open.count += 1;
        let activity = Arc::<Activity>::default();
        open.peers.entry(address).or_default().insert(id, Arc::clone(&activity));
        Some((Counted { connections: Arc::clone(self), address, id, activity }, entered))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        drop(open.remove(self.address, self.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    #[tokio::test(start_paused = true)]
    async fn the_idlest_of_the_busiest_peer_gives_way() {
        let connections = Connections::new(4, 4);
        let enter = |number| {
            let entered = connections.enter(peer(number));
            entered.map(|(counted, how)| (counted, how == Entered::Instead))
        };
        let (first, _) = enter(1).expect("there is room");
        tokio::time::advance(Duration::from_secs(1)).await;
        let (second, _) = enter(1).expect("there is room");
        let (busy, _) = enter(1).expect("there is room");
        let in_flight = busy.activity.begin();
        let (other, _) = enter(2).expect("there is room");
        let (third, is_instead) = enter(3).expect("one gives way");
        assert!(is_instead && first.activity.evicted.is_cancelled());
        for kept in [&second, &busy, &other, &third] {
            assert!(!kept.activity.evicted.is_cancelled());
        }
        let (_fourth, _) = enter(3).expect("another gives way");
        assert!(second.activity.evicted.is_cancelled(), "never one with a request in flight");
        drop((first, second, in_flight));
        assert!(enter(4).is_some_and(|(_, is_instead)| is_instead), "what gave way is not counted twice");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_with_all_its_connections_in_use_gets_no_more_and_others_do() {
        let connections = Connections::new(4, 2);
        let mut held: Vec<_> = (0..2).filter_map(|_| connections.enter(peer(1))).collect();
        let streams: Vec<_> = held.iter().map(|(counted, _)| counted.activity.begin()).collect();
        assert!(connections.enter(peer(1)).is_none());
        held.extend(connections.enter(peer(2)));
        assert_eq!(held.len(), 3);
        drop(streams);
        assert!(connections.enter(peer(1)).is_some_and(|(_, how)| how == Entered::Instead));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_its_last_answers_end() {
        let activity = Arc::<Activity>::default();
        let (first, between) = (Duration::from_secs(30), Duration::from_secs(60));
        let is_idle_within = async |wait: u64| {
            tokio::time::timeout(Duration::from_secs(wait), activity.idle(first, between)).await.is_ok()
        };
        assert!(!is_idle_within(29).await && is_idle_within(2).await, "before its first request");
        let in_flight = activity.begin();
        assert!(!is_idle_within(1000).await, "while a request is in flight");
        drop(in_flight);
        assert!(!is_idle_within(59).await && is_idle_within(2).await, "after it");
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Taking a warm sandbox: off the shelf at once, for good when its claimer's sandbox is written down.

use super::{Claimed, Place, Pool, Ready};
use crate::runtime::{Agent, Running};
use crate::store::Asked;
use postern_common::id::SandboxId;
use std::time::Duration;
use tokio::time::Instant;

/// How long one on a shelf may take to be reached. It is idle, so a busy machine is the reason.
const REACH_TIME: Duration = Duration::from_secs(2);

/// How long one that is given away is not replaced yet: much longer than it takes to get it. Files and start
/// commands may take longer still, which nobody else should wait for.
pub(super) const GIVEN_TIME: Duration = Duration::from_secs(1);

/// A warm sandbox in the hands of whoever wants to claim it. Dropped, it goes back to its shelf:
/// it knows nothing of them yet.
#[derive(Debug)]
pub(crate) struct Claim {
    pool: Pool,
    place: Place,
    /// `None` once it is claimed or was found dead.
    ready: Option<Ready>,
    pub(super) agent: Option<Agent>,
    given: Option<Given>,
}

/// A warm sandbox on its way to who asked for it. Once this is dropped another is made in its place; if that
/// takes longer than [`GIVEN_TIME`], then.
#[derive(Debug)]
pub(crate) struct Given {
    pool: Pool,
    sandbox: SandboxId,
}

impl Drop for Given {
    fn drop(&mut self) {
        self.pool.shelves().given.remove(&self.sandbox);
        self.pool.0.changed.notify_one();
    }
}

impl Claim {
    /// Its id.
    #[must_use]
    pub(crate) fn sandbox(&self) -> Option<&SandboxId> {
        self.ready.as_ref().map(|ready| &ready.running.sandbox)
    }

    /// It is written down as its claimer's: what it is, the way to it, and what is kept until they have it. It
    /// never goes back.
    #[must_use]
    pub(crate) fn settle(mut self) -> Option<(Running, Agent, Given)> {
        let ready = self.ready.take()?;
        self.pool.shelves().busy.remove(&ready.running.sandbox);
        Some((ready.running, self.agent.take()?, self.given.take()?))
    }

    /// It cannot be used: it ends.
    pub(crate) fn discard(mut self) {
        if let Some(ready) = self.ready.take() {
            self.pool.end(ready.running.sandbox);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(ready) = self.ready.take() {
            self.pool.shelve(self.place.clone(), ready);
        }
    }
}

impl Pool {
    /// The oldest warm sandbox that is just what is asked for and can be reached; `None` if there is
    /// none, and then one is made.
    pub(crate) async fn take(&self, place: &Place, asked: &Asked) -> Option<Claim> {
        while let Some(mut claim) = self.pick(place, asked) {
            let reached = match claim.sandbox() {
                Some(sandbox) => tokio::time::timeout(REACH_TIME, self.0.host.connect(sandbox)).await,
                None => continue,
            };
            match reached {
                Ok(Ok(agent)) => {
                    claim.agent = Some(agent);
                    self.shelves().count(&place.template, Claimed::Hit);
                    return Some(claim);
                }
                Ok(Err(error)) => {
                    tracing::warn!(sandbox = ?claim.sandbox(), error = &error as &dyn std::error::Error, "a warm sandbox is dead");
                    claim.discard();
                }
                Err(_late) => claim.discard(),
            }
        }
        let mut shelves = self.shelves();
        if shelves.wanted.contains_key(place) {
            shelves.count(&place.template, Claimed::Miss);
        }
        None
    }

    pub(super) fn pick(&self, place: &Place, asked: &Asked) -> Option<Claim> {
        let mut shelves = self.shelves();
        let shelf = shelves.ready.get_mut(place)?;
        let fits = shelf.iter().position(|ready| ready.asked == *asked)?;
        let ready = shelf.remove(fits)?;
        let sandbox = ready.running.sandbox.clone();
        shelves.busy.insert(sandbox.clone());
        shelves.given.insert(sandbox.clone(), (place.clone(), Instant::now()));
        drop(shelves);
        let (pool, place, given) = (self.clone(), place.clone(), Given { pool: self.clone(), sandbox });
        Some(Claim { pool, place, ready: Some(ready), agent: None, given: Some(given) })
    }
}

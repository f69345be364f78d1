// SPDX-License-Identifier: Apache-2.0
//! Taking a warm sandbox: off the shelf at once, for good when its claimer's sandbox is written down.

use super::{Claimed, Place, Pool, Ready};
use crate::runtime::{Agent, Running};
use crate::store::Asked;
use postern_common::id::SandboxId;
use std::time::Duration;

/// How long one on a shelf may take to be reached. It is idle, so a busy machine is the reason.
const REACH_TIME: Duration = Duration::from_secs(2);

/// A warm sandbox in the hands of whoever wants to claim it. Dropped, it goes back to its shelf:
/// it knows nothing of them yet.
#[derive(Debug)]
pub(crate) struct Claim {
    pool: Pool,
    place: Place,
    /// `None` once it is claimed or was found dead.
    ready: Option<Ready>,
    agent: Option<Agent>,
}

impl Claim {
    /// Its id.
    #[must_use]
    pub(crate) fn sandbox(&self) -> Option<&SandboxId> {
        self.ready.as_ref().map(|ready| &ready.running.sandbox)
    }

    /// It is written down as its claimer's: what it is, and the way to it. It never goes back.
    #[must_use]
    pub(crate) fn settle(mut self) -> Option<(Running, Agent)> {
        let ready = self.ready.take()?;
        self.pool.shelves().busy.remove(&ready.running.sandbox);
        Some((ready.running, self.agent.take()?))
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

    fn pick(&self, place: &Place, asked: &Asked) -> Option<Claim> {
        let mut shelves = self.shelves();
        let shelf = shelves.ready.get_mut(place)?;
        let fits = shelf.iter().position(|ready| ready.asked == *asked)?;
        let ready = shelf.remove(fits)?;
        shelves.busy.insert(ready.running.sandbox.clone());
        drop(shelves);
        self.0.changed.notify_one();
        Some(Claim { pool: self.clone(), place: place.clone(), ready: Some(ready), agent: None })
    }
}

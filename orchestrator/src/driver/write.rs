// SPDX-License-Identifier: Apache-2.0
//! Writing a wish down: the sandbox, its first session and, if it is a warm one, the claim, in one change.
//! Nothing of it exists before, and gateways are told of its session once its door is there.

use super::{Cause, DriveError, Driver, First, Parts, Wish, entry, keep, log, signed, start};
use crate::lifecycle::{Event, State};
use crate::pool::{Claim, Given};
use crate::runtime::{Agent, Running};
use crate::store::{Action, AddedSandbox, SandboxRow, Terms};
use postern_common::clock;
use postern_common::secret::Secret;

/// A sandbox that is written down, with its first token and, if it is a warm one, the way to it.
pub(super) struct Written {
    pub(super) row: SandboxRow,
    pub(super) token: Secret<String>,
    pub(super) warm: Option<(Running, Agent, Given)>,
    pub(super) start: First,
}

impl Driver {
    /// Writes a wish down; the caller is in the lane that its sandbox will have.
    ///
    /// # Errors
    /// [`DriveError`] if it is not to be, or could not be written; and if it has no door, which fails it.
    pub(super) async fn write_down(&self, wish: Wish, cause: Cause) -> Result<Written, DriveError> {
        let Wish { new, quotas, level, key, start, claim } = wish;
        let Parts { store, host, sessions, .. } = self.parts();
        let now = clock::now();
        let idle_at = now.saturating_add(signed(new.idle)).unwrap_or(now);
        let (state, place) = (State::Creating, store.place().to_owned());
        let (reason, running, kept, created_at) = (None, None, None, now);
        let row = SandboxRow { new, state, reason, running, created_at, idle_at, place, kept };
        let too_much = self.parts().files.too_much(&keep::owned(&row)).await;
        if let Some(too_much) =
            too_much.map_err(std::io::Error::other).map_err(start::machine(&row, "count the files"))?
        {
            return Err(DriveError::TooMuch(too_much));
        }
        let (session, token) = sessions.first(&row, host.place_of_door(&row.new.id), now)?;
        let entry = entry(&row.new, Action::SandboxCreated, &cause);
        let terms = Terms { quotas, key, is_warm: claim.is_some(), session: Some(session.clone()) };
        match store.add_sandbox(&row.new, &terms, &entry).await? {
            AddedSandbox::Added => {}
            AddedSandbox::NotReady => {
                claim.into_iter().for_each(Claim::discard);
                return Err(DriveError::NotReady);
            }
            AddedSandbox::Taken => return Err(DriveError::Taken),
            AddedSandbox::Repeated => return Err(DriveError::Repeated),
            AddedSandbox::OverQuota(quota) => {
                self.0.counts.refused(quota.name);
                return Err(DriveError::Quota(quota));
            }
            AddedSandbox::NoTenant => return Err(DriveError::NoTenant(row.new.tenant)),
            AddedSandbox::BeingErased => return Err(DriveError::BeingErased(row.new.user_id)),
        }
        let warm = claim.and_then(Claim::settle);
        if let Err(error) = host.door(&row.new.id) {
            let error = DriveError::from(error);
            log(&row.new.id, &error, "open its door");
            let cause = Cause::own("its door could not be opened");
            self.happen(&row.new.id, Event::StartFailed, None, cause).await?;
            return Err(error);
        }
        sessions.begin(&row, session, level).await;
        Ok(Written { row, token, warm, start })
    }
}

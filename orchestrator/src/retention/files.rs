// SPDX-License-Identifier: Apache-2.0
//! Users' files by age and last use, as their tenants' `limits.toml` says: one bounded step at a time.
//!
//! A step takes the next files whose time has come, in the order of tenants, users and paths, first
//! those that are in sight, then those in the archive; it says where the next begins. What could not be
//! done is passed over, told, and tried again by the next run. Nothing is remembered in between.

use crate::storage::{Retirement, Storage, StorageError, Writer};
use crate::store::{
    Actor, ArchivedFile, ArchivedPlace, Cutoffs, DueFile, FileOwner, FilePlace, HoldRow, Kind, Store,
    StoreError,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use postern_common::folder::{FileRetention as Policy, LimitsFile, OnRetired};
use postern_common::id::{TenantId, UserId};
use postern_common::retention::{Failed, Fate, HeldUser, Retired, Step, Why};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// Files that one step deals with: a second or so where the store is slow.
const FILES: u32 = 200;
/// How long a step looks for something to do.
const LOOK_TIME: Duration = Duration::from_secs(5);

/// Where a run is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    tenant: TenantId,
    part: Part,
    after: FilePlace,
    /// Which of those in the archive that have the same path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    within: String,
}

/// Which of a tenant's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Part {
    InSight,
    Archive,
}

/// A text that is no place of a run.
#[derive(Debug, thiserror::Error)]
#[error("this is no place where a run goes on; take `next` of the step before, or leave it out")]
pub(crate) struct NoPlace;

/// A step could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// Where it was to begin.
    #[error(transparent)]
    Place(#[from] NoPlace),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Retires users' files.
#[derive(Debug, Clone)]
pub(crate) struct FileRetention {
    store: Store,
    storage: Storage,
}

/// What a step is to do.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Of this tenant; of all if absent.
    pub(crate) tenant: Option<TenantId>,
    /// Only tell.
    pub(crate) dry_run: bool,
    /// Where the step before ended.
    pub(crate) after: Option<String>,
    /// Who wants it.
    pub(crate) actor: Actor,
}

impl FileRetention {
    /// Nothing happens before [`FileRetention::step`].
    pub(crate) const fn new(store: Store, storage: Storage) -> Self {
        Self { store, storage }
    }

    /// Does the next part of a run.
    ///
    /// # Errors
    /// [`StepError`]; what was done by then stays done, and the same step again does the rest.
    pub(crate) fn step<'a>(
        &'a self,
        wanted: &'a Wanted,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Step, StepError>> {
        Box::pin(self.step_now(wanted, now))
    }

    async fn step_now(&self, wanted: &Wanted, now: Timestamp) -> Result<Step, StepError> {
        let begun = Instant::now();
        let mut from = wanted.after.as_deref().map(Place::read).transpose()?;
        let mut tenants: Vec<TenantId> = match &wanted.tenant {
            Some(tenant) => vec![tenant.clone()],
            None => self.store.tenants().await?.into_iter().map(|row| row.name).collect(),
        };
        tenants.sort();
        for tenant in tenants {
            let place = match from.take() {
                Some(place) if place.tenant == tenant => place,
                Some(place) if place.tenant > tenant => {
                    from = Some(place);
                    continue;
                }
                _ => Place::of(&tenant, Part::InSight, FilePlace::default()),
            };
            if begun.elapsed() > LOOK_TIME {
                return Ok(Step { next: Some(place.write()), ..Step::default() });
            }
            let policy = self.policy(&tenant).await?;
            if policy == Policy::default() {
                continue;
            }
            if place.part == Part::InSight
                && let Some(step) = self.in_sight(wanted, (&tenant, &policy), &place.after, now).await?
            {
                return Ok(step);
            }
            let after = match (place.part, place.after) {
                (Part::Archive, (user, path)) => (user, path, place.within),
                (Part::InSight, _) => ArchivedPlace::default(),
            };
            if let Some(step) = self.archive(wanted, (&tenant, &policy), &after, now).await? {
                return Ok(step);
            }
        }
        Ok(Step::default())
    }

    async fn policy(&self, tenant: &TenantId) -> Result<Policy, StoreError> {
        let parts = self.store.resources(tenant).await?;
        let Some(limits) = parts.into_iter().find(|part| part.kind == Kind::Limits) else {
            return Ok(Policy::default());
        };
        let limits: LimitsFile = serde_json::from_str(&limits.body)
            .map_err(|_malformed| StoreError::Corrupt { what: "limits" })?;
        Ok(limits.retention)
    }

    /// The next files in sight whose time has come; `None` if there are no more.
    async fn in_sight(
        &self,
        wanted: &Wanted,
        (tenant, policy): (&TenantId, &Policy),
        after: &FilePlace,
        now: Timestamp,
    ) -> Result<Option<Step>, StoreError> {
        if policy.unused.is_none() && policy.age.is_none() {
            return Ok(None);
        }
        let before = |kept: Option<Duration>| kept.map(|kept| earlier(now, kept));
        let cutoffs = Cutoffs { written: before(policy.age), used: before(policy.unused) };
        let due = self.store.due_files(tenant, cutoffs, after, FILES).await?;
        let Some(last) = due.last() else { return Ok(None) };
        let place = (last.user.as_str().to_owned(), last.path.as_str().to_owned());
        let place = Place::of(tenant, Part::InSight, place);
        let mut step = Step { next: Some(place.write()), ..Step::default() };
        for (why, files) in due.chunk_by(|one, other| one.user == other.user).flat_map(by_reason) {
            let Some(first) = files.first() else { continue };
            let owner = FileOwner { tenant: tenant.clone(), user: first.user.clone() };
            // Use keeps what is unused, and not what is old.
            let used = cutoffs.used.filter(|_| why == Why::Unused);
            let fate = match policy.then {
                OnRetired::Archive => Fate::Archived,
                OnRetired::Delete => Fate::Deleted,
            };
            let told = files.iter().map(|file| retired(&owner, file, fate)).collect();
            let ended = if wanted.dry_run {
                self.only_told(&owner, files.len()).await?
            } else {
                let by = Writer::new(wanted.actor.clone());
                self.storage
                    .of(&owner.tenant, &owner.user)
                    .retire(&by, &files, policy.then, (now, used))
                    .await
            };
            note(&mut step, &owner, told, ended);
        }
        Ok(Some(step))
    }

    /// The next files in the archive whose time has come; `None` if there are no more.
    async fn archive(
        &self,
        wanted: &Wanted,
        (tenant, policy): (&TenantId, &Policy),
        after: &ArchivedPlace,
        now: Timestamp,
    ) -> Result<Option<Step>, StoreError> {
        let Some(kept) = policy.archived else { return Ok(None) };
        let before = earlier(now, kept);
        let due = self.store.due_archived(tenant, before, after, FILES).await?;
        let Some(last) = due.last() else { return Ok(None) };
        let place = (last.user.as_str().to_owned(), last.path.as_str().to_owned());
        let place = Place { within: last.place.to_string(), ..Place::of(tenant, Part::Archive, place) };
        let mut step = Step { next: Some(place.write()), ..Step::default() };
        for files in due.chunk_by(|one, other| one.user == other.user) {
            let Some(first) = files.first() else { continue };
            let owner = FileOwner { tenant: tenant.clone(), user: first.user.clone() };
            let told = files.iter().map(|file| from_archive(&owner, file)).collect();
            let ended = if wanted.dry_run {
                self.only_told(&owner, files.len()).await?
            } else {
                let by = Writer::new(wanted.actor.clone());
                self.storage.of(&owner.tenant, &owner.user).expire_archived(&by, files, before).await
            };
            note(&mut step, &owner, told, ended);
        }
        Ok(Some(step))
    }

    /// What would become of so many files of a user.
    async fn only_told(
        &self,
        owner: &FileOwner,
        files: usize,
    ) -> Result<Result<Retirement, StorageError>, StoreError> {
        Ok(Ok(match self.store.hold_on(owner).await? {
            Some(hold) => Retirement::Held(hold),
            None => Retirement::Done((0..files).map(|_| Ok(true)).collect()),
        }))
    }
}

impl Place {
    fn of(tenant: &TenantId, part: Part, after: FilePlace) -> Self {
        Self { tenant: tenant.clone(), part, after, within: String::new() }
    }

    fn read(text: &str) -> Result<Self, NoPlace> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_not_base64| NoPlace)?;
        serde_json::from_slice(&bytes).map_err(|_malformed| NoPlace)
    }

    fn write(&self) -> String {
        // Texts and an enum: always serializes.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }
}

/// Files of one user, for each reason to go.
fn by_reason(files: &[DueFile]) -> impl Iterator<Item = (Why, Vec<DueFile>)> {
    let of = |why| (why, files.iter().filter(|file| file.why == why).cloned().collect());
    [Why::Age, Why::Unused].map(of).into_iter()
}

fn earlier(now: Timestamp, kept: Duration) -> Timestamp {
    now.saturating_sub(crate::driver::signed(kept)).unwrap_or(Timestamp::MIN)
}

fn retired(owner: &FileOwner, file: &DueFile, fate: Fate) -> Retired {
    let DueFile { path, size, why, .. } = file;
    let (tenant, user_id) = (owner.tenant.clone(), owner.user.clone());
    Retired { tenant, user_id, path: path.as_str().to_owned(), bytes: *size, fate, why: *why }
}

fn from_archive(owner: &FileOwner, file: &ArchivedFile) -> Retired {
    let (tenant, user_id, path) = (owner.tenant.clone(), owner.user.clone(), file.path.as_str().to_owned());
    Retired { tenant, user_id, path, bytes: file.size, fate: Fate::ArchiveDeleted, why: Why::Archived }
}

/// Notes what became of a user's files.
fn note(step: &mut Step, owner: &FileOwner, files: Vec<Retired>, ended: Result<Retirement, StorageError>) {
    let count = u64::try_from(files.len()).unwrap_or(u64::MAX);
    match ended {
        Ok(Retirement::Done(answers)) => {
            for (file, answer) in files.into_iter().zip(answers) {
                match answer {
                    Ok(true) => step.files.push(file),
                    Ok(false) => step.in_use += 1,
                    Err(error) => step.failed.push(failed(file, &error)),
                }
            }
        }
        Ok(Retirement::Held(HoldRow { reason, .. })) => {
            let (tenant, user_id): (TenantId, UserId) = (owner.tenant.clone(), owner.user.clone());
            step.held.push((HeldUser { tenant, user_id, reason }, count));
        }
        Ok(Retirement::InUse) => step.in_use += count,
        Err(error) => step.failed.extend(files.into_iter().map(|file| failed(file, &error))),
    }
}

fn failed(file: Retired, error: &StorageError) -> Failed {
    let error: &dyn std::error::Error = error;
    tracing::warn!(
        path = file.path,
        error,
        cause = error.source(),
        "a file was not retired; the next run tries again"
    );
    let Retired { tenant, user_id, path, .. } = file;
    Failed { tenant, user_id, path, error: error.to_string() }
}

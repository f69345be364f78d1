// SPDX-License-Identifier: Apache-2.0
//! What retention tells: of one step, and of a whole run.
//!
//! A run is many steps, each of which does a bounded part and says where the next one begins. So it can
//! be stopped and gone on with, and whoever waits sees how far it is.

use crate::id::{TenantId, UserId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Files that a report names; the rest of them is counted.
const NAMED: usize = 10_000;

/// What became of a file, or would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It lies in the archive now, and is not the user's to see any more.
    Archived,
    /// It is gone.
    Deleted,
    /// It was in the archive, and is gone.
    ArchiveDeleted,
}

/// Why a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It was neither written nor read nor brought into a sandbox for too long.
    Unused,
    /// It was written too long ago.
    Age,
    /// It was in the archive for long enough.
    Archived,
}

/// A file that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// Whose tenant's.
    pub tenant: TenantId,
    /// Whose.
    pub user_id: UserId,
    /// Which.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
    /// Where it goes.
    pub fate: Fate,
    /// Why.
    pub why: Why,
}

/// A user whose files stay although their time has come.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HeldUser {
    /// Whose tenant's.
    pub tenant: TenantId,
    /// Who.
    pub user_id: UserId,
    /// Why they are held.
    pub reason: String,
}

/// A file that could not be dealt with; the next run tries again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Whose tenant's.
    pub tenant: TenantId,
    /// Whose.
    pub user_id: UserId,
    /// Which.
    pub path: String,
    /// What was in the way.
    pub error: String,
}

/// What a step did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Files that went.
    pub files: Vec<Retired>,
    /// Held users, with how many of their files stay.
    pub held: Vec<(HeldUser, u64)>,
    /// Files that were written, read or brought into a sandbox meanwhile, and stay.
    pub in_use: u64,
    /// What could not be done.
    pub failed: Vec<Failed>,
    /// Where the next step begins; `None`: this was the last.
    pub next: Option<String>,
}

/// How many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a run did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether it only looked.
    pub dry_run: bool,
    /// Files by tenant and by what became of them.
    pub tenants: BTreeMap<TenantId, BTreeMap<Fate, Count>>,
    /// Held users, with how many of their files stay.
    pub held: BTreeMap<TenantId, BTreeMap<UserId, HeldCount>>,
    /// Files that stay because they were used meanwhile.
    pub in_use: u64,
    /// What could not be done, up to a bound.
    pub failed: Vec<Failed>,
    /// How much could not be done.
    pub failures: u64,
    /// The files, up to a bound.
    pub files: Vec<Retired>,
    /// Files beyond that bound.
    pub files_left_out: u64,
}

/// A held user's files that stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldCount {
    /// Why they are held.
    pub reason: String,
    /// How many.
    pub files: u64,
}

impl Report {
    /// Nothing yet.
    #[must_use]
    pub fn new(dry_run: bool) -> Self {
        Self { dry_run, ..Self::default() }
    }

    /// Adds what a step did; where the next begins.
    pub fn add(&mut self, step: Step) -> Option<String> {
        for file in step.files {
            let count = self.tenants.entry(file.tenant.clone()).or_default().entry(file.fate).or_default();
            count.files += 1;
            count.bytes = count.bytes.saturating_add(file.bytes);
            if self.files.len() < NAMED {
                self.files.push(file);
            } else {
                self.files_left_out += 1;
            }
        }
        for (user, files) in step.held {
            let held = self.held.entry(user.tenant).or_default().entry(user.user_id).or_default();
            held.reason = user.reason;
            held.files += files;
        }
        self.in_use += step.in_use;
        self.failures += u64::try_from(step.failed.len()).unwrap_or(u64::MAX);
        let room = NAMED.saturating_sub(self.failed.len());
        self.failed.extend(step.failed.into_iter().take(room));
        step.next
    }

    /// Files that went so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.tenants.values().flat_map(BTreeMap::values).map(|count| count.files).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let would = if self.dry_run { "would be " } else { "" };
        if self.tenants.is_empty() {
            formatter.write_str("no file's time has come\n")?;
        }
        for (tenant, fates) in &self.tenants {
            for (fate, Count { files, bytes }) in fates {
                let fate = match fate {
                    Fate::Archived => "archived",
                    Fate::Deleted => "deleted",
                    Fate::ArchiveDeleted => "deleted from the archive",
                };
                writeln!(formatter, "{tenant}: {files} files ({bytes} bytes) {would}{fate}")?;
            }
        }
        for (tenant, users) in &self.held {
            for (user, HeldCount { reason, files }) in users {
                let user = user.as_str();
                writeln!(formatter, "{tenant}: {files} files of `{user}` stay, held: {reason}")?;
            }
        }
        if self.in_use > 0 {
            writeln!(formatter, "{} files stay, for they are used again", self.in_use)?;
        }
        for Failed { tenant, user_id, path, error } in &self.failed {
            writeln!(formatter, "{tenant}: `{path}` of `{}` failed: {error}", user_id.as_str())?;
        }
        if self.failures > 0 {
            writeln!(formatter, "{} files failed; the next run tries them again", self.failures)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(user: &str, fate: Fate, bytes: u64) -> Retired {
        let (tenant, user_id) =
            (TenantId::parse("acme").expect("a name"), UserId::parse(user).expect("an id"));
        Retired { tenant, user_id, path: "a/b".to_owned(), bytes, fate, why: Why::Unused }
    }

    fn step() -> Step {
        let (tenant, user_id) =
            (TenantId::parse("acme").expect("a name"), UserId::parse("bob").expect("an id"));
        Step {
            files: vec![file("alice", Fate::Archived, 5), file("carol", Fate::Deleted, 7)],
            held: vec![(
                HeldUser { tenant: tenant.clone(), user_id: user_id.clone(), reason: "case 7".to_owned() },
                3,
            )],
            in_use: 1,
            failed: vec![Failed { tenant, user_id, path: "x".to_owned(), error: "it is away".to_owned() }],
            next: Some("on".to_owned()),
        }
    }

    #[test]
    fn steps_add_up_and_are_told_to_people() {
        let mut report = Report::new(true);
        assert_eq!(report.add(step()).as_deref(), Some("on"));
        assert_eq!(report.add(Step { next: None, ..step() }), None);
        assert_eq!(report.count(), 4);
        insta::assert_snapshot!(report.to_string(), @r"
        acme: 2 files (10 bytes) would be archived
        acme: 2 files (14 bytes) would be deleted
        acme: 6 files of `bob` stay, held: case 7
        2 files stay, for they are used again
        acme: `x` of `bob` failed: it is away
        acme: `x` of `bob` failed: it is away
        2 files failed; the next run tries them again
        ");
        let text = serde_json::to_string(&report).expect("serializes");
        assert_eq!(serde_json::from_str::<Report>(&text).expect("reads"), report);
        assert_eq!(Report::new(false).to_string(), "no file's time has come\n");
    }

    #[test]
    fn a_report_names_a_bounded_number_of_files_and_counts_the_rest() {
        let mut report = Report::new(false);
        for _ in 0..3 {
            let files = (0..NAMED / 2).map(|_| file("alice", Fate::Deleted, 1)).collect();
            report.add(Step { files, ..Step::default() });
        }
        assert_eq!((report.files.len(), report.files_left_out), (NAMED, 5_000));
        assert_eq!(report.count(), 15_000);
    }
}

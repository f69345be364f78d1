// SPDX-License-Identifier: Apache-2.0
//! The registry of filters: pushed, put in force, taken back. Pushing and putting in force are two
//! rights, so they are two steps here.
//!
//! ```text
//!  push ──▶ version n, kept by digest ──activate──▶ in force, signed as n ──▶ gateways
//!                                                     ▲ rollback to m: version n + 1, which is m's bytes
//! ```

use super::{Configuration, ConfigurationError, Edit, Edited, Edition, Expected};
use crate::store::{Action, Actor, AuditEntry, FilterVersion, Kind};
use crate::tenant::{files_of, parts_of};
use postern_common::clock;
use postern_common::folder::{FilterFiles, TenantFiles};
use postern_common::id::{FilterName, RequestId, TenantId};
use std::collections::BTreeMap;

/// Which version to put in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The one that was pushed last, or this one if it is newer than what is in force.
    Newer(Option<i64>),
    /// This older one, or the one before what is in force.
    Older(Option<i64>),
}

impl Configuration {
    /// Inspects and compiles a filter and keeps it as a version that is not in force yet.
    ///
    /// # Errors
    /// [`ConfigurationError::Mistakes`] if it is no filter that could be used.
    pub(crate) async fn push_filter(
        &self,
        tenant: &TenantId,
        name: &FilterName,
        filter: FilterFiles,
        actor: Actor,
        request: Option<RequestId>,
    ) -> Result<i64, ConfigurationError> {
        if self.0.store.tenant(tenant).await?.is_none() {
            return Err(ConfigurationError::UnknownTenant(tenant.clone()));
        }
        let files =
            TenantFiles { filters: BTreeMap::from([(name.clone(), filter)]), ..TenantFiles::default() };
        self.0.artefacts.check(&files).await.map_err(ConfigurationError::Mistakes)?;
        let audit = AuditEntry::new(clock::now(), Some(tenant.clone()), Action::FilterPushed, actor);
        let mut version = 0;
        for part in parts_of(&files, self.sealing(tenant))? {
            version = self.0.store.push_filter(tenant, &part, audit.clone().request(request.clone())).await?;
        }
        Ok(version)
    }

    /// Puts a version that was pushed in force, or what an older one was.
    ///
    /// # Errors
    /// [`ConfigurationError::NoVersion`] if there is none that would do.
    pub(crate) async fn activate_filter(
        &self,
        tenant: &TenantId,
        name: &FilterName,
        wanted: Wanted,
        edition: &Edition,
    ) -> Result<(i64, Edited), ConfigurationError> {
        let versions = self.0.store.filter_versions(tenant, name).await?;
        let chosen = choose(&versions, wanted);
        let chosen = chosen
            .map_err(|why| ConfigurationError::NoVersion { name: name.clone(), why: why.to_owned() })?;
        let stored = self.0.store.filter_version(tenant, name, chosen).await?;
        let unknown = || ConfigurationError::Unknown { kind: Kind::Filter, name: format!("{name}@{chosen}") };
        let (body, component) = stored.ok_or_else(unknown)?;
        let manifest: String = serde_json::from_str(&body)
            .map_err(|_malformed| crate::store::StoreError::Corrupt { what: "body" })?;
        let filter = FilterFiles { manifest, component };
        let action = match wanted {
            Wanted::Newer(_) => Action::FilterActivated,
            Wanted::Older(_) => Action::FilterRolledBack,
        };
        if !edition.dry_run {
            // Before it is done: what happens is never missing from the log.
            let entry = AuditEntry::new(clock::now(), Some(tenant.clone()), action, edition.actor.clone());
            let entry = entry.subject(format!("filter/{name}@{chosen}")).request(edition.request.clone());
            self.0.store.record(&entry).await?;
        }
        let put = name.clone();
        let change = move |files: &mut TenantFiles| {
            files.filters.insert(put.clone(), filter.clone());
            true
        };
        let edit = Edit::Part {
            kind: Kind::Filter,
            name: name.to_string(),
            expected: Expected::Anything,
            change: Box::new(change),
        };
        let edited = self.edit(tenant, &edit, edition).await?;
        let in_force = self.0.store.filter_versions_in_force(tenant).await?;
        let version = in_force.get(name).and_then(|version| i64::try_from(*version).ok());
        Ok((version.unwrap_or(chosen), edited))
    }

    /// A filter's versions, newest first, and which is in force.
    ///
    /// # Errors
    /// [`ConfigurationError::Store`].
    pub(crate) async fn filter_versions(
        &self,
        tenant: &TenantId,
        name: &FilterName,
    ) -> Result<(Vec<FilterVersion>, Option<i64>), ConfigurationError> {
        let versions = self.0.store.filter_versions(tenant, name).await?;
        let row = self.0.store.tenant(tenant).await?;
        let row = row.ok_or_else(|| ConfigurationError::UnknownTenant(tenant.clone()))?;
        let parts = self.0.store.resources(tenant).await?;
        let files = files_of(&parts, row.has_policies, self.sealing(tenant))?;
        let is_there = files.filters.contains_key(name);
        let in_force = in_force(&versions).filter(|_| is_there).map(|version| version.version);
        Ok((versions, in_force))
    }
}

fn in_force(versions: &[FilterVersion]) -> Option<&FilterVersion> {
    versions.iter().find(|version| version.activated_at.is_some())
}

/// The version whose content is to be put in force.
fn choose(versions: &[FilterVersion], wanted: Wanted) -> Result<i64, &'static str> {
    let now = in_force(versions);
    let newest = versions.first().ok_or("nothing was ever pushed under this name")?;
    match wanted {
        Wanted::Newer(None) => Ok(newest.version),
        Wanted::Newer(Some(version)) => {
            if !versions.iter().any(|it| it.version == version) {
                return Err("there is no such version, or it was too old to be kept");
            }
            if now.is_some_and(|now| version < now.version) {
                return Err("it is older than what is in force: versions only rise, so `rollback` to it");
            }
            Ok(version)
        }
        Wanted::Older(wanted) => {
            let now = now.ok_or("nothing is in force that could be rolled back")?;
            let mut older = versions.iter().filter(|it| it.version < now.version);
            let found = match wanted {
                Some(version) => older.find(|it| it.version == version),
                None => older.find(|it| it.activated_at.is_some() && it.digest != now.digest),
            };
            found.map(|it| it.version).ok_or("there is no older version that was kept")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn versions(list: &[(i64, &str, bool)]) -> Vec<FilterVersion> {
        let version = |(version, digest, active): &(i64, &str, bool)| FilterVersion {
            version: *version,
            component: (*digest).to_owned(),
            digest: (*digest).to_owned(),
            pushed_at: Timestamp::UNIX_EPOCH,
            activated_at: active.then_some(Timestamp::UNIX_EPOCH),
        };
        list.iter().map(version).collect()
    }

    #[test]
    fn what_is_put_in_force_is_never_older_than_what_is() {
        let all = versions(&[(4, "d", false), (3, "c", true), (2, "b", false), (1, "a", true)]);
        assert_eq!(choose(&all, Wanted::Newer(None)), Ok(4));
        assert_eq!(choose(&all, Wanted::Newer(Some(3))), Ok(3));
        assert!(choose(&all, Wanted::Newer(Some(2))).is_err_and(|why| why.contains("rollback")));
        assert!(choose(&all, Wanted::Newer(Some(9))).is_err());
        assert!(choose(&[], Wanted::Newer(None)).is_err());
    }

    #[test]
    fn going_back_finds_what_was_in_force_before_and_was_something_else() {
        let all =
            versions(&[(5, "x", false), (4, "c", true), (3, "c", true), (2, "b", true), (1, "a", true)]);
        assert_eq!(choose(&all, Wanted::Older(None)), Ok(2));
        assert_eq!(choose(&all, Wanted::Older(Some(1))), Ok(1));
        assert!(choose(&all, Wanted::Older(Some(5))).is_err());
        assert!(choose(&versions(&[(1, "a", true)]), Wanted::Older(None)).is_err());
        assert!(choose(&versions(&[(1, "a", false)]), Wanted::Older(None)).is_err());
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What was pushed of each filter: components by digest, versions that only rise.

use super::{Action, AuditEntry, Change, Columns, Resource, Store, StoreError, micros};
use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use postern_common::id::{FilterName, TenantId};
use std::collections::BTreeMap;

/// Versions of one filter that are kept to go back to.
const KEPT: i64 = 20;

/// One version of a filter, without its component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilterVersion {
    /// Rises with each push and each rollback.
    pub(crate) version: i64,
    /// The digest of the component.
    pub(crate) component: String,
    /// The digest of manifest and component, as the resource has it.
    pub(crate) digest: String,
    /// When it was pushed.
    pub(crate) pushed_at: Timestamp,
    /// When it was put in force; never if absent.
    pub(crate) activated_at: Option<Timestamp>,
}

fn version(row: &impl Columns) -> Result<FilterVersion, StoreError> {
    Ok(FilterVersion {
        version: row.number("version")?,
        component: row.text("component")?,
        digest: row.text("digest")?,
        pushed_at: row.time("pushed_at_micros")?,
        activated_at: match row.number("activated_at_micros")? {
            0 => None,
            _ => Some(row.time("activated_at_micros")?),
        },
    })
}

impl Store {
    /// A filter's versions, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn filter_versions(
        &self,
        tenant: &TenantId,
        name: &FilterName,
    ) -> Result<Vec<FilterVersion>, StoreError> {
        let select = "SELECT version, component, digest, pushed_at_micros, activated_at_micros \
             FROM filter_versions WHERE tenant = $1 AND name = $2 ORDER BY version DESC";
        let query = sqlx::query(select).bind(tenant.as_str().to_owned()).bind(name.as_str().to_owned());
        query.fetch_all(&self.pool).await?.iter().map(version).collect()
    }

    /// The version of each filter that is in force, as artefacts are signed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn filter_versions_in_force(
        &self,
        tenant: &TenantId,
    ) -> Result<BTreeMap<FilterName, u64>, StoreError> {
        let select = "SELECT name, MAX(version) AS version FROM filter_versions \
             WHERE tenant = $1 AND activated_at_micros > 0 GROUP BY name";
        let rows = sqlx::query(select).bind(tenant.as_str().to_owned()).fetch_all(&self.pool).await?;
        let in_force = |row: &sqlx::any::AnyRow| {
            let version = u64::try_from(row.number("version")?);
            let version = version.map_err(|_negative| StoreError::Corrupt { what: "version" })?;
            Ok((row.parsed("name")?, version))
        };
        rows.iter().map(in_force).collect()
    }

    /// The components of every version that is kept, by their digests in hex, and whether one that
    /// is in force is made of it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn filter_components(&self) -> Result<Vec<(String, bool)>, StoreError> {
        let select = "SELECT v.component AS component, MAX(CAST(CASE WHEN v.version = \
             (SELECT MAX(w.version) FROM filter_versions w WHERE w.tenant = v.tenant AND w.name = v.name \
             AND w.activated_at_micros > 0) THEN 1 ELSE 0 END AS BIGINT)) AS in_force \
             FROM filter_versions v GROUP BY v.component";
        let rows = sqlx::query(select).fetch_all(&self.pool).await?;
        let component = |row: &sqlx::any::AnyRow| Ok((row.text("component")?, row.number("in_force")? != 0));
        rows.iter().map(component).collect()
    }

    /// One version as a resource, to be put in force.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn filter_version(
        &self,
        tenant: &TenantId,
        name: &FilterName,
        version: i64,
    ) -> Result<Option<(String, Vec<u8>)>, StoreError> {
        let select = "SELECT v.body AS body, c.component AS component FROM filter_versions v \
             JOIN filter_components c ON c.tenant = v.tenant AND c.digest = v.component \
             WHERE v.tenant = $1 AND v.name = $2 AND v.version = $3";
        let query = sqlx::query(select).bind(tenant.as_str().to_owned()).bind(name.as_str().to_owned());
        let found = query.bind(version).fetch_optional(&self.pool).await?;
        found.map(|row| Ok((row.text("body")?, row.bytes("component")?))).transpose()
    }

    /// Keeps a pushed filter as a version that is not in force; which one it is. A filter that is
    /// what was pushed last stays that version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn push_filter(
        &self,
        tenant: &TenantId,
        filter: &Resource,
        audit: AuditEntry,
    ) -> Result<i64, StoreError> {
        let mut change = self.change().await?;
        let version = match change.latest_version(tenant, &filter.name).await? {
            Some(latest) if latest.digest == filter.digest => latest.version,
            latest => {
                let version = latest.map_or(1, |latest| latest.version.saturating_add(1));
                change.add_version(tenant, filter, version, 0).await?;
                version
            }
        };
        debug_assert!(matches!(audit.action, Action::FilterPushed));
        change.record(&audit.subject(format!("filter/{}@{version}", filter.name))).await?;
        change.commit().await?;
        Ok(version)
    }
}

impl Change {
    /// Notes that a filter is in force: as the version that was pushed last if it is that one, else
    /// as a new one. So what is in force never goes back, whatever it holds.
    pub(super) async fn filter_in_force(
        &mut self,
        tenant: &TenantId,
        filter: &Resource,
    ) -> Result<(), StoreError> {
        let now = micros(postern_common::clock::now());
        match self.latest_version(tenant, &filter.name).await? {
            Some(latest) if latest.digest == filter.digest => {
                if latest.activated_at.is_some() {
                    return Ok(());
                }
                let update = "UPDATE filter_versions SET activated_at_micros = $4 \
                     WHERE tenant = $1 AND name = $2 AND version = $3";
                sqlx::query(update)
                    .bind(tenant.as_str().to_owned())
                    .bind(filter.name.clone())
                    .bind(latest.version)
                    .bind(now)
                    .execute(&mut *self.0)
                    .await?;
                Ok(())
            }
            latest => {
                let version = latest.map_or(1, |latest| latest.version.saturating_add(1));
                self.add_version(tenant, filter, version, now).await
            }
        }
    }

    async fn latest_version(
        &mut self,
        tenant: &TenantId,
        name: &str,
    ) -> Result<Option<FilterVersion>, StoreError> {
        let select = "SELECT version, component, digest, pushed_at_micros, activated_at_micros \
             FROM filter_versions WHERE tenant = $1 AND name = $2 ORDER BY version DESC LIMIT 1";
        let query = sqlx::query(select).bind(tenant.as_str().to_owned()).bind(name.to_owned());
        query.fetch_optional(&mut *self.0).await?.as_ref().map(version).transpose()
    }

    /// Adds a version, in force since `activated_at` (0: not), and drops those that are too old to go back to, never the one in force.
    async fn add_version(
        &mut self,
        tenant: &TenantId,
        filter: &Resource,
        version: i64,
        activated_at: i64,
    ) -> Result<(), StoreError> {
        let component = filter.component.clone().unwrap_or_default();
        let key = crate::keys::hex(digest(&SHA256, &component).as_ref());
        let keep = "INSERT INTO filter_components (tenant, digest, component) VALUES ($1, $2, $3) \
             ON CONFLICT (tenant, digest) DO NOTHING";
        let query = sqlx::query(keep).bind(tenant.as_str().to_owned()).bind(key.clone());
        query.bind(component).execute(&mut *self.0).await?;
        let insert = "INSERT INTO filter_versions \
             (tenant, name, version, body, component, digest, pushed_at_micros, activated_at_micros) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        sqlx::query(insert)
            .bind(tenant.as_str().to_owned())
            .bind(filter.name.clone())
            .bind(version)
            .bind(filter.body.clone())
            .bind(key)
            .bind(filter.digest.clone())
            .bind(micros(postern_common::clock::now()))
            .bind(activated_at)
            .execute(&mut *self.0)
            .await?;
        let trim = "DELETE FROM filter_versions WHERE tenant = $1 AND name = $2 AND version <= $3 \
             AND version < (SELECT COALESCE(MAX(version), 0) FROM filter_versions \
             WHERE tenant = $1 AND name = $2 AND activated_at_micros > 0)";
        let query = sqlx::query(trim).bind(tenant.as_str().to_owned()).bind(filter.name.clone());
        query.bind(version.saturating_sub(KEPT)).execute(&mut *self.0).await?;
        let orphans = "DELETE FROM filter_components WHERE tenant = $1 AND digest NOT IN \
             (SELECT component FROM filter_versions WHERE tenant = $1)";
        sqlx::query(orphans).bind(tenant.as_str().to_owned()).execute(&mut *self.0).await?;
        Ok(())
    }
}

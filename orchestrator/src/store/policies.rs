// SPDX-License-Identifier: Apache-2.0
//! Versions of tenants' policy sets: what was in force, by whom and since when.
//!
//! A version is written in the transaction of the change that puts it in force. Numbers only rise;
//! going back to an older set makes a new version with its text.

use super::{Change, Columns, Store, StoreError, json_text, micros};
use jiff::Timestamp;
use postern_common::id::TenantId;
use serde::Serialize;
use std::collections::BTreeMap;

/// Versions of a tenant that are kept.
const KEPT: usize = 100;
/// Bytes of all of them; the newest two stay whatever their size.
const KEPT_BYTES: i64 = 256 << 20;

/// A version, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(crate) struct PolicyVersion {
    /// Rises by one with each change of the set.
    pub(crate) number: i64,
    /// As decision records name it.
    pub(crate) digest: String,
    /// Who put it in force.
    pub(crate) author: String,
    /// `before`, `put`, `applied`, `pushed`, `promoted` or `rolled-back`.
    pub(crate) how: String,
    /// Since when.
    #[schemars(with = "String")]
    pub(crate) at: Timestamp,
}

/// What stands for a digest where the tenant has no set of its own, which is not an empty one.
pub(crate) const NO_SET: &str = "none";

/// Texts of policies by the name of their file; `None`: the tenant has no set of its own.
pub(crate) type PolicyTexts = Option<BTreeMap<String, String>>;

/// Who changes a set, how and when.
#[derive(Debug, Clone)]
pub(crate) struct NewVersion<'a> {
    pub(crate) author: String,
    pub(crate) how: &'a str,
    pub(crate) at: Timestamp,
}

fn version(row: &impl Columns) -> Result<PolicyVersion, StoreError> {
    Ok(PolicyVersion {
        number: row.number("number")?,
        digest: row.text("digest")?,
        author: row.text("author")?,
        how: row.text("how")?,
        at: row.time("at_micros")?,
    })
}

impl Store {
    /// The versions of a tenant's set, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn policy_versions(&self, tenant: &TenantId) -> Result<Vec<PolicyVersion>, StoreError> {
        let select = "SELECT number, digest, author, how, at_micros FROM policy_versions \
             WHERE tenant = $1 ORDER BY number DESC";
        let rows = sqlx::query(select).bind(tenant.as_str().to_owned()).fetch_all(&self.pool).await?;
        rows.iter().map(version).collect()
    }

    /// One version with its text.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn policy_version(
        &self,
        tenant: &TenantId,
        number: i64,
    ) -> Result<Option<(PolicyVersion, PolicyTexts)>, StoreError> {
        let select = "SELECT * FROM policy_versions WHERE tenant = $1 AND number = $2";
        let found = sqlx::query(select)
            .bind(tenant.as_str().to_owned())
            .bind(number)
            .fetch_optional(&self.pool)
            .await?;
        found.as_ref().map(with_texts).transpose()
    }

    /// The newest version with this digest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn policy_version_of(
        &self,
        tenant: &TenantId,
        digest: &str,
    ) -> Result<Option<(PolicyVersion, PolicyTexts)>, StoreError> {
        let select =
            "SELECT * FROM policy_versions WHERE tenant = $1 AND digest = $2 ORDER BY number DESC LIMIT 1";
        let found = sqlx::query(select)
            .bind(tenant.as_str().to_owned())
            .bind(digest.to_owned())
            .fetch_optional(&self.pool)
            .await?;
        found.as_ref().map(with_texts).transpose()
    }
}

fn with_texts(row: &sqlx::any::AnyRow) -> Result<(PolicyVersion, PolicyTexts), StoreError> {
    let texts = row.maybe_text("files")?.map(|text| serde_json::from_str(&text)).transpose();
    Ok((version(row)?, texts.map_err(|_malformed| StoreError::Corrupt { what: "files" })?))
}

/// A digest of a set, which decision records name: of its files' names and digests.
pub(crate) fn set_digest<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for (name, file) in files {
        digest.update(name.as_bytes());
        digest.update(file.as_bytes());
    }
    let mut text = crate::keys::hex(digest.finish().as_ref());
    text.truncate(16);
    text
}

impl Change {
    /// Writes down the set that is there as the version before the first change, if there is none.
    pub(crate) async fn note_policies_before(
        &mut self,
        tenant: &TenantId,
        has_policies: bool,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        if self.last_version(tenant).await? > 0 {
            return Ok(());
        }
        let new = NewVersion { author: "unknown".to_owned(), how: "before", at };
        self.note_policies(tenant, has_policies, &new).await
    }

    /// Writes down the set that is there now as the next version, and drops the oldest over the
    /// bound.
    pub(crate) async fn note_policies(
        &mut self,
        tenant: &TenantId,
        has_policies: bool,
        new: &NewVersion<'_>,
    ) -> Result<(), StoreError> {
        let select = "SELECT name, body, digest FROM resources WHERE tenant = $1 AND kind = 'policy'";
        let rows = sqlx::query(select).bind(tenant.as_str().to_owned()).fetch_all(&mut *self.0).await?;
        let (mut texts, mut digests) = (BTreeMap::new(), BTreeMap::new());
        for row in &rows {
            texts.insert(row.text("name")?, row.json::<String>("body")?);
            digests.insert(row.text("name")?, row.text("digest")?);
        }
        let digest = if has_policies {
            set_digest(digests.iter().map(|(name, digest)| (name.as_str(), digest.as_str())))
        } else {
            NO_SET.to_owned()
        };
        let files = has_policies.then(|| json_text(&texts, "files")).transpose()?;
        let bytes = files.as_ref().map_or(0, |text| i64::try_from(text.len()).unwrap_or(i64::MAX));
        let insert = "INSERT INTO policy_versions (tenant, number, digest, author, how, files, bytes, at_micros) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        sqlx::query(insert)
            .bind(tenant.as_str().to_owned())
            .bind(self.last_version(tenant).await? + 1)
            .bind(digest)
            .bind(new.author.clone())
            .bind(new.how.to_owned())
            .bind(files)
            .bind(bytes)
            .bind(micros(new.at))
            .execute(&mut *self.0)
            .await?;
        self.trim_versions(tenant).await
    }

    async fn last_version(&mut self, tenant: &TenantId) -> Result<i64, StoreError> {
        let select = "SELECT number FROM policy_versions WHERE tenant = $1 ORDER BY number DESC LIMIT 1";
        let last = sqlx::query(select).bind(tenant.as_str().to_owned()).fetch_optional(&mut *self.0).await?;
        last.map_or(Ok(0), |row| row.number("number"))
    }

    async fn trim_versions(&mut self, tenant: &TenantId) -> Result<(), StoreError> {
        let select = "SELECT number, bytes FROM policy_versions WHERE tenant = $1 ORDER BY number DESC";
        let rows = sqlx::query(select).bind(tenant.as_str().to_owned()).fetch_all(&mut *self.0).await?;
        let mut total = 0_i64;
        for (place, row) in rows.iter().enumerate() {
            total = total.saturating_add(row.number("bytes")?);
            if place >= 2 && (place >= KEPT || total > KEPT_BYTES) {
                sqlx::query("DELETE FROM policy_versions WHERE tenant = $1 AND number <= $2")
                    .bind(tenant.as_str().to_owned())
                    .bind(row.number("number")?)
                    .execute(&mut *self.0)
                    .await?;
                return Ok(());
            }
        }
        Ok(())
    }
}

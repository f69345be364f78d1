// SPDX-License-Identifier: Apache-2.0
//! What a tenant owns: the parts of its configuration, and its sealed secrets.

use super::{Action, AuditEntry, Change, Columns, NewVersion, Store, StoreError, micros};
use jiff::Timestamp;
use postern_common::id::{SecretName, TenantId};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $text:literal;)*) => {
        /// A kind of part.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name in tables and messages.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// A backend with its document.
    Backend "backend";
    /// A file of policies.
    Policy "policy";
    /// A file of the set in shadow.
    ShadowPolicy "shadow-policy";
    /// A file of policy tests.
    PolicyTest "policy-test";
    /// A filter; its component is apart from the body.
    Filter "filter";
    /// A template.
    Template "template";
    /// The limits; the only one of its kind.
    Limits "limits";
}

impl std::str::FromStr for Kind {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text).ok_or(())
    }
}

/// One part of a tenant's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resource {
    /// What it is.
    pub(crate) kind: Kind,
    /// Its name among its kind.
    pub(crate) name: String,
    /// JSON, as the API shows it.
    pub(crate) body: String,
    /// A filter's component.
    pub(crate) component: Option<Vec<u8>>,
    /// What of it nobody is shown, sealed: the values of a template's `env`.
    pub(crate) sealed: Option<Vec<u8>>,
    /// A digest of body and component, in hex.
    pub(crate) digest: String,
}

/// A change of one part.
#[derive(Debug, Clone)]
pub(crate) enum ResourceChange {
    /// It is this from now on.
    Put(Resource),
    /// It is no more.
    Remove(Kind, String),
}

impl ResourceChange {
    const fn kind(&self) -> Kind {
        match self {
            Self::Put(resource) => resource.kind,
            Self::Remove(kind, _) => *kind,
        }
    }
}

/// Who changes policies and how, as the log of the same change says.
fn new_version(audit: &[AuditEntry]) -> NewVersion<'static> {
    let how = audit.iter().rev().find_map(|entry| match entry.action {
        Action::PoliciesPushed => Some("pushed"),
        Action::PoliciesPromoted => Some("promoted"),
        Action::PoliciesRolledBack => Some("rolled-back"),
        Action::ConfigurationApplied => Some("applied"),
        _ => None,
    });
    let author = audit.first().map_or_else(|| "unknown".to_owned(), |entry| entry.actor.to_string());
    let at = audit.first().map_or_else(postern_common::clock::now, |entry| entry.at);
    NewVersion { author, how: how.unwrap_or("put"), at }
}

/// A secret as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct SealedSecret {
    /// Its name.
    pub(crate) name: SecretName,
    /// Its value, sealed with the data key.
    pub(crate) sealed: Vec<u8>,
    /// Rises with each value.
    pub(crate) version: i64,
    /// When it got this value.
    pub(crate) updated_at: Timestamp,
}

impl Store {
    /// All parts of a tenant's configuration.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn resources(&self, tenant: &TenantId) -> Result<Vec<Resource>, StoreError> {
        let select = "SELECT kind, name, body, component, sealed, digest FROM resources WHERE tenant = $1 ORDER BY kind, name";
        let rows = sqlx::query(select).bind(tenant.as_str().to_owned()).fetch_all(&self.pool).await?;
        let resource = |row: &sqlx::any::AnyRow| {
            Ok(Resource {
                kind: row.parsed("kind")?,
                name: row.text("name")?,
                body: row.text("body")?,
                component: row.maybe_bytes("component")?,
                sealed: row.maybe_bytes("sealed")?,
                digest: row.text("digest")?,
            })
        };
        rows.iter().map(resource).collect()
    }

    /// Changes parts of a tenant's configuration, all or nothing, if its version still is
    /// `expected`; `false` if somebody was faster.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn change_resources(
        &self,
        tenant: &TenantId,
        expected: i64,
        has_policies: bool,
        changes: &[ResourceChange],
        audit: &[AuditEntry],
    ) -> Result<bool, StoreError> {
        let mut change = self.change().await?;
        let had_policies = change.has_policies(tenant).await?;
        if !change.next_version(tenant, expected, has_policies).await? {
            return Ok(false);
        }
        let new = new_version(audit);
        let is_about_policies =
            had_policies != has_policies || changes.iter().any(|each| each.kind() == Kind::Policy);
        if is_about_policies {
            change.note_policies_before(tenant, had_policies, new.at).await?;
        }
        for each in changes {
            change.apply(tenant, each).await?;
        }
        if is_about_policies {
            change.note_policies(tenant, has_policies, &new).await?;
        }
        for entry in audit {
            change.record(entry).await?;
        }
        change.commit().await?;
        Ok(true)
    }

    /// A tenant's secrets.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn secrets(&self, tenant: &TenantId) -> Result<Vec<SealedSecret>, StoreError> {
        let select = "SELECT * FROM secrets WHERE tenant = $1 ORDER BY name";
        let rows = sqlx::query(select).bind(tenant.as_str().to_owned()).fetch_all(&self.pool).await?;
        let secret = |row: &sqlx::any::AnyRow| {
            Ok(SealedSecret {
                name: row.parsed("name")?,
                sealed: row.bytes("sealed")?,
                version: row.number("version")?,
                updated_at: row.time("updated_at_micros")?,
            })
        };
        rows.iter().map(secret).collect()
    }

    /// Gives a secret a value; `false` if there is no such tenant.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn set_secret(
        &self,
        tenant: &TenantId,
        name: &SecretName,
        sealed: Vec<u8>,
        audit: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let mut change = self.change().await?;
        if !change.lock_tenant(tenant).await? {
            return Ok(false);
        }
        let upsert = "INSERT INTO secrets (tenant, name, sealed, version, updated_at_micros) VALUES ($1, $2, $3, 1, $4) \
             ON CONFLICT (tenant, name) DO UPDATE SET sealed = excluded.sealed, \
             version = secrets.version + 1, updated_at_micros = excluded.updated_at_micros";
        sqlx::query(upsert)
            .bind(tenant.as_str().to_owned())
            .bind(name.as_str().to_owned())
            .bind(sealed)
            .bind(micros(audit.at))
            .execute(&mut *change.0)
            .await?;
        change.raise_revision(tenant).await?;
        change.record(audit).await?;
        change.commit().await?;
        Ok(true)
    }

    /// Removes a secret; `false` if there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn remove_secret(
        &self,
        tenant: &TenantId,
        name: &SecretName,
        audit: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let mut change = self.change().await?;
        if !change.lock_tenant(tenant).await? {
            return Ok(false);
        }
        let delete = sqlx::query("DELETE FROM secrets WHERE tenant = $1 AND name = $2")
            .bind(tenant.as_str().to_owned())
            .bind(name.as_str().to_owned());
        if delete.execute(&mut *change.0).await?.rows_affected() == 0 {
            return Ok(false);
        }
        change.raise_revision(tenant).await?;
        change.record(audit).await?;
        change.commit().await?;
        Ok(true)
    }
}

impl Change {
    async fn apply(&mut self, tenant: &TenantId, change: &ResourceChange) -> Result<(), StoreError> {
        let upsert = "INSERT INTO resources (tenant, kind, name, body, component, sealed, digest, updated_at_micros) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (tenant, kind, name) DO UPDATE SET \
             body = excluded.body, component = excluded.component, sealed = excluded.sealed, \
             digest = excluded.digest, updated_at_micros = excluded.updated_at_micros";
        let query = match change {
            ResourceChange::Put(resource) => sqlx::query(upsert)
                .bind(tenant.as_str().to_owned())
                .bind(resource.kind.as_str())
                .bind(resource.name.clone())
                .bind(resource.body.clone())
                .bind(resource.component.clone())
                .bind(resource.sealed.clone())
                .bind(resource.digest.clone())
                .bind(micros(postern_common::clock::now())),
            ResourceChange::Remove(kind, name) => {
                sqlx::query("DELETE FROM resources WHERE tenant = $1 AND kind = $2 AND name = $3")
                    .bind(tenant.as_str().to_owned())
                    .bind(kind.as_str())
                    .bind(name.clone())
            }
        };
        query.execute(&mut *self.0).await?;
        match change {
            ResourceChange::Put(filter) if filter.kind == Kind::Filter => {
                self.filter_in_force(tenant, filter).await
            }
            _ => Ok(()),
        }
    }
}

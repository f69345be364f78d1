// SPDX-License-Identifier: Apache-2.0
//! Tenants: who they are and who owns their configuration.

use super::{AuditEntry, Change, Columns, Store, StoreError, micros};
use jiff::Timestamp;
use postern_common::id::TenantId;
use std::fmt;

/// Who may change a tenant's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// Callers of the API.
    Api,
    /// A watched folder, whose path this is.
    Folder(String),
}

impl Owner {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Folder(_) => "folder",
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api => formatter.write_str("the API"),
            Self::Folder(path) => write!(formatter, "the watched folder `{path}`"),
        }
    }
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TenantRow {
    /// Its name.
    pub(crate) name: TenantId,
    /// Who may change its configuration.
    pub(crate) owner: Owner,
    /// The folder that let it go, if the API has it from one.
    pub(crate) released: Option<Released>,
    /// Whether it ever put a policy set; an empty one counts.
    pub(crate) has_policies: bool,
    /// Rises with each change of its configuration.
    pub(crate) version: i64,
    /// Rises with each change of its configuration or its secrets, over all tenants.
    pub(crate) revision: i64,
    /// When it was made.
    pub(crate) created_at: Timestamp,
}

/// A folder that owned a tenant once, and the version that it left.
///
/// Kept in `owner_place` as `VERSION PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Released {
    /// Which folder.
    pub(crate) folder: String,
    /// The version of the configuration then.
    pub(crate) version: i64,
}

impl Released {
    fn parse(place: &str) -> Option<Self> {
        let (version, folder) = place.split_once(' ')?;
        Some(Self { folder: folder.to_owned(), version: version.parse().ok()? })
    }

    fn place(&self) -> String {
        format!("{} {}", self.version, self.folder)
    }
}

/// What became of a tenant that was to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MadeTenant {
    /// It is there.
    Made,
    /// There is one of this name, which stays as it is.
    Exists,
    /// One of this name was removed: the name is never given again.
    Retired,
}

/// What became of a tenant that was to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RemovedTenant {
    /// It is no more.
    Removed,
    /// There is none.
    Unknown,
    /// It has so many live sandboxes.
    Lives(i64),
    /// A watched folder owns it.
    Owned(Owner),
    /// So many of its users are held.
    Held(i64),
}

fn row(row: &impl Columns) -> Result<TenantRow, StoreError> {
    let place = row.text("owner_place")?;
    let (owner, released) = match row.text("owner")?.as_str() {
        "api" => (Owner::Api, Released::parse(&place)),
        "folder" => (Owner::Folder(place), None),
        _ => return Err(StoreError::Corrupt { what: "owner" }),
    };
    Ok(TenantRow {
        name: row.parsed("name")?,
        owner,
        released,
        has_policies: row.number("has_policies")? != 0,
        version: row.number("version")?,
        revision: row.number("revision")?,
        created_at: row.time("created_at_micros")?,
    })
}

impl Store {
    /// Makes a tenant.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn add_tenant(
        &self,
        name: &TenantId,
        owner: &Owner,
        audit: &AuditEntry,
    ) -> Result<MadeTenant, StoreError> {
        let mut change = self.change().await?;
        let insert = "INSERT INTO tenants (name, owner, owner_place, has_policies, version, created_at_micros) \
             VALUES ($1, $2, $3, 0, 1, $4) ON CONFLICT (name) DO NOTHING";
        let place = if let Owner::Folder(path) = owner { path.clone() } else { String::new() };
        let inserted = sqlx::query(insert)
            .bind(name.as_str().to_owned())
            .bind(owner.as_str())
            .bind(place)
            .bind(micros(audit.at))
            .execute(&mut *change.0)
            .await?;
        if inserted.rows_affected() == 0 {
            return Ok(MadeTenant::Exists);
        }
        // INVARIANT: looked at after the insert, which waits for a removal under way.
        let retired = "SELECT name FROM removed_tenants WHERE name = $1";
        let retired =
            sqlx::query(retired).bind(name.as_str().to_owned()).fetch_optional(&mut *change.0).await?;
        if retired.is_some() {
            return Ok(MadeTenant::Retired);
        }
        change.raise_revision(name).await?;
        change.record(audit).await?;
        change.commit().await?;
        Ok(MadeTenant::Made)
    }

    /// Hands a tenant's configuration to another owner.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn give_tenant(&self, name: &TenantId, owner: &Owner) -> Result<(), StoreError> {
        let place = if let Owner::Folder(path) = owner { path.clone() } else { String::new() };
        self.place_tenant(name, owner, place).await
    }

    /// Hands a tenant's configuration from a folder to the API, which keeps in mind whose it was.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn release_tenant(&self, name: &TenantId, left: &Released) -> Result<(), StoreError> {
        self.place_tenant(name, &Owner::Api, left.place()).await
    }

    async fn place_tenant(&self, name: &TenantId, owner: &Owner, place: String) -> Result<(), StoreError> {
        let _turn = self.turn().await?;
        sqlx::query("UPDATE tenants SET owner = $2, owner_place = $3 WHERE name = $1")
            .bind(name.as_str().to_owned())
            .bind(owner.as_str())
            .bind(place)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The tenant of this name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn tenant(&self, name: &TenantId) -> Result<Option<TenantRow>, StoreError> {
        let select = "SELECT * FROM tenants WHERE name = $1";
        let found = sqlx::query(select).bind(name.as_str().to_owned()).fetch_optional(&self.pool).await?;
        found.as_ref().map(row).transpose()
    }

    /// Every tenant, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn tenants(&self) -> Result<Vec<TenantRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM tenants ORDER BY name").fetch_all(&self.pool).await?;
        rows.iter().map(row).collect()
    }

    /// Removes a tenant with all that it owns but the log, and writes down that its files are to be
    /// erased; only if it has no live sandbox.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn remove_tenant(
        &self,
        name: &TenantId,
        audit: &AuditEntry,
    ) -> Result<RemovedTenant, StoreError> {
        let mut change = self.change().await?;
        // INVARIANT: locked before its sandboxes are counted; who adds one waits, and then finds no
        // tenant.
        if !change.lock_tenant(name).await? {
            return Ok(RemovedTenant::Unknown);
        }
        let named = || name.as_str().to_owned();
        let select = "SELECT * FROM tenants WHERE name = $1";
        let tenant = row(&sqlx::query(select).bind(named()).fetch_one(&mut *change.0).await?)?;
        if let Owner::Folder(_) = tenant.owner {
            return Ok(RemovedTenant::Owned(tenant.owner));
        }
        let count = "SELECT COUNT(*) AS live FROM sandboxes WHERE tenant = $1 AND status NOT IN ('destroyed', 'failed')";
        let live = sqlx::query(count).bind(named()).fetch_one(&mut *change.0).await?.number("live")?;
        if live > 0 {
            return Ok(RemovedTenant::Lives(live));
        }
        let count = "SELECT COUNT(*) AS held FROM user_holds WHERE tenant = $1";
        let held = sqlx::query(count).bind(named()).fetch_one(&mut *change.0).await?.number("held")?;
        if held > 0 {
            return Ok(RemovedTenant::Held(held));
        }
        sqlx::query("DELETE FROM tenants WHERE name = $1").bind(named()).execute(&mut *change.0).await?;
        sqlx::query("INSERT INTO removed_tenants (name, removed_at_micros) VALUES ($1, $2)")
            .bind(named())
            .bind(micros(audit.at))
            .execute(&mut *change.0)
            .await?;
        change.record(audit).await?;
        change.commit().await?;
        Ok(RemovedTenant::Removed)
    }

    /// Tenants that are no more and whose files may still be there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn tenants_to_erase(&self) -> Result<Vec<TenantId>, StoreError> {
        let select = "SELECT name FROM removed_tenants WHERE erased_at_micros IS NULL ORDER BY name";
        let rows = sqlx::query(select).fetch_all(&self.pool).await?;
        rows.iter().map(|row| row.parsed("name")).collect()
    }

    /// Notes that a removed tenant's files are gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn tenant_erased(&self, name: &TenantId, now: Timestamp) -> Result<(), StoreError> {
        let mut change = self.change().await?;
        for delete in [
            "DELETE FROM file_metadata WHERE tenant = $1",
            "DELETE FROM archived_files WHERE tenant = $1",
            "DELETE FROM user_uses WHERE tenant = $1",
            "DELETE FROM user_holds WHERE tenant = $1",
            "DELETE FROM user_erasures WHERE tenant = $1",
        ] {
            sqlx::query(delete).bind(name.as_str().to_owned()).execute(&mut *change.0).await?;
        }
        sqlx::query("UPDATE removed_tenants SET erased_at_micros = $2 WHERE name = $1")
            .bind(name.as_str().to_owned())
            .bind(micros(now))
            .execute(&mut *change.0)
            .await?;
        change.commit().await
    }
}

impl Change {
    /// Whether a tenant has a policy set of its own.
    pub(crate) async fn has_policies(&mut self, name: &TenantId) -> Result<bool, StoreError> {
        let select = "SELECT has_policies FROM tenants WHERE name = $1";
        let row = sqlx::query(select).bind(name.as_str().to_owned()).fetch_optional(&mut *self.0).await?;
        Ok(row.map(|row| row.number("has_policies")).transpose()?.is_some_and(|has| has != 0))
    }

    /// Counts a tenant's version up, if it still is `expected`; `false` if somebody was faster.
    pub(crate) async fn next_version(
        &mut self,
        name: &TenantId,
        expected: i64,
        has_policies: bool,
    ) -> Result<bool, StoreError> {
        let update =
            "UPDATE tenants SET version = version + 1, has_policies = $3 WHERE name = $1 AND version = $2";
        let updated = sqlx::query(update)
            .bind(name.as_str().to_owned())
            .bind(expected)
            .bind(i64::from(has_policies))
            .execute(&mut *self.0)
            .await?;
        if updated.rows_affected() != 1 {
            return Ok(false);
        }
        self.raise_revision(name).await?;
        Ok(true)
    }

    /// Notes that a tenant is about to change and keeps others from changing it until the commit;
    /// `false` if there is none.
    pub(crate) async fn lock_tenant(&mut self, name: &TenantId) -> Result<bool, StoreError> {
        let update = "UPDATE tenants SET revision = revision WHERE name = $1";
        let locked = sqlx::query(update).bind(name.as_str().to_owned()).execute(&mut *self.0).await?;
        Ok(locked.rows_affected() == 1)
    }

    /// Gives a tenant the next revision.
    ///
    /// INVARIANT: the tenant's row is locked before, by an update or [`Change::lock_tenant`]; all
    /// changes take the two in this order, so that none waits for another in a circle.
    pub(crate) async fn raise_revision(&mut self, name: &TenantId) -> Result<(), StoreError> {
        let raise = "UPDATE revision SET value = value + 1 WHERE only_row = 1 RETURNING value";
        let revision = sqlx::query(raise).fetch_one(&mut *self.0).await?.number("value")?;
        sqlx::query("UPDATE tenants SET revision = $2 WHERE name = $1")
            .bind(name.as_str().to_owned())
            .bind(revision)
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }
}

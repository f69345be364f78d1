// SPDX-License-Identifier: Apache-2.0
//! Chains of the audit logs: where each ends, which places are vouched for, what has gone by age.
//!
//! The end of a tenant's chain is a row that a change locks before it adds a line, so that lines of
//! one tenant hang together in the order in which their changes were committed. Nothing here knows
//! a key: whoever vouches for a place signs it.

use super::{Change, Columns, Dialect, Select, Store, StoreError, audit, file_audit, micros, page_size};
use jiff::{SignedDuration, Timestamp};
use postern_common::audit::{GENESIS, Log, Mark, MarkKind};
use postern_common::id::{SandboxId, TenantId, UserId};
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::any::AnyRow;

/// How long a change may be open: the database ends one that is idle for half a minute.
const LONGEST_CHANGE: SignedDuration = SignedDuration::from_secs(60);

/// Where a chain ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) hash: String,
    pub(super) length: i64,
    pub(super) sequence: i64,
}

/// Which lines of a log to read.
#[derive(Debug, Clone)]
pub(crate) struct LineFilter {
    /// Of which.
    pub(crate) log: Log,
    /// Of this tenant; of all if absent.
    pub(crate) tenant: Option<TenantId>,
    /// About this user.
    pub(crate) user: Option<UserId>,
    /// About this sandbox.
    pub(crate) sandbox: Option<SandboxId>,
    /// After this place in the log.
    pub(crate) after: i64,
    /// How many at most.
    pub(crate) limit: Option<u32>,
}

/// Which marks to read.
#[derive(Debug, Clone)]
pub(crate) struct MarkFilter {
    /// Of which log.
    pub(crate) log: Log,
    /// Of this tenant; of all if absent.
    pub(crate) tenant: Option<TenantId>,
    /// After this one.
    pub(crate) after: i64,
    /// How many at most.
    pub(crate) limit: Option<u32>,
}

/// A line as it is shown, and as its hash is made of it.
pub(super) fn shown(log: Log, line: &impl Serialize) -> Result<Map<String, Value>, StoreError> {
    match serde_json::to_value(line) {
        Ok(Value::Object(mut line)) => {
            line.insert("log".to_owned(), log.as_str().into());
            Ok(line)
        }
        _ => Err(StoreError::Corrupt { what: "audit line" }),
    }
}

impl Change {
    /// Where a chain ends. Nobody else adds to it until this change has ended.
    pub(super) async fn head(&mut self, log: Log, tenant: &str) -> Result<Head, StoreError> {
        // Written, not only read: that is the lock.
        let lock = "INSERT INTO audit_chains (log, tenant, hash, length, sequence) VALUES ($1, $2, $3, 0, 0) \
             ON CONFLICT (log, tenant) DO UPDATE SET length = audit_chains.length \
             RETURNING hash, length, sequence";
        let query = sqlx::query(lock).bind(log.as_str()).bind(tenant.to_owned()).bind(GENESIS);
        let row = query.fetch_one(&mut *self.0).await?;
        Ok(Head { hash: row.text("hash")?, length: row.number("length")?, sequence: row.number("sequence")? })
    }

    /// The chain ends here now.
    pub(super) async fn set_head(&mut self, log: Log, tenant: &str, head: &Head) -> Result<(), StoreError> {
        let update =
            "UPDATE audit_chains SET hash = $3, length = $4, sequence = $5 WHERE log = $1 AND tenant = $2";
        let query = sqlx::query(update).bind(log.as_str()).bind(tenant.to_owned());
        let query = query.bind(head.hash.clone()).bind(head.length).bind(head.sequence);
        query.execute(&mut *self.0).await?;
        Ok(())
    }

    /// Keeps a mark; one of the same place is there already or is this one.
    async fn add_mark(&mut self, mark: &Mark) -> Result<(), StoreError> {
        let insert = "INSERT INTO audit_marks \
             (mark, installation, log, tenant, length, sequence, hash, at_micros, signature) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (mark, log, tenant, sequence) DO NOTHING";
        sqlx::query(insert)
            .bind(mark.mark.as_str())
            .bind(mark.installation.clone())
            .bind(mark.log.as_str())
            .bind(mark.tenant.clone())
            .bind(i64::try_from(mark.length).unwrap_or(i64::MAX))
            .bind(mark.sequence)
            .bind(mark.hash.clone())
            .bind(micros(mark.at))
            .bind(mark.signature.clone())
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// The newest cut of a chain: lines that were gone by it, and the last hash of those.
    async fn cut(&mut self, log: Log, tenant: &str) -> Result<(u64, String), StoreError> {
        let select = "SELECT * FROM audit_marks WHERE mark = 'cut' AND log = $1 AND tenant = $2 \
             ORDER BY sequence DESC LIMIT 1";
        let query = sqlx::query(select).bind(log.as_str()).bind(tenant.to_owned());
        let found = query.fetch_optional(&mut *self.0).await?;
        let cut = found.as_ref().map(mark).transpose()?.map(|(_, cut)| (cut.length, cut.hash));
        Ok(cut.unwrap_or_else(|| (0, GENESIS.to_owned())))
    }

    /// The oldest lines of a chain.
    async fn oldest(&mut self, log: Log, tenant: &str, most: u32) -> Result<Vec<AnyRow>, StoreError> {
        let select = match log {
            Log::Sandboxes => {
                "SELECT sequence, at_micros, hash FROM sandbox_audit_log WHERE tenant = $1 ORDER BY sequence LIMIT $2"
            }
            Log::Files => {
                "SELECT sequence, at_micros, hash FROM file_audit_log WHERE tenant = $1 ORDER BY sequence LIMIT $2"
            }
        };
        let query = sqlx::query(select).bind(tenant.to_owned()).bind(i64::from(most));
        Ok(query.fetch_all(&mut *self.0).await?)
    }

    /// Deletes what the newest cut says is gone, and what vouched for places before it.
    async fn delete_cut(&mut self, dialect: Dialect, mark: &Mark) -> Result<(), StoreError> {
        match (dialect, mark.log) {
            (Dialect::Postgres, log) => {
                let cut = sqlx::query("SELECT postern_cut_audit_log($1, $2) AS gone").bind(log.as_str());
                cut.bind(mark.tenant.clone()).fetch_one(&mut *self.0).await?;
            }
            (Dialect::Sqlite, log) => {
                let delete = match log {
                    Log::Sandboxes => "DELETE FROM sandbox_audit_log WHERE tenant = $1 AND sequence <= $2",
                    Log::Files => "DELETE FROM file_audit_log WHERE tenant = $1 AND sequence <= $2",
                };
                let delete = sqlx::query(delete).bind(mark.tenant.clone()).bind(mark.sequence);
                delete.execute(&mut *self.0).await?;
                let marks = "DELETE FROM audit_marks WHERE log = $1 AND tenant = $2 AND sequence < $3";
                let marks = sqlx::query(marks).bind(log.as_str()).bind(mark.tenant.clone());
                marks.bind(mark.sequence).execute(&mut *self.0).await?;
            }
        }
        Ok(())
    }
}

fn mark(row: &AnyRow) -> Result<(i64, Mark), StoreError> {
    let word = |what| StoreError::Corrupt { what };
    let mark = Mark {
        mark: row.text("mark")?.parse().map_err(|()| word("mark"))?,
        installation: row.text("installation")?,
        log: row.parsed("log")?,
        tenant: row.text("tenant")?,
        length: u64::try_from(row.number("length")?).map_err(|_negative| word("length"))?,
        sequence: row.number("sequence")?,
        hash: row.text("hash")?,
        at: row.time("at_micros")?,
        signature: row.text("signature")?,
    };
    Ok((row.number("number")?, mark))
}

impl Store {
    /// Lines of all tenants in a row, up to the first place whose line may still come: with Postgres
    /// tenants write at the same time, and a line that got its place earlier may be committed later.
    /// Whoever goes on after the last line would never see it. A place that stays empty was given
    /// back when its change failed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn settled(&self, mut rows: Vec<AnyRow>, after: i64) -> Result<Vec<AnyRow>, StoreError> {
        if self.dialect == Dialect::Sqlite {
            return Ok(rows);
        }
        let open = postern_common::clock::now().saturating_sub(LONGEST_CHANGE).unwrap_or(Timestamp::MIN);
        let mut last = after;
        for index in 0..rows.len() {
            let Some(row) = rows.get(index) else { break };
            let sequence = row.number("sequence")?;
            // Where reading begins, lines may have gone by age.
            if last > 0 && sequence > last + 1 && row.time("at_micros")? > open {
                rows.truncate(index);
                break;
            }
            last = sequence;
        }
        Ok(rows)
    }

    /// A page of a log, oldest first, each line as it is exported.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn audit_lines(
        &self,
        filter: &LineFilter,
    ) -> Result<Vec<Map<String, Value>>, StoreError> {
        let select = match filter.log {
            Log::Sandboxes => Select::of("SELECT * FROM sandbox_audit_log"),
            Log::Files => Select::of("SELECT * FROM file_audit_log"),
        };
        let rows = select
            .and("sequence > ?", Some(filter.after))
            .and("tenant = ?", filter.tenant.as_ref().map(TenantId::as_str))
            .and("user_id = ?", filter.user.as_ref().map(UserId::as_str))
            .and("sandbox_id = ?", filter.sandbox.as_ref().map(SandboxId::as_str))
            .page("sequence", page_size(filter.limit), &self.pool)
            .await?;
        let is_of_all = filter.tenant.is_none() && filter.user.is_none() && filter.sandbox.is_none();
        let rows = if is_of_all { self.settled(rows, filter.after)? } else { rows };
        let line = |row: &AnyRow| {
            let mut line = match filter.log {
                Log::Sandboxes => shown(filter.log, &audit::event(row)?)?,
                Log::Files => shown(filter.log, &file_audit::line(row)?)?,
            };
            for name in ["previous_hash", "hash"] {
                if let Some(hash) = row.maybe_text(name)? {
                    line.insert(name.to_owned(), hash.into());
                }
            }
            Ok(line)
        };
        rows.iter().map(line).collect()
    }

    /// A page of marks with their numbers, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn audit_marks(&self, filter: &MarkFilter) -> Result<Vec<(i64, Mark)>, StoreError> {
        let rows = Select::of("SELECT * FROM audit_marks")
            .and("number > ?", Some(filter.after))
            .and("log = ?", Some(filter.log.as_str()))
            .and("tenant = ?", filter.tenant.as_ref().map(TenantId::as_str))
            .page("number", page_size(filter.limit), &self.pool)
            .await?;
        rows.iter().map(mark).collect()
    }

    /// Has `sign` vouch for the end of every chain that has grown and whose newest checkpoint is
    /// from before `since`; returns the marks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn sign_audit_heads(
        &self,
        (since, now): (Timestamp, Timestamp),
        sign: &(dyn Fn(&mut Mark) + Sync),
    ) -> Result<Vec<Mark>, StoreError> {
        let select = "SELECT c.log AS log, c.tenant AS tenant FROM audit_chains c \
             LEFT JOIN (SELECT log, tenant, MAX(sequence) AS sequence, MAX(at_micros) AS at_micros \
             FROM audit_marks WHERE mark = 'checkpoint' GROUP BY log, tenant) m \
             ON m.log = c.log AND m.tenant = c.tenant \
             WHERE c.sequence > COALESCE(m.sequence, 0) AND COALESCE(m.at_micros, -1) < $1";
        let due = sqlx::query(select).bind(micros(since)).fetch_all(&self.pool).await?;
        let mut signed = Vec::with_capacity(due.len());
        for row in &due {
            let (log, tenant) = (row.parsed::<Log>("log")?, row.text("tenant")?);
            let mut change = self.change().await?;
            let head = change.head(log, &tenant).await?;
            let mut mark = Mark {
                mark: MarkKind::Checkpoint,
                installation: String::new(),
                log,
                tenant,
                length: u64::try_from(head.length).unwrap_or_default(),
                sequence: head.sequence,
                hash: head.hash,
                at: super::whole_micros(now),
                signature: String::new(),
            };
            sign(&mut mark);
            change.add_mark(&mark).await?;
            change.commit().await?;
            signed.push(mark);
        }
        Ok(signed)
    }

    /// Forgets lines of a log from before `before`, at most `most` of each tenant, once `sign` has
    /// vouched for where each chain begins then; returns how many are gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn forget_lines(
        &self,
        log: Log,
        before: Timestamp,
        most: u32,
        sign: &(dyn Fn(&mut Mark) + Sync),
    ) -> Result<u64, StoreError> {
        let select = match log {
            Log::Sandboxes => "SELECT DISTINCT tenant FROM sandbox_audit_log WHERE at_micros < $1",
            Log::Files => "SELECT DISTINCT tenant FROM file_audit_log WHERE at_micros < $1",
        };
        let mut gone = 0;
        for row in sqlx::query(select).bind(micros(before)).fetch_all(&self.pool).await? {
            gone += self.cut_chain(log, row.text("tenant")?, before, most, sign).await?;
        }
        Ok(gone)
    }

    async fn cut_chain(
        &self,
        log: Log,
        tenant: String,
        before: Timestamp,
        most: u32,
        sign: &(dyn Fn(&mut Mark) + Sync),
    ) -> Result<u64, StoreError> {
        let mut change = self.change().await?;
        change.head(log, &tenant).await?;
        let (mut length, mut hash) = change.cut(log, &tenant).await?;
        let (mut gone, mut through) = (0, 0);
        // Only from the beginning on: a clock that went back keeps lines for longer.
        for row in change.oldest(log, &tenant, most).await? {
            if row.number("at_micros")? >= micros(before) {
                break;
            }
            if let Some(of_line) = row.maybe_text("hash")? {
                (length, hash) = (length + 1, of_line);
            }
            (gone, through) = (gone + 1, row.number("sequence")?);
        }
        if gone == 0 {
            return Ok(0);
        }
        let at = super::whole_micros(postern_common::clock::now());
        let (installation, signature) = (String::new(), String::new());
        let mark = MarkKind::Cut;
        let mut mark =
            Mark { mark, installation, log, tenant, length, sequence: through, hash, at, signature };
        sign(&mut mark);
        change.add_mark(&mark).await?;
        change.delete_cut(self.dialect, &mark).await?;
        change.commit().await?;
        Ok(gone)
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What other orchestrators on the same Postgres have changed, as its triggers tell it.
//!
//! A change is told when it is committed, in the order of commits. Which connection made it is in
//! the notice (`application_name`), so that nobody hears of their own. SQLite has one orchestrator,
//! and nothing to tell.

use super::{Dialect, Store, StoreError};
use postern_common::id::{GatewayName, SandboxId, TenantId};
use postern_common::secret::Secret;
use sqlx::postgres::PgListener;

/// The channel that the triggers of migration 29 tell on.
const CHANNEL: &str = "postern";

/// Something that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A tenant's configuration or secrets, or the tenant is no more.
    Tenant(TenantId),
    /// A session of a sandbox or an address.
    Session(SandboxId),
    /// A gateway's credential.
    Gateway(GatewayName),
    /// One of our own, with which we find out that all before it was heard.
    Mark(u64),
    /// The connection was lost: anything may have changed meanwhile.
    Missed,
    /// Something of another release, or of ourselves.
    Nothing,
}

/// Hears of changes.
pub(crate) struct Notices {
    listener: PgListener,
    own: String,
}

impl Notices {
    /// The next one. Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError::Database`]; then it hears no more.
    pub(crate) async fn next(&mut self) -> Result<Notice, StoreError> {
        let heard = self.listener.try_recv().await?;
        Ok(heard.map_or(Notice::Missed, |heard| read(heard.payload(), &self.own)))
    }
}

/// `BY KIND NAME`: which orchestrator, what kind of thing, which one.
fn read(payload: &str, own: &str) -> Notice {
    let mut words = payload.splitn(3, ' ');
    let (Some(by), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
        return Notice::Nothing;
    };
    match (kind, by == own) {
        ("mark", true) => name.parse().map_or(Notice::Nothing, Notice::Mark),
        (_, true) => Notice::Nothing,
        ("tenant", false) => TenantId::parse(name).map_or(Notice::Nothing, Notice::Tenant),
        ("session", false) => SandboxId::parse(name).map_or(Notice::Nothing, Notice::Session),
        ("gateway", false) => GatewayName::parse(name).map_or(Notice::Nothing, Notice::Gateway),
        _ => Notice::Nothing,
    }
}

impl Store {
    /// Begins to hear of what others change; `None` where nobody else can.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn listen(&self, url: &Secret<String>) -> Result<Option<Notices>, StoreError> {
        if self.dialect == Dialect::Sqlite {
            return Ok(None);
        }
        let mut listener = PgListener::connect(url.reveal()).await?;
        listener.listen(CHANNEL).await?;
        Ok(Some(Notices { listener, own: self.replica.to_string() }))
    }

    /// Has our own [`Notices`] tell this number after everything that was committed before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn mark(&self, number: u64) -> Result<(), StoreError> {
        let notify = sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL);
        notify.bind(format!("{} mark {number}", self.replica)).execute(&self.pool).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_of_others_and_names_what_changed() {
        let tenant = Notice::Tenant(TenantId::parse("acme").expect("a name"));
        assert_eq!(read("other tenant acme", "us"), tenant);
        assert_eq!(read("us tenant acme", "us"), Notice::Nothing, "our own");
        assert_eq!(read("us mark 7", "us"), Notice::Mark(7));
        assert_eq!(read("other mark 7", "us"), Notice::Nothing);
        for strange in ["", "other", "other tenant", "other tenant A B", "other session x", "other moon acme"]
        {
            assert_eq!(read(strange, "us"), Notice::Nothing, "{strange}");
        }
    }
}

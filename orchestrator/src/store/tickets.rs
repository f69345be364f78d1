// SPDX-License-Identifier: Apache-2.0
//! Tickets that were used, so that none is used twice, at whichever orchestrator.

use super::{Store, StoreError, micros};
use jiff::Timestamp;

impl Store {
    /// Notes that a ticket is used; `false` if it was before. Those that are too old to be taken by
    /// anybody are forgotten, so that no more are kept than were made in their time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn spend_ticket(
        &self,
        nonce: &str,
        good_until: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let forget = "DELETE FROM spent_tickets WHERE good_until_micros < $1";
        let _turn = self.turn().await?;
        sqlx::query(forget).bind(micros(now)).execute(&self.pool).await?;
        let insert = "INSERT INTO spent_tickets (nonce, good_until_micros) VALUES ($1, $2) \
             ON CONFLICT (nonce) DO NOTHING";
        let query = sqlx::query(insert).bind(nonce.to_owned()).bind(micros(good_until));
        Ok(query.execute(&self.pool).await?.rows_affected() == 1)
    }
}

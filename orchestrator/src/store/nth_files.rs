// SPDX-License-Identifier: Apache-2.0
//! Where the list of a user's files can be divided.

use super::files::FileOwner;
use super::{Columns, Dialect, Store, StoreError};
use crate::storage::FilePath;

impl Store {
    /// Every `nth` of a user's files, in the order of their paths, byte by byte.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn nth_files(&self, owner: &FileOwner, nth: u32) -> Result<Vec<FilePath>, StoreError> {
        let select = match self.dialect {
            Dialect::Sqlite => {
                "SELECT path FROM (SELECT path, ROW_NUMBER() OVER (ORDER BY path) AS place FROM file_metadata \
                 WHERE tenant = $1 AND user_id = $2) AS placed WHERE place % $3 = 0 ORDER BY place"
            }
            Dialect::Postgres => {
                "SELECT path FROM (SELECT path, ROW_NUMBER() OVER (ORDER BY path COLLATE \"C\") AS place \
                 FROM file_metadata WHERE tenant = $1 AND user_id = $2) AS placed WHERE place % $3 = 0 ORDER BY place"
            }
        };
        let query = sqlx::query(select).bind(owner.tenant.as_str()).bind(owner.user.as_str());
        let rows = query.bind(i64::from(nth.max(1))).fetch_all(&self.pool).await?;
        rows.iter().map(|row| row.parsed("path")).collect()
    }
}

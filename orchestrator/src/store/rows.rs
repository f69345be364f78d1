// SPDX-License-Identifier: Apache-2.0
//! Places for the values of a statement that writes several rows.

use super::{Change, Dialect};

impl Change {
    /// So many rows of so many values, which are bound in this order: `($1, $2), ($3, $4)`, for SQLite
    /// `(?, ?), (?, ?)`. There a place with a name is looked for among all others whenever one is bound, which
    /// for a thousand of them takes longer than the statement itself.
    pub(super) fn rows(&self, rows: usize, values: usize) -> String {
        let place = |number: usize| match self.2 {
            Dialect::Sqlite => "?".to_owned(),
            Dialect::Postgres => format!("${number}"),
        };
        let row = |row: usize| {
            let first = row * values + 1;
            (first..first + values).map(place).collect::<Vec<_>>().join(", ")
        };
        let rows: Vec<String> = (0..rows).map(|number| format!("({})", row(number))).collect();
        rows.join(", ")
    }
}

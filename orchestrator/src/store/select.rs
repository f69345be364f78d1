// SPDX-License-Identifier: Apache-2.0
//! Lists with filters: a statement holds only the conditions that were asked for, so that each
//! combination finds its index.

use super::{Dialect, StoreError};
use serde_json::json;
use sqlx::any::AnyRow;
use sqlx::{AnyPool, AssertSqlSafe};

/// A value of a condition.
pub(super) enum Bound {
    Text(String),
    Number(i64),
}

impl From<&str> for Bound {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Bound {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// A statement that grows by conditions.
///
/// INVARIANT: its text is made of constants of this crate only; values are bound.
pub(super) struct Select {
    text: String,
    values: Vec<Bound>,
}

impl Select {
    /// Everything that this statement, which has no conditions yet, selects.
    pub(super) fn of(select: &'static str) -> Self {
        Self { text: select.to_owned(), values: Vec::new() }
    }

    /// Only what meets this condition, in which `?` stands for the value; no value, no condition.
    pub(super) fn and(mut self, condition: &'static str, value: Option<impl Into<Bound>>) -> Self {
        let Some(value) = value else { return self };
        self.text.push_str(if self.values.is_empty() { " WHERE " } else { " AND " });
        self.values.push(value.into());
        self.text.push_str(&condition.replace('?', &format!("${}", self.values.len())));
        self
    }

    /// Only what has this label, in a column `labels` that holds a JSON object of texts.
    pub(super) fn and_label(self, dialect: Dialect, label: Option<&(String, String)>) -> Self {
        // As JSON, so that no name or value is taken for another's.
        match dialect {
            Dialect::Sqlite => self.and(
                "EXISTS (SELECT 1 FROM json_each(labels) l WHERE json_array(l.key, l.value) = json(?))",
                label.map(|(name, value)| Bound::Text(json!([name, value]).to_string())),
            ),
            Dialect::Postgres => self.and(
                "CAST(labels AS JSONB) @> CAST(? AS JSONB)",
                label.map(|(name, value)| Bound::Text(json!({ (name.as_str()): value }).to_string())),
            ),
        }
    }

    /// The first rows in this order.
    pub(super) async fn page(
        mut self,
        order: &'static str,
        limit: u32,
        pool: &AnyPool,
    ) -> Result<Vec<AnyRow>, StoreError> {
        self.values.push(i64::from(limit).into());
        let text = format!("{} ORDER BY {order} LIMIT ${}", self.text, self.values.len());
        let mut query = sqlx::query(AssertSqlSafe(text));
        for value in self.values {
            query = match value {
                Bound::Text(text) => query.bind(text),
                Bound::Number(number) => query.bind(number),
            };
        }
        Ok(query.fetch_all(pool).await?)
    }
}

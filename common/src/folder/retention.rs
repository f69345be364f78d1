// SPDX-License-Identifier: Apache-2.0
//! `[retention]` of `limits.toml`: when users' files go by themselves, and where to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// When users' files go by themselves, and where to. Nothing is said: they stay. Files of a user who has
/// a live sandbox, or is held, stay in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FileRetention {
    /// After they were neither written nor read nor brought into a sandbox for so long, such as `90d`.
    #[serde(skip_serializing_if = "Option::is_none", with = "long")]
    #[schemars(with = "Option<String>")]
    pub unused: Option<Duration>,
    /// After they were written so long ago.
    #[serde(skip_serializing_if = "Option::is_none", with = "long")]
    #[schemars(with = "Option<String>")]
    pub age: Option<Duration>,
    /// What becomes of them then.
    #[serde(skip_serializing_if = "OnRetired::is_archive")]
    pub then: OnRetired,
    /// How long they stay in the archive; for good, if absent.
    #[serde(skip_serializing_if = "Option::is_none", with = "long")]
    #[schemars(with = "Option<String>")]
    pub archived: Option<Duration>,
}

impl FileRetention {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of a file whose time has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnRetired {
    /// It is moved to `archive/` beside its user's files, where only the operator finds it.
    #[default]
    Archive,
    /// It is deleted.
    Delete,
}

impl OnRetired {
    const fn is_archive(&self) -> bool {
        matches!(self, Self::Archive)
    }
}

/// Durations that are said in days too. At least an hour: a slip of the unit shall cost no file.
mod long {
    use jiff::fmt::friendly::SpanPrinter;
    use jiff::{Span, SpanRelativeTo};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    const LEAST: Duration = Duration::from_secs(3600);

    pub(super) fn serialize<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => to.serialize_some(&SpanPrinter::new().unsigned_duration_to_string(time)),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
        let days = SpanRelativeTo::days_are_24_hours();
        let time = text.parse::<Span>().and_then(|span| span.to_duration(days)).and_then(Duration::try_from);
        match time {
            Ok(time) if time >= LEAST => Ok(Some(time)),
            Ok(_short) => Err(D::Error::custom(format!("`{text}` is less than an hour"))),
            Err(_) => {
                Err(D::Error::custom(format!("`{text}` is no duration: expected one such as `90d` or `12h`")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_days_and_a_slip_of_the_unit_is_refused() {
        let policy: FileRetention =
            serde_json::from_str(r#"{"unused": "90d", "age": "1w 2d", "then": "delete"}"#).expect("reads");
        assert_eq!(policy.unused, Some(Duration::from_secs(90 * 24 * 3600)));
        assert_eq!(policy.age, Some(Duration::from_secs(9 * 24 * 3600)));
        assert_eq!(policy.then, OnRetired::Delete);
        let text = serde_json::to_string(&policy).expect("serializes");
        assert_eq!(serde_json::from_str::<FileRetention>(&text).expect("reads"), policy, "{text}");
        for wrong in ["90s", "59m", "-1d", "soon", ""] {
            let text = format!(r#"{{"unused": "{wrong}"}}"#);
            serde_json::from_str::<FileRetention>(&text).expect_err(wrong);
        }
        serde_json::from_str::<FileRetention>(r#"{"unsued": "90d"}"#).expect_err("a typo");
        assert_eq!(serde_json::to_string(&FileRetention::default()).expect("serializes"), "{}");
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Reads a manifest key by key, so that one mistake does not hide the next.

use super::{
    BucketRate, DEFAULT_HOST_CALLS, DEFAULT_LOG, DEFAULT_MEMORY, DEFAULT_TIME, Limits, MAX_BODY, MAX_CHUNK,
    MAX_HOST_CALLS, MAX_LOG, MAX_NAMED, MAX_TIME, MIN_CHUNK, MIN_MEMORY, Manifest, ManifestMistake,
    ManifestMistakes, Phase,
};
use crate::schema::Schema;
use crate::settings::{MAX_MEMORY, TICK};
use bytesize::ByteSize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;
use toml::{Table, Value};

/// The longest manifest: schemas included.
const MAX_MANIFEST_BYTES: usize = 256 * 1024;

pub(super) fn manifest(text: &str) -> Result<Manifest, ManifestMistakes> {
    let only =
        |place: String, message: String| Err(ManifestMistakes(vec![ManifestMistake { place, message }]));
    if text.len() > MAX_MANIFEST_BYTES {
        return only("filter.toml".to_owned(), "is longer than 256 KiB".to_owned());
    }
    let table: Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(1, |before| before.matches('\n').count() + 1);
            return only(format!("line {line}"), error.message().to_owned());
        }
    };
    let mut mistakes = Vec::new();
    let manifest = Keys::new("", table, &mut mistakes).manifest();
    if mistakes.is_empty() { Ok(manifest) } else { Err(ManifestMistakes(mistakes)) }
}

/// A table whose keys are taken one by one; what is left in the end is a mistake.
struct Keys<'a> {
    prefix: String,
    table: Table,
    known: Vec<&'static str>,
    mistakes: &'a mut Vec<ManifestMistake>,
}

impl<'a> Keys<'a> {
    fn new(prefix: &str, table: Table, mistakes: &'a mut Vec<ManifestMistake>) -> Self {
        Self { prefix: prefix.to_owned(), table, known: Vec::new(), mistakes }
    }

    fn manifest(mut self) -> Manifest {
        let phases: Option<BTreeSet<Phase>> = self.take("phases");
        if phases.as_ref().is_none_or(BTreeSet::is_empty) && !self.has_mistake("phases") {
            self.mistake("phases", "is missing: [\"request\"], [\"response\"] or both");
        }
        let host = self.take("host").unwrap_or_default();
        self.no_failure_mode();
        let [request_body, response_body, response_chunk] = self.bodies();
        let limits = self.limits();
        let counters = self.counters();
        let buckets = self.named("buckets", Self::bucket);
        let schemas = self.named("schemas", Self::schema);
        let config_schema = self.value("config_schema").and_then(|value| self.schema("config_schema", value));
        let config = self.config(config_schema.as_ref());
        self.finish();
        Manifest {
            phases: phases.unwrap_or_default(),
            host,
            request_body,
            response_body,
            response_chunk,
            limits,
            counters,
            buckets,
            schemas,
            config,
            config_schema,
        }
    }

    /// Whoever writes a filter does not decide what becomes of requests that it fails on.
    fn no_failure_mode(&mut self) {
        if self.table.remove("on_failure").is_some() {
            let message = "is for the tenant to say, in backend.toml: filters = [{ name = \"…\", on_failure = \"open\" }]";
            self.mistake("on_failure", message);
        }
    }

    /// Of the request, of the response, and of each part of a response.
    fn bodies(&mut self) -> [Option<u64>; 3] {
        let Some(mut keys) = self.inner("body") else {
            return [None; 3];
        };
        let request = keys.size("request", 1..=MAX_BODY);
        let response = keys.size("response", 1..=MAX_BODY);
        let chunk = keys.size("response_chunk", MIN_CHUNK..=MAX_CHUNK);
        if response.is_some() && chunk.is_some() {
            keys.mistake("response_chunk", "a body comes whole or in parts: leave one of the two out");
        }
        keys.finish();
        [request, response, chunk]
    }

    fn limits(&mut self) -> Limits {
        let Some(mut keys) = self.inner("limits") else {
            return Limits::default();
        };
        let limits = Limits {
            time: keys.time("time").unwrap_or(DEFAULT_TIME),
            memory: keys.size("memory", MIN_MEMORY..=MAX_MEMORY).unwrap_or(DEFAULT_MEMORY),
            host_calls: keys.number("host_calls", 1..=MAX_HOST_CALLS).unwrap_or(DEFAULT_HOST_CALLS),
            log: keys
                .size("log", 0..=u64::from(MAX_LOG))
                .and_then(|bytes| u32::try_from(bytes).ok())
                .unwrap_or(DEFAULT_LOG),
        };
        keys.finish();
        limits
    }

    fn counters(&mut self) -> BTreeSet<String> {
        let counters: BTreeSet<String> = self.take("counters").unwrap_or_default();
        if counters.len() > MAX_NAMED {
            self.mistake("counters", "has more than 32 names");
        }
        if let Some(bad) = counters.iter().find(|name| !is_name(name)) {
            let message = format!("`{}` is not 1 to 64 of a-z, 0-9, `_` and `-`", bad.escape_default());
            self.mistake("counters", message);
        }
        counters
    }

    fn bucket(&mut self, place: &str, value: Value) -> Option<BucketRate> {
        let Value::Table(table) = value else {
            self.mistake(place, "expected `per_second` and perhaps `burst`");
            return None;
        };
        let mut keys = Keys::new(&format!("{}{place}.", self.prefix), table, self.mistakes);
        let per_second: Option<f64> = keys.take("per_second");
        let burst = keys.number("burst", 1..=1_000_000);
        if !per_second.is_some_and(|rate| rate > 0.0 && rate <= 1_000_000.0)
            && !keys.has_mistake("per_second")
        {
            keys.mistake("per_second", "expected a number above 0, at most 1,000,000, such as 2.0");
        }
        keys.finish();
        let per_second = per_second?;
        Some(BucketRate { per_second, burst: burst.unwrap_or_else(|| rounded_up(per_second)) })
    }

    fn schema(&mut self, place: &str, value: Value) -> Option<Schema> {
        let json = serde_json::to_value(value).unwrap_or_default();
        Schema::compile(&json).map_err(|error| self.mistake(place, error.to_string())).ok()
    }

    fn config(&mut self, schema: Option<&Schema>) -> serde_json::Map<String, serde_json::Value> {
        let Some(value) = self.value("config") else {
            return serde_json::Map::new();
        };
        match serde_json::to_value(value) {
            Ok(serde_json::Value::Object(config)) => {
                let found = schema.map(|schema| schema.mistakes(&config.clone().into()));
                for mistake in found.into_iter().flatten() {
                    self.mistake(&format!("config{}", mistake.pointer), mistake.message);
                }
                config
            }
            _ => {
                self.mistake("config", "expected a table of the filter's settings");
                serde_json::Map::new()
            }
        }
    }

    fn named<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&mut Self, &str, Value) -> Option<T>,
    ) -> BTreeMap<String, T> {
        let table: Table = self.take(key).unwrap_or_default();
        if table.len() > MAX_NAMED {
            self.mistake(key, "has more than 32 entries");
            return BTreeMap::new();
        }
        let mut found = BTreeMap::new();
        for (name, value) in table {
            let place = format!("{key}.{}", name.escape_default());
            if !is_name(&name) {
                self.mistake(&place, "the name is not 1 to 64 of a-z, 0-9, `_` and `-`");
            } else if let Some(value) = read(self, &place, value) {
                found.insert(name, value);
            }
        }
        found
    }

    fn inner(&mut self, key: &'static str) -> Option<Keys<'_>> {
        let table: Table = self.take(key)?;
        let prefix = format!("{}{key}.", self.prefix);
        Some(Keys::new(&prefix, table, self.mistakes))
    }

    fn size(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let size: ByteSize = self.take(key)?;
        if !range.contains(&size.as_u64()) {
            let (least, most) = (ByteSize(*range.start()), ByteSize(*range.end()));
            self.mistake(key, format!("expected {least} to {most}"));
            return None;
        }
        Some(size.as_u64())
    }

    fn number(&mut self, key: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let number: u32 = self.take(key)?;
        if !range.contains(&number) {
            self.mistake(key, format!("expected {} to {}", range.start(), range.end()));
            return None;
        }
        Some(number)
    }

    fn time(&mut self, key: &'static str) -> Option<Duration> {
        let text: String = self.take(key)?;
        let time = text.parse::<jiff::SignedDuration>().ok();
        let time = time.and_then(|time| Duration::try_from(time).ok());
        let time = time.filter(|time| (TICK..=MAX_TIME).contains(time));
        if time.is_none() {
            self.mistake(key, "expected 1ms to 1s, such as \"20ms\"");
        }
        time
    }

    fn take<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        let value = self.value(key)?;
        value.try_into().map_err(|error: toml::de::Error| self.mistake(key, error.message().to_owned())).ok()
    }

    fn value(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    fn mistake(&mut self, key: &str, message: impl Into<String>) {
        let place = format!("{}{key}", self.prefix);
        self.mistakes.push(ManifestMistake { place, message: message.into() });
    }

    fn has_mistake(&self, key: &str) -> bool {
        let place = format!("{}{key}", self.prefix);
        self.mistakes.iter().any(|mistake| mistake.place == place)
    }

    fn finish(mut self) {
        let known = self.known.join("`, `");
        for key in std::mem::take(&mut self.table).keys() {
            let key = key.escape_default().to_string();
            self.mistake(&key, format!("is no key here; expected `{known}`"));
        }
    }
}

fn is_name(text: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

/// A whole number of tokens that lets one second's worth through, at least one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the caller has checked that it lies between 0 and 1,000,000"
)]
fn rounded_up(per_second: f64) -> u32 {
    (per_second.ceil() as u32).max(1)
}

// SPDX-License-Identifier: Apache-2.0
//! First-party filter: refuses a request whose JSON body carries a payment card number.
//!
//! A support agent that pastes a customer's card into a note makes every system behind it a card
//! processor. A text is refused if it holds 13 to 19 digits, perhaps grouped by blanks or
//! hyphens, that pass the Luhn check (ISO/IEC 7812-1 Annex B) and begin like a card's. Texts are
//! compared after JSON's escapes are resolved; numbers and names of fields count too.

mod digits;

use postern_sdk_wasm::{Filter, Rejection, Request, Verdict, count, register};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeSet;
use std::fmt;

/// Which fields to look at.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Fields whose texts are looked at, with all that lies in them; all fields if empty.
    fields: BTreeSet<String>,
}

/// The filter.
#[derive(Debug)]
pub struct CardGuard {
    config: Config,
}

impl Filter for CardGuard {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self { config }
    }

    fn on_request(&self, request: &mut Request) -> Verdict {
        let body = request.body();
        if body.is_empty() || !self.has_card(&body) {
            return Verdict::Continue;
        }
        count("refused", 1);
        Rejection::new(
            "card-number",
            "the body seems to hold a payment card number: leave it out, or keep its last four digits only",
        )
        .with_status(422)
        .into()
    }
}

impl CardGuard {
    /// A body that is not JSON, or too deep to be read, is looked at as text.
    fn has_card(&self, body: &[u8]) -> bool {
        let mut json = serde_json::Deserializer::from_slice(body);
        let look = Look { fields: &self.config.fields, inside: self.config.fields.is_empty() };
        match look.deserialize(&mut json).and_then(|found| json.end().map(|()| found)) {
            Ok(found) => found,
            Err(_not_json) => digits::has_card_number(body),
        }
    }
}

/// Walks through JSON without keeping any of it; answers whether a card number was met.
#[derive(Clone, Copy)]
struct Look<'a> {
    fields: &'a BTreeSet<String>,
    inside: bool,
}

impl Look<'_> {
    fn text(self, text: &str) -> bool {
        self.inside && digits::has_card_number(text.as_bytes())
    }
}

impl<'de> DeserializeSeed<'de> for Look<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look<'_> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<bool, E> {
        Ok(self.text(text))
    }

    fn visit_u64<E>(self, number: u64) -> Result<bool, E> {
        Ok(self.text(&number.to_string()))
    }

    fn visit_i64<E>(self, _: i64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_f64<E>(self, number: f64) -> Result<bool, E> {
        Ok(self.text(&number.to_string()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<bool, A::Error> {
        let mut found = false;
        while let Some(in_item) = items.next_element_seed(self)? {
            found |= in_item;
        }
        Ok(found)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<bool, A::Error> {
        let mut found = false;
        while let Some(name) = entries.next_key::<String>()? {
            let inside = self.inside || self.fields.contains(&name);
            found |= self.text(&name) | entries.next_value_seed(Look { inside, ..self })?;
        }
        Ok(found)
    }
}

register!(CardGuard);

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: Apache-2.0
//! The contract (`wit/filter.wit`) and the Rust SDK with which filters are written.
//!
//! A filter implements [`Filter`] and is registered with [`register!`]. Compiled for
//! `wasm32-unknown-unknown` as a `cdylib` it runs in the gateway; compiled natively it runs in
//! `cargo test` through the [`harness`]. The SDK brings an allocator that suits instances that
//! live for one request; it does not bring a clock, randomness, files or a network, because a
//! filter has none.
//!
//! `postern filter new NAME` makes the folder of a filter, with this crate in it. The settings come
//! typed, checked by the host against the manifest's `[config_schema]`; defaults are in the
//! manifest's `[config]`. A panic refuses the request, so `?` and early returns are for verdicts.
//!
//! # Refuse by a header
//!
//! ```
//! use postern_sdk_wasm::{Filter, NoConfig, Rejection, Request, Verdict, harness::Case};
//!
//! /// Refuses what was sent by a browser.
//! struct NoBrowsers;
//!
//! impl Filter for NoBrowsers {
//!     type Config = NoConfig;
//!
//!     fn new(_: NoConfig) -> Self {
//!         Self
//!     }
//!
//!     fn on_request(&self, request: &mut Request) -> Verdict {
//!         match request.header("user-agent") {
//!             Some(agent) if agent.starts_with("Mozilla/") => {
//!                 Rejection::new("no-browsers", "use the agent's own client").into()
//!             }
//!             _ => Verdict::Continue,
//!         }
//!     }
//! }
//!
//! postern_sdk_wasm::register!(NoBrowsers);
//!
//! fn main() -> Result<(), postern_sdk_wasm::harness::FilterStopped> {
//!     let outcome = Case::get("/orders").header("user-agent", "Mozilla/5.0").run::<NoBrowsers>()?;
//!     assert_eq!(outcome.rejection().map(|it| it.code.as_str()), Some("no-browsers"));
//!     Ok(())
//! }
//! ```
//! Its `filter.toml`: `phases = ["request"]`.
//!
//! # Change a JSON body, with settings
//!
//! ```
//! use postern_sdk_wasm::{Filter, Rejection, Request, Verdict, harness::{Case, Change}};
//! use serde_json::{Map, Value, json};
//!
//! /// Settings: `[config]` in filter.toml, or `config` where the filter is attached.
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     currency: String,
//! }
//!
//! /// Writes the currency into bodies that have none.
//! struct DefaultCurrency(Config);
//!
//! impl Filter for DefaultCurrency {
//!     type Config = Config;
//!
//!     fn new(config: Config) -> Self {
//!         Self(config)
//!     }
//!
//!     fn on_request(&self, request: &mut Request) -> Verdict {
//!         if !request.is_json() {
//!             return Verdict::Continue;
//!         }
//!         let Ok(mut body) = request.json::<Map<String, Value>>() else {
//!             return Rejection::new("no-object", "send a JSON object").with_status(422).into();
//!         };
//!         if body.contains_key("currency") {
//!             return Verdict::Continue;
//!         }
//!         body.insert("currency".into(), self.0.currency.clone().into());
//!         match request.set_json(&body) {
//!             Ok(()) => Verdict::Continue,
//!             Err(_) => Rejection::new("no-json", "the body could not be written again").into(),
//!         }
//!     }
//! }
//!
//! postern_sdk_wasm::register!(DefaultCurrency);
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let case = Case::post_json("/refunds", &json!({"amount": 3}));
//!     let outcome = case.config(json!({"currency": "EUR"})).run::<DefaultCurrency>()?;
//!     let [Change::SetBody(body)] = outcome.changes.as_slice() else { panic!("no new body") };
//!     assert_eq!(serde_json::from_slice::<Value>(body)?, json!({"amount": 3, "currency": "EUR"}));
//!     Ok(())
//! }
//! ```
//! Its `filter.toml`:
//! ```toml
//! phases = ["request"]
//! body = { request = "64KiB" }
//! [config]
//! currency = "EUR"
//! [config_schema]
//! type = "object"
//! required = ["currency"]
//! additionalProperties = false
//! properties.currency = { type = "string", minLength = 3, maxLength = 3 }
//! ```
//!
//! # Change a response as it streams
//!
//! A fresh filter is made for each part of the body; what may be the beginning of a match is kept
//! back and comes again at the front of the next part.
//!
//! ```
//! use postern_sdk_wasm::{Filter, NoConfig, Response, Verdict, harness::Case};
//!
//! const WORD: &[u8] = b"internal-only";
//!
//! /// Blanks a word, also where it is cut in two by the parts of a stream.
//! struct NoInternals;
//!
//! impl Filter for NoInternals {
//!     type Config = NoConfig;
//!
//!     fn new(_: NoConfig) -> Self {
//!         Self
//!     }
//!
//!     fn on_response(&self, response: &mut Response) -> Verdict {
//!         let body = response.body();
//!         let (mut passed, mut rest) = (Vec::new(), body.as_slice());
//!         while let Some(at) = rest.windows(WORD.len()).position(|window| window == WORD) {
//!             passed.extend_from_slice(&rest[..at]);
//!             passed.extend_from_slice(b"***");
//!             rest = &rest[at + WORD.len()..];
//!         }
//!         let kept = if response.part().is_last { 0 } else { rest.len().min(WORD.len() - 1) };
//!         passed.extend_from_slice(&rest[..rest.len() - kept]);
//!         response.keep(kept as u32);
//!         response.set_body(&passed);
//!         Verdict::Continue
//!     }
//! }
//!
//! postern_sdk_wasm::register!(NoInternals);
//!
//! fn main() -> Result<(), postern_sdk_wasm::harness::FilterStopped> {
//!     let parts: [&[u8]; 3] = [b"this is inter", b"nal-only text", b""];
//!     let (passed, _) = Case::get("/notes").run_parts::<NoInternals>(&parts)?;
//!     assert_eq!(passed, b"this is *** text");
//!     Ok(())
//! }
//! ```
//! Its `filter.toml`:
//! ```toml
//! phases = ["response"]
//! body = { response_chunk = "16KiB" }
//! ```

#[cfg(target_arch = "wasm32")]
mod allocator;
#[doc(hidden)]
#[cfg(target_arch = "wasm32")]
pub mod guest;
#[cfg(not(target_arch = "wasm32"))]
pub mod harness;
mod headers;
#[cfg(any(target_arch = "wasm32", test))]
mod region;
mod request;
mod response;
mod services;
mod verdict;

#[cfg(target_arch = "wasm32")]
use guest::host;
#[cfg(not(target_arch = "wasm32"))]
use harness::host;

pub use request::Request;
pub use response::{Part, Response};
pub use services::{Claim, Level, Mistake, Session, check_json, count, log, take_tokens};
pub use verdict::{Rejection, Verdict};

use serde::de::DeserializeOwned;

/// A filter: made anew for every call, from its settings.
pub trait Filter: Sized {
    /// The settings: the manifest's `[config]` under those of the attachment. The host has
    /// checked them against the manifest's `[config_schema]`.
    type Config: DeserializeOwned;

    /// A filter with these settings.
    fn new(config: Self::Config) -> Self;

    /// Judges a request, and may ask for changes to it.
    fn on_request(&self, request: &mut Request) -> Verdict {
        let _unread = request;
        Verdict::Continue
    }

    /// Judges a response, and may ask for changes to it. Only called if the manifest's `phases`
    /// has `"response"`.
    fn on_response(&self, response: &mut Response) -> Verdict {
        let _unread = response;
        Verdict::Continue
    }
}

/// The settings of a filter that has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

/// Makes a type that implements [`Filter`] the filter of this crate.
///
/// Takes the type's bare name, in the module that defines or imports it. On every target but
/// `wasm32` it only checks that the type is a filter, so that the crate can be tested natively.
#[macro_export]
macro_rules! register {
    ($filter:ident) => {
        #[cfg(target_arch = "wasm32")]
        mod registered_filter {
            struct Component;

            impl $crate::guest::abi::Guest for Component {
                fn on_request() -> $crate::guest::abi::Verdict {
                    $crate::guest::on_request::<super::$filter>()
                }
                fn on_response() -> $crate::guest::abi::Verdict {
                    $crate::guest::on_response::<super::$filter>()
                }
            }

            $crate::guest::abi::export!(Component with_types_in $crate::guest::abi);
        }

        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = || {
            const fn is_filter<F: $crate::Filter>() {}
            is_filter::<$filter>();
        };
    };
}

// SPDX-License-Identifier: Apache-2.0
//! The contract (`wit/filter.wit`) and the Rust SDK with which filters are written.
//!
//! A filter implements [`Filter`] and is registered with [`register!`]. Compiled for
//! `wasm32-unknown-unknown` as a `cdylib` it runs in the gateway; compiled natively it runs in
//! `cargo test` through the [`harness`]. The SDK brings an allocator that suits instances that
//! live for one request; it does not bring a clock, randomness, files or a network, because a
//! filter has none.
//!
//! ```
//! use postern_sdk_wasm::{Filter, Rejection, Request, Verdict, harness::Case};
//!
//! /// Refuses what was sent by a browser.
//! struct NoBrowsers;
//!
//! impl Filter for NoBrowsers {
//!     type Config = postern_sdk_wasm::NoConfig;
//!
//!     fn new(_: Self::Config) -> Self {
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
//! # fn main() -> Result<(), postern_sdk_wasm::harness::FilterStopped> {
//! let outcome = Case::get("/orders").header("user-agent", "Mozilla/5.0").run::<NoBrowsers>()?;
//! assert_eq!(outcome.rejection().map(|rejection| rejection.code.as_str()), Some("no-browsers"));
//! # Ok(())
//! # }
//! ```
//!
//! In the filter's crate, `postern_sdk_wasm::register!(NoBrowsers);` makes it a component.

#[cfg(target_arch = "wasm32")]
mod allocator;
#[doc(hidden)]
#[cfg(target_arch = "wasm32")]
pub mod guest;
#[cfg(not(target_arch = "wasm32"))]
pub mod harness;
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
pub use response::Response;
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
/// Takes the type's bare name, in the module that defines or imports it. On every target but `wasm32` it only checks that the type is a filter, so that the crate can
/// be tested natively.
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

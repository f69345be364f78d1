// SPDX-License-Identifier: Apache-2.0
//! The component's side of the contract: generated bindings, and the two exports over [`Filter`].
//!
//! The bindings are kept as a file, so that building a filter needs no macro that reads WIT: from
//! nothing, that is most of the time a filter takes to build.

use crate::{Filter, Request, Response, Verdict};

#[rustfmt::skip]
#[allow(
    warnings,
    unsafe_code,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated from wit/filter.wit; the test `bindings` keeps it so"
)]
pub mod abi;

pub(crate) mod host {
    //! The host's functions, under the names that the native harness has too.
    pub(crate) use super::abi::postern::filter::{
        config, counter, json_schema, log, rate_limit, request, response, session,
    };
}

fn filter<F: Filter>() -> F {
    match serde_json::from_str(&host::config::json()) {
        Ok(config) => F::new(config),
        // The manifest's schema let pass what the filter's own type does not take.
        Err(_mismatch) => std::process::abort(),
    }
}

fn verdict(verdict: Verdict) -> abi::Verdict {
    match verdict {
        Verdict::Continue => abi::Verdict::Continue,
        Verdict::Reject(rejection) => abi::Verdict::Reject(abi::postern::filter::types::Rejection {
            status: rejection.status,
            code: rejection.code,
            message: rejection.message,
        }),
    }
}

/// The export `on-request` of a filter.
#[must_use]
pub fn on_request<F: Filter>() -> abi::Verdict {
    verdict(filter::<F>().on_request(&mut Request::of_this_call()))
}

/// The export `on-response` of a filter.
#[must_use]
pub fn on_response<F: Filter>() -> abi::Verdict {
    verdict(filter::<F>().on_response(&mut Response::of_this_call()))
}

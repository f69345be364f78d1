// SPDX-License-Identifier: Apache-2.0
//! The filters that `make bench-filters` measures, one by each word in the settings.

use postern_sdk_wasm::{Filter, Rejection, Request, Verdict, register};
use std::hint::black_box;

/// Which filter to be.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    way: Way,
}

#[derive(Debug, Clone, Copy, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    /// Looks at the path and two headers.
    #[default]
    Read,
    /// The same, and sets a header.
    Set,
    /// Reads the whole body.
    Body,
    /// Runs until its time is over.
    Spin,
}

/// The filter.
#[derive(Debug)]
pub struct Guest {
    way: Way,
}

impl Filter for Guest {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self { way: config.way }
    }

    fn on_request(&self, request: &mut Request) -> Verdict {
        match self.way {
            Way::Read | Way::Set => {
                if request.path().starts_with("/admin") || request.header("x-block").is_some() {
                    return Rejection::new("blocked", "this is blocked").into();
                }
                let reads = request.header("x-tier");
                if let (Way::Set, Some(tier)) = (self.way, reads) {
                    request.set_header("x-filtered", &tier);
                }
            }
            Way::Body => {
                let body = request.body();
                if body.first() == body.last() {
                    return Rejection::new("odd", "it begins as it ends").into();
                }
            }
            Way::Spin => {
                let mut number = 0_u64;
                loop {
                    number = black_box(number.wrapping_add(1));
                }
            }
        }
        Verdict::Continue
    }
}

register!(Guest);

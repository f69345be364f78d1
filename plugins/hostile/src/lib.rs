// SPDX-License-Identifier: Apache-2.0
//! The tests' enemy: a filter that misbehaves in the way that its config or the header `x-hostile`
//! names. Every way must be contained, and cost nobody but its own tenant.

use postern_sdk_wasm::{
    Filter, Level, Rejection, Request, Response, Session, Verdict, count, log, register, take_tokens,
};
use std::hint::black_box;

/// The way to misbehave when no header says another.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    way: String,
}

/// The filter.
#[derive(Debug)]
pub struct Hostile {
    config: Config,
}

impl Filter for Hostile {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self { config }
    }

    fn on_request(&self, request: &mut Request) -> Verdict {
        let way = request.header("x-hostile").unwrap_or_else(|| self.config.way.clone());
        if uses_up(&way, request) || oversteps(&way, request) {
            return Verdict::Continue;
        }
        match way.as_str() {
            "ok-status" => Rejection::new("fine", "passes as a success").with_status(200).into(),
            "split-code" => Rejection::new("a\r\nset-cookie: b", "splits the response").into(),
            "long-message" => Rejection::new("long", "m".repeat(100_000)).into(),
            "lying-length" => Rejection::new("lie", lying_text()).into(),
            "read-secrets" => read_secrets(request),
            "rewrite" => rewrite(request),
            _ => Verdict::Continue,
        }
    }

    fn on_response(&self, response: &mut Response) -> Verdict {
        match self.config.way.as_str() {
            "response-cookie" => response.set_header("set-cookie", "a=b"),
            "response-loop" => spin(),
            "response-trap" => {
                assert!(black_box(false), "a panic, which is a trap");
            }
            "response-body" => response.set_body(b"{\"rewritten\":true}"),
            "response-long-body" => response.set_body(&vec![b' '; 200_000]),
            "response-reject" => return Rejection::new("not-yours", "it is not for you").into(),
            "part-reject" if response.part().index > 0 => {
                return Rejection::new("not-yours", "the rest is not for you").into();
            }
            "part-late-header" if response.part().index > 0 => response.set_header("x-late", "1"),
            "part-keep-last" if response.part().is_last => response.keep(1),
            "part-keep-all" => response.keep(u32::try_from(response.body_length()).unwrap_or(u32::MAX)),
            "part-reject" | "part-late-header" | "part-keep-last" => {}
            _ => response.set_header("x-hostile", "was here"),
        }
        Verdict::Continue
    }
}

/// Ways that use up what a call may use. Whether `way` was one of them and came to an end.
fn uses_up(way: &str, request: &Request) -> bool {
    match way {
        "loop" => spin(),
        "loop-in-host" => loop {
            black_box(request.method());
        },
        "allocate" => {
            let mut kept = Vec::new();
            loop {
                kept.push(vec![1_u8; 65_536]);
                black_box(&kept);
            }
        }
        "recurse" => {
            black_box(deep(black_box(1)));
        }
        "recurse-frames" => {
            black_box(deep_frames(black_box(1)));
        }
        "trap" => {
            assert!(black_box(false), "a panic, which is a trap");
        }
        "divide" => {
            black_box(black_box(1_u32) / black_box(0));
        }
        "flood-log" => loop {
            log(Level::Warn, "the disk is full of me\nFORGED operator line");
        },
        "some-logs" => (0..500).for_each(|_| log(Level::Info, "a line\nand a forged one")),
        _ => return false,
    }
    true
}

/// Ways that go beyond what a filter may do. Whether `way` was one of them, and was let.
fn oversteps(way: &str, request: &mut Request) -> bool {
    match way {
        "identity" => {
            request.set_header("X-User-Id", "somebody-else");
            request.set_query_parameter("user_id", "somebody-else");
            request.set_path("/users/somebody-else");
            request.set_body(b"{\"user_id\":\"somebody-else\"}");
        }
        "set-authorization" => request.set_header("Authorization", "Bearer mine"),
        "set-length" => request.set_header("Content-Length", "0"),
        "set-host" => request.set_header("host", "internal"),
        "set-forwarded" => request.set_header("X-Forwarded-For", "127.0.0.1"),
        "split-header" => request.set_header("x-a", "b\r\nx-c: d"),
        "relative-path" => request.set_path("http://169.254.169.254/"),
        "many-changes" => loop {
            request.set_header("x-a", "b");
        },
        "long-body" => request.set_body(&vec![b' '; 100_000]),
        "unknown-counter" => count("of-somebody-else", 1),
        "unknown-bucket" => {
            black_box(take_tokens("of-somebody-else", "k", 1).is_ok());
        }
        _ => return false,
    }
    true
}

fn spin() -> ! {
    let mut number = 0_u64;
    loop {
        number = black_box(number.wrapping_add(1));
    }
}

/// Fills the machine's stack: frames that need no memory of the guest.
#[expect(unconditional_recursion, reason = "that it never ends is the point")]
fn deep(number: u64) -> u64 {
    deep(number.wrapping_mul(3)).wrapping_mul(31) ^ number
}

/// Fills the guest's own stack.
#[expect(unconditional_recursion, reason = "that it never ends is the point")]
fn deep_frames(number: u64) -> u64 {
    let frame = black_box([number; 64]);
    deep_frames(number.wrapping_add(1)) ^ black_box(frame).iter().sum::<u64>()
}

/// Text whose length is beyond the end of memory.
#[expect(unsafe_code, reason = "lying to the host about a length is what this filter is for")]
fn lying_text() -> String {
    let text = std::mem::ManuallyDrop::new("x".repeat(16));
    // SAFETY: none in this program; the host must notice before anybody reads it. Natively it is
    // never called.
    unsafe { String::from_raw_parts(text.as_ptr().cast_mut(), 0x7000_0000, 0x7000_0000) }
}

/// Makes the changes that the request's own headers ask for: `x-new-header` and `x-new-query`
/// (`name=value`), `x-new-path` and `x-new-body`.
fn rewrite(request: &mut Request) -> Verdict {
    let pair = |text: String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    if let Some((name, value)) = request.header("x-new-header").and_then(pair) {
        request.set_header(&name, &value);
    }
    if let Some((name, value)) = request.header("x-new-query").and_then(pair) {
        request.set_query_parameter(&name, &value);
    }
    if let Some(path) = request.header("x-new-path") {
        request.set_path(&path);
    }
    if let Some(body) = request.header("x-new-body") {
        request.set_body(body.as_bytes());
    }
    Verdict::Continue
}

/// Refuses with the name of whatever secret it can see; continues if it sees none.
fn read_secrets(request: &Request) -> Verdict {
    let secrets = ["authorization", "Authorization", "cookie", "proxy-authorization"];
    let listed = request.header_names();
    let seen =
        secrets.iter().find(|name| request.header(name).is_some() || listed.iter().any(|it| it == *name));
    match seen {
        Some(name) => Rejection::new("leak", format!("saw {name}")).into(),
        None if Session.claim("plan").is_some() => Verdict::Continue,
        None => Rejection::new("no-claim", "the claim that it may see is not there").into(),
    }
}

register!(Hostile);

#[cfg(test)]
mod tests {
    use super::*;
    use postern_sdk_wasm::harness::{Case, Change, FilterStopped};

    #[test]
    fn without_a_way_it_does_nothing() {
        let outcome = Case::get("/").run::<Hostile>().expect("runs");
        assert_eq!((outcome.verdict, outcome.changes), (Verdict::Continue, Vec::new()));
    }

    #[test]
    fn the_header_chooses_the_way_over_the_config() {
        let case = Case::get("/").config(serde_json::json!({"way": "identity"}));
        let outcome = case.clone().run::<Hostile>().expect("runs");
        let stolen = Change::SetHeader("X-User-Id".into(), "somebody-else".into());
        assert!(outcome.changes.contains(&stolen));
        let stopped = case.header("x-hostile", "trap").run::<Hostile>();
        assert!(matches!(stopped, Err(FilterStopped::Panicked)));
    }
}

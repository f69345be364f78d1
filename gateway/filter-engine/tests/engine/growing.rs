// SPDX-License-Identifier: Apache-2.0
//! A filter that grows its table, written byte by byte: no Rust says `table.grow`. What it exports
//! and imports is described by the section that the SDK puts into every filter's module.

use crate::fixture::{call, configured, engine, sign};
use crate::plugins::module;
use postern_common::id::{FilterName, TenantId};
use postern_filter_engine::artefact::Expected;
use postern_filter_engine::{Called, Outcome, compile};
use serde_json::json;

const MANIFEST: &str = "phases = [\"request\"]\nlimits = { time = \"1s\" }\n";

/// A module whose `on-request` makes its table of one larger by so many elements, and continues.
fn grower(elements: u32) -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    // Types: nothing to an i32, and what allocates.
    section(&mut module, 1, &[2, 0x60, 0, 1, 0x7f, 0x60, 4, 0x7f, 0x7f, 0x7f, 0x7f, 1, 0x7f]);
    section(&mut module, 3, &[3, 0, 0, 1]);
    // A table of one function, and a page of memory: at 0 stands a verdict, which is to continue.
    section(&mut module, 4, &[1, 0x70, 0, 1]);
    section(&mut module, 5, &[1, 0, 1]);
    let mut exports = vec![4];
    let names: [(&str, [u8; 2]); 4] =
        [("on-request", [0, 0]), ("on-response", [0, 1]), ("cabi_realloc", [0, 2]), ("memory", [2, 0])];
    for (name, what) in names {
        exports.push(u8::try_from(name.len()).expect("a short name"));
        exports.extend(name.as_bytes());
        exports.extend(what);
    }
    section(&mut module, 7, &exports);
    // No locals; ref.null func, i32.const, table.grow 0, drop, i32.const 0, end.
    let mut grows = vec![0, 0xd0, 0x70, 0x41];
    grows.extend(signed_leb(elements));
    grows.extend([0xfc, 0x0f, 0, 0x1a, 0x41, 0, 0x0b]);
    let mut code = vec![3];
    for body in [&grows[..], &[0, 0x41, 0, 0x0b], &[0, 0x00, 0x0b]] {
        code.push(u8::try_from(body.len()).expect("a short function"));
        code.extend(body);
    }
    section(&mut module, 10, &code);
    module
}

fn section(to: &mut Vec<u8>, id: u8, content: &[u8]) {
    to.extend([id, u8::try_from(content.len()).expect("short")]);
    assert!(content.len() < 0x80, "a length of one byte");
    to.extend(content);
}

/// A number as `i32.const` reads it: seven bits a byte, and the last one's highest is the sign.
fn signed_leb(mut number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x40 {
        bytes.push(u8::try_from(number & 0x7f).expect("seven bits") | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).expect("six bits"));
    bytes
}

/// The sections of a module that describe its component, as they stand in it.
fn description(module: &[u8]) -> Vec<u8> {
    let (mut found, mut place) = (Vec::new(), 8);
    while place < module.len() {
        let (length, content) = leb(module, place + 1);
        let end = content + length;
        if module[place] == 0 && module[content + 1..end].starts_with(b"component-type") {
            found.extend(&module[place..end]);
        }
        place = end;
    }
    assert!(!found.is_empty(), "the SDK describes the filter");
    found
}

/// A number that stands at `place`, and where the next thing does.
fn leb(bytes: &[u8], mut place: usize) -> (usize, usize) {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = bytes[place];
        place += 1;
        number |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return (number, place);
        }
        shift += 7;
    }
}

/// A call of a filter that grows its table by so many elements.
async fn grown_by(elements: u32) -> Called {
    let module = [grower(elements), description(&module("claim-injection"))].concat();
    let code = compile::compile(&module).expect("compiles");
    let artefact = sign(&code, ("acme", "grower"), 1, MANIFEST);
    let (tenant, name) =
        (TenantId::parse("acme").expect("a name"), FilterName::parse("grower").expect("a name"));
    let expected = Expected { tenant: &tenant, name: &name, version: 1, manifest: MANIFEST };
    let loaded = engine().load(&artefact, &expected).expect("loads");
    let filter = configured(&loaded, json!({}));
    let called = call(&filter, &[], "").await;
    assert_eq!(filter.filter().tenant_in_flight(), 0, "its place is given back");
    called
}

#[tokio::test]
async fn a_table_grows_to_its_bound_and_beyond_it_the_call_ends_under_its_own_name() {
    for fits in [1, 9_999] {
        assert_eq!(grown_by(fits).await.outcome, Ok(Outcome::Continue), "{fits} more");
    }
    for beyond in [10_000, 1 << 30] {
        let failure = grown_by(beyond).await.outcome.expect_err("is stopped");
        assert_eq!(failure.cause(), "table", "{beyond} more");
    }
}

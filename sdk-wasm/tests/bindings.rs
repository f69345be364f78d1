// SPDX-License-Identifier: Apache-2.0
//! The bindings that the SDK carries are what the contract's generator makes of it.
//! `UPDATE_BINDINGS=1 cargo test -p postern-sdk-wasm --test bindings` writes them anew.

#![expect(
    clippy::expect_used,
    reason = "a test stops at what it did not expect, also in its helping functions"
)]

use std::path::Path;
use wit_bindgen_core::wit_parser::Resolve;
use wit_bindgen_core::{Files, WorldGenerator as _};
use wit_bindgen_rust::Opts;

const HEADER: &str = "// SPDX-License-Identifier: Apache-2.0\n//! Generated from wit/filter.wit by tests/bindings.rs: change that, not this; long because it is generated whole.\n";

fn generated(folder: &Path) -> String {
    let mut resolve = Resolve::default();
    let (package, _files) = resolve.push_path(folder.join("wit")).expect("reads the contract");
    let world = resolve.select_world(&[package], Some("filter")).expect("has the world");
    let options = Opts {
        format: true,
        std_feature: false,
        pub_export_macro: true,
        export_macro_name: Some("export".to_owned()),
        generate_all: true,
        ..Opts::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files).expect("generates");
    let (_name, source) = files.iter().next().expect("a file");
    format!("{HEADER}{}", String::from_utf8_lossy(source))
}

#[test]
fn the_bindings_are_those_of_the_contract() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = folder.join("src/guest/abi.rs");
    let generated = generated(folder);
    if std::env::var_os("UPDATE_BINDINGS").is_some() {
        std::fs::create_dir_all(folder.join("src/guest")).expect("makes the folder");
        std::fs::write(&file, &generated).expect("writes");
    }
    let kept = std::fs::read_to_string(&file).expect("the bindings are there");
    assert!(kept == generated, "the contract has changed: run this test with UPDATE_BINDINGS=1");
}

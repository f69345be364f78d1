// SPDX-License-Identifier: Apache-2.0
use super::*;
use serde_json::json;

#[test]
fn values_know_their_lines_through_aliases_too() {
    let tree = read("a: &x\n  b: 1\nc:\n  - *x\n  - text\n").expect("YAML");
    let root = At::root(&tree);
    let line = |tokens: &[&str]| {
        let tokens: Vec<_> = tokens.iter().map(|&token| token.to_owned()).collect();
        root.follow(&tokens).and_then(|at| at.line())
    };
    assert_eq!((line(&["a", "b"]), line(&["c", "0"]), line(&["c", "1"])), (Some(2), Some(4), Some(5)));
    assert_eq!(line(&["c", "2"]), None);
}

#[test]
fn scalars_are_what_yaml_1_2_says() {
    let tree =
        read("{a: yes, b: on, c: true, d: 012, e: 1.5, f: ~, g: 2024-01-01, h: '1', i: 0x10}").expect("YAML");
    let value = tree.to_json();
    assert_eq!((&value["a"], &value["b"], &value["c"]), (&json!("yes"), &json!("on"), &json!(true)));
    assert_eq!(
        (&value["e"], &value["f"], &value["g"], &value["h"]),
        (&json!(1.5), &Value::Null, &json!("2024-01-01"), &json!("1"))
    );
}

#[test]
fn json_escapes_are_read() {
    let tree = read("{\"a\\/b\": \"\\ud83d\\ude00\\u00e9\\n\"}").expect("JSON");
    assert_eq!(tree.to_json(), json!({ "a/b": "\u{1f600}\u{e9}\n" }));
}

#[test]
fn a_text_that_is_no_yaml_names_its_line() {
    let mistake = read("a: 1\nb: [1,\nc: 2\n").expect_err("refused");
    assert!(mistake.line.is_some() && mistake.message.starts_with("not a readable document: "), "{mistake}");
    let mistake = read("a: 1\nb: 2\na: 3\n").expect_err("refused");
    assert_eq!(mistake.line, Some(3), "{mistake}");
}

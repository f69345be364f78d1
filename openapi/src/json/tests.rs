// SPDX-License-Identifier: Apache-2.0
use super::*;
use proptest::prelude::*;
use serde_json::json;

fn read(text: &str) -> Result<Value, Malformed> {
    parse(text.as_bytes(), Limits::default())
}

fn refusal(text: &str) -> Malformed {
    match read(text) {
        Ok(value) => panic!("`{text}` was read as {value}"),
        Err(malformed) => malformed,
    }
}

#[test]
fn ordinary_json_is_read_as_serde_json_reads_it() {
    for text in [
        "null",
        " true ",
        "0",
        "-1",
        "18446744073709551615",
        "-9223372036854775808",
        "\"\"",
        "[]",
        "{}",
        r#"{"a":[1,2.5,{"b":null}],"c":"\u00e9\ud83d\ude00\n"}"#,
        "\t[1 , 2]\r\n",
        "1e2",
        "1.50",
        "-0.0",
        "0.1",
    ] {
        assert_eq!(read(text).expect(text), serde_json::from_str::<Value>(text).expect(text), "{text}");
    }
}

#[test]
fn a_key_that_stands_twice_is_refused_at_any_depth_and_in_any_spelling() {
    for (text, pointer) in [
        (r#"{"a":1,"a":1}"#, "/a"),
        (r#"{"a":1,"b":2,"\u0061":3}"#, "/a"),
        (r#"[{"x":{"k":1,"k":2}}]"#, "/0/x/k"),
        (r#"{"/~":1,"\/~":2}"#, "/~1~0"),
        (r#"{"":1,"":2}"#, "/"),
    ] {
        let malformed = refusal(text);
        assert_eq!(malformed.pointer, pointer, "{text}");
        assert!(malformed.reason.contains("twice"), "{malformed}");
    }
}

#[test]
fn numbers_that_would_change_are_refused_with_their_place() {
    for number in [
        "18446744073709551616",
        "-9223372036854775809",
        "100000000000000000000",
        "1e400",
        "-1e400",
        "1e-400",
        "0.1000000000000000055",
        "9007199254740993.0",
        "1.00000000000000000001",
        "123456789012345678.5",
        "4.9e-325",
    ] {
        let malformed = refusal(&format!(r#"{{"s":"1e999 \" 7","n":[0,{number}]}}"#));
        assert_eq!(malformed.pointer, "/n/1", "{number}");
    }
}

#[test]
fn numbers_that_a_double_names_pass_in_any_spelling() {
    for (number, written) in [
        ("0.1", "0.1"),
        ("1.50", "1.5"),
        ("100e-2", "1.0"),
        ("1E+2", "100.0"),
        ("0.0", "0.0"),
        ("0e5", "0.0"),
        ("9007199254740992.0", "9007199254740992.0"),
        ("19.99", "19.99"),
        ("-0", "-0.0"),
        ("5e-324", "5e-324"),
    ] {
        let value = read(number).expect(number);
        assert_eq!(String::from_utf8(write(&value)).expect("text"), written, "{number}");
    }
}

#[test]
fn what_is_not_one_json_text_is_refused() {
    for text in [
        "",
        " ",
        "{",
        "[1,]",
        "{\"a\":1,}",
        "{a:1}",
        "'a'",
        "NaN",
        "Infinity",
        "-",
        "01",
        "+1",
        "1.",
        ".5",
        "0x10",
        "1 2",
        "{} {}",
        "[1]x",
        "nul",
        "\"\u{1}\"",
        "\"\\x\"",
        "\"\\ud800\"",
        "\"\\udc00\\ud800\"",
        "// c\n1",
        "\u{feff}1",
        "[1 2]",
        "\"unfinished",
        "[\"\\",
    ] {
        refusal(text);
    }
    for bytes in [&b"\"\xff\""[..], b"\"\xc0\xaf\"", b"\"\xed\xa0\x80\"", b"\xff\xfe1\0", b"\xef\xbb\xbf1"] {
        assert!(parse(bytes, Limits::default()).is_err(), "{bytes:?}");
    }
}

#[test]
fn each_limit_holds_exactly() {
    let limits = Limits { bytes: 20, depth: 2, values: 4 };
    let check = |text: &str| parse(text.as_bytes(), limits).is_ok();
    assert!(check("[[1]]") && !check("[[[1]]]") && !check("[{\"a\":[]}]"));
    assert!(check("[1,2,3]") && !check("[1,2,3,4]"));
    assert!(check("\"345678901234567890\"".get(..20).unwrap_or_default()) && !check("                    1"));
    assert!(check("[[],[]]"), "depth is given back");
}

#[test]
fn nesting_that_would_break_the_stack_is_refused_whatever_the_limits_say() {
    let limits = Limits { bytes: usize::MAX, depth: usize::MAX, values: usize::MAX };
    let text = "[".repeat(1_000_000);
    assert!(parse(text.as_bytes(), limits).is_err());
    let text = format!("{}{}", "{\"a\":".repeat(500), "1");
    assert!(parse(text.as_bytes(), limits).is_err());
}

#[test]
fn refusals_never_repeat_a_value() {
    for text in [r#"{"pin":"hunter2","pin":"hunter3"}"#, r#"{"pin": 1234567890123456789012345}"#] {
        let malformed = refusal(text);
        assert_eq!(malformed.pointer, "/pin");
        assert!(!malformed.reason.contains("hunter") && !malformed.reason.contains("12345"), "{malformed}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Value::from),
        "\\PC{0,8}|[\"\\\\/~\u{0}-\u{1f}]{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,6}|[\"\\\\/~]{0,3}", inner, 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_the_same(value in any_json()) {
        prop_assert_eq!(parse(&write(&value), Limits::default()).expect("own writing"), value);
    }

    #[test]
    fn a_repeated_key_is_refused_wherever_it_is_put(value in any_json(), other in any_json(), key in "\\PC{1,6}", depth in 0_usize..4) {
        let name = Value::from(key.as_str());
        let mut text = format!("{{{name}:{value},\"~\":[],{name}:{other}}}");
        for _ in 0..depth {
            text = format!("[0,{{\"in\":{text}}}]");
        }
        if key != "~" {
            let malformed = refusal(&text);
            prop_assert!(malformed.pointer.starts_with(&"/1/in".repeat(depth)));
        }
    }

    #[test]
    fn nothing_breaks_the_reader(bytes in prop::collection::vec(prop::sample::select(br#"{}[]",:\0123456789.eE+-atruflsn "#.to_vec()), 0..64)) {
        if let Ok(value) = parse(&bytes, Limits::default()) {
            prop_assert_eq!(parse(&write(&value), Limits::default()).expect("own writing"), value);
        }
    }

    #[test]
    fn a_number_that_passes_keeps_its_decimal_value(whole in 0_u64..1_000_000_000_000, fraction in "[0-9]{0,8}", exponent in -30_i32..30) {
        let text = format!("{whole}.{fraction}0e{exponent}");
        if let Ok(value) = read(&text) {
            let written = String::from_utf8(write(&value)).expect("text");
            prop_assert_eq!(decimal(&text), decimal(&written));
        }
    }
}

#[test]
fn a_body_reads_as_json_macro_would_write_it() {
    let value = read(r#"{"amount": 12.5, "lines": [{"sku": "A-1", "count": 2}]}"#).expect("a body");
    assert_eq!(value, json!({"amount": 12.5, "lines": [{"sku": "A-1", "count": 2}]}));
}

/// The double is 1439825741478257.25: `.2` and `.3` both name it and are as short. A check against
/// another printer's choice refused what we had written ourselves.
#[test]
fn of_two_shortest_decimals_the_one_that_we_write_passes() {
    let written = write(&json!(1439825741478257.2));
    assert_eq!(parse(&written, Limits::default()), Ok(json!(1439825741478257.2)));
    let passed = ["1439825741478257.2", "1439825741478257.3"].into_iter().filter(|text| read(text).is_ok());
    assert_eq!(passed.count(), 1);
}

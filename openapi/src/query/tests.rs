// SPDX-License-Identifier: Apache-2.0
use super::*;
use proptest::prelude::*;

fn pairs(text: &str) -> Vec<(String, String)> {
    Query::parse(text).expect(text).pairs().to_vec()
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn pairs_are_decoded_in_order() {
    assert_eq!(pairs(""), vec![]);
    assert_eq!(pairs("a=1&b=2&a=3"), vec![pair("a", "1"), pair("b", "2"), pair("a", "3")]);
    assert_eq!(pairs("q=a+b%2Bc&flag&e="), vec![pair("q", "a b+c"), pair("flag", ""), pair("e", "")]);
    assert_eq!(pairs("filter[x]=a=b"), vec![pair("filter[x]", "a=b")]);
    assert_eq!(pairs("n%C3%A9=%E2%82%AC"), vec![pair("né", "€")]);
}

#[test]
fn what_two_servers_could_read_differently_is_refused() {
    use QueryRefusal::*;
    let long = "a".repeat(limits::QUERY_BYTES + 1);
    let many = "a=1&".repeat(limits::QUERY_PAIRS) + "a=1";
    for (text, refusal) in [
        ("a=1&&b=2", EmptyPair),
        ("&a=1", EmptyPair),
        ("a=1&", EmptyPair),
        ("=1", EmptyPair),
        ("&", EmptyPair),
        ("a=1;b=2", Semicolon),
        ("a=%", Escape),
        ("a=%1", Escape),
        ("%zz=1", Escape),
        ("a=%u0041", Escape),
        ("a=%00", Nul),
        ("%00=a", Nul),
        ("a=%ff", NotUtf8),
        ("a=%c0%af", NotUtf8),
        ("a=%ed%a0%80", NotUtf8),
        ("a=é", Unencoded),
        ("a= b", Unencoded),
        ("a=\r\n", Unencoded),
        ("a=\"", Unencoded),
        ("a=#", Unencoded),
        ("a=<", Unencoded),
        (long.as_str(), TooLong),
        (many.as_str(), TooLong),
    ] {
        assert_eq!(Query::parse(text), Err(refusal), "{text:?}");
    }
}

#[test]
fn names_that_repeat_are_told_once_each_in_any_spelling() {
    let query = Query::parse("a=1&b=2&%61=3&a=4&c=5&b=6").expect("a query");
    assert_eq!(query.duplicates(), ["a", "b"]);
    assert_eq!(query.values("a").collect::<Vec<_>>(), ["1", "3", "4"]);
}

#[test]
fn a_form_has_a_size_of_its_own() {
    let text = format!("a={}", "x".repeat(limits::QUERY_BYTES));
    assert!(Query::parse_form(text.as_bytes(), 1 << 20).is_ok());
    assert_eq!(Query::parse_form(b"a=1", 2), Err(QueryRefusal::TooLong));
    assert_eq!(Query::parse_form(b"a=\xff", 10), Err(QueryRefusal::Unencoded));
}

proptest! {
    #[test]
    fn a_rebuilt_query_reads_the_same(pairs in prop::collection::vec(("[^\u{0}]{1,8}", "[^\u{0}]{0,8}"), 0..8)) {
        let query = Query::from_pairs(pairs);
        let rebuilt = query.rebuild();
        prop_assert!(rebuilt.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%=&".contains(&byte)));
        prop_assert_eq!(Query::parse(&rebuilt).expect("own writing"), query);
    }

    #[test]
    fn what_is_accepted_comes_out_with_the_same_meaning(text in "[a-c=&%+;0-9é\\[\\] ]{0,24}") {
        if let Ok(query) = Query::parse(&text) {
            prop_assert_eq!(Query::parse(&query.rebuild()).expect("own writing"), query);
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
use super::*;
use proptest::prelude::*;

#[test]
fn ordinary_paths_are_decoded_by_segment() {
    for (text, segments, has_slash) in [
        ("/", vec![], false),
        ("/a", vec!["a"], false),
        ("/a/", vec!["a"], true),
        ("/a%20b/%C3%A9", vec!["a b", "é"], false),
        ("/v1/messages:send/@me", vec!["v1", "messages:send", "@me"], false),
        ("/100%25/a%3Fb%23c", vec!["100%", "a?b#c"], false),
        ("/.hidden/a..b/...", vec![".hidden", "a..b", "..."], false),
    ] {
        let path = RequestPath::parse(text).expect(text);
        assert_eq!(
            (path.segments(), path.has_trailing_slash()),
            (&segments.into_iter().map(str::to_owned).collect::<Vec<_>>()[..], has_slash),
            "{text}"
        );
    }
}

const HIDDEN_WAYS_OUT: &[(&str, PathRefusal)] = &[
    ("", PathRefusal::NotAbsolute),
    ("a", PathRefusal::NotAbsolute),
    ("*", PathRefusal::NotAbsolute),
    ("http://x/", PathRefusal::NotAbsolute),
    ("//", PathRefusal::EmptySegment),
    ("/a//b", PathRefusal::EmptySegment),
    ("//evil/", PathRefusal::EmptySegment),
    ("/a//", PathRefusal::EmptySegment),
    ("/.", PathRefusal::DotSegment),
    ("/..", PathRefusal::DotSegment),
    ("/a/../b", PathRefusal::DotSegment),
    ("/a/./b", PathRefusal::DotSegment),
    ("/../", PathRefusal::DotSegment),
    ("/%2e", PathRefusal::DotSegment),
    ("/%2E%2e/a", PathRefusal::DotSegment),
    ("/.%2e/a", PathRefusal::DotSegment),
    ("/%2e./a", PathRefusal::DotSegment),
    ("/a%2fb", PathRefusal::HiddenSlash),
    ("/a%2Fb", PathRefusal::HiddenSlash),
    ("/a%5cb", PathRefusal::HiddenSlash),
    ("/a\\b", PathRefusal::HiddenSlash),
    ("/..\\x", PathRefusal::HiddenSlash),
    ("/a;b=c", PathRefusal::Semicolon),
    ("/a%3Bb", PathRefusal::Semicolon),
    ("/..;/admin", PathRefusal::Semicolon),
    ("/a%00", PathRefusal::Control),
    ("/a%0d%0ab", PathRefusal::Control),
    ("/a%7f", PathRefusal::Control),
    ("/a\0", PathRefusal::Control),
    ("/a\tb", PathRefusal::Control),
    ("/%C2%85", PathRefusal::Control),
    ("/%", PathRefusal::Escape),
    ("/%2", PathRefusal::Escape),
    ("/%zz", PathRefusal::Escape),
    ("/%+1", PathRefusal::Escape),
    ("/%u002e", PathRefusal::Escape),
    ("/a%", PathRefusal::Escape),
    ("/%252e", PathRefusal::EncodedTwice),
    ("/%252e%252e/x", PathRefusal::EncodedTwice),
    ("/%25%32%66", PathRefusal::EncodedTwice),
    ("/%255c", PathRefusal::EncodedTwice),
    ("/%c0%ae", PathRefusal::NotUtf8),
    ("/%c0%af", PathRefusal::NotUtf8),
    ("/%e0%80%af", PathRefusal::NotUtf8),
    ("/%ed%a0%80", PathRefusal::NotUtf8),
    ("/%ff", PathRefusal::NotUtf8),
    ("/a b", PathRefusal::Unencoded),
    ("/é", PathRefusal::Unencoded),
    ("/a?b", PathRefusal::Unencoded),
    ("/a#b", PathRefusal::Unencoded),
    ("/a\"b", PathRefusal::Unencoded),
    ("/{id}", PathRefusal::Unencoded),
    ("/a|b", PathRefusal::Unencoded),
    ("/[x]", PathRefusal::Unencoded),
    ("/a^b", PathRefusal::Unencoded),
    ("/a`b", PathRefusal::Unencoded),
];

#[test]
fn every_spelling_of_a_hidden_way_out_is_refused() {
    for (text, refusal) in HIDDEN_WAYS_OUT {
        assert_eq!(RequestPath::parse(text), Err(*refusal), "{text:?}");
    }
    let long = format!("/{}", "a".repeat(limits::PATH_BYTES));
    let many = "/a".repeat(limits::PATH_SEGMENTS + 1);
    for text in [long, many] {
        assert_eq!(RequestPath::parse(&text), Err(PathRefusal::TooLong));
    }
}

#[test]
fn the_first_segment_can_be_split_off() {
    let path = RequestPath::parse("/desk/orders/7/").expect("a path");
    let (first, rest) = path.split_first().expect("a first segment");
    assert_eq!((first, rest.rebuild().as_str()), ("desk", "/orders/7/"));
    let only = RequestPath::parse("/desk/").expect("a path");
    assert_eq!(only.split_first().map(|(_, rest)| rest.rebuild()).as_deref(), Some("/"));
    assert!(RequestPath::parse("/").expect("a path").split_first().is_none());
}

#[test]
fn templates_are_shown_as_they_are_written() {
    for text in ["/", "/a", "/a/", "/customers/{customerId}/orders", "/v1/messages:send", "/{a}/{b}/"] {
        assert_eq!(PathTemplate::parse(text).expect(text).to_string(), text);
    }
    assert_eq!(PathTemplate::any().to_string(), "/**");
}

#[test]
fn templates_that_could_not_match_or_mean_two_things_are_refused() {
    for text in [
        "",
        "a",
        "/a//b",
        "/../{id}",
        "/{}",
        "/{id}/{id}",
        "/pre{id}",
        "/{a}{b}",
        "/{a}.json",
        "/{a",
        "/a}",
        "/a;b",
        "/%2f",
        "/{{a}}",
        "/a b",
    ] {
        assert!(PathTemplate::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_literal_comes_out_as_the_document_spells_it_and_a_value_fully_encoded() {
    let template = PathTemplate::parse("/v1/messages:send/{id}").expect("a template");
    assert_eq!(
        template.rebuild(|_| Some("a:b@c?#é")).expect("a path"),
        "/v1/messages:send/a%3Ab%40c%3F%23%C3%A9"
    );
}

#[test]
fn a_value_that_no_request_could_send_does_not_come_out() {
    let template = PathTemplate::parse("/users/{id}").expect("a template");
    for value in ["", ".", "..", "a/b", "a\\b", "a;b", "a\0", "a\r\nb", "%2e%2e", "%2F"] {
        assert!(template.rebuild(|_| Some(value)).is_err(), "{value:?}");
    }
    assert_eq!(template.rebuild(|_| None), Err(PathRefusal::EmptySegment));
}

proptest! {
    #[test]
    fn a_rebuilt_path_reads_the_same_and_is_canonical(text in "(/[a-zA-Z0-9._~%!$&'()*+,=:@é;\\\\ -]{0,6}){1,5}/?") {
        if let Ok(path) = RequestPath::parse(&text) {
            let rebuilt = path.rebuild();
            prop_assert_eq!(RequestPath::parse(&rebuilt).expect("own writing"), path);
            for refused in ["//", "/../", "/./", ";", "\\", "%2F", "%5C", "%00", "%3B", " "] {
                prop_assert!(!rebuilt.contains(refused), "{}", rebuilt);
            }
            prop_assert!(!rebuilt.ends_with("/..") && !rebuilt.ends_with("/."));
        }
    }

    #[test]
    fn two_spellings_of_one_path_come_out_alike(segments in prop::collection::vec("[a-z.~é@:]{1,5}", 1..5)) {
        let encode_all = |segment: &String| segment.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let plain: String = segments.iter().map(|segment| format!("/{}", Segment::Literal(segment.clone()).written(segment))).collect();
        let encoded: String = segments.iter().map(|segment| format!("/{}", encode_all(segment))).collect();
        prop_assert_eq!(RequestPath::parse(&plain).map(|path| path.rebuild()), RequestPath::parse(&encoded).map(|path| path.rebuild()));
    }

    #[test]
    fn template_and_values_read_back_as_the_same_values(value in "\\PC{0,12}|[/\\\\.;%\u{0}a2f-]{0,6}") {
        let template = PathTemplate::parse("/a/{id}/b").expect("a template");
        if let Ok(path) = template.rebuild(|_| Some(&value)) {
            let read = RequestPath::parse(&path).expect("own writing");
            prop_assert_eq!(read.segments(), &["a".to_owned(), value, "b".to_owned()]);
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
use super::*;
use proptest::prelude::*;

#[test]
fn a_path_never_leaves_its_tree_nor_names_nothing() {
    for bad in ["", "/", "/etc", "a/", "a//b", ".", "..", "a/../b", "a/.", "../a", "a\0b"] {
        assert!(FilePath::parse(bad).is_err(), "{bad:?}");
        assert!(serde_json::from_value::<FilePath>(serde_json::json!(bad)).is_err(), "{bad:?}");
    }
    assert!(FilePath::parse(&"n".repeat(256)).is_err());
    assert!(FilePath::parse(&vec!["n".repeat(255); 17].join("/")).is_err());
    for good in ["a", "a/b", "...", "a\nb", "naïve", "nai\u{308}ve", "\"'", "-", " ", "a/.git", "CON", "a\\b"]
    {
        assert_eq!(FilePath::parse(good).expect(good).as_str(), good);
    }
    assert!(FilePath::parse(&"n".repeat(255)).is_ok());
}

#[test]
fn a_refused_path_is_shown_escaped_and_cut() {
    let told = FilePath::parse(&format!("a\n/../{}", "x".repeat(1000))).expect_err("climbs").to_string();
    assert!(told.contains("a\\n/") && told.len() < 400, "{told}");
}

#[test]
fn folders_of_a_path_come_from_the_top_down() {
    let path = FilePath::parse("a/b/c").expect("a path");
    assert_eq!(path.folders().collect::<Vec<_>>(), ["a", "a/b"]);
    assert_eq!(path.split(), (Some("a/b"), "c"));
    assert!(path.is_below("a") && path.is_below("a/b") && !path.is_below("a/b/c") && !path.is_below("a/"));
    assert!(!FilePath::parse("ab/c").expect("a path").is_below("a"));
    assert_eq!(path.join("d").expect("a path").as_str(), "a/b/c/d");
    assert!(path.join("..").is_err() && path.join("d/../..").is_err());
}

#[test]
fn the_report_names_a_hundred_and_counts_the_rest() {
    let mut report = Report::default();
    for number in 0..150 {
        report.leave(&format!("f\n{number}"), "it is a socket");
        report.conflict("a", "b");
    }
    assert_eq!((report.left.len(), report.left_count), (100, 150));
    assert_eq!((report.conflicts.len(), report.conflict_count), (100, 150));
    assert_eq!(report.left[0].path, "f\\n0");
}

proptest! {
    #[test]
    fn digests_read_back_as_they_were_written(bytes in any::<[u8; 32]>()) {
        let text = serde_json::to_string(&Digest(bytes)).expect("JSON");
        prop_assert_eq!(&text, &format!("\"{}\"", Digest(bytes)));
        prop_assert_eq!(serde_json::from_str::<Digest>(&text).expect("reads"), Digest(bytes));
    }

    #[test]
    fn no_other_text_is_a_digest(text in "[0-9a-fA-F]{0,70}") {
        let is_one = text.len() == 64 && !text.bytes().any(|byte| byte.is_ascii_uppercase());
        prop_assert_eq!(Digest::parse(&text).is_some(), is_one);
    }

    #[test]
    fn any_text_is_a_path_or_is_refused_without_a_panic(text in "(\\PC|/|\\.|\0|\n){0,40}") {
        if let Ok(path) = FilePath::parse(&text) {
            prop_assert!(path.as_str().split('/').all(|name| !matches!(name, "" | "." | "..")));
        }
    }
}

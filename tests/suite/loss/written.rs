// SPDX-License-Identifier: Apache-2.0
//! What writers write, and what of it must be found: pure, but for reading folders.

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// What a file of a writer's own is when it was written as this number: the same as `writer.py` has it.
pub(super) fn content(path: &str, number: u64) -> Vec<u8> {
    let mut size = number * 7919 % 30000;
    if number % 16 == 5 {
        size += 1 << 20;
    }
    if number % 64 == 23 {
        size += 9 << 20;
    }
    let head = format!("{path} {number} {size}\n").into_bytes();
    let size = usize::try_from(size).expect("is small");
    head.iter().copied().chain(head.iter().copied().cycle().take(size)).collect()
}

/// The number of a file that is whole and what it says it is.
pub(super) fn number(path: &str, bytes: &[u8]) -> Result<u64, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let told = head.strip_prefix(path).and_then(|rest| rest.split(' ').nth(1)?.parse::<u64>().ok());
    let told = told.ok_or_else(|| format!("{path} begins with {head:?}"))?;
    let whole = content(path, told);
    if whole != bytes {
        return Err(format!("{path} as number {told} has {} bytes, not {}", bytes.len(), whole.len()));
    }
    Ok(told)
}

/// The lines of a shared file, each of which must be a whole one.
pub(super) fn lines(path: &str, bytes: &[u8]) -> Result<BTreeSet<String>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("{path} is no text: {error}"))?;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(format!("{path} ends within a line: {text:?}"));
    }
    let is_line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        words.len() == 3 && words[1..].iter().all(|word| word.parse::<u64>().is_ok())
    };
    match text.lines().find(|line| !is_line(line)) {
        Some(line) => Err(format!("{path} has the line {line:?}")),
        None => Ok(text.lines().map(str::to_owned).collect()),
    }
}

/// Whether a path, from the round's folder on, is of the file that writers share, or of what was kept
/// beside it.
pub(super) fn is_shared(path: &str) -> bool {
    path.split('/').nth(1).is_some_and(|name| name.starts_with("shared"))
}

/// Whether versitygw has not given a file its name yet. It shows such a one to nobody, until it is killed: then
/// it takes it for an object, which is in nobody's file until it removes it.
fn is_stores_own(path: &str) -> bool {
    path.contains(".sgwtmp.")
}

/// All files below a folder, by path with `top` before it. What goes while it is looked at is not there.
pub(super) fn tree(folder: &Path, top: &str) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_stores_own(&name) {
            continue;
        }
        let path = format!("{top}/{name}");
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(tree(&entry.path(), &path)),
            Ok(_) => found.extend(fs::read(entry.path()).ok().map(|bytes| (path, bytes))),
            Err(_gone) => {}
        }
    }
    found
}

/// What a sync has noted as acknowledged: by path each digest in turn, `None` where it is gone.
pub(super) type Acknowledged = BTreeMap<String, Vec<Option<String>>>;

/// Reads a sync's own log. A line that is torn says nothing, as it does to the next sync.
pub(super) fn acknowledged(log: &str, top: &str) -> Acknowledged {
    let mut found = Acknowledged::new();
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for line in whole.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let path = line["path"].as_str().unwrap_or_default();
        if is_stores_own(path) {
            continue;
        }
        if path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/')) {
            let digest = line["agreed"]["what"]["file"]["digest"].as_str().map(str::to_owned);
            let is_other = digest.is_none() && !line["agreed"].is_null();
            if !is_other {
                found.entry(path.to_owned()).or_default().push(digest);
            }
        }
    }
    found
}

/// What is wrong with a file of a writer's own, given what was acknowledged of it.
pub(super) fn lost(path: &str, acknowledged: &[Option<String>], kept: Option<&[u8]>) -> Option<String> {
    let Some(Some(digest)) = acknowledged.last() else {
        return kept.map(|_| format!("{path} is there, and its removal was acknowledged"));
    };
    let Some(kept) = kept else { return Some(format!("{path} is gone, and {digest} was acknowledged")) };
    let stored = match number(path, kept) {
        Ok(stored) => stored,
        Err(damage) => return Some(damage),
    };
    // What is there may be newer than what was acknowledged, and never older.
    let is_it = |number: u64| hex(digest_of(&content(path, number)).as_ref()) == *digest;
    let written = (1..=stored).rev().find(|number| is_it(*number));
    match written {
        Some(_) => None,
        None => Some(format!("{path} is number {stored}; {digest} was acknowledged and is no earlier one")),
    }
}

fn digest_of(bytes: &[u8]) -> aws_lc_rs::digest::Digest {
    digest(&SHA256, bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("text grows");
        text
    })
}

#[test]
fn a_file_that_is_older_cut_or_gone_is_told_from_one_that_is_kept() {
    let (path, digest) =
        ("r1/a/again-3", |number| Some(hex(digest_of(&content("r1/a/again-3", number)).as_ref())));
    let acknowledged = [digest(8), digest(13)];
    let kept = |number| content(path, number);
    assert_eq!(lost(path, &acknowledged, Some(&kept(13))), None);
    assert_eq!(lost(path, &acknowledged, Some(&kept(18))), None, "a newer one");
    assert!(lost(path, &acknowledged, Some(&kept(8))).is_some(), "an older one");
    assert!(lost(path, &acknowledged, None).is_some());
    let mut bent = kept(13);
    bent.pop();
    assert!(lost(path, &acknowledged, Some(&bent)).is_some(), "a cut one");
    *bent.last_mut().expect("has some") ^= 1;
    bent.push(kept(13)[bent.len()]);
    assert!(lost(path, &acknowledged, Some(&bent)).is_some(), "a bent one");
    assert!(lost(path, &[digest(8), None], Some(&kept(8))).is_some(), "one that was removed");
    assert_eq!(lost(path, &[digest(8), None], None), None);
}

#[test]
fn a_log_tells_what_was_acknowledged_of_one_round() {
    let log = concat!(
        r#"{"path":"r1/a/x","agreed":{"what":{"file":{"size":1,"digest":"ab","mode":420,"modified":1}},"version":"v"}}"#,
        "\n",
        r#"{"path":"r1/a/x","agreed":null}"#,
        "\n",
        r#"{"path":"r11/a/x","agreed":null}"#,
        "\n",
        r#"{"path":"r1/a","agreed":{"what":{"folder":{"mode":493}},"version":"v"}}"#,
        "\n",
        r#"{"path":"r1/a/y","agreed":nu"#,
    );
    let found = acknowledged(log, "r1");
    assert_eq!(
        found.into_iter().collect::<Vec<_>>(),
        [("r1/a/x".to_owned(), vec![Some("ab".to_owned()), None])]
    );
}

#[test]
fn lines_are_whole_and_of_their_form() {
    assert_eq!(lines("f", b"a 1 2\nb 1 3\n").map(|it| it.len()), Ok(2));
    assert_eq!(lines("f", b"").map(|it| it.len()), Ok(0));
    for wrong in [&b"a 1 2"[..], b"a 1\n", b"a 1 2\n\xff\n", b"a 1 2\n\n"] {
        assert!(lines("f", wrong).is_err(), "{wrong:?}");
    }
    assert!(is_shared("r1/shared") && is_shared("r1/shared.conflict-x") && !is_shared("r1/a/shared"));
}

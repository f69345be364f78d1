// SPDX-License-Identifier: Apache-2.0
//! `.posternignore`: what a user wants left in the sandbox.
//!
//! One pattern a line, read as git reads `.gitignore` but without `!`: `#` begins a comment, a `/` at
//! the end means folders only, a `/` elsewhere ties it to the top, `*` and `?` stop at `/`, `**` does
//! not. What matches, and all below it, is neither carried to the store nor removed from either side.

/// The file's name, at the top of the tree.
pub(crate) const NAME: &str = ".posternignore";
/// What is read of it.
pub(crate) const BYTES: u64 = 64 << 10;
/// Patterns that are looked at.
const PATTERNS: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    names: Vec<String>,
    is_of_folders: bool,
}

/// The patterns of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ignored(Vec<Pattern>);

impl Ignored {
    /// Reads the file's text.
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(lines.filter_map(pattern).take(PATTERNS).collect())
    }

    /// Whether a path itself matches; whoever walks does not go below it then.
    pub(crate) fn matches(&self, path: &str, is_folder: bool) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let names: Vec<&str> = path.split('/').collect();
        let mut patterns = self.0.iter().filter(|pattern| is_folder || !pattern.is_of_folders);
        patterns.any(|pattern| names_match(&pattern.names, &names))
    }

    /// Whether a path or a folder above it matches.
    pub(crate) fn covers(&self, path: &str, is_folder: bool) -> bool {
        let above = path.match_indices('/').filter_map(|(at, _)| path.get(..at));
        !self.0.is_empty()
            && (self.matches(path, is_folder) || above.into_iter().any(|it| self.matches(it, true)))
    }
}

fn pattern(line: &str) -> Option<Pattern> {
    let is_of_folders = line.ends_with('/');
    let body = line.trim_end_matches('/');
    let is_tied = body.contains('/');
    let mut names: Vec<String> = body.trim_start_matches('/').split('/').map(str::to_owned).collect();
    if names.iter().any(String::is_empty) {
        return None;
    }
    if !is_tied {
        names.insert(0, "**".to_owned());
    }
    Some(Pattern { names, is_of_folders })
}

/// Matches names against patterns, keeping the places that are possible: linear in each name.
fn names_match(patterns: &[String], names: &[&str]) -> bool {
    let mut places = vec![false; patterns.len() + 1];
    if let Some(first) = places.first_mut() {
        *first = true;
    }
    skip(patterns, &mut places);
    for name in names {
        let mut next = vec![false; places.len()];
        for (place, pattern) in patterns.iter().enumerate() {
            if !places.get(place).copied().unwrap_or(false) {
                continue;
            }
            let target = if pattern == "**" { place } else { place + 1 };
            if pattern == "**" || name_matches(pattern.as_bytes(), name.as_bytes()) {
                next.get_mut(target).into_iter().for_each(|place| *place = true);
            }
        }
        skip(patterns, &mut next);
        places = next;
    }
    places.last().copied().unwrap_or(false)
}

/// `**` may stand for nothing.
fn skip(patterns: &[String], places: &mut [bool]) {
    for (place, pattern) in patterns.iter().enumerate() {
        if pattern == "**" && places.get(place) == Some(&true) {
            places.get_mut(place + 1).into_iter().for_each(|next| *next = true);
        }
    }
}

/// `*` and `?` within one name; a failed `*` is taken up again at one place only, so that no pattern
/// takes longer than its length times the name's.
fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from, mut star) = (0, 0, None);
    while let Some(byte) = name.get(from) {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(wanted) if *wanted == b'?' || wanted == byte => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((place, begun)) = star else { return false };
                star = Some((place, begun + 1));
                at = place + 1;
                from = begun + 1;
            }
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn covered(text: &str, path: &str) -> bool {
        Ignored::parse(text).covers(path, false)
    }

    #[test]
    fn patterns_mean_what_they_mean_to_git() {
        for (text, path, is_covered) in [
            ("*.log", "a.log", true),
            ("*.log", "deep/in/a.log", true),
            ("*.log", "a.logs", false),
            ("/build", "build", true),
            ("/build", "src/build", false),
            ("build", "src/build/x", true),
            ("build/", "build", false),
            ("build/", "build/x", true),
            ("a/*/c", "a/b/c", true),
            ("a/*/c", "a/b/d/c", false),
            ("a/**/c", "a/b/d/c", true),
            ("a/**/c", "a/c", true),
            ("a/**", "a/b", true),
            ("a/**", "b/a/b", false),
            ("**/t?p", "x/top/y", true),
            ("# comment", "# comment", false),
            ("", "a", false),
            ("a//b", "a/b", false),
            ("na\u{ef}ve", "na\u{ef}ve", true),
        ] {
            assert_eq!(covered(text, path), is_covered, "{text:?} {path:?}");
        }
    }

    #[test]
    fn no_pattern_takes_forever() {
        let hostile = format!("{}b", "*a".repeat(2000));
        assert!(!covered(&hostile, &"a".repeat(255)));
        let deep = format!("{}x", "**/a/".repeat(300));
        assert!(!covered(&deep, &vec!["a"; 1000].join("/")));
    }

    proptest! {
        #[test]
        fn a_name_without_wildcards_matches_itself_alone(name in "[a-z.]{1,8}", other in "[a-z.]{1,8}") {
            prop_assert!(covered(&name, &name));
            prop_assert_eq!(covered(&name, &other), name == other);
        }
    }
}

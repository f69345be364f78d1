// SPDX-License-Identifier: Apache-2.0
//! Finds secrets in bytes, and where a text may be cut without cutting one.

/// How a kind of secret begins, and how many more characters of a word it has at least.
const KINDS: [(&str, usize); 18] = [
    ("AKIA", 16), // AWS: access key ids
    ("ASIA", 16),
    ("ghp_", 30), // GitHub
    ("gho_", 30),
    ("ghu_", 30),
    ("ghs_", 30),
    ("ghr_", 30),
    ("github_pat_", 30),
    ("glpat-", 18),   // GitLab
    ("sk-", 20),      // model providers
    ("sk_live_", 16), // Stripe
    ("rk_live_", 16),
    ("xoxb-", 20), // Slack
    ("xoxp-", 20),
    ("AIza", 30), // Google
    ("npm_", 30),
    ("postern_", 40), // our own keys
    ("eyJ", 40),      // JSON Web Tokens
];
/// What a tenant's own prefix must be followed by.
const OWN_LENGTH: usize = 8;

const BEGIN: &[u8] = b"-----BEGIN ";
const PRIVATE: &[u8] = b"PRIVATE KEY";
const END: &[u8] = b"-----END ";
/// The longest first line of a key: `-----BEGIN ENCRYPTED PRIVATE KEY-----` and the like.
const FIRST_LINE: usize = 64;

/// What was found: what goes on with secrets blanked, how many, and how much at the end may be
/// the beginning of one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scanned {
    pub(crate) passed: Vec<u8>,
    pub(crate) redacted: u32,
    pub(crate) open: usize,
}

/// Blanks the secrets in `text`; unless it `is_last`, an end that may be one's beginning is left
/// open.
pub(crate) fn scan(text: &[u8], is_last: bool, own: &[String]) -> Scanned {
    let mut scanned = Scanned { passed: Vec::with_capacity(text.len()), redacted: 0, open: 0 };
    let mut rest = text;
    while !rest.is_empty() {
        let (length, kind) = next(rest, is_last, own);
        let (head, tail) = rest.split_at(length.clamp(1, rest.len()));
        match kind {
            Piece::Plain => scanned.passed.extend_from_slice(head),
            Piece::Secret => {
                scanned.passed.extend_from_slice(b"[redacted]");
                scanned.redacted += 1;
            }
            Piece::Open => {
                scanned.open = rest.len();
                return scanned;
            }
        }
        rest = tail;
    }
    scanned
}

enum Piece {
    Plain,
    Secret,
    /// It goes on beyond what is here.
    Open,
}

/// The piece that `rest` begins with.
fn next(rest: &[u8], is_last: bool, own: &[String]) -> (usize, Piece) {
    if rest.first() == Some(&b'-') {
        if let Some(found) = private_key(rest, is_last) {
            return found;
        }
        // Dashes at the front of a word are not part of it.
        return (1, Piece::Plain);
    }
    let word = rest.iter().take_while(|byte| is_word(**byte)).count();
    if word == 0 {
        return (1, Piece::Plain);
    }
    if word == rest.len() && !is_last {
        return (word, Piece::Open);
    }
    let (text, _) = rest.split_at(word);
    if is_secret(text, own) { (word, Piece::Secret) } else { (word, Piece::Plain) }
}

/// A private key in PEM, also where line ends are written as `\n`.
fn private_key(rest: &[u8], is_last: bool) -> Option<(usize, Piece)> {
    let begun = rest.iter().zip(BEGIN).take_while(|(is, wanted)| is == wanted).count();
    if begun < BEGIN.len() {
        let may_go_on = begun == rest.len() && !is_last;
        return may_go_on.then_some((rest.len(), Piece::Open));
    }
    let line = rest.get(..FIRST_LINE.min(rest.len())).unwrap_or(rest);
    if find(line, PRIVATE).is_none() {
        let may_go_on = rest.len() < FIRST_LINE && !is_last;
        return may_go_on.then_some((rest.len(), Piece::Open));
    }
    let Some(end) = find(rest, END) else {
        // Whatever follows is still the key; at the end of all, nothing does.
        return Some((rest.len(), if is_last { Piece::Secret } else { Piece::Open }));
    };
    let after = end + END.len();
    let closing = rest.get(after..).and_then(|tail| find(tail, b"-----"));
    match closing {
        Some(closing) => Some((after + closing + 5, Piece::Secret)),
        None if is_last => Some((rest.len(), Piece::Secret)),
        None => Some((rest.len(), Piece::Open)),
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// Whether a word holds a secret: it, or what follows one of its own dots or dashes, begins like
/// one and is long enough.
fn is_secret(word: &[u8], own: &[String]) -> bool {
    let mut kinds = KINDS.iter().copied().chain(own.iter().map(|prefix| (prefix.as_str(), OWN_LENGTH)));
    kinds.any(|(prefix, more)| {
        let prefix = prefix.as_bytes();
        word.windows(prefix.len()).enumerate().any(|(at, window)| {
            let begins = at == 0 || word.get(at - 1).is_some_and(|before| !before.is_ascii_alphanumeric());
            window == prefix && begins && word.len() - at - prefix.len() >= more
        })
    })
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

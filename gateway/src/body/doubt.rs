// SPDX-License-Identifier: Apache-2.0
//! Bodies whose type the operation does not declare: of a backend without a document, or under a
//! range such as `*/*`.
//!
//! Servers read JSON whatever its type says, and a body without a type as a form, so identity
//! could hide in them. Types that hold no fields (images, archives …) are streamed unless they
//! begin like JSON; everything else must be plain UTF-8, is held whole, and is judged as JSON if it
//! begins like it, else its names as a form's. What other formats hold (XML, YAML, lines of JSON) is
//! not looked into: describe such an operation if identity matters there.

use percent_encoding::percent_decode_str;

/// Types that nobody looks for fields in, by the first half.
const OPAQUE_KINDS: [&str; 5] = ["image", "audio", "video", "font", "model"];

/// The same by name. INVARIANT: none of them is text.
const OPAQUE: [&str; 16] = [
    "application/octet-stream",
    "application/pdf",
    "application/zip",
    "application/x-zip-compressed",
    "application/gzip",
    "application/x-gzip",
    "application/x-bzip2",
    "application/x-xz",
    "application/zstd",
    "application/x-tar",
    "application/x-7z-compressed",
    "application/vnd.rar",
    "application/java-archive",
    "application/wasm",
    "application/vnd.apache.parquet",
    "application/vnd.sqlite3",
];

/// Office documents are archives.
const OPAQUE_PREFIXES: [&str; 2] =
    ["application/vnd.openxmlformats-officedocument.", "application/vnd.oasis.opendocument."];

/// Whether bodies of this type hold no fields that a server would look for.
pub(super) fn is_opaque(essence: &str) -> bool {
    let kind = essence.split('/').next().unwrap_or_default();
    OPAQUE_KINDS.contains(&kind)
        || OPAQUE.contains(&essence)
        || OPAQUE_PREFIXES.iter().any(|prefix| essence.starts_with(prefix))
}

/// How a body begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// More of it must be seen.
    Undecided,
    /// As a JSON object or list does, in any encoding of Unicode.
    Json,
    Other,
}

/// Blanks in front of a body that is looked at while it comes; more are refused.
pub(super) const BLANKS: usize = 4096;

/// Byte order marks of UTF-8, UTF-16 and UTF-32 (whose NULs are skipped anyway).
const MARKS: [&[u8]; 4] = [b"\xef\xbb\xbf", b"\x00\x00\xfe\xff", b"\xfe\xff", b"\xff\xfe"];

/// Tells how a body begins, of which `start` is there and more comes unless it `is_whole`.
///
/// One stray bracket does not make JSON: what follows it must fit too, strictly or as the laxer
/// parsers take it, so that hardly any binary data is taken for JSON.
pub(super) fn beginning(start: &[u8], is_whole: bool) -> Beginning {
    let undecided = if is_whole { Beginning::Other } else { Beginning::Undecided };
    if start.len() < 4 && !is_whole {
        return undecided;
    }
    let marked = MARKS.iter().find_map(|mark| start.strip_prefix(*mark));
    let mut rest = marked.unwrap_or(start).iter().copied();
    let Some(first) = next_character(&mut rest) else {
        return undecided;
    };
    let fits: fn(u8) -> bool = match first {
        b'{' => |byte| byte.is_ascii_alphabetic() || b"\"}'_$/".contains(&byte),
        b'[' => |byte| byte.is_ascii_digit() || b"{[]\"'-/tfnNI".contains(&byte),
        _ => return Beginning::Other,
    };
    match next_character(&mut rest) {
        None => undecided,
        Some(second) if fits(second) => Beginning::Json,
        Some(_) => Beginning::Other,
    }
}

/// The next byte that is neither a blank nor a NUL. Four NULs in a row are no text in any encoding:
/// then NUL.
fn next_character(rest: &mut impl Iterator<Item = u8>) -> Option<u8> {
    let mut nuls = 0;
    for byte in rest {
        match byte {
            0 if nuls == 3 => return Some(0),
            0 => nuls += 1,
            b' ' | b'\t' | b'\r' | b'\n' => nuls = 0,
            other => return Some(other),
        }
    }
    None
}

/// The names that a forgiving reader of forms finds in a text.
pub(crate) fn names(text: &str) -> impl Iterator<Item = String> {
    text.split(['&', ';']).filter_map(|pair| {
        let name = pair.split('=').next().unwrap_or_default().replace('+', " ");
        let name = percent_decode_str(&name).decode_utf8_lossy().into_owned();
        (!name.is_empty()).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn json_is_known_by_its_beginning_in_every_encoding() {
        let text = " {\"a\":1}";
        let wide: Vec<u16> = text.encode_utf16().collect();
        let little: Vec<u8> = wide.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = wide.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        let widest: Vec<u8> = text.chars().flat_map(|it| u32::from(it).to_be_bytes()).collect();
        let marked = |mark: &[u8], rest: &[u8]| [mark, rest].concat();
        for bytes in [
            text.as_bytes().to_vec(),
            marked(b"\xef\xbb\xbf", text.as_bytes()),
            marked(b"\xff\xfe", &little),
            marked(b"\xfe\xff", &big),
            little,
            big,
            marked(b"\x00\x00\xfe\xff", &widest),
            widest,
            b"[]".to_vec(),
            b"[ {\"a\":1}]".to_vec(),
            b"{}".to_vec(),
        ] {
            assert_eq!(beginning(&bytes, true), Beginning::Json, "{bytes:?}");
        }
    }

    #[test]
    fn files_are_not_taken_for_json() {
        for bytes in [
            &b"\x00\x00\x00\x20ftypisom"[..],
            b"\x89PNG\r\n\x1a\n",
            b"PK\x03\x04",
            b"%PDF-1.7",
            b"\x1f\x8b\x08\x00",
            &[0; 512],
            b"{\x93\x01",
            b"[\x00\x00\x00\x00",
            b"hello",
            b"",
        ] {
            assert_eq!(beginning(bytes, true), Beginning::Other, "{bytes:?}");
        }
    }

    #[test]
    fn types_without_fields_are_listed_and_others_are_not() {
        for essence in ["image/png", "video/mp4", "application/octet-stream", "application/zip"] {
            assert!(is_opaque(essence), "{essence}");
        }
        for essence in
            ["text/plain", "application/xml", "application/x-ndjson", "application/x-www-form-urlencoded-x"]
        {
            assert!(!is_opaque(essence), "{essence}");
        }
    }

    #[test]
    fn a_forgiving_reader_finds_names_that_a_strict_one_refuses() {
        let found: Vec<_> = names("a=1&user%5fid=x&b c;d+e=%zz&&=x").collect();
        assert_eq!(found, ["a", "user_id", "b c", "d e"]);
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_a_decision(bytes in proptest::collection::vec(prop_oneof![Just(0), Just(b' '), Just(b'{'), Just(b'"'), any::<u8>()], 0..12)) {
            let whole = beginning(&bytes, true);
            for end in 0..bytes.len() {
                let early = beginning(&bytes[..end], false);
                prop_assert!(early == Beginning::Undecided || early == whole, "{:?} at {}", early, end);
            }
        }
    }
}

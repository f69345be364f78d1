// SPDX-License-Identifier: Apache-2.0
//! Takes a policy file apart into single policies, each with its place in the file.
//!
//! Only strings and comments are understood here, enough to find the semicolon that ends each
//! policy. So every policy is parsed by itself: all mistakes of a file are found at once, and a
//! policy whose text did not change need not be parsed again. If a cut were ever wrong, its parts
//! would not parse; it can never change what a file means.

/// A policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySource {
    /// Its name in messages, such as `policies/refunds.cedar`.
    pub name: String,
    /// Cedar policies.
    pub text: String,
}

/// One policy's text and where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub(crate) text: &'a str,
    /// Bytes from the start of the file.
    pub(crate) offset: usize,
}

/// The policies of a file. What follows the last semicolon is a piece too, unless it is empty.
pub(crate) fn pieces(text: &str) -> Pieces<'_> {
    Pieces { text, at: 0 }
}

/// Takes a file apart, a policy at a time. Between two policies nothing of what came before
/// matters any more: the rest of a file has the pieces that it has by itself.
#[derive(Debug)]
pub(crate) struct Pieces<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let mut start = None;
        let mut bytes = self.text.bytes().enumerate().skip(self.at).peekable();
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'/' if bytes.peek().is_some_and(|(_, next)| *next == b'/') => {
                    while bytes.next_if(|(_, byte)| *byte != b'\n').is_some() {}
                }
                b' ' | b'\t' | b'\r' | b'\n' => {}
                b'"' => {
                    start.get_or_insert(at);
                    while let Some((_, byte)) = bytes.next_if(|(_, byte)| *byte != b'"') {
                        if byte == b'\\' {
                            bytes.next();
                        }
                    }
                    bytes.next();
                }
                b';' => return self.piece(start.unwrap_or(at), at + 1),
                _ => {
                    start.get_or_insert(at);
                }
            }
        }
        self.piece(start?, self.text.len())
    }
}

impl<'a> Pieces<'a> {
    fn piece(&mut self, from: usize, to: usize) -> Option<Piece<'a>> {
        self.at = to;
        // INVARIANT: both ends are at ASCII characters or the end of the text.
        self.text.get(from..to).map(|text| Piece { text, offset: from })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(text: &str) -> Vec<&str> {
        pieces(text).map(|piece| piece.text).collect()
    }

    #[test]
    fn a_semicolon_in_a_string_or_a_comment_ends_nothing() {
        let text = "// a; b\n@id(\"x;\\\";y\") permit (principal, action, resource); // c;\nforbid(principal, action, resource); ";
        assert_eq!(
            texts(text),
            [
                "@id(\"x;\\\";y\") permit (principal, action, resource);",
                "forbid(principal, action, resource);"
            ]
        );
    }

    #[test]
    fn what_is_not_ended_is_a_piece_so_that_it_is_reported() {
        assert_eq!(texts("permit(principal, action, resource)"), ["permit(principal, action, resource)"]);
        assert_eq!(texts("permit;\"never closed"), ["permit;", "\"never closed"]);
        assert_eq!(texts(" // only a comment\n"), Vec::<&str>::new());
        assert_eq!(texts(";"), [";"]);
    }

    proptest! {
        #[test]
        fn pieces_are_where_they_say_and_nothing_but_space_and_comments_is_lost(text in "[a\"\\\\;/ \nä]{0,40}") {
            let mut end = 0;
            for piece in pieces(&text) {
                prop_assert!(piece.offset >= end);
                let between = text.get(end..piece.offset).expect("between two pieces");
                prop_assert!(between.lines().all(|line| line.trim().is_empty() || line.trim().starts_with("//")));
                prop_assert_eq!(text.get(piece.offset..piece.offset + piece.text.len()), Some(piece.text));
                end = piece.offset + piece.text.len();
            }
            let rest = text.get(end..).expect("after the last piece");
            prop_assert!(rest.lines().all(|line| line.trim().is_empty() || line.trim().starts_with("//")));
        }
    }
}

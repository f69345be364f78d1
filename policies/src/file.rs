// SPDX-License-Identifier: Apache-2.0
//! A file of policies made ready, at the cost of what is new in it.
//!
//! ```text
//!   before  ├─ head ─┤  a  b  ├─ tail ─┤      head and tail are taken over as they are,
//!   now     ├─ head ─┤  b  c  ├─ tail ─┤      so is `b`, whose text is the same; `c` is compiled
//! ```
//!
//! Nothing is taken over but a policy with its own text, checked against the same schema.

use crate::compile::{Author, Compiled, Finding, check_whole, compile, compile_checked};
use crate::mistake::{Mistake, Place};
use crate::schema::TenantSchema;
use crate::source::{Piece, PolicySource, pieces};
use std::collections::HashMap;
use std::sync::Arc;

/// Mistakes that are reported at once.
pub(crate) const MISTAKES: usize = 100;

/// A file whose policies are compiled.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) author: Author,
    pub(crate) text: String,
    /// In the order of the text.
    pub(crate) members: Vec<Member>,
}

/// A policy of a file: the bytes of its text and what they are.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) offset: usize,
    pub(crate) length: usize,
    pub(crate) compiled: Arc<Compiled>,
}

impl Member {
    fn end(&self) -> usize {
        self.offset + self.length
    }

    /// The same in a text of another length that ends alike.
    fn moved(&self, before: usize, now: usize) -> Self {
        Self { offset: (self.offset + now).saturating_sub(before), ..self.clone() }
    }
}

impl File {
    /// The policies left between those with which both files begin and those with which both end.
    pub(crate) fn beside(&self, other: Option<&Self>) -> &[Member] {
        let other = other.map_or(&[][..], |file| &file.members);
        let is_same = |(one, two): &(&Member, &Member)| Arc::ptr_eq(&one.compiled, &two.compiled);
        let head = self.members.iter().zip(other).take_while(is_same).count();
        let (own, other) = (self.members.get(head..).unwrap_or(&[]), other.get(head..).unwrap_or(&[]));
        let tail = own.iter().rev().zip(other.iter().rev()).take_while(is_same).count();
        own.get(..own.len() - tail).unwrap_or(&[])
    }
}

impl Place<'_> {
    pub(crate) fn told(&self, member: &Member, finding: &Finding) -> Mistake {
        let range = member.offset + finding.range.start..member.offset + finding.range.end;
        self.mistake(range, finding.message.clone(), finding.help.clone())
    }
}

/// Compiles a file, taking over what `previous` had word for word.
pub(crate) fn read(
    schema: &TenantSchema,
    author: Author,
    source: &PolicySource,
    previous: Option<&File>,
    mistakes: &mut Vec<Mistake>,
) -> File {
    let place = Place { file: &source.name, text: &source.text };
    let changed = Changed::of(previous, &source.text);
    let mut members = changed.head.to_vec();
    let mut known: HashMap<&str, &Arc<Compiled>> = changed.known;
    let checked = if known.is_empty() { check_whole(schema, changed.text, &changed.pieces) } else { None };
    for (number, piece) in changed.pieces.iter().enumerate() {
        // The same text twice is two policies with one id: only one takes over, so that the other
        // is found out.
        let compiled = match known.remove(piece.text) {
            Some(compiled) => Ok(Arc::clone(compiled)),
            None => {
                let template = checked.as_ref().and_then(|checked| checked.get(number));
                let named = template.and_then(|template| compile_checked(author, piece.text, template));
                named.map_or_else(|| compile(schema, author, piece.text), Ok).map(Arc::new)
            }
        };
        let offset = changed.from + piece.offset;
        match compiled {
            Ok(compiled) => members.push(Member { offset, length: piece.text.len(), compiled }),
            Err(findings) if mistakes.len() < MISTAKES => {
                mistakes.extend(findings.into_iter().map(|finding| {
                    let range = offset + finding.range.start..offset + finding.range.end;
                    place.mistake(range, finding.message, finding.help)
                }));
            }
            Err(_beyond_what_is_reported) => break,
        }
    }
    let before = previous.map_or(0, |file| file.text.len());
    members.extend(changed.tail.iter().map(|member| member.moved(before, source.text.len())));
    File { author, text: source.text.clone(), members }
}

/// What is new in a text.
#[derive(Debug, Default)]
struct Changed<'a> {
    /// Policies before it.
    head: &'a [Member],
    /// Where it begins.
    from: usize,
    text: &'a str,
    /// Its policies, with their places in it.
    pieces: Vec<Piece<'a>>,
    /// Policies after it, with their places in the text before.
    tail: &'a [Member],
    /// Policies of the text before that stood in its place.
    known: HashMap<&'a str, &'a Arc<Compiled>>,
}

impl<'a> Changed<'a> {
    fn of(previous: Option<&'a File>, text: &'a str) -> Self {
        let Some(file) = previous else {
            return Self { text, pieces: pieces(text).collect(), ..Self::default() };
        };
        let same = common(file.text.bytes(), text.bytes());
        // INVARIANT: what was compiled ends with its semicolon, so cutting the text there makes no
        // difference to what follows.
        let (head, others) =
            file.members.split_at(file.members.partition_point(|member| member.end() <= same));
        let from = head.last().map_or(0, Member::end);
        let old = file.text.get(from..).unwrap_or_default();
        let text = text.get(from..).unwrap_or_default();
        let alike = common(old.bytes().rev(), text.bytes().rev());
        // Where the rest of the new text, from `at` on, begins in the old one.
        let tail_from = |at: usize| {
            let rest = text.len() - at;
            let end = (rest <= alike).then(|| file.text.len() - rest)?;
            let index = match others.binary_search_by_key(&end, Member::end) {
                Ok(before) => before + 1,
                Err(_) if end == from => 0,
                Err(_) => return None,
            };
            others.get(index..)
        };
        let mut found = Vec::new();
        let mut tail = tail_from(0);
        let mut left = pieces(text);
        while tail.is_none()
            && let Some(piece) = left.next()
        {
            tail = tail_from(piece.offset + piece.text.len());
            found.push(piece);
        }
        let tail = tail.unwrap_or_default();
        let replaced = others.get(..others.len() - tail.len()).unwrap_or_default();
        let known = replaced
            .iter()
            .filter_map(|member| Some((file.text.get(member.offset..member.end())?, &member.compiled)));
        let known = known.collect();
        let end = found.last().map_or(0, |piece| piece.offset + piece.text.len());
        Self { head, from, text: text.get(..end).unwrap_or_default(), pieces: found, tail, known }
    }
}

/// How many bytes two texts have in common from where they are read.
fn common(one: impl Iterator<Item = u8>, other: impl Iterator<Item = u8>) -> usize {
    one.zip(other).take_while(|(one, other)| one == other).count()
}

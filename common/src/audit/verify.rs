// SPDX-License-Identifier: Apache-2.0
//! Checks the chains of an audit log, line by line, in memory that does not grow with the log.

use super::{GENESIS, Log, Mark, MarkKey, MarkKind, link};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Mistakes of one chain that are told one by one; more are counted.
const TOLD_MISTAKES: usize = 20;

/// Reads marks first and then the lines of a log, oldest first, of one tenant or of many.
#[derive(Debug)]
pub struct Verifier {
    key: Option<MarkKey>,
    chains: BTreeMap<(Log, String), Chain>,
    strays: u64,
}

/// What one chain came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The log.
    pub log: Log,
    /// The tenant; empty for what concerns the whole installation.
    pub tenant: String,
    /// Lines that were read.
    pub lines: u64,
    /// Of these, lines from before there were chains: nothing vouches for them.
    pub unchained: u64,
    /// Lines that are gone by age, as a cut says.
    pub cut: u64,
    /// Checkpoints that were found as they were signed.
    pub checkpoints: u64,
    /// Lines after the newest checkpoint: they hang together, and are not signed yet.
    pub unsigned: u64,
    /// The last line's hash.
    pub head: String,
    /// What is wrong, up to a bound.
    pub mistakes: Vec<String>,
    /// Everything that is wrong, counted.
    pub mistaken: u64,
}

#[derive(Debug, Default)]
struct Chain {
    cut: Option<Mark>,
    checkpoints: BTreeMap<i64, Mark>,
    found: BTreeSet<i64>,
    lines: u64,
    unchained: u64,
    unsigned: u64,
    last: Option<i64>,
    head: Option<String>,
    mistakes: Vec<String>,
    mistaken: u64,
}

impl Chain {
    fn mistake(&mut self, words: String) {
        self.mistaken += 1;
        if self.mistakes.len() < TOLD_MISTAKES {
            self.mistakes.push(words);
        }
    }

    fn mark(&mut self, mark: Mark, key: Option<&MarkKey>) {
        if key.is_some_and(|key| !mark.is_signed_by(key)) {
            let (kind, sequence) = (mark.mark.as_str(), mark.sequence);
            return self.mistake(format!("the {kind} at line {sequence} is not signed by this installation"));
        }
        match mark.mark {
            MarkKind::Checkpoint => drop(self.checkpoints.insert(mark.sequence, mark)),
            MarkKind::Cut if self.cut.as_ref().is_none_or(|cut| cut.sequence < mark.sequence) => {
                self.cut = Some(mark);
            }
            MarkKind::Cut => {}
        }
    }

    fn line(&mut self, line: &Map<String, Value>) {
        let sequence = line.get("sequence").and_then(Value::as_i64).unwrap_or(-1);
        self.lines += 1;
        if self.last.is_some_and(|last| last >= sequence) {
            self.mistake(format!("line {sequence} does not come after the one before it"));
        }
        self.last = Some(sequence);
        let text = |name: &str| line.get(name).and_then(Value::as_str);
        let Some(hash) = text("hash") else {
            match self.head {
                None => self.unchained += 1,
                Some(_) => self.mistake(format!("line {sequence} has no hash, and those before it have one")),
            }
            return;
        };
        let previous = text("previous_hash").unwrap_or_default();
        let cut = self.cut.as_ref().map_or(GENESIS, |cut| &cut.hash);
        if previous != self.head.as_deref().unwrap_or(cut) {
            self.mistake(format!(
                "line {sequence} does not follow the one before it: something is gone, or was put in"
            ));
        }
        if link(previous, line) != hash {
            self.mistake(format!("line {sequence} is not what was written"));
        }
        self.unsigned += 1;
        if let Some(checkpoint) = self.checkpoints.get(&sequence) {
            if checkpoint.hash == hash {
                self.found.insert(sequence);
                self.unsigned = 0;
            } else {
                let at = checkpoint.at;
                self.mistake(format!("line {sequence} is not the one that was signed at {at}"));
            }
        }
        // Each mistake is told once: what follows is judged by what stands there.
        self.head = Some(hash.to_owned());
    }

    fn verdict(mut self, log: Log, tenant: String) -> Verdict {
        let begin = self.cut.as_ref().map_or(i64::MIN, |cut| cut.sequence);
        let last = self.last.unwrap_or(begin);
        let missing: Vec<String> = self
            .checkpoints
            .values()
            .filter(|mark| mark.sequence > begin && !self.found.contains(&mark.sequence))
            // One that is there and other than signed was told already.
            .filter(|mark| mark.sequence > last || self.mistaken == 0)
            .map(|mark| format!("line {} was signed at {} and is gone", mark.sequence, mark.at))
            .collect();
        missing.into_iter().for_each(|words| self.mistake(words));
        Verdict {
            log,
            tenant,
            lines: self.lines,
            unchained: self.unchained,
            cut: self.cut.as_ref().map_or(0, |cut| cut.length),
            checkpoints: self.found.len() as u64,
            unsigned: self.unsigned,
            head: self.head.or_else(|| self.cut.map(|cut| cut.hash)).unwrap_or_else(|| GENESIS.to_owned()),
            mistakes: self.mistakes,
            mistaken: self.mistaken,
        }
    }
}

impl Verifier {
    /// Without a key, what was signed is not checked, only that lines hang together.
    #[must_use]
    pub const fn new(key: Option<MarkKey>) -> Self {
        Self { key, chains: BTreeMap::new(), strays: 0 }
    }

    /// Takes a mark. All of them come before the first line.
    pub fn mark(&mut self, mark: Mark) {
        let chain = self.chains.entry((mark.log, mark.tenant.clone())).or_default();
        chain.mark(mark, self.key.as_ref());
    }

    /// Takes a line of a log.
    pub fn line(&mut self, line: &Map<String, Value>) {
        let text = |name: &str| line.get(name).and_then(Value::as_str);
        match (text("log").and_then(|log| log.parse().ok()), text("tenant")) {
            (Some(log), Some(tenant)) => self.chains.entry((log, tenant.to_owned())).or_default().line(line),
            _ => self.strays += 1,
        }
    }

    /// What each chain came to, and how many lines were of none.
    #[must_use]
    pub fn finish(self) -> (Vec<Verdict>, u64) {
        let verdict = |((log, tenant), chain): ((Log, String), Chain)| chain.verdict(log, tenant);
        (self.chains.into_iter().map(verdict).collect(), self.strays)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::MarkSigner;
    use jiff::Timestamp;
    use serde_json::json;

    type Line = Map<String, Value>;

    fn signer() -> MarkSigner {
        MarkSigner::from_seed(&[7; 32]).expect("a key")
    }

    /// So many good lines.
    fn lines(count: i64) -> Vec<Line> {
        let mut previous = GENESIS.to_owned();
        let line = |number: i64| {
            let mut line = json!({ "log": "files", "tenant": "acme", "sequence": number * 3, "path": format!("f{number}") });
            let line = line.as_object_mut().expect("an object");
            let hash = link(&previous, line);
            line.insert("previous_hash".into(), json!(previous));
            line.insert("hash".into(), json!(hash));
            previous = hash;
            line.clone()
        };
        (1..=count).map(line).collect()
    }

    fn mark(kind: MarkKind, line: &Line, length: u64) -> Mark {
        let mut mark = Mark {
            mark: kind,
            installation: "here".to_owned(),
            log: Log::Files,
            tenant: "acme".to_owned(),
            length,
            sequence: line["sequence"].as_i64().expect("a number"),
            hash: line["hash"].as_str().expect("text").to_owned(),
            at: Timestamp::UNIX_EPOCH,
            signature: String::new(),
        };
        signer().sign(&mut mark);
        mark
    }

    fn verdict(marks: Vec<Mark>, lines: &[Line]) -> Verdict {
        let mut verifier = Verifier::new(Some(signer().key()));
        marks.into_iter().for_each(|mark| verifier.mark(mark));
        lines.iter().for_each(|line| verifier.line(line));
        let (mut verdicts, strays) = verifier.finish();
        assert_eq!((verdicts.len(), strays), (1, 0));
        verdicts.remove(0)
    }

    #[test]
    fn an_untouched_log_is_whole_and_says_how_much_of_it_is_signed() {
        let all = lines(5);
        let found = verdict(vec![mark(MarkKind::Checkpoint, &all[2], 3)], &all);
        assert_eq!((found.lines, found.checkpoints, found.unsigned, found.mistaken), (5, 1, 2, 0));
        assert_eq!(found.head, all[4]["hash"].as_str().expect("text"));
        let cut =
            verdict(vec![mark(MarkKind::Cut, &all[1], 2), mark(MarkKind::Checkpoint, &all[0], 1)], &all[2..]);
        assert_eq!((cut.lines, cut.cut, cut.mistaken), (3, 2, 0), "{cut:?}");
    }

    #[test]
    fn whatever_is_done_to_a_log_is_told() {
        let all = lines(5);
        let signed = || vec![mark(MarkKind::Checkpoint, &all[4], 5)];
        let changed = |index: usize, name: &str, value: Value| {
            let mut lines = all.clone();
            lines[index].insert(name.to_owned(), value);
            lines
        };
        let without = |index: usize| {
            let mut lines = all.clone();
            lines.remove(index);
            lines
        };
        let mut put_in = all.clone();
        put_in.insert(2, {
            let mut line = all[1].clone();
            line.insert("sequence".into(), json!(7));
            line
        });
        let mut unhashed = all.clone();
        unhashed[3].remove("hash");
        let mut swapped = all.clone();
        swapped.swap(1, 2);
        // Written anew from the second line on, with hashes that fit: only what was signed tells.
        let mut anew = lines(1);
        let mut previous = anew[0]["hash"].as_str().expect("text").to_owned();
        for old in &all[1..] {
            let mut line = old.clone();
            line.insert("path".into(), json!("other"));
            line.insert("previous_hash".into(), json!(previous));
            previous = link(&previous, &line);
            line.insert("hash".into(), json!(previous));
            anew.push(line);
        }
        let cases: [(&str, Vec<Line>, &str); 9] = [
            ("a changed field", changed(2, "path", json!("x")), "not what was written"),
            ("an added field", changed(2, "more", json!(1)), "not what was written"),
            ("a line that is gone", without(2), "does not follow"),
            ("the first that is gone", without(0), "does not follow"),
            ("the last that is gone", without(4), "is gone"),
            ("all that are gone", Vec::new(), "is gone"),
            ("one put in", put_in, "does not follow"),
            ("one without a hash", unhashed, "has no hash"),
            ("written anew", anew, "not the one that was signed"),
        ];
        for (what, lines, words) in cases {
            let found = verdict(signed(), &lines);
            assert!(found.mistakes.iter().any(|told| told.contains(words)), "{what}: {found:?}");
        }
        assert!(verdict(signed(), &swapped).mistaken > 0);
        assert_eq!(verdict(signed(), &all).mistaken, 0, "the control");
    }

    #[test]
    fn a_mark_that_nobody_here_signed_hides_nothing() {
        let all = lines(5);
        let mut forged = mark(MarkKind::Cut, &all[1], 2);
        MarkSigner::from_seed(&[8; 32]).expect("a key").sign(&mut forged);
        let found = verdict(vec![forged], &all[2..]);
        assert_eq!(found.mistaken, 2, "the cut, and what it does not cover: {found:?}");
    }

    #[test]
    fn lines_from_before_there_were_chains_are_counted_and_a_bound_holds() {
        let old = json!({ "log": "files", "tenant": "acme", "sequence": 1, "path": "old" });
        let mut all = vec![old.as_object().expect("an object").clone()];
        all.extend(lines(2));
        let found = verdict(Vec::new(), &all);
        assert_eq!((found.lines, found.unchained, found.mistaken), (3, 1, 0), "{found:?}");
        let mut wrong = lines(50);
        wrong.iter_mut().for_each(|line| drop(line.insert("path".into(), json!("x"))));
        let found = verdict(Vec::new(), &wrong);
        assert_eq!((found.mistakes.len(), found.mistaken), (TOLD_MISTAKES, 50));
        let mut verifier = Verifier::new(None);
        verifier.line(json!({ "neither": 1 }).as_object().expect("an object"));
        assert_eq!(verifier.finish(), (Vec::new(), 1));
    }
}

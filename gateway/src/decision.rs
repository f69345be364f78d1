// SPDX-License-Identifier: Apache-2.0
//! Writes down how each request was decided, and hands the record on without ever waiting.
//!
//! `request.rs` alone adds to a [`Draft`]; stages know nothing of it. A record that finds the way
//! home full is dropped and counted (`audit_dropped_total`).

use crate::authorize::{Granted, Watched};
use crate::identify::Caller;
use crate::reject::Reject;
use crate::route::Call;
use crate::snapshot::TenantRules;
use crate::spans::Place;
use http::Method;
use jiff::Timestamp;
use postern_common::decision::{DecisionRecord, FilterPart, UpstreamPart, Verdict};
use postern_common::id::{DecisionId, OperationId, RequestId};
use postern_common::session::FILES_SYNC;
use std::borrow::Cow;
use std::time::{Duration, Instant};

/// A record that is being written.
#[derive(Debug)]
pub(crate) struct Draft {
    record: DecisionRecord,
    place: Option<Place>,
    /// Nothing comes of it that anybody would look up.
    pub(crate) is_routine: bool,
    pub(crate) begun: Instant,
    last_mark: Instant,
}

impl Draft {
    pub(crate) fn new(at: Timestamp, method: &Method) -> Self {
        let begun = Instant::now();
        let record = DecisionRecord::begin(at, method.as_str().chars().take(16).collect::<String>());
        Self { record, place: None, is_routine: false, begun, last_mark: begun }
    }

    pub(crate) fn at(&self) -> Timestamp {
        self.record.at
    }

    pub(crate) fn id(&self) -> &DecisionId {
        &self.record.id
    }

    pub(crate) fn request_id(&self) -> &RequestId {
        &self.record.request_id
    }

    /// Notes that the stage took the time since the one before.
    pub(crate) fn stage(&mut self, name: &'static str) {
        let now = Instant::now();
        *self.record.microseconds.entry(Cow::Borrowed(name)).or_default() +=
            microseconds(now - self.last_mark);
        self.last_mark = now;
    }

    pub(crate) fn trace(&mut self, place: Option<Place>) {
        self.record.trace_id = place.as_ref().map(|place| place.trace.clone());
        self.place = place;
    }

    /// Its place in the trace, for who exports spans.
    pub(crate) const fn place(&mut self) -> Option<Place> {
        self.place.take()
    }

    pub(crate) fn caller(&mut self, caller: &Caller) {
        let session = &caller.session.session;
        self.record.tenant = Some(session.tenant.clone());
        self.record.sandbox_id = Some(session.sandbox_id.clone());
        self.record.user_id = Some(session.user_id.clone());
        self.record.conversation_id = Some(session.conversation_id.clone());
    }

    pub(crate) fn rules(&mut self, rules: &TenantRules) {
        self.record.versions = rules.versions.clone();
    }

    /// A call of a sandbox's sync, which goes to no backend. One that only looks is routine: some are
    /// made every minute while nothing happens, and the log of files names none of them.
    pub(crate) fn sync(&mut self, is_routine: bool) {
        self.is_routine = is_routine;
        self.record.operation = OperationId::parse(FILES_SYNC).ok();
        self.record.path_template = Some(format!("/{FILES_SYNC}/{{call}}"));
    }

    pub(crate) fn call(&mut self, call: &Call) {
        self.record.backend = Some(call.backend.name.clone());
        self.record.operation = Some(call.operation.operation.id.clone());
        self.record.path_template = Some(call.operation.path_template.to_string());
    }

    /// What policies saw, and what those in shadow would have said; of the last time they were asked.
    pub(crate) fn watched(&mut self, watched: Watched) {
        self.record.shadow = watched.shadow;
        self.record.evidence = watched.evidence;
    }

    pub(crate) fn granted(&mut self, granted: &Granted) {
        self.record.policies = granted.policies().to_vec();
        self.record.overridden = granted.places().to_vec();
    }

    pub(crate) fn filter(&mut self, ran: FilterPart) {
        self.record.filters.push(ran);
    }

    pub(crate) fn upstream(&mut self, status: u16, took: Duration) {
        self.record.upstream = Some(UpstreamPart { status, milliseconds: took.as_secs_f64() * 1000.0 });
    }

    /// The backend's and operation's names, for metrics; empty where none was found.
    pub(crate) fn labels(&self) -> (String, String) {
        let name = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let backend = self.record.backend.as_ref().map(AsRef::as_ref);
        let operation = self.record.operation.as_ref().map(AsRef::as_ref);
        (name(backend), name(operation))
    }

    /// The record of a request that was forwarded.
    pub(crate) fn allowed(mut self) -> DecisionRecord {
        self.record.verdict = Verdict::Allow;
        self.total()
    }

    /// The record of a request that was refused.
    pub(crate) fn refused(mut self, reject: &Reject) -> DecisionRecord {
        self.record.verdict = reject.verdict();
        self.record.code = Some(reject.code());
        if let Reject::Denied(policies) | Reject::PolicyError { policies, .. } = reject {
            self.record.policies.clone_from(policies);
        }
        self.total()
    }

    fn total(mut self) -> DecisionRecord {
        self.record.microseconds.insert(Cow::Borrowed("total"), microseconds(self.begun.elapsed()));
        self.record
    }
}

fn microseconds(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

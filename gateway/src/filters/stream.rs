// SPDX-License-Identifier: Apache-2.0
//! Bodies that filters see part after part, as they stream.
//!
//! ```text
//! backend ──data──▶ stage ──▶ stage ──▶ sandbox      a stage: one filter, what it kept back, and
//!                   [kept]    [kept]                 how many parts it has seen
//! ```
//! Each part is a call with a fresh instance, so a stream that stands still holds none. The head is
//! answered once every stage has seen its first part; a refusal after that breaks the answer off,
//! so that half of it is never taken for the whole.

use super::response::{no_longer_true, refusal};
use super::{AttachedFilter, Reports};
use crate::decision::Draft;
use crate::reject::Reject;
use crate::response::{Body, BrokenOff};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream};
use http::HeaderMap;
use http::response::Parts;
use http_body::{Body as _, Frame};
use postern_common::decision::FilterPart;
use postern_common::session::Session;
use postern_filter_engine::{Changes, Outcome, Part, RequestView, ResponseView};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

/// What every call of a chain shares.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) reports: Reports,
    pub(super) session: Arc<Session>,
    pub(super) request: Arc<RequestView>,
}

/// An answer as filters see it.
pub(super) fn shown(head: &Parts, body: Option<Bytes>, part: Option<Part>) -> ResponseView {
    ResponseView { status: head.status, headers: head.headers.clone(), body, part }
}

/// One filter's place in the stream.
#[derive(Debug)]
pub(super) struct Stage {
    filter: Arc<AttachedFilter>,
    /// The longest part that it takes.
    limit: usize,
    /// What it kept back, at most half of that.
    kept: Bytes,
    index: u64,
    /// Of its first call: for the record, and for the head.
    first: Option<FilterPart>,
    changes: Option<Changes>,
}

impl Stage {
    pub(super) const fn new(filter: Arc<AttachedFilter>, limit: usize) -> Self {
        Self { filter, limit, kept: Bytes::new(), index: 0, first: None, changes: None }
    }

    const fn has_begun(&self) -> bool {
        self.index > 0
    }

    /// Shows the filter what has come, in parts that it takes; returns what goes on.
    pub(super) async fn feed(
        &mut self,
        around: &Surroundings,
        head: &Parts,
        mut data: Bytes,
        is_last: bool,
    ) -> Result<Bytes, Reject> {
        let mut passed = BytesMut::new();
        loop {
            let room = self.limit.saturating_sub(self.kept.len()).max(1);
            let fresh = data.split_to(room.min(data.len()));
            let is_last = is_last && data.is_empty();
            if fresh.is_empty() && !is_last {
                return Ok(passed.freeze());
            }
            let body = if self.kept.is_empty() {
                fresh.clone()
            } else {
                Bytes::from([&*std::mem::take(&mut self.kept), &*fresh].concat())
            };
            self.call(around, head, (body, fresh), is_last, &mut passed).await?;
            if is_last {
                return Ok(passed.freeze());
            }
        }
    }

    /// One call: `body` is what the filter sees, `fresh` what of it nobody has seen before.
    async fn call(
        &mut self,
        around: &Surroundings,
        head: &Parts,
        (body, fresh): (Bytes, Bytes),
        is_last: bool,
        passed: &mut BytesMut,
    ) -> Result<(), Reject> {
        let part = Part { index: self.index, is_last };
        let view = shown(head, Some(body.clone()), Some(part));
        let request = Arc::clone(&around.request);
        let called = self.filter.call(&around.reports, &around.session, request, Some(view)).await;
        if self.index == 0 {
            self.first = Some(self.filter.part(&called));
        }
        self.index = self.index.saturating_add(1);
        let kept = match &called.outcome {
            Ok(Outcome::Changed(changes)) => changes.kept(),
            Ok(Outcome::Continue | Outcome::Reject(_)) | Err(_) => 0,
        };
        let (goes_on, stays) = body.split_at(body.len().saturating_sub(kept));
        let outcome = self.filter.decide(called.outcome)?;
        self.kept = body.slice_ref(stays);
        match outcome {
            // One in shadow keeps what it will see again, and holds nothing up.
            _ if self.filter.is_shadow() => passed.extend_from_slice(&fresh),
            Outcome::Changed(changes) => {
                passed.extend_from_slice(changes.body().map_or(goes_on, |new| new));
                if part.index == 0 {
                    self.changes = Some(changes);
                }
            }
            Outcome::Continue | Outcome::Reject(_) => passed.extend_from_slice(goes_on),
        }
        Ok(())
    }

    /// Tells of the first call, and makes its changes of the head.
    pub(super) fn tell(&mut self, draft: &mut Draft, headers: &mut HeaderMap) {
        if let Some(part) = self.first.take() {
            draft.filter(part);
        }
        if !self.filter.is_shadow() {
            no_longer_true(headers);
        }
        if let Some(changes) = self.changes.take() {
            changes.apply_to_headers(headers);
        }
    }
}

/// Drives a body through its stages.
#[derive(Debug)]
pub(super) struct Pump {
    around: Surroundings,
    head: Parts,
    body: Body,
    stages: Vec<Stage>,
    /// What has passed every stage while the head was waiting.
    ready: Bytes,
    is_over: bool,
}

/// Why a stream of parts ends early.
#[derive(Debug)]
enum Ended {
    BrokenOff(BrokenOff),
    Refused(Reject),
}

impl Pump {
    /// Pumps until every stage has seen its first part.
    ///
    /// # Errors
    /// What a filter says of a first part, and whatever can happen to an answer on its way.
    pub(super) async fn begin(
        around: Surroundings,
        head: Parts,
        body: Body,
        stages: Vec<Stage>,
        deadline: Instant,
    ) -> Result<Self, Reject> {
        let mut pump = Self { around, head, body, stages, ready: Bytes::new(), is_over: false };
        let begin = async {
            let mut ready = BytesMut::new();
            while !pump.is_over && !pump.stages.iter().all(Stage::has_begun) {
                ready.extend_from_slice(&pump.next().await?);
            }
            pump.ready = ready.freeze();
            Ok(())
        };
        let begun = tokio::time::timeout_at(deadline.into(), begin).await;
        match begun.map_err(|_elapsed| Reject::UpstreamTimeout)? {
            Ok(()) => Ok(pump),
            Err(Ended::Refused(reject)) => Err(reject),
            Err(Ended::BrokenOff(broken)) => Err(refusal(&broken)),
        }
    }

    /// Tells of the first calls, and makes their changes of the head, the first attached last.
    pub(super) fn tell(&mut self, draft: &mut Draft, headers: &mut HeaderMap) {
        for stage in &mut self.stages {
            stage.tell(draft, headers);
        }
    }

    /// What comes next, when it has passed every stage; it may be nothing yet.
    async fn next(&mut self) -> Result<Bytes, Ended> {
        let mut data = match self.body.next_data().await {
            None => Bytes::new(),
            Some(data) => data.map_err(Ended::BrokenOff)?,
        };
        self.is_over = data.is_empty() || self.body.is_end_stream();
        for stage in &mut self.stages {
            data = stage.feed(&self.around, &self.head, data, self.is_over).await.map_err(Ended::Refused)?;
        }
        Ok(data)
    }

    pub(super) fn into_body(self) -> FilteredBody {
        let data = stream::unfold(Some(self), |pump| async {
            let mut pump = pump?;
            let mut data = std::mem::take(&mut pump.ready);
            while data.is_empty() {
                if pump.is_over {
                    return None;
                }
                data = match pump.next().await {
                    Ok(data) => data,
                    Err(ended) => return Some((Err(pump.broken_off(ended)), None)),
                };
            }
            Some((Ok(data), Some(pump)))
        });
        FilteredBody(Box::pin(data))
    }

    /// The record of the request was written when its head was answered; this goes to the log.
    fn broken_off(&self, ended: Ended) -> BrokenOff {
        match ended {
            Ended::BrokenOff(broken) => broken,
            Ended::Refused(reject) => {
                let tenant = &self.around.session.tenant;
                tracing::warn!(%tenant, code = reject.code().as_str(), "a filter broke an answer off");
                BrokenOff::Filter
            }
        }
    }
}

/// A body that filters see part after part on its way.
pub(crate) struct FilteredBody(Pin<Box<dyn Stream<Item = Result<Bytes, BrokenOff>> + Send>>);

impl std::fmt::Debug for FilteredBody {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("FilteredBody")
    }
}

impl FilteredBody {
    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.0.as_mut().poll_next(context).map(|next| next.map(|data| data.map(Frame::data)))
    }
}

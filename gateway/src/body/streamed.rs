// SPDX-License-Identifier: Apache-2.0
//! A request body that is passed on while it arrives, because nothing judges it.

use super::BodyFault;
use crate::headers::clean_request_trailers;
use crate::pace::Pace;
use crate::snapshot::Backend;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A body that is passed on while it arrives. It ends in an error when it grows over its limit,
/// breaks off, only trickles, or its session ends. Trailers go along as far as headers of their names
/// might: what carries identity is left out, as nothing can be written in its place.
pub(crate) struct StreamedBody {
    first: Option<Bytes>,
    incoming: Incoming,
    left: u64,
    limit: u64,
    pace: Pace,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    fault: Arc<OnceLock<BodyFault>>,
    backend: Arc<Backend>,
}

impl std::fmt::Debug for StreamedBody {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StreamedBody").field("left", &self.left).finish_non_exhaustive()
    }
}

impl StreamedBody {
    /// A stream for a backend, as long as that takes; `first` was read already.
    ///
    /// # Errors
    /// [`BodyFault::TooLarge`] if it declares more.
    pub(super) fn new(
        incoming: Incoming,
        first: Option<Bytes>,
        backend: &Arc<Backend>,
        ended: &CancellationToken,
    ) -> Result<Box<Self>, BodyFault> {
        let limit = backend.streamed_body_bytes;
        if incoming.size_hint().lower() > limit {
            return Err(BodyFault::TooLarge { limit });
        }
        Ok(Box::new(Self {
            first,
            incoming,
            left: limit,
            limit,
            pace: Pace::new(backend.waits.stall),
            ended: Box::pin(ended.clone().cancelled_owned()),
            fault: Arc::default(),
            backend: Arc::clone(backend),
        }))
    }

    /// Tells, after the body failed, why.
    pub(crate) fn fault(&self) -> Arc<OnceLock<BodyFault>> {
        Arc::clone(&self.fault)
    }

    fn fail(&self, fault: BodyFault) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        Poll::Ready(Some(Err(*self.fault.get_or_init(|| fault))))
    }

    fn clean(&self, mut frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(trailers) = frame.trailers_mut() {
            clean_request_trailers(trailers, |folded| !self.backend.takes_trailer(folded));
        }
        frame
    }

    fn pass(&mut self, data: Bytes) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match self.left.checked_sub(data.len() as u64) {
            Some(left) => {
                self.left = left;
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            None => self.fail(BodyFault::TooLarge { limit: self.limit }),
        }
    }
}

impl http_body::Body for StreamedBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        if self.ended.as_mut().poll(context).is_ready() {
            return self.fail(BodyFault::SessionEnded);
        }
        if let Some(first) = self.first.take() {
            return self.pass(first);
        }
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(context) else {
            ready!(self.pace.poll_too_slow(context));
            return self.fail(BodyFault::TooSlow);
        };
        match frame {
            None => Poll::Ready(None),
            Some(Err(_broken)) => self.fail(BodyFault::Broken),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.pace.moved(data.len());
                    self.pass(data)
                }
                Err(trailers) => Poll::Ready(Some(Ok(self.clean(trailers)))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        let rest = self.incoming.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(first));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(first));
        }
        hint
    }
}

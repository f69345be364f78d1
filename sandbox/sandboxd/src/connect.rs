// SPDX-License-Identifier: Apache-2.0
//! The Connect protocol with its JSON codec, as far as the E2B SDKs use it: unary calls, calls with
//! one request message and a stream of answers, and calls with a stream of messages and one answer.
//! No compression, no trailers.
//!
//! An envelope is a flag byte, the length as 32 bits big-endian, and that many bytes of JSON.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// The body of every answer. One that fails is cut off, so that its reader sees that it is not whole.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The longest request: a command with its whole environment fits (the kernel's own bound for one
/// argument is 128 KiB), and a chunk of input.
pub(crate) const REQUEST_BYTES: usize = 4 << 20;
/// Flags and length.
pub(crate) const ENVELOPE_HEAD: usize = 5;
const END_OF_STREAM: u8 = 0b10;
/// Connect allows ten digits.
const TIMEOUT_DIGITS: usize = 10;
/// The header by which a client asks for signs of life, in seconds.
const KEEP_ALIVE: &str = "keepalive-ping-interval";

/// The Connect error codes that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    Unauthenticated,
    ResourceExhausted,
    FailedPrecondition,
    Unimplemented,
    Unavailable,
    Internal,
}

impl Code {
    /// The HTTP status of a unary call that ends so (Connect protocol, error codes).
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::AlreadyExists => StatusCode::CONFLICT,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::InvalidArgument | Self::FailedPrecondition => StatusCode::BAD_REQUEST,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Reads the message of a unary call.
pub(crate) async fn read_unary<Message: DeserializeOwned>(body: Incoming) -> Result<Message, Failure> {
    parse(&read(body).await?)
}

/// Reads the one message of a call that is answered by a stream.
pub(crate) async fn read_envelope<Message: DeserializeOwned>(body: Incoming) -> Result<Message, Failure> {
    let malformed = || Failure::new(Code::InvalidArgument, "expected one uncompressed envelope of JSON");
    let bytes = read(body).await?;
    let (head, message) = bytes.split_first_chunk::<ENVELOPE_HEAD>().ok_or_else(malformed)?;
    let [flags, length @ ..] = *head;
    let is_whole = usize::try_from(u32::from_be_bytes(length)).is_ok_and(|length| length == message.len());
    if flags == 0 && is_whole { parse(message) } else { Err(malformed()) }
}

/// The messages of a call that sends a stream of them.
#[derive(Debug)]
pub(crate) struct Messages {
    body: Incoming,
    unread: BytesMut,
}

impl Messages {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, unread: BytesMut::new() }
    }

    /// The next message; `None` after the last.
    pub(crate) async fn next<Message: DeserializeOwned>(&mut self) -> Result<Option<Message>, Failure> {
        loop {
            if let Some((flags, message)) = self.whole()? {
                return if flags & END_OF_STREAM == 0 { parse(&message).map(Some) } else { Ok(None) };
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    self.unread.extend_from_slice(frame.data_ref().map_or(&[][..], |bytes| bytes));
                }
                None if self.unread.is_empty() => return Ok(None),
                None | Some(Err(_)) => {
                    return Err(Failure::new(Code::InvalidArgument, "the stream of messages broke off"));
                }
            }
        }
    }

    fn whole(&mut self) -> Result<Option<(u8, Bytes)>, Failure> {
        let Some([flags, length @ ..]) = self.unread.first_chunk::<ENVELOPE_HEAD>().copied() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > REQUEST_BYTES || flags & !END_OF_STREAM != 0 {
            return Err(Failure::new(
                Code::InvalidArgument,
                "expected uncompressed envelopes of at most 4 MiB",
            ));
        }
        if self.unread.len() < ENVELOPE_HEAD + length {
            return Ok(None);
        }
        self.unread.advance(ENVELOPE_HEAD);
        Ok(Some((flags, self.unread.split_to(length).freeze())))
    }
}

async fn read(body: Incoming) -> Result<Bytes, Failure> {
    let too_long = |_| Failure::new(Code::ResourceExhausted, "the message is longer than 4 MiB or broke off");
    Ok(Limited::new(body, REQUEST_BYTES).collect().await.map_err(too_long)?.to_bytes())
}

fn parse<Message: DeserializeOwned>(json: &[u8]) -> Result<Message, Failure> {
    serde_json::from_slice(json).map_err(|error| Failure::new(Code::InvalidArgument, error.to_string()))
}

/// The deadline that the caller set for the call; for a process it is its time limit.
pub(crate) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Failure> {
    let Some(value) = headers.get("connect-timeout-ms") else {
        return Ok(None);
    };
    let text = value.to_str().ok().filter(|text| text.len() <= TIMEOUT_DIGITS);
    let milliseconds = text.and_then(|text| text.parse::<u64>().ok());
    match milliseconds {
        Some(0) => Ok(None),
        Some(milliseconds) => Ok(Some(Duration::from_millis(milliseconds))),
        None => Err(Failure::new(Code::InvalidArgument, "Connect-Timeout-Ms wants 1 to 10 digits")),
    }
}

/// The answer of a unary call.
pub(crate) fn unary<Message: Serialize>(result: Result<Message, Failure>) -> Response<Body> {
    let answer = result.and_then(|message| {
        serde_json::to_vec(&message).map_err(|error| Failure::new(Code::Internal, error.to_string()))
    });
    match answer {
        Ok(json) => json_response(StatusCode::OK, json),
        // A Failure is two strings: it always serializes.
        Err(failure) => {
            json_response(failure.code.status(), serde_json::to_vec(&failure).unwrap_or_default())
        }
    }
}

/// The answers of a streaming call, to come.
#[derive(Debug)]
pub(crate) struct Streamed {
    envelopes: mpsc::Receiver<Bytes>,
    pulse: Option<Pulse>,
    deadline: Option<Instant>,
}

/// A message that says nothing, sent when there was none for a while.
#[derive(Debug)]
struct Pulse {
    every: Duration,
    message: Bytes,
}

impl Streamed {
    pub(crate) fn new(envelopes: mpsc::Receiver<Bytes>) -> Self {
        Self { envelopes, pulse: None, deadline: None }
    }

    /// Sends signs of life if the caller asks for them.
    pub(crate) fn alive(mut self, headers: &HeaderMap, sign: &impl Serialize) -> Self {
        let asked = headers.get(KEEP_ALIVE).and_then(|value| value.to_str().ok());
        let seconds = asked.and_then(|text| text.parse::<u32>().ok()).filter(|seconds| *seconds > 0);
        self.pulse = seconds
            .map(|seconds| Pulse { every: Duration::from_secs(seconds.into()), message: envelope(sign) });
        self
    }

    /// Ends the stream, and nothing else, after this time.
    pub(crate) fn until(mut self, limit: Option<Duration>) -> Self {
        self.deadline = limit.map(|limit| Instant::now() + limit);
        self
    }

    /// The next envelope; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        let pulse = self.pulse.as_ref().map(|pulse| Instant::now() + pulse.every);
        let wake = match (pulse, self.deadline) {
            (Some(pulse), Some(deadline)) => Some(pulse.min(deadline)),
            (pulse, deadline) => pulse.or(deadline),
        };
        let Some(wake) = wake else { return self.envelopes.recv().await };
        match timeout_at(wake, self.envelopes.recv()).await {
            Ok(envelope) => envelope,
            Err(_elapsed) if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
                self.envelopes.close();
                while self.envelopes.try_recv().is_ok() {}
                let late = Failure::new(Code::DeadlineExceeded, "the call ran into its time limit");
                Some(end_of_stream(Some(&late)))
            }
            Err(_elapsed) => self.pulse.as_ref().map(|pulse| pulse.message.clone()),
        }
    }
}

/// The answer of a streaming call. Its status is always 200: a failure is its only envelope.
///
/// Envelopes are taken one at a time, so a caller that does not read fills the queue behind it.
pub(crate) fn stream(result: Result<Streamed, Failure>) -> Response<Body> {
    let body = match result {
        Ok(streamed) => {
            let frames = futures_util::stream::unfold(streamed, async |mut streamed| {
                let envelope = streamed.next().await?;
                Some((Ok(Frame::data(envelope)), streamed))
            });
            StreamBody::new(frames).boxed_unsync()
        }
        Err(failure) => whole(end_of_stream(Some(&failure))),
    };
    response(StatusCode::OK, "application/connect+json", body)
}

/// The answer of a call that sent a stream of messages.
pub(crate) fn one_of_stream(result: Result<impl Serialize, Failure>) -> Response<Body> {
    let bytes = match result {
        Ok(message) => [envelope(&message), end_of_stream(None)].concat().into(),
        Err(failure) => end_of_stream(Some(&failure)),
    };
    response(StatusCode::OK, "application/connect+json", whole(bytes))
}

/// A body that is all there.
pub(crate) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Gives a unary call no longer than its caller waits.
pub(crate) async fn in_time<Answer>(
    headers: &HeaderMap,
    call: impl Future<Output = Result<Answer, Failure>>,
) -> Result<Answer, Failure> {
    let Some(limit) = timeout(headers)? else { return call.await };
    let late = |_elapsed| Failure::new(Code::DeadlineExceeded, "the call ran into its time limit");
    tokio::time::timeout(limit, call).await.map_err(late)?
}

/// One message of a stream.
pub(crate) fn envelope<Message: Serialize>(message: &Message) -> Bytes {
    enclose(0, message)
}

/// The last envelope of every stream.
pub(crate) fn end_of_stream(failure: Option<&Failure>) -> Bytes {
    #[derive(Serialize)]
    struct End<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a Failure>,
    }
    enclose(END_OF_STREAM, &End { error: failure })
}

fn enclose<Message: Serialize>(flags: u8, message: &Message) -> Bytes {
    let mut envelope = vec![0; ENVELOPE_HEAD];
    // Our own messages are maps with string keys, which always serialize.
    if serde_json::to_writer(&mut envelope, message).is_err() {
        envelope.truncate(ENVELOPE_HEAD);
    }
    let length = envelope.len().saturating_sub(ENVELOPE_HEAD);
    if let Some(place) = envelope.first_chunk_mut::<ENVELOPE_HEAD>() {
        *place = head(flags, length);
    }
    envelope.into()
}

/// What an envelope of this length, which is far below 4 GiB, begins with.
pub(crate) fn head(flags: u8, length: usize) -> [u8; ENVELOPE_HEAD] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [flags, a, b, c, d]
}

pub(crate) fn json_response(status: StatusCode, json: Vec<u8>) -> Response<Body> {
    response(status, "application/json", whole(json.into()))
}

pub(crate) fn response(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(timeout: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(
            http::HeaderName::from_static("connect-timeout-ms"),
            HeaderValue::from_static(timeout),
        )])
    }

    #[test]
    fn an_envelope_is_flags_then_big_endian_length_then_json() {
        assert_eq!(&envelope(&[1, 2])[..], b"\0\0\0\0\x05[1,2]");
        assert_eq!(&end_of_stream(None)[..], b"\x02\0\0\0\x02{}");
    }

    #[test]
    fn a_failure_ends_its_stream_with_code_and_message() {
        let end = end_of_stream(Some(&Failure::new(Code::DeadlineExceeded, "late")));
        assert_eq!(&end[5..], br#"{"error":{"code":"deadline_exceeded","message":"late"}}"#);
    }

    #[test]
    fn a_timeout_is_milliseconds_and_zero_or_absence_is_none() {
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
        assert_eq!(timeout(&headers("0")), Ok(None));
        assert_eq!(timeout(&headers("1500")), Ok(Some(Duration::from_millis(1500))));
        for wrong in ["", "1s", "-1", "12345678901"] {
            assert_eq!(timeout(&headers(wrong)).expect_err(wrong).code, Code::InvalidArgument);
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The Connect protocol with its JSON codec, as far as the E2B SDKs use it: unary calls, and
//! calls with one request message and a stream of answers. No compression, no trailers.
//!
//! An envelope is a flag byte, the length as 32 bits big-endian, and that many bytes of JSON.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;

/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The longest request: a command with its whole environment fits (the kernel's own bound for one
/// argument is 128 KiB), and a chunk of input.
pub(crate) const REQUEST_BYTES: usize = 4 << 20;
const ENVELOPE_HEAD: usize = 5;
const END_OF_STREAM: u8 = 0b10;
/// Connect allows ten digits.
const TIMEOUT_DIGITS: usize = 10;

/// The Connect error codes that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    ResourceExhausted,
    FailedPrecondition,
    #[cfg(feature = "pod")]
    PermissionDenied,
    Unimplemented,
    Internal,
}

impl Code {
    /// The HTTP status of a unary call that ends so (Connect protocol, error codes).
    const fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => StatusCode::BAD_REQUEST,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::NotFound => StatusCode::NOT_FOUND,
            #[cfg(feature = "pod")]
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
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

/// The answer of a streaming call. Its status is always 200: a failure is its only envelope.
///
/// Reading stops being possible when `envelopes` does; they are taken one at a time, so a caller
/// that does not read fills the queue behind it.
pub(crate) fn stream(result: Result<mpsc::Receiver<Bytes>, Failure>) -> Response<Body> {
    let body = match result {
        Ok(envelopes) => {
            let frames = futures_util::stream::unfold(envelopes, async |mut envelopes| {
                let envelope = envelopes.recv().await?;
                Some((Ok(Frame::data(envelope)), envelopes))
            });
            StreamBody::new(frames).boxed_unsync()
        }
        Err(failure) => Full::new(end_of_stream(Some(&failure))).boxed_unsync(),
    };
    response(StatusCode::OK, "application/connect+json", body)
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
    // Our own messages are maps with string keys, which always serialize, and far below 4 GiB.
    let json = serde_json::to_vec(message).unwrap_or_default();
    let mut envelope = BytesMut::with_capacity(ENVELOPE_HEAD + json.len());
    envelope.put_u8(flags);
    envelope.put_u32(u32::try_from(json.len()).unwrap_or(u32::MAX));
    envelope.put_slice(&json);
    envelope.freeze()
}

fn json_response(status: StatusCode, json: Vec<u8>) -> Response<Body> {
    response(status, "application/json", Full::new(json.into()).boxed_unsync())
}

fn response(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
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

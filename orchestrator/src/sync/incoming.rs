// SPDX-License-Identifier: Apache-2.0
//! A pack that a sync puts, read part by part as it comes.

use crate::storage;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use postern_common::files::Digest;
use postern_common::files::pack::{Part, Unpacker};
use postern_common::problem::{Code, Problem};
use std::io;
use tokio::sync::mpsc;

/// Zeros of a hole go to the store in parts of this size.
const ZEROS: usize = 256 << 10;
/// A pack as it comes.
pub(super) struct Pack {
    body: Incoming,
    unpacker: Unpacker,
}

impl Pack {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, unpacker: Unpacker::default() }
    }

    /// The next part; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Part>, Problem> {
        let broken = |what: &str| Problem::new(Code::RequestMalformed, format!("the pack {what}"));
        loop {
            if let Some(part) = self.unpacker.part().map_err(|error| broken(&error.to_string()))? {
                return Ok(Some(part));
            }
            let Some(frame) = self.body.frame().await else {
                self.unpacker.end().map_err(|error| broken(&error.to_string()))?;
                return Ok(None);
            };
            if let Ok(bytes) = frame.map_err(|_cut| broken("broke off"))?.into_data() {
                self.unpacker.feed(bytes);
            }
        }
    }
}

/// Passes over a file's content.
pub(super) async fn skip(pack: &mut Pack) -> Result<(), Problem> {
    loop {
        match pack.next().await? {
            Some(Part::Data(_) | Part::Hole(_)) => {}
            Some(Part::End(_)) => return Ok(()),
            Some(Part::Head { .. }) | None => {
                return Err(Problem::new(Code::RequestMalformed, "content has no end"));
            }
        }
    }
}

/// Passes content on, computing what it comes to; `None` if it did not come whole, which whoever
/// writes is told by an error at its end.
pub(super) async fn pass(
    pack: &mut Pack,
    to: mpsc::Sender<io::Result<Bytes>>,
) -> Result<Option<storage::Digest>, Problem> {
    let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let zeros = Bytes::from_static(&[0; ZEROS]);
    loop {
        let part = match pack.next().await {
            Ok(part) => part,
            Err(broken) => {
                let _ = to.send(Err(io::ErrorKind::UnexpectedEof.into())).await.is_ok();
                return Err(broken);
            }
        };
        match part {
            Some(Part::Data(bytes)) => {
                hash.update(&bytes);
                // Nobody takes it any more: the rest is read and told why.
                let _ = to.send(Ok(bytes)).await.is_ok();
            }
            Some(Part::Hole(mut length)) => {
                while length > 0 && !to.is_closed() {
                    let part = usize::try_from(length).unwrap_or(ZEROS).min(ZEROS);
                    hash.update(zeros.get(..part).unwrap_or_default());
                    let _ = to.send(Ok(zeros.slice(..part))).await.is_ok();
                    length -= part as u64;
                }
            }
            Some(Part::End(Some(Digest(told)))) => {
                if hash.finish().as_ref() == told {
                    return Ok(Some(storage::Digest::from(told)));
                }
                let _ = to.send(Err(io::ErrorKind::InvalidData.into())).await.is_ok();
                return Ok(None);
            }
            Some(Part::End(None)) => {
                let _ = to.send(Err(io::ErrorKind::UnexpectedEof.into())).await.is_ok();
                return Ok(None);
            }
            Some(Part::Head { .. }) | None => {
                let _ = to.send(Err(io::ErrorKind::InvalidData.into())).await.is_ok();
                return Err(Problem::new(Code::RequestMalformed, "content has no end"));
            }
        }
    }
}

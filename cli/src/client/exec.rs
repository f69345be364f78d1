// SPDX-License-Identifier: Apache-2.0
//! What the events of a running command say (POST /sandbox/{id}/exec).

use super::Event;
use crate::failure::Failure;
use crate::output::Stream;
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// One thing that happened to a running command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// It wrote something.
    Output(Stream, Vec<u8>),
    /// It ended with this code.
    Exit(u8),
    /// It was started under this name, by which it can be followed again, as this process.
    Start(String, i64),
    /// Something that later servers may say.
    Other,
}

impl Happened {
    /// Understands an event.
    pub(crate) fn in_event(event: &Event) -> Result<Self, Failure> {
        let value = || {
            serde_json::from_str::<Value>(&event.text).context("an event is no JSON; is this server Postern?")
        };
        match event.kind.as_str() {
            "start" => {
                let value = value()?;
                let name = value.get("exec_id").and_then(Value::as_str);
                let pid = value.get("pid").and_then(Value::as_i64).unwrap_or_default();
                Ok(name.map_or(Self::Other, |name| Self::Start(name.to_owned(), pid)))
            }
            "stdout" => Ok(Self::Output(Stream::Out, output(&value()?)?)),
            "stderr" => Ok(Self::Output(Stream::Error, output(&value()?)?)),
            "exit" => Ok(Self::Exit(exit_code(&value()?))),
            "error" => {
                let problem = serde_json::from_value(value()?).context("an error without a reason")?;
                Err(Failure::Refused(Box::new(problem)))
            }
            _ => Ok(Self::Other),
        }
    }
}

/// What a command wrote, to the byte.
fn output(value: &Value) -> Result<Vec<u8>, Failure> {
    let text = value.get("data").and_then(Value::as_str).context("an event of output holds no data")?;
    Ok(STANDARD.decode(text).context("output is no base64")?)
}

/// A command that was killed by a signal ends as shells say it: 128 and the signal.
fn exit_code(exit: &Value) -> u8 {
    let number = |field| exit.get(field).and_then(Value::as_u64);
    let code = number("code").or_else(|| number("signal").map(|signal| 128 + signal)).unwrap_or(125);
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happened(kind: &str, text: &str) -> Result<Happened, Failure> {
        Happened::in_event(&Event { kind: kind.to_owned(), text: text.to_owned(), id: None })
    }

    #[test]
    fn events_of_a_command_are_understood() {
        let output = happened("stdout", r#"{"data":"aGkK"}"#).expect("is output");
        assert_eq!(output, Happened::Output(Stream::Out, b"hi\n".to_vec()));
        assert_eq!(happened("exit", r#"{"code":7}"#).expect("is the end"), Happened::Exit(7));
        assert_eq!(happened("exit", r#"{"signal":9}"#).expect("is the end"), Happened::Exit(137));
        let start = happened("start", r#"{"pid":7,"exec_id":"a1"}"#).expect("is the start");
        assert_eq!(start, Happened::Start("a1".to_owned(), 7));
        assert_eq!(happened("start", r#"{"pid":7}"#).expect("an older server's"), Happened::Other);
        assert_eq!(happened("later", "?").expect("is passed over"), Happened::Other);
        assert!(happened("stdout", "{}").is_err());
    }
}

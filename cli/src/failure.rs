// SPDX-License-Identifier: Apache-2.0
//! The ways a command can end badly, and the exit code of each (docs: CLI exit codes).

use postern_common::problem::{Code, Problem};
use std::path::PathBuf;

/// How a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// It was asked for something that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The server said no.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// There was no server to ask.
    #[error("could not reach {url}: {reason}\n  hint: start it with `postern up`, or set POSTERN_URL")]
    Unreachable {
        /// Where it should have been.
        url: String,
        /// What the system said.
        reason: String,
    },
    /// Nobody said where a server is, and no `up` has written it here.
    #[error(
        "`postern up` does not run on the data folder `{}`\n  hint: start it with `postern up --config DIR` or \
         `postern up`, or run this where `.postern` of one that runs is (--data-dir names another folder); \
         POSTERN_URL and POSTERN_API_KEY name any server",
        .0.display()
    )]
    NotUp(PathBuf),
    /// The command inside a sandbox ended with this code; it has said why itself.
    #[error("the command ended with code {0}")]
    Command(u8),
    /// `sandbox exec` itself failed, before or beside the command.
    #[error("{0}")]
    Exec(Box<Self>),
    /// Anything else.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

impl Failure {
    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Refused(problem) => refused(problem),
            Self::Unreachable { .. } | Self::NotUp(_) => 5,
            Self::Command(code) => *code,
            Self::Exec(_) => 125,
        }
    }
}

fn refused(problem: &Problem) -> u8 {
    match problem.code {
        Code::NotFound | Code::RouteUnknown => 4,
        _ => match problem.status {
            401 | 403 | 429 => 3,
            _ => 1,
        },
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        let refused = |code| Failure::Refused(Box::new(Problem::new(code, "x"))).exit_code();
        assert_eq!(refused(Code::PolicyDenied), 3);
        assert_eq!(refused(Code::QuotaExceeded), 3);
        assert_eq!(refused(Code::KeyInvalid), 3);
        assert_eq!(refused(Code::NotFound), 4);
        assert_eq!(refused(Code::InvalidInput), 1);
        assert_eq!(Failure::Failed(anyhow::anyhow!("x")).exit_code(), 1);
        assert_eq!(Failure::Usage("x".into()).exit_code(), 2);
        assert_eq!(Failure::Unreachable { url: "u".into(), reason: "r".into() }.exit_code(), 5);
        assert_eq!(Failure::NotUp("/d".into()).exit_code(), 5);
        assert_eq!(Failure::Command(7).exit_code(), 7);
        assert_eq!(Failure::Exec(Box::new(Failure::Usage("x".into()))).exit_code(), 125);
    }
}

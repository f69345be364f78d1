// SPDX-License-Identifier: Apache-2.0
//! The command line. It is the shim's (or the chart's) to write, never a person's, so every
//! option has the value that contracts.md fixes as its default.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The door's port inside a sandbox (contracts.md, ports).
const DOOR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 49980);
const GATEWAY: &str = "/run/postern/gateway.sock";
const HOME: &str = "/home/user";

/// What `sandboxd` was started with.
#[derive(Debug)]
pub(crate) struct Options {
    /// Where the door listens.
    pub(crate) door: SocketAddr,
    /// The gateway's unix socket.
    pub(crate) gateway: PathBuf,
    /// The home folder of the agent; relative working folders begin here.
    pub(crate) home: PathBuf,
    /// Whether to restrict this process and all that it starts by Landlock.
    pub(crate) landlock: bool,
}

/// A command line that cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("`{0}` is not an option; there are --door ADDRESS, --gateway PATH, --home PATH, --landlock")]
    Unknown(String),
    #[error("`{0}` needs a value")]
    MissingValue(&'static str),
    #[error("--door wants an address such as 127.0.0.1:49980")]
    Address,
}

impl Options {
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        let mut options = Self { door: DOOR, gateway: GATEWAY.into(), home: HOME.into(), landlock: false };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = |name| arguments.next().ok_or(UsageError::MissingValue(name));
            match argument.to_str() {
                Some("--door") => {
                    let text = value("--door")?.into_string();
                    options.door = text.ok().and_then(|text| text.parse().ok()).ok_or(UsageError::Address)?;
                }
                Some("--gateway") => options.gateway = value("--gateway")?.into(),
                Some("--home") => options.home = value("--home")?.into(),
                Some("--landlock") => options.landlock = true,
                _ => return Err(UsageError::Unknown(argument.to_string_lossy().into_owned())),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, UsageError> {
        Options::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn without_arguments_everything_is_as_the_contract_fixes_it() {
        let options = parse(&[]).expect("parses");
        assert_eq!(options.door.to_string(), "127.0.0.1:49980");
        assert_eq!(options.gateway.to_str(), Some("/run/postern/gateway.sock"));
        assert_eq!(options.home.to_str(), Some("/home/user"));
        assert!(!options.landlock);
    }

    #[test]
    fn a_wrong_command_line_says_what_there_is() {
        assert_eq!(parse(&["--dor"]).expect_err("unknown"), UsageError::Unknown("--dor".into()));
        assert_eq!(parse(&["--gateway"]).expect_err("no value"), UsageError::MissingValue("--gateway"));
        assert_eq!(parse(&["--door", "49980"]).expect_err("no address"), UsageError::Address);
    }
}

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
    /// Whether a call into the kernel costs so much here that output is rather waited for a little, and passed
    /// on in fewer pieces.
    pub(crate) gathers: bool,
    /// Where signed requests are listened for, in a pod; `None`: the control channel is standard
    /// input and output.
    pub(crate) listen: Option<Listen>,
    /// Copy this program into a folder and end, as the init container of a pod does.
    pub(crate) install: Option<PathBuf>,
    /// Run beside a sandbox that is a pod, with its slot here, and carry its user's files.
    pub(crate) beside: Option<PathBuf>,
}

/// How a sandbox that is a pod is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    /// Where.
    pub(crate) address: SocketAddr,
    /// The UID of this pod: messages for another are refused.
    pub(crate) pod: String,
    /// The public key of whoever may give orders, in base64.
    pub(crate) key: String,
}

/// A command line that cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error(
        "`{0}` is not an option; there are --door ADDRESS, --gateway PATH, --home PATH, --landlock, --gather, and in a \
         pod --listen ADDRESS --pod UID --control-key BASE64 (or --control-key-file PATH), with `sync SLOT` beside a \
         sandbox; or `install FOLDER` alone"
    )]
    Unknown(String),
    #[error("`{0}` needs a value")]
    MissingValue(&'static str),
    #[error("--door wants an address such as 127.0.0.1:49980")]
    Address,
    #[error("--listen wants an address such as 0.0.0.0:49983, and --pod and --control-key beside it")]
    Listen,
    #[error("the file of --control-key-file cannot be read")]
    KeyFile,
}

impl Options {
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        let (gateway, home) = (GATEWAY.into(), HOME.into());
        let (listen, install, beside) = (None, None, None);
        let mut options =
            Self { door: DOOR, gateway, home, landlock: false, gathers: false, listen, install, beside };
        let (mut listen, mut pod, mut key) = (None, None, None);
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
                Some("--gather") => options.gathers = true,
                Some("install") => options.install = Some(value("install")?.into()),
                Some("sync") => options.beside = Some(value("sync")?.into()),
                Some("--listen") => listen = Some(value("--listen")?),
                Some("--pod") => pod = Some(value("--pod")?),
                Some("--control-key") => key = Some(value("--control-key")?),
                Some("--control-key-file") => {
                    let text = std::fs::read_to_string(value("--control-key-file")?);
                    key = Some(text.map_err(|_unreadable| UsageError::KeyFile)?.trim().into());
                }
                _ => return Err(UsageError::Unknown(argument.to_string_lossy().into_owned())),
            }
        }
        options.listen = Listen::of(listen, pod, key)?;
        Ok(options)
    }
}

impl Listen {
    /// All three, or none.
    fn of(
        address: Option<OsString>,
        pod: Option<OsString>,
        key: Option<OsString>,
    ) -> Result<Option<Self>, UsageError> {
        let text = |value: OsString| value.into_string().map_err(|_no_text| UsageError::Listen);
        match (address, pod, key) {
            (None, None, None) => Ok(None),
            (Some(address), Some(pod), Some(key)) => {
                let address = text(address)?.parse().map_err(|_malformed| UsageError::Listen)?;
                let pod = text(pod)?;
                // An unexpanded `$(POD_UID)` would be a key that fits every pod.
                let is_uid =
                    !pod.is_empty() && pod.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-');
                if !is_uid {
                    return Err(UsageError::Listen);
                }
                Ok(Some(Self { address, pod, key: text(key)? }))
            }
            _ => Err(UsageError::Listen),
        }
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
        assert!(!options.landlock && !options.gathers);
        assert!(parse(&["--gather"]).expect("parses").gathers);
    }

    #[test]
    fn a_wrong_command_line_says_what_there_is() {
        assert_eq!(parse(&["--dor"]).expect_err("unknown"), UsageError::Unknown("--dor".into()));
        assert_eq!(parse(&["--gateway"]).expect_err("no value"), UsageError::MissingValue("--gateway"));
        assert_eq!(parse(&["--door", "49980"]).expect_err("no address"), UsageError::Address);
    }

    #[test]
    fn a_pod_names_itself_and_whom_it_believes_or_does_not_listen() {
        let whole = ["--listen", "0.0.0.0:49983", "--pod", "0f8b-1", "--control-key", "AAAA"];
        let listen = parse(&whole).expect("parses").listen.expect("listens");
        assert_eq!(
            (listen.address.port(), listen.pod.as_str(), listen.key.as_str()),
            (49983, "0f8b-1", "AAAA")
        );
        assert_eq!(parse(&[]).expect("parses").listen, None);
        for wrong in [
            &whole[..4],
            &whole[2..],
            &["--listen", "49983", "--pod", "a", "--control-key", "A"],
            &["--listen", "0.0.0.0:49983", "--pod", "$(POD_UID)", "--control-key", "A"],
            &["--listen", "0.0.0.0:49983", "--pod", "", "--control-key", "A"],
        ] {
            assert_eq!(parse(wrong).expect_err("half"), UsageError::Listen, "{wrong:?}");
        }
    }
}

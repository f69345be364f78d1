// SPDX-License-Identifier: Apache-2.0
//! Which server a command talks to, and with which key.
//!
//! `POSTERN_URL` and `POSTERN_API_KEY` say so, or the file that `postern up` wrote into its data
//! folder, so that a second terminal needs no setting at all.

use crate::failure::Failure;
use anyhow::Context as _;
use postern_common::secret::Secret;
use postern_common::settings::{Settings, name};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use url::Url;

/// The file in the data folder, 0600, that says how to reach the `up` that wrote it.
pub(crate) const CONNECTION_FILE: &str = "connection.json";
/// Where `up` listens unless told otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// What `up` tells the commands that come after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Written {
    /// The REST API.
    pub url: Url,
    /// The gateway's door over TCP, if it has one.
    pub gateway: Option<Url>,
    /// The control stream that gateways of their own follow, if it is open.
    #[serde(default)]
    pub control: Option<SocketAddr>,
    /// Health and metrics: of the orchestrator, of the gateway.
    #[serde(default)]
    pub admin: [Option<SocketAddr>; 2],
    /// The file that holds the admin key.
    pub key_file: PathBuf,
    /// Where its sandboxes' sockets are.
    pub run: PathBuf,
    /// The process that wrote this.
    pub pid: u32,
}

impl Written {
    /// Every address at which it listens.
    pub(crate) fn listens(&self) -> Vec<SocketAddr> {
        let of_url = |url: &Url| url.socket_addrs(|| None).ok()?.into_iter().next();
        let urls = [of_url(&self.url), self.gateway.as_ref().and_then(of_url)];
        urls.into_iter().chain([self.control]).chain(self.admin).flatten().collect()
    }
}

/// A server and the key to it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// The REST API.
    pub url: Url,
    /// Sent as `Authorization: Bearer`.
    pub key: Secret<String>,
}

impl Connection {
    /// Finds the server that commands talk to.
    pub(crate) fn find(settings: &Settings) -> Result<Self, Failure> {
        let written = settings.path(name::DATA_DIR).and_then(|folder| read(&folder).transpose());
        let written = written.transpose()?;
        let url = match (settings.client_url(), &written) {
            (Some(url), _) => url,
            (None, Some(written)) => written.url.clone(),
            (None, None) => Url::parse(DEFAULT_URL).context("a constant")?,
        };
        let key = match (settings.secret(name::API_KEY), written) {
            (Some(key), _) => key,
            // The file's key is for the server that wrote it, and for no other that a setting names.
            (None, Some(written)) if written.url == url => key_of(&written)?,
            (None, None) if settings.client_url().is_none() => {
                let folder = settings.path(name::DATA_DIR).unwrap_or_default();
                return Err(Failure::NotUp(folder));
            }
            (None, _) => return Err(Failure::Usage(format!("no key for {url}: {NO_KEY}"))),
        };
        Ok(Self { url, key })
    }
}

const NO_KEY: &str = "set POSTERN_API_KEY, or run this beside the `.postern` folder of `postern up` \
                      (--data-dir names another)";

/// What `up` wrote into this data folder; `None` if it never did.
pub(crate) fn read(folder: &Path) -> Result<Option<Written>, Failure> {
    let path = folder.join(CONNECTION_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let written = serde_json::from_str(&text);
            Ok(Some(
                written.with_context(|| {
                    format!("`{}` cannot be read; start `postern up` again", path.display())
                })?,
            ))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(anyhow::Error::new(error).context(format!("`{}` cannot be read", path.display())).into())
        }
    }
}

fn key_of(written: &Written) -> Result<Secret<String>, Failure> {
    let path = &written.key_file;
    let mut text = std::fs::read_to_string(path)
        .with_context(|| format!("the key `{}` cannot be read", path.display()))?;
    text.truncate(text.trim_end().len());
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::settings::Sources;

    fn settings(environment: &[(&str, &str)]) -> Settings {
        let environment = environment.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
        Settings::resolve(&Sources { environment, ..Sources::default() }).expect("resolves")
    }

    fn folder_of_up() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let key_file = folder.path().join("api-key");
        std::fs::write(&key_file, "postern_a_b\n").expect("writes");
        let url = Url::parse("http://127.0.0.1:4242").expect("a URL");
        let written = Written {
            url,
            gateway: None,
            control: None,
            admin: [None; 2],
            key_file,
            run: "/run".into(),
            pid: 1,
        };
        let text = serde_json::to_string(&written).expect("serializes");
        std::fs::write(folder.path().join(CONNECTION_FILE), text).expect("writes");
        folder
    }

    #[test]
    fn the_file_that_up_wrote_is_enough() {
        let folder = folder_of_up();
        let found =
            Connection::find(&settings(&[("POSTERN_DATA_DIR", folder.path().to_str().expect("UTF-8"))]));
        let found = found.expect("is found");
        assert_eq!(
            (found.url.as_str(), found.key.reveal().as_str()),
            ("http://127.0.0.1:4242/", "postern_a_b")
        );
    }

    #[test]
    fn without_the_file_up_does_not_run_here() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_str().expect("UTF-8");
        let refused = Connection::find(&settings(&[("POSTERN_DATA_DIR", path)])).expect_err("knows nobody");
        let told = refused.to_string();
        assert!(told.contains("`postern up` does not run") && told.contains(path), "{told}");
        assert_eq!(refused.exit_code(), 5);
    }

    #[test]
    fn the_key_in_the_file_is_never_sent_to_another_server() {
        let folder = folder_of_up();
        let folder = folder.path().to_str().expect("UTF-8");
        let elsewhere = [("POSTERN_DATA_DIR", folder), ("POSTERN_URL", "https://example.com")];
        let refused = Connection::find(&settings(&elsewhere)).expect_err("has no key");
        assert!(refused.to_string().contains("no key for https://example.com/"), "{refused}");
        assert_eq!(refused.exit_code(), 2);
    }

    #[test]
    fn variables_win_over_the_file() {
        let folder = folder_of_up();
        let found = Connection::find(&settings(&[
            ("POSTERN_DATA_DIR", folder.path().to_str().expect("UTF-8")),
            ("POSTERN_URL", "https://postern.example"),
            ("POSTERN_API_KEY", "postern_c_d"),
        ]));
        let found = found.expect("is found");
        assert_eq!(
            (found.url.as_str(), found.key.reveal().as_str()),
            ("https://postern.example/", "postern_c_d")
        );
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Where the gateway may send requests: what the operator lists, and the backends that the watched
//! folder names; never our own listeners.

use crate::failure::Failure;
use postern_common::settings::{Settings, name};
use postern_gateway::UpstreamRules;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use url::Url;

/// The list, and what of it comes from the folder.
#[derive(Debug)]
pub(super) struct Upstreams {
    rules: UpstreamRules,
    listed: Vec<String>,
    never: Vec<String>,
    // Held for a few lines, never across a wait.
    named: Mutex<Vec<String>>,
}

impl Upstreams {
    /// What the operator lists, what the folder names now, and never `own`.
    pub(super) fn new(settings: &Settings, own: &[SocketAddr], named: Vec<&Url>) -> Result<Self, Failure> {
        let mut listed = settings.list(name::UPSTREAMS_ALLOW);
        listed.extend(spelled(settings.backend_url().iter()));
        let never = database(settings).into_iter().collect();
        let upstreams =
            Self { rules: UpstreamRules::default(), listed, never, named: Mutex::new(spelled(named)) };
        own.iter().for_each(|own| upstreams.rules.never_ourselves(*own));
        upstreams.replace(&[]).map_err(Failure::Usage)?;
        Ok(upstreams)
    }

    /// The gateway's view, which follows every change.
    pub(super) fn rules(&self) -> UpstreamRules {
        self.rules.clone()
    }

    /// Allows these too, so that a configuration that names them can be put in force.
    pub(super) fn also<'a>(&self, urls: impl IntoIterator<Item = &'a Url>) -> Result<(), String> {
        self.replace(&spelled(urls))
    }

    /// What [`Upstreams::also`] allowed is in force: what the folder named before is no more.
    pub(super) fn settle<'a>(&self, urls: impl IntoIterator<Item = &'a Url>) -> Result<(), String> {
        *self.named.lock().unwrap_or_else(PoisonError::into_inner) = spelled(urls);
        self.replace(&[])
    }

    /// What [`Upstreams::also`] allowed was refused: as before.
    pub(super) fn back(&self) -> Result<(), String> {
        self.replace(&[])
    }

    fn replace(&self, more: &[String]) -> Result<(), String> {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all: Vec<String> = self.listed.iter().chain(&named).chain(more).cloned().collect();
        self.rules
            .replace(&all, &self.never)
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }
}

/// Where the database is, if it is elsewhere.
fn database(settings: &Settings) -> Option<String> {
    let url = settings.secret(name::DATABASE_URL)?;
    let url = Url::parse(url.reveal()).ok()?;
    let is_server = matches!(url.scheme(), "postgres" | "postgresql");
    let host = url.host_str().filter(|host| is_server && !host.is_empty())?;
    Some(format!("{host}:{}", url.port().unwrap_or(5432)))
}

/// Hosts and ports, as the gateway's list spells them.
fn spelled<'a>(urls: impl IntoIterator<Item = &'a Url>) -> Vec<String> {
    let spelled = |url: &Url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?));
    let mut all: Vec<String> = urls.into_iter().filter_map(spelled).collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::settings::Sources;
    use std::net::IpAddr;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    fn upstreams(named: &[Url]) -> Upstreams {
        upstreams_of([127, 0, 0, 1].into(), named)
    }

    fn upstreams_of(own: IpAddr, named: &[Url]) -> Upstreams {
        let environment = [("POSTERN_UPSTREAMS_ALLOW".to_owned(), "10.0.0.0/8:80".to_owned())];
        let sources = Sources { environment: environment.into(), ..Sources::default() };
        let settings = Settings::resolve(&sources).expect("resolves");
        let own = [SocketAddr::new(own, 8080)];
        Upstreams::new(&settings, &own, named.iter().collect()).expect("can be read")
    }

    fn is_allowed(upstreams: &Upstreams, text: &str) -> bool {
        upstreams.rules().check_url(&url(text)).is_ok()
    }

    #[test]
    fn what_the_folder_names_is_allowed_while_it_names_it() {
        let (old, new) = (url("http://127.0.0.1:9000/a"), url("http://127.0.0.1:9001/"));
        let upstreams = upstreams(std::slice::from_ref(&old));
        assert!(is_allowed(&upstreams, "http://127.0.0.1:9000/"));
        assert!(!is_allowed(&upstreams, "http://127.0.0.1:9001/"));
        upstreams.also([&new]).expect("can be read");
        assert!(
            is_allowed(&upstreams, "http://127.0.0.1:9000/")
                && is_allowed(&upstreams, "http://127.0.0.1:9001/")
        );
        upstreams.back().expect("can be read");
        assert!(!is_allowed(&upstreams, "http://127.0.0.1:9001/"), "a refused configuration opens nothing");
        upstreams.also([&new]).expect("can be read");
        upstreams.settle([&new]).expect("can be read");
        assert!(
            !is_allowed(&upstreams, "http://127.0.0.1:9000/")
                && is_allowed(&upstreams, "http://127.0.0.1:9001/")
        );
        assert!(is_allowed(&upstreams, "http://10.1.2.3:80/"), "the operator's list stays");
    }

    #[test]
    fn our_own_listeners_are_never_a_backend() {
        let own = url("http://127.0.0.1:8080/");
        assert!(!is_allowed(&upstreams(std::slice::from_ref(&own)), own.as_str()));
        let everywhere = upstreams_of([0, 0, 0, 0].into(), std::slice::from_ref(&own));
        assert!(!is_allowed(&everywhere, own.as_str()), "the API listens on every address");
        everywhere.also([&own]).expect("can be read");
        assert!(!is_allowed(&everywhere, own.as_str()), "also after the folder changed");
    }

    #[test]
    fn hosts_carry_their_port_and_come_once() {
        let urls =
            ["http://127.0.0.1:9000/a", "http://127.0.0.1:9000/b", "https://desk.example", "http://[::1]:8/"];
        assert_eq!(spelled(&urls.map(url)), ["127.0.0.1:9000", "[::1]:8", "desk.example:443"]);
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Where to listen: the address that was asked for, or, if nobody asked and another `up` has the
//! usual one, a free port.

use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use postern_common::settings::{Setting, Settings, name};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

/// Ports that are asked for before there is taken to be none.
const TRIES: u32 = 1000;

/// The address for one listener; `None` where it is switched off.
///
/// Nothing is held: whoever listens may still lose the port to another process and says so then.
pub(crate) fn choose(settings: &Settings, setting: &Setting) -> Result<Option<SocketAddr>, Failure> {
    let Some(wanted) = settings.address(setting).map_err(Failure::Usage)? else { return Ok(None) };
    match TcpListener::bind(wanted) {
        Ok(_free) => Ok(Some(wanted)),
        Err(error) if error.kind() == ErrorKind::AddrInUse && !settings.is_given(setting) => {
            Ok(Some(free(wanted.ip()).context("no port is free")?))
        }
        Err(error) => Err(Failure::Failed(anyhow!(
            "could not listen on {wanted}: {error}; choose another address with {}",
            setting.variable
        ))),
    }
}

/// A free port that was not chosen before: the kernel may give one again that nobody holds yet.
fn free(ip: IpAddr) -> io::Result<SocketAddr> {
    static CHOSEN: Mutex<Vec<SocketAddr>> = Mutex::new(Vec::new());
    let mut chosen = CHOSEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..TRIES {
        let address = TcpListener::bind((ip, 0))?.local_addr()?;
        if !chosen.contains(&address) {
            chosen.push(address);
            return Ok(address);
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

/// What is to be said of a listener that is not at its usual address; `what` comes before the other.
pub(crate) fn moved(settings: &Settings, setting: &Setting, what: &str, at: SocketAddr) -> Option<String> {
    let usual = settings.address(setting).ok().flatten()?;
    let is_moved = !settings.is_given(setting) && usual != at;
    is_moved.then(|| format!("{} is in use by another process: {what}{at}", usual.port()))
}

/// Refuses what would send API keys and what operators look at over a network in the clear.
pub(crate) fn are_private(settings: &Settings) -> Result<(), Failure> {
    if settings.is_insecure_listen_allowed() {
        return Ok(());
    }
    for setting in [name::API_LISTEN, name::API_ADMIN_LISTEN, name::GATEWAY_ADMIN_LISTEN] {
        let Some(address) = settings.address(setting).map_err(Failure::Usage)? else { continue };
        if !address.ip().is_loopback() {
            return Err(Failure::Usage(format!(
                "{} is {address}, which is not loopback, and it speaks plain HTTP: keys could be read on the \
                 way.\n  hint: listen on 127.0.0.1 behind something that speaks TLS, or accept it with \
                 --insecure-listen ({}=true)",
                setting.key,
                name::INSECURE_LISTEN.variable
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::settings::Sources;

    fn settings(address: &str) -> Settings {
        let environment = [("POSTERN_API_LISTEN".to_owned(), address.to_owned())];
        Settings::resolve(&Sources { environment: environment.into(), ..Sources::default() })
            .expect("resolves")
    }

    #[test]
    fn an_address_that_was_asked_for_is_taken_or_refused_never_changed() {
        let held = TcpListener::bind("127.0.0.1:0").expect("listens");
        let address = held.local_addr().expect("has one");
        let refused = choose(&settings(&address.to_string()), name::API_LISTEN).expect_err("is taken");
        assert!(refused.to_string().contains("POSTERN_API_LISTEN"), "{refused}");
        drop(held);
        assert_eq!(
            choose(&settings(&address.to_string()), name::API_LISTEN).expect("is free"),
            Some(address)
        );
    }

    #[test]
    fn the_usual_address_gives_way_to_a_free_port() {
        let usual: SocketAddr = "127.0.0.1:9091".parse().expect("an address");
        // Held by this test, or by whatever else runs here: taken in either case.
        let _held = TcpListener::bind(usual);
        let unasked = Settings::resolve(&Sources::default()).expect("resolves");
        let chosen = choose(&unasked, name::GATEWAY_ADMIN_LISTEN).expect("finds one").expect("is on");
        assert!(chosen != usual && chosen.ip() == usual.ip() && chosen.port() != 0, "{chosen}");
        let told = |at| moved(&unasked, name::GATEWAY_ADMIN_LISTEN, "it is at ", at);
        let words = format!("9091 is in use by another process: it is at {chosen}");
        assert_eq!((told(usual), told(chosen)), (None, Some(words)));
    }

    #[test]
    fn plain_http_off_loopback_is_refused_unless_it_is_accepted() {
        let with = |pairs: &[(&str, &str)]| {
            let environment = pairs.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
            are_private(&Settings::resolve(&Sources { environment, ..Sources::default() }).expect("resolves"))
        };
        assert!(with(&[]).is_ok());
        assert!(with(&[("POSTERN_API_LISTEN", "[::1]:8080")]).is_ok());
        for variable in ["POSTERN_API_LISTEN", "POSTERN_API_ADMIN_LISTEN", "POSTERN_GATEWAY_ADMIN_LISTEN"] {
            for address in ["0.0.0.0:8080", "[::]:8080", "192.0.2.7:8080"] {
                let refused = with(&[(variable, address)]).expect_err("is open to others");
                assert!(refused.to_string().contains("--insecure-listen"), "{refused}");
                assert_eq!(refused.exit_code(), 2);
                assert!(with(&[(variable, address), ("POSTERN_API_INSECURE_LISTEN", "true")]).is_ok());
            }
        }
    }

    #[test]
    fn no_free_port_is_chosen_twice() {
        let ip = "127.0.0.1".parse().expect("an address");
        let chosen: std::collections::HashSet<_> = (0..500).map(|_| free(ip).expect("one is free")).collect();
        assert_eq!(chosen.len(), 500);
    }

    #[test]
    fn a_listener_can_be_switched_off() {
        assert_eq!(choose(&settings("off"), name::API_LISTEN).expect("is fine"), None);
    }
}

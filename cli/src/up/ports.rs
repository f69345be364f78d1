// SPDX-License-Identifier: Apache-2.0
//! Where to listen: the address that was asked for, or, if nobody asked and another `up` has the
//! usual one, a free port.

use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use postern_common::settings::{Setting, Settings};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

/// The address for one listener; `None` where it is switched off.
///
/// Nothing is held: whoever listens may still lose the port to another process and says so then.
pub(crate) fn choose(settings: &Settings, setting: &Setting) -> Result<Option<SocketAddr>, Failure> {
    let Some(wanted) = settings.address(setting).map_err(Failure::Usage)? else { return Ok(None) };
    match TcpListener::bind(wanted) {
        Ok(_free) => Ok(Some(wanted)),
        Err(error) if error.kind() == ErrorKind::AddrInUse && !settings.is_given(setting) => {
            let free = TcpListener::bind((wanted.ip(), 0)).and_then(|listener| listener.local_addr());
            Ok(Some(free.context("no port is free")?))
        }
        Err(error) => Err(Failure::Failed(anyhow!(
            "could not listen on {wanted}: {error}; choose another address with {}",
            setting.variable
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::settings::{Sources, name};

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
    }

    #[test]
    fn a_listener_can_be_switched_off() {
        assert_eq!(choose(&settings("off"), name::API_LISTEN).expect("is fine"), None);
    }
}

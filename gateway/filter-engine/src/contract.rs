// SPDX-License-Identifier: Apache-2.0
//! Which version of the contract with filters (`sdk-wasm/wit/filter.wit`) this host keeps. A filter
//! says by its imports which one it was built with; one that is newer than the host's is refused.

/// The contract's major version: another one is another contract.
pub(crate) const MAJOR: u32 = 1;
/// The newest minor version that is served, with all before it.
pub(crate) const MINOR: u32 = 0;

/// An import of the contract's package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Import<'a> {
    /// The interface, such as `request`.
    pub(crate) interface: &'a str,
    version: &'a str,
}

impl<'a> Import<'a> {
    /// Reads `postern:filter/INTERFACE@VERSION`; `None` for whatever is of another package.
    pub(crate) fn parse(name: &'a str) -> Option<Self> {
        let (interface, version) = name.strip_prefix("postern:filter/")?.split_once('@')?;
        Some(Self { interface, version })
    }

    /// Whether this host keeps the contract that the filter was built with.
    pub(crate) fn is_served(&self) -> bool {
        let numbers: Vec<Option<u32>> = self.version.split('.').map(|number| number.parse().ok()).collect();
        matches!(numbers.as_slice(), [Some(MAJOR), Some(minor), Some(_patch)] if (0..=MINOR).contains(minor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_that_is_served_is_the_contracts_own() {
        let contract = include_str!("../../../sdk-wasm/wit/filter.wit");
        assert!(contract.contains(&format!("\npackage postern:filter@{MAJOR}.{MINOR}.")), "raise MINOR");
    }

    #[test]
    fn a_newer_contract_and_another_major_one_are_not_served() {
        let is_served =
            |version: &str| Import::parse(&format!("postern:filter/log@{version}")).map(|it| it.is_served());
        assert_eq!((is_served("1.0.0"), is_served("1.0.7")), (Some(true), Some(true)));
        for other in ["1.1.0", "1.3.0", "1.10.0", "2.0.0", "0.9.0", "1.0", "1", "1.0.0-rc1", "1.0.0.0", ""] {
            assert_eq!(is_served(other), Some(false), "{other}");
        }
        for foreign in
            ["wasi:clocks/wall-clock@1.0.0", "postern:filter/log", "postern:filters/log@1.0.0", "env"]
        {
            assert_eq!(Import::parse(foreign), None, "{foreign}");
        }
    }
}

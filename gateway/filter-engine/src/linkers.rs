// SPDX-License-Identifier: Apache-2.0
//! Linkers, one for each choice of host functions: what is defined in it is shared by all filters that
//! chose so, and not made for each of them.

use crate::call::Call;
use crate::host;
use crate::manifest::HostFunction;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use wasmtime::component::Linker;

/// Those that were asked for: at most one for each set of [`HostFunction`]s.
#[derive(Default)]
pub(crate) struct Linkers(Mutex<BTreeMap<BTreeSet<HostFunction>, Arc<Linker<Call>>>>);

impl fmt::Debug for Linkers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Linkers")
    }
}

impl Linkers {
    /// The linker that holds what every filter gets and these functions, so that nothing else can be called.
    pub(crate) fn with(
        &self,
        engine: &wasmtime::Engine,
        functions: &BTreeSet<HostFunction>,
    ) -> wasmtime::Result<Arc<Linker<Call>>> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(linker) = made.get(functions) {
            return Ok(Arc::clone(linker));
        }
        let mut linker = Linker::new(engine);
        host::add_to(&mut linker, functions)?;
        let linker = Arc::new(linker);
        made.insert(functions.clone(), Arc::clone(&linker));
        Ok(linker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings;

    #[test]
    fn one_is_made_for_each_choice_and_no_other() {
        let engine = wasmtime::Engine::new(&settings::running(1).expect("settings")).expect("an engine");
        let linkers = Linkers::default();
        let of = |functions: &[HostFunction]| {
            linkers.with(&engine, &functions.iter().copied().collect()).expect("links")
        };
        let (log, both) = (of(&[HostFunction::Log]), of(&[HostFunction::Log, HostFunction::Session]));
        assert!(!Arc::ptr_eq(&log, &both));
        assert!(Arc::ptr_eq(&both, &of(&[HostFunction::Session, HostFunction::Log])));
        assert!(!Arc::ptr_eq(&log, &of(&[])));
    }
}

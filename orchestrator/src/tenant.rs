// SPDX-License-Identifier: Apache-2.0
//! A tenant as the orchestrator uses it: its checked configuration, and the parts it is stored as.

use crate::configuration::ConfigurationError;
use crate::keys::InstallationKeys;
use crate::operations::{Allowed, Catalogue};
use crate::seal::{Place, SealError};
use crate::store::{Kind, Resource, StoreError, TenantRow};
use aws_lc_rs::digest::{Context, SHA256};
use postern_common::folder::{BackendFiles, FilterFiles, LimitsFile, TemplateFile, TenantFiles};
use postern_common::id::{BackendName, TemplateName, TenantId};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::str::FromStr;

/// The name of the only resource of kind [`Kind::Limits`].
pub(crate) const LIMITS: &str = "limits";
/// The template that is used when the create call names none; built in unless the tenant has one.
pub(crate) const DEFAULT_TEMPLATE: &str = "default";

/// A tenant's configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Tenant {
    /// Its row.
    pub(crate) row: TenantRow,
    /// All that it put.
    pub(crate) files: TenantFiles,
    /// What its backends offer.
    pub(crate) catalogue: Catalogue,
    /// The backend that paths without a backend's name go to, where `BACKEND_URL` made it.
    pub(crate) default_backend: Option<BackendName>,
    /// The digest of each part.
    pub(crate) digests: BTreeMap<(Kind, String), String>,
}

impl Tenant {
    /// A template of this tenant. `default` is there always.
    #[must_use]
    pub(crate) fn template(&self, name: &TemplateName) -> Option<TemplateFile> {
        let own = self.files.templates.get(name).cloned();
        own.or_else(|| (name.as_str() == DEFAULT_TEMPLATE).then(TemplateFile::default))
    }

    /// What a template's sandboxes may call. The built-in one gives what only reads, and on demand
    /// the rest.
    #[must_use]
    pub(crate) fn allowed(&self, name: &TemplateName) -> Allowed {
        let template = name.to_string();
        match self.files.templates.get(name) {
            Some(own) => Allowed { template, at_most: own.operations.clone(), usual: own.operations.clone() },
            None => Allowed { template, at_most: self.catalogue.all(), usual: self.catalogue.reading() },
        }
    }
}

/// Whose parts these are, and the keys that seal what of them the database must not show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sealing<'a> {
    /// The keys.
    pub(crate) keys: &'a InstallationKeys,
    /// The tenant.
    pub(crate) tenant: &'a TenantId,
}

impl Sealing<'_> {
    fn place<'a>(&'a self, name: &'a str) -> Place<'a> {
        Place::Template { tenant: self.tenant.as_str(), name }
    }

    fn failed(&self, source: SealError) -> ConfigurationError {
        ConfigurationError::Seal { tenant: self.tenant.clone(), source }
    }
}

/// The parts that a configuration is stored as, in order.
///
/// # Errors
/// [`ConfigurationError::Seal`]; else [`StoreError::Corrupt`] if a part cannot be written as JSON,
/// which no value of the types can cause.
pub(crate) fn parts_of(files: &TenantFiles, seal: Sealing<'_>) -> Result<Vec<Resource>, ConfigurationError> {
    let mut parts = Vec::new();
    for (name, backend) in &files.backends {
        parts.push(part(Kind::Backend, name.as_str(), backend, None)?);
    }
    for (name, text) in files.policies.iter().flatten() {
        parts.push(part(Kind::Policy, name.as_str(), text, None)?);
    }
    for (name, text) in &files.shadow_policies {
        parts.push(part(Kind::ShadowPolicy, name.as_str(), text, None)?);
    }
    for (name, text) in &files.policy_tests {
        parts.push(part(Kind::PolicyTest, name.as_str(), text, None)?);
    }
    for (name, filter) in &files.filters {
        parts.push(part(Kind::Filter, name.as_str(), &filter.manifest, Some(filter.component.clone()))?);
    }
    for (name, template) in &files.templates {
        parts.push(template_part(name, template, seal)?);
    }
    if files.limits != LimitsFile::default() {
        parts.push(part(Kind::Limits, LIMITS, &files.limits, None)?);
    }
    Ok(parts)
}

/// A template: what is shown of it, and the values of its `env`, sealed. The digest speaks for the
/// values by a keyed digest of theirs, from which nothing can be guessed.
fn template_part(
    name: &TemplateName,
    template: &TemplateFile,
    seal: Sealing<'_>,
) -> Result<Resource, ConfigurationError> {
    let mut shown = template.clone();
    let env = std::mem::take(&mut shown.env);
    let plain = part(Kind::Template, name.as_str(), &shown, None)?;
    if env.is_empty() {
        return Ok(plain);
    }
    let text = serde_json::to_vec(&env).map_err(|_unserializable| StoreError::Corrupt { what: "env" })?;
    let mut digest = Context::new(&SHA256);
    digest.update(plain.digest.as_bytes());
    digest.update(seal.keys.digest(&text).as_bytes());
    let place = seal.place(name.as_str());
    let sealed = seal.keys.data.seal(place, &text).map_err(|source| seal.failed(source))?;
    Ok(Resource { sealed: Some(sealed), digest: crate::keys::hex(digest.finish().as_ref()), ..plain })
}

fn part(
    kind: Kind,
    name: &str,
    value: &impl serde::Serialize,
    component: Option<Vec<u8>>,
) -> Result<Resource, StoreError> {
    let body =
        serde_json::to_string(value).map_err(|_unserializable| StoreError::Corrupt { what: "body" })?;
    let mut digest = Context::new(&SHA256);
    digest.update(body.as_bytes());
    digest.update(&[0]);
    digest.update(component.as_deref().unwrap_or_default());
    let digest = crate::keys::hex(digest.finish().as_ref());
    Ok(Resource { kind, name: name.to_owned(), body, component, sealed: None, digest })
}

/// The configuration that these parts are.
///
/// # Errors
/// [`ConfigurationError::Seal`], or [`StoreError::Corrupt`] if a part cannot be read.
pub(crate) fn files_of(
    parts: &[Resource],
    has_policies: bool,
    seal: Sealing<'_>,
) -> Result<TenantFiles, ConfigurationError> {
    let mut files = TenantFiles { policies: has_policies.then(BTreeMap::new), ..TenantFiles::default() };
    for part in parts {
        match part.kind {
            Kind::Backend => {
                let backend: BackendFiles = body(part)?;
                files.backends.insert(name(part)?, backend);
            }
            Kind::Policy => {
                files.policies.get_or_insert_default().insert(name(part)?, body(part)?);
            }
            Kind::ShadowPolicy => {
                files.shadow_policies.insert(name(part)?, body(part)?);
            }
            Kind::PolicyTest => {
                files.policy_tests.insert(name(part)?, body(part)?);
            }
            Kind::Filter => {
                let component = part.component.clone().ok_or(StoreError::Corrupt { what: "component" })?;
                files.filters.insert(name(part)?, FilterFiles { manifest: body(part)?, component });
            }
            Kind::Template => {
                let mut template: TemplateFile = body(part)?;
                if let Some(sealed) = &part.sealed {
                    let opened = seal.keys.data.open(seal.place(&part.name), sealed);
                    let env = opened.map_err(|source| seal.failed(source))?;
                    template.env = serde_json::from_slice(env.reveal())
                        .map_err(|_malformed| StoreError::Corrupt { what: "env" })?;
                }
                files.templates.insert(name(part)?, template);
            }
            Kind::Limits => files.limits = body(part)?,
        }
    }
    Ok(files)
}

fn name<Name: FromStr>(part: &Resource) -> Result<Name, StoreError> {
    part.name.parse().map_err(|_malformed| StoreError::Corrupt { what: "name" })
}

fn body<Body: DeserializeOwned>(part: &Resource) -> Result<Body, StoreError> {
    serde_json::from_str(&part.body).map_err(|_malformed| StoreError::Corrupt { what: "body" })
}

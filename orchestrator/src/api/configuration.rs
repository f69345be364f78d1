// SPDX-License-Identifier: Apache-2.0
//! What a tenant owns, over HTTP: backends, policies, filters and templates one by one with `ETags`,
//! or a whole configuration at once.
//!
//! The four calls of a part are one piece of code; what the kinds differ in is [`Part`].

use super::input::{mistaken, parse};
use super::problems::Refused;
use super::{Answer, Api, Call, body, empty, etag, json, scope};
use crate::configuration::{ConfigurationError, Difference, Edit, Edited};
use crate::store::Kind;
use crate::tenant::{DEFAULT_TEMPLATE, Tenant};
use http::{HeaderValue, StatusCode, header};
use postern_common::folder::{BackendFiles, FilterFiles, TemplateFile, TenantFiles};
use postern_common::id::{BackendName, FilterName, PolicyName, TemplateName};
use postern_common::problem::Problem;
use serde::de::DeserializeOwned;
use serde_json::{Value, json as value};
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

/// `POST /apply`.
pub(super) async fn apply(api: Arc<Api>, call: Call) -> Answer {
    let tenant = call.tenant()?;
    let files: Box<TenantFiles> = Box::new(typed(&call.body)?);
    scope::templates(&api, &call, &files).await?;
    let (prune, expected) = (call.query.flag("prune")?, call.query.parsed("version")?);
    let edit = Edit::Whole { files, prune, expected };
    let edited = api.configuration.edit(&tenant, &edit, &call.edition()?).await.map_err(Refused::from)?;
    json(StatusCode::OK, &edited)
}

/// Reads a body strictly, then as its type. The strict reader's bound on values would refuse long
/// documents only if they were JSON; here they are one string each.
fn typed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let value = parse(bytes, body::CONFIGURATION_BYTES)?;
    serde_json::from_value(value).map_err(|error| mistaken("", error.to_string()))
}

pub(super) async fn tenant(api: &Api, call: &Call) -> Result<Arc<Tenant>, Problem> {
    Ok(api.configuration.tenant(&call.tenant()?).await.map_err(Refused::from)?)
}

/// A part with its `ETag`; 304 if the reader has it.
fn shown(call: &Call, tenant: &Tenant, kind: Kind, name: &str, body: &Value) -> Answer {
    let digest = tenant.digests.get(&(kind, name.to_owned())).map_or("built-in", String::as_str);
    let mut response = if etag::is_known(&call.headers, digest)? {
        empty(StatusCode::NOT_MODIFIED)
    } else {
        json(StatusCode::OK, body)?
    };
    response.headers_mut().insert(header::ETAG, etag::of(digest));
    // With an ETag a reader may keep it, if it asks each time.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

pub(super) fn missing(kind: Kind, name: &str) -> Problem {
    Refused::from(ConfigurationError::Unknown { kind, name: name.to_owned() }).into()
}

/// A kind of part: what its four calls differ in.
pub(super) trait Part: 'static {
    /// How it is stored.
    const KIND: Kind;
    /// Its name in the path.
    type Name: FromStr<Err: Display> + Display + Clone + Send + Sync + 'static;
    /// What a PUT carries.
    type Body: DeserializeOwned + Send + Sync + 'static;

    /// The answer to a list.
    fn list(tenant: &Tenant) -> Value;
    /// One of them, as it is shown.
    fn show(tenant: &Tenant, name: &Self::Name) -> Option<Value>;
    /// Puts one.
    fn put(files: &mut TenantFiles, name: &Self::Name, body: &Self::Body);
    /// Takes one away; `false` if there is none.
    fn remove(files: &mut TenantFiles, name: &Self::Name) -> bool;
}

/// `GET /KIND`.
pub(super) async fn list<P: Part>(api: Arc<Api>, call: Call) -> Answer {
    json(StatusCode::OK, &P::list(&*tenant(&api, &call).await?))
}

/// `GET /KIND/{name}`.
pub(super) async fn get<P: Part>(api: Arc<Api>, call: Call) -> Answer {
    let name: P::Name = call.path("name")?;
    let tenant = tenant(&api, &call).await?;
    let name_text = name.to_string();
    let body = P::show(&tenant, &name).ok_or_else(|| missing(P::KIND, &name_text))?;
    shown(&call, &tenant, P::KIND, &name_text, &body)
}

/// `PUT /KIND/{name}`: answers with what changed and the new `ETag`.
pub(super) async fn put<P: Part>(api: Arc<Api>, call: Call) -> Answer {
    let name: P::Name = call.path("name")?;
    let body: P::Body = typed(&call.body)?;
    let name_text = name.to_string();
    let change = move |files: &mut TenantFiles| {
        P::put(files, &name, &body);
        true
    };
    let edited = edit::<P>(&api, &call, &name_text, Box::new(change)).await?;
    let is_new = edited.changes.iter().any(|line| line.name == name_text && line.change == Difference::Added);
    let status = if is_new && !edited.dry_run { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = json(status, &edited)?;
    if !edited.dry_run
        && let Some(digest) = tenant(&api, &call).await?.digests.get(&(P::KIND, name_text))
    {
        response.headers_mut().insert(header::ETAG, etag::of(digest));
    }
    Ok(response)
}

/// `DELETE /KIND/{name}`.
pub(super) async fn remove<P: Part>(api: Arc<Api>, call: Call) -> Answer {
    let name: P::Name = call.path("name")?;
    let name_text = name.to_string();
    let change = move |files: &mut TenantFiles| P::remove(files, &name);
    let edited = edit::<P>(&api, &call, &name_text, Box::new(change)).await?;
    if edited.dry_run { json(StatusCode::OK, &edited) } else { Ok(empty(StatusCode::NO_CONTENT)) }
}

async fn edit<P: Part>(
    api: &Api,
    call: &Call,
    name: &str,
    change: Box<dyn Fn(&mut TenantFiles) -> bool + Send + Sync>,
) -> Result<Edited, Problem> {
    let expected = etag::expected(&call.headers)?;
    if P::KIND == Kind::Template {
        // What is put, alone; nothing where it is removed.
        let mut put = TenantFiles::default();
        if change(&mut put) {
            scope::templates(api, call, &put).await?;
        } else {
            scope::removed_template(api, call, name)?;
        }
    }
    let edit = Edit::Part { kind: P::KIND, name: name.to_owned(), expected, change };
    Ok(api.configuration.edit(&call.tenant()?, &edit, &call.edition()?).await.map_err(Refused::from)?)
}

/// `/backends`: a body is `{backend, document?}`.
pub(super) enum Backends {}

impl Part for Backends {
    const KIND: Kind = Kind::Backend;
    type Name = BackendName;
    type Body = BackendFiles;

    fn list(tenant: &Tenant) -> Value {
        let shown = |(name, files): (&BackendName, &BackendFiles)| value!({ "name": name, "url": files.backend.url, "has_document": files.document.is_some() });
        value!({ "backends": tenant.files.backends.iter().map(shown).collect::<Vec<_>>() })
    }

    fn show(tenant: &Tenant, name: &BackendName) -> Option<Value> {
        tenant.files.backends.get(name).map(|backend| value!(backend))
    }

    fn put(files: &mut TenantFiles, name: &BackendName, body: &BackendFiles) {
        files.backends.insert(name.clone(), body.clone());
    }

    fn remove(files: &mut TenantFiles, name: &BackendName) -> bool {
        files.backends.remove(name).is_some()
    }
}

/// `/policies`: files of Cedar policies.
pub(super) enum Policies {}

/// A file of policies.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyText {
    text: String,
}

impl Part for Policies {
    const KIND: Kind = Kind::Policy;
    type Name = PolicyName;
    type Body = PolicyText;

    fn list(tenant: &Tenant) -> Value {
        // Without a set of its own, the tenant has the one permit of the baseline.
        let own = tenant.files.policies.as_ref();
        let shown = own.iter().flat_map(|all| all.keys()).map(|name| value!({ "name": name }));
        value!({ "policies": shown.collect::<Vec<_>>(), "has_own_set": own.is_some() })
    }

    fn show(tenant: &Tenant, name: &PolicyName) -> Option<Value> {
        let text = tenant.files.policies.as_ref()?.get(name)?;
        Some(value!({ "name": name, "text": text }))
    }

    fn put(files: &mut TenantFiles, name: &PolicyName, body: &PolicyText) {
        files.policies.get_or_insert_default().insert(name.clone(), body.text.clone());
    }

    /// The tenant's set stays its own, if an empty one.
    fn remove(files: &mut TenantFiles, name: &PolicyName) -> bool {
        files.policies.as_mut().is_some_and(|all| all.remove(name).is_some())
    }
}

/// `/filters`: a body is `{manifest, component}`, the component in base64. It is never shown.
pub(super) enum Filters {}

impl Part for Filters {
    const KIND: Kind = Kind::Filter;
    type Name = FilterName;
    type Body = FilterFiles;

    fn list(tenant: &Tenant) -> Value {
        let shown = |(name, filter): (&FilterName, &FilterFiles)| {
            let digest = tenant.digests.get(&(Kind::Filter, name.to_string()));
            value!({ "name": name, "version": digest, "size_bytes": filter.component.len() })
        };
        value!({ "filters": tenant.files.filters.iter().map(shown).collect::<Vec<_>>() })
    }

    fn show(tenant: &Tenant, name: &FilterName) -> Option<Value> {
        let filter = tenant.files.filters.get(name)?;
        let size_bytes = filter.component.len();
        Some(value!({ "name": name, "manifest": filter.manifest, "size_bytes": size_bytes }))
    }

    fn put(files: &mut TenantFiles, name: &FilterName, body: &FilterFiles) {
        files.filters.insert(name.clone(), body.clone());
    }

    fn remove(files: &mut TenantFiles, name: &FilterName) -> bool {
        files.filters.remove(name).is_some()
    }
}

/// `/templates`. The values of `env` are never shown: they may be what others must not read.
pub(super) enum Templates {}

impl Part for Templates {
    const KIND: Kind = Kind::Template;
    type Name = TemplateName;
    type Body = TemplateFile;

    fn list(tenant: &Tenant) -> Value {
        let own = tenant.files.templates.keys();
        let mut all: Vec<Value> = own.map(|name| value!({ "name": name, "built_in": false })).collect();
        if !tenant.files.templates.keys().any(|name| name.as_str() == DEFAULT_TEMPLATE) {
            all.insert(0, value!({ "name": DEFAULT_TEMPLATE, "built_in": true }));
        }
        value!({ "templates": all })
    }

    fn show(tenant: &Tenant, name: &TemplateName) -> Option<Value> {
        let mut template = tenant.template(name)?;
        let names: Vec<String> = std::mem::take(&mut template.env).into_keys().collect();
        let mut shown = value!(template);
        if let Some(shown) = shown.as_object_mut().filter(|_| !names.is_empty()) {
            // Another field than `env`: what was shown, put again, must not wipe the values.
            shown.insert("env_names".to_owned(), value!(names));
        }
        Some(shown)
    }

    fn put(files: &mut TenantFiles, name: &TemplateName, body: &TemplateFile) {
        files.templates.insert(name.clone(), body.clone());
    }

    fn remove(files: &mut TenantFiles, name: &TemplateName) -> bool {
        files.templates.remove(name).is_some()
    }
}

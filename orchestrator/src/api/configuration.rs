// SPDX-License-Identifier: Apache-2.0
//! What a tenant owns, over HTTP: backends, policies, filters and templates one by one with `ETags`,
//! or a whole configuration at once.

use super::input::{mistaken, parse};
use super::problems::Refused;
use super::{Answer, Api, Call, body, empty, etag, json, scope};
use crate::configuration::{ConfigurationError, Difference, Edit};
use crate::store::Kind;
use crate::tenant::{DEFAULT_TEMPLATE, Tenant};
use http::{HeaderValue, StatusCode, header};
use postern_common::folder::{BackendFiles, FilterFiles, TemplateFile, TenantFiles};
use postern_common::id::{BackendName, FilterName, PolicyName, TemplateName};
use postern_common::problem::Problem;
use serde::de::DeserializeOwned;
use serde_json::{Value, json as value};
use std::sync::Arc;

/// `POST /apply`.
pub(super) async fn apply(api: Arc<Api>, call: Call) -> Answer {
    let tenant = call.tenant()?;
    let files: Box<TenantFiles> = Box::new(typed(&call.body)?);
    scope::templates(&api, &call, &files).await?;
    let edit = Edit::Whole { files, prune: call.query.flag("prune")? };
    let edited = api.configuration.edit(&tenant, &edit, &call.edition()?).await.map_err(Refused::from)?;
    json(StatusCode::OK, &edited)
}

/// Reads a body strictly, then as its type. The strict reader's bound on values would refuse long
/// documents only if they were JSON; here they are one string each.
fn typed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let value = parse(bytes, body::CONFIGURATION_BYTES)?;
    serde_json::from_value(value).map_err(|error| mistaken("", error.to_string()))
}

async fn tenant(api: &Api, call: &Call) -> Result<Arc<Tenant>, Problem> {
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

fn missing(kind: Kind, name: &str) -> Problem {
    Refused::from(ConfigurationError::Unknown { kind, name: name.to_owned() }).into()
}

async fn edit(
    api: &Api,
    call: &Call,
    kind: Kind,
    name: String,
    change: Box<dyn Fn(&mut TenantFiles) -> bool + Send + Sync>,
) -> Result<crate::configuration::Edited, Problem> {
    let expected = etag::expected(&call.headers)?;
    if kind == Kind::Template {
        // What is put, alone; nothing where it is removed.
        let mut put = TenantFiles::default();
        if change(&mut put) {
            scope::templates(api, call, &put).await?;
        } else {
            scope::removed_template(api, call, &name)?;
        }
    }
    let edit = Edit::Part { kind, name, expected, change };
    Ok(api.configuration.edit(&call.tenant()?, &edit, &call.edition()?).await.map_err(Refused::from)?)
}

/// Puts a part and answers with what changed and the new `ETag`.
async fn put(
    api: &Api,
    call: &Call,
    kind: Kind,
    name: String,
    change: Box<dyn Fn(&mut TenantFiles) -> bool + Send + Sync>,
) -> Answer {
    let edited = edit(api, call, kind, name.clone(), change).await?;
    let is_new = edited.changes.iter().any(|line| line.name == name && line.change == Difference::Added);
    let status = if is_new && !edited.dry_run { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = json(status, &edited)?;
    if !edited.dry_run
        && let Some(digest) = tenant(api, call).await?.digests.get(&(kind, name))
    {
        response.headers_mut().insert(header::ETAG, etag::of(digest));
    }
    Ok(response)
}

async fn remove(
    api: &Api,
    call: &Call,
    kind: Kind,
    name: String,
    change: Box<dyn Fn(&mut TenantFiles) -> bool + Send + Sync>,
) -> Answer {
    let edited = edit(api, call, kind, name, change).await?;
    if edited.dry_run { json(StatusCode::OK, &edited) } else { Ok(empty(StatusCode::NO_CONTENT)) }
}

/// `GET /backends`.
pub(super) async fn list_backends(api: Arc<Api>, call: Call) -> Answer {
    let tenant = tenant(&api, &call).await?;
    let list: Vec<Value> = tenant
        .files
        .backends
        .iter()
        .map(|(name, backend)| value!({ "name": name, "url": backend.backend.url, "has_document": backend.document.is_some() }))
        .collect();
    json(StatusCode::OK, &value!({ "backends": list }))
}

/// `GET /backends/{name}`.
pub(super) async fn get_backend(api: Arc<Api>, call: Call) -> Answer {
    let name: BackendName = call.path("name")?;
    let tenant = tenant(&api, &call).await?;
    let backend = tenant.files.backends.get(&name).ok_or_else(|| missing(Kind::Backend, name.as_str()))?;
    shown(&call, &tenant, Kind::Backend, name.as_str(), &value!(backend))
}

/// `PUT /backends/{name}`: `{backend, document?}`.
pub(super) async fn put_backend(api: Arc<Api>, call: Call) -> Answer {
    let name: BackendName = call.path("name")?;
    let files: BackendFiles = typed(&call.body)?;
    let change = {
        let name = name.clone();
        move |all: &mut TenantFiles| {
            all.backends.insert(name.clone(), files.clone());
            true
        }
    };
    put(&api, &call, Kind::Backend, name.to_string(), Box::new(change)).await
}

/// `DELETE /backends/{name}`.
pub(super) async fn remove_backend(api: Arc<Api>, call: Call) -> Answer {
    let name: BackendName = call.path("name")?;
    let gone = name.clone();
    let change = move |all: &mut TenantFiles| all.backends.remove(&gone).is_some();
    remove(&api, &call, Kind::Backend, name.to_string(), Box::new(change)).await
}

/// `GET /policies`.
pub(super) async fn list_policies(api: Arc<Api>, call: Call) -> Answer {
    let tenant = tenant(&api, &call).await?;
    let names: Option<Vec<Value>> =
        tenant.files.policies.as_ref().map(|all| all.keys().map(|name| value!({ "name": name })).collect());
    // Without a set of its own, the tenant has the one permit of the baseline.
    json(
        StatusCode::OK,
        &value!({ "policies": names.clone().unwrap_or_default(), "has_own_set": names.is_some() }),
    )
}

/// `GET /policies/{name}`.
pub(super) async fn get_policy(api: Arc<Api>, call: Call) -> Answer {
    let name: PolicyName = call.path("name")?;
    let tenant = tenant(&api, &call).await?;
    let text = tenant.files.policies.as_ref().and_then(|all| all.get(&name));
    let text = text.ok_or_else(|| missing(Kind::Policy, name.as_str()))?;
    shown(&call, &tenant, Kind::Policy, name.as_str(), &value!({ "name": name, "text": text }))
}

/// `PUT /policies/{name}`: `{text}`.
pub(super) async fn put_policy(api: Arc<Api>, call: Call) -> Answer {
    let name: PolicyName = call.path("name")?;
    let text = policy_text(&call.body)?;
    let change = {
        let name = name.clone();
        move |all: &mut TenantFiles| {
            all.policies.get_or_insert_default().insert(name.clone(), text.clone());
            true
        }
    };
    put(&api, &call, Kind::Policy, name.to_string(), Box::new(change)).await
}

fn policy_text(bytes: &[u8]) -> Result<String, Problem> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        text: String,
    }
    typed::<Body>(bytes).map(|body| body.text)
}

/// `DELETE /policies/{name}`. The tenant's set stays its own, if an empty one.
pub(super) async fn remove_policy(api: Arc<Api>, call: Call) -> Answer {
    let name: PolicyName = call.path("name")?;
    let gone = name.clone();
    let change =
        move |all: &mut TenantFiles| all.policies.as_mut().is_some_and(|all| all.remove(&gone).is_some());
    remove(&api, &call, Kind::Policy, name.to_string(), Box::new(change)).await
}

/// `GET /filters`.
pub(super) async fn list_filters(api: Arc<Api>, call: Call) -> Answer {
    let tenant = tenant(&api, &call).await?;
    let digest = |name: &FilterName| tenant.digests.get(&(Kind::Filter, name.to_string()));
    let list: Vec<Value> = tenant
        .files
        .filters
        .iter()
        .map(|(name, filter)| value!({ "name": name, "version": digest(name), "size_bytes": filter.component.len() }))
        .collect();
    json(StatusCode::OK, &value!({ "filters": list }))
}

/// `GET /filters/{name}`.
pub(super) async fn get_filter(api: Arc<Api>, call: Call) -> Answer {
    let name: FilterName = call.path("name")?;
    let tenant = tenant(&api, &call).await?;
    let filter = tenant.files.filters.get(&name).ok_or_else(|| missing(Kind::Filter, name.as_str()))?;
    let body = value!({ "name": name, "manifest": filter.manifest, "size_bytes": filter.component.len() });
    shown(&call, &tenant, Kind::Filter, name.as_str(), &body)
}

/// `PUT /filters/{name}`: `{manifest, component}`, the component in base64.
pub(super) async fn put_filter(api: Arc<Api>, call: Call) -> Answer {
    let name: FilterName = call.path("name")?;
    let filter: FilterFiles = typed(&call.body)?;
    let change = {
        let name = name.clone();
        move |all: &mut TenantFiles| {
            all.filters.insert(name.clone(), filter.clone());
            true
        }
    };
    put(&api, &call, Kind::Filter, name.to_string(), Box::new(change)).await
}

/// `DELETE /filters/{name}`.
pub(super) async fn remove_filter(api: Arc<Api>, call: Call) -> Answer {
    let name: FilterName = call.path("name")?;
    let gone = name.clone();
    let change = move |all: &mut TenantFiles| all.filters.remove(&gone).is_some();
    remove(&api, &call, Kind::Filter, name.to_string(), Box::new(change)).await
}

/// `GET /templates`.
pub(super) async fn list_templates(api: Arc<Api>, call: Call) -> Answer {
    let tenant = tenant(&api, &call).await?;
    let mut list: Vec<Value> =
        tenant.files.templates.keys().map(|name| value!({ "name": name, "built_in": false })).collect();
    if !tenant.files.templates.keys().any(|name| name.as_str() == DEFAULT_TEMPLATE) {
        list.insert(0, value!({ "name": DEFAULT_TEMPLATE, "built_in": true }));
    }
    json(StatusCode::OK, &value!({ "templates": list }))
}

/// `GET /templates/{name}`.
pub(super) async fn get_template(api: Arc<Api>, call: Call) -> Answer {
    let name: TemplateName = call.path("name")?;
    let tenant = tenant(&api, &call).await?;
    let template = tenant.template(&name).ok_or_else(|| missing(Kind::Template, name.as_str()))?;
    shown(&call, &tenant, Kind::Template, name.as_str(), &value!(template))
}

/// `PUT /templates/{name}`.
pub(super) async fn put_template(api: Arc<Api>, call: Call) -> Answer {
    let name: TemplateName = call.path("name")?;
    let template: TemplateFile = typed(&call.body)?;
    let change = {
        let name = name.clone();
        move |all: &mut TenantFiles| {
            all.templates.insert(name.clone(), template.clone());
            true
        }
    };
    put(&api, &call, Kind::Template, name.to_string(), Box::new(change)).await
}

/// `DELETE /templates/{name}`.
pub(super) async fn remove_template(api: Arc<Api>, call: Call) -> Answer {
    let name: TemplateName = call.path("name")?;
    let gone = name.clone();
    let change = move |all: &mut TenantFiles| all.templates.remove(&gone).is_some();
    remove(&api, &call, Kind::Template, name.to_string(), Box::new(change)).await
}

// SPDX-License-Identifier: Apache-2.0
//! Judges a tenant's whole configuration before any of it is in force: documents, policies,
//! templates, limits and what refers to what. Every mistake is reported, each with its place.
//!
//! Filters are inspected and compiled by `artefacts`; whether an address may be reached is the
//! gateway's to say as well, on every connection.

use crate::operations::Catalogue;
use crate::runtime::local::is_image_name;
use postern_common::folder::{BackendFiles, Credential, Rate, TemplateFile, TenantFiles};
use postern_common::id::{BackendName, FilterName, PolicyName, TemplateName, TenantId};
use postern_common::problem::FieldError;
use postern_common::session::{Grant, Isolation};
use postern_common::settings::SandboxCaps;
use postern_openapi::Document;
use postern_policies::{PolicySource, TenantPolicies, TenantSchema, run_tests, schema_from_openapi};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// A sandbox lives no longer (contracts: Sandbox).
pub(crate) const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
/// Mistakes that are reported at once.
const MISTAKES: usize = 200;
/// Backends, filters, templates or policy files of one tenant.
const MAX_NAMED: usize = 1000;
/// Says inside where the token is (contracts.md, session token); `sandboxd` writes it there.
pub(crate) const TOKEN_FILE_VARIABLE: &str = "SANDBOX_TOKEN_FILE";
/// Environment that a sandbox is given must not say who it is or where its door and its token are.
const OWN_VARIABLES: [&str; 4] = ["SANDBOX_ID", "CONVERSATION_ID", "GATEWAY_URL", TOKEN_FILE_VARIABLE];
/// Commands that a template may run at a start, and the length of each.
const MAX_START_COMMANDS: usize = 16;
const MAX_START_BYTES: usize = 16 * 1024;
/// Names and values of a sandbox's environment together; the kernel takes 2 MiB with arguments.
pub(crate) const MAX_ENV_BYTES: usize = 128 * 1024;

/// Where sandboxes are made: what a template may say depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MadeOn {
    /// This machine.
    Machine,
    /// A cluster, whose `SandboxTemplate`s say what a sandbox is made of.
    Cluster,
}

/// Judges a configuration and returns what its backends offer. Blocking: a document may take a
/// second.
///
/// With `caps` it is judged as something that is put: by the operator's caps, and by its own tests
/// of policies. What is in force already goes on where caps were lowered later (sandboxes get less
/// than their template asks for) or a test speaks of a time that has come.
///
/// # Errors
/// Every mistake, each with a JSON pointer into the configuration.
pub(crate) fn check(
    tenant: &TenantId,
    files: &TenantFiles,
    on: MadeOn,
    put: Option<(&SandboxCaps, Cases)>,
) -> Result<Catalogue, Vec<FieldError>> {
    let mut mistakes = Mistakes::default();
    let documents: Vec<(BackendName, Document)> = files
        .backends
        .iter()
        .filter_map(|(name, backend)| check_backend(name, backend, files, &mut mistakes))
        .collect();
    let are_documents_good = documents.len() == files.backends.len();
    let catalogue = Catalogue::new(documents.iter().cloned());
    if are_documents_good
        && let Some(policies) = check_policies(tenant, files, &documents, &mut mistakes)
        && let Some((_, cases)) = put
    {
        let mut failing = Mistakes::default();
        check_cases(&policies, files, &mut failing);
        match cases {
            Cases::Refuse => mistakes.0.append(&mut failing.0),
            Cases::Tell => {
                for FieldError { message, .. } in failing.0 {
                    tracing::warn!(%tenant, message, "a test of the policies fails; they are put in force all the same");
                }
            }
        }
    }
    for (name, template) in &files.templates {
        check_template(name, template, &catalogue, are_documents_good, &mut mistakes);
        match on {
            MadeOn::Machine => check_for_machine(name, template, &mut mistakes),
            MadeOn::Cluster => check_for_cluster(name, template, &mut mistakes),
        }
        if let Some((caps, _)) = put {
            check_caps(name, template, caps, &mut mistakes);
        }
    }
    if !files.denied.is_empty() {
        let message = "is for a gateway that stands alone; here, end a session with DELETE /sandbox/{id}";
        mistakes.add("/denied", message);
    }
    for (field, rate) in [("tenant", files.limits.tenant), ("session", files.limits.session)] {
        if let Some(rate) = rate {
            check_rate(&format!("/limits/{field}"), &rate, &mut mistakes);
        }
    }
    check_counts(files, &mut mistakes);
    mistakes.into_result(catalogue)
}

/// What becomes of a test of the policies that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cases {
    /// The change is refused: it came whole, policies and tests together.
    Refuse,
    /// It is told: policies and tests are changed one after the other, so that in between they differ.
    Tell,
}

/// Mistakes with their places.
#[derive(Debug, Default)]
struct Mistakes(Vec<FieldError>);

impl Mistakes {
    fn add(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError { pointer: pointer.into(), message: message.into() });
    }

    fn into_result<T>(mut self, good: T) -> Result<T, Vec<FieldError>> {
        if self.0.is_empty() {
            return Ok(good);
        }
        self.0.truncate(MISTAKES);
        Err(self.0)
    }
}

fn check_backend(
    name: &BackendName,
    backend: &BackendFiles,
    files: &TenantFiles,
    mistakes: &mut Mistakes,
) -> Option<(BackendName, Document)> {
    let at = format!("/backends/{name}");
    let file = &backend.backend;
    check_url(&format!("{at}/backend/url"), &file.url, mistakes);
    for attachment in &file.filters {
        check_attachment(&at, attachment.name(), files, mistakes);
    }
    let header = match &file.credential {
        Some(Credential::Attached(attached)) => attached.header.as_ref(),
        Some(Credential::Assertion(assertion)) => assertion.header.as_ref(),
        Some(Credential::Bearer(_)) | None => None,
    };
    if let Some(header) = header
        && http::HeaderName::try_from(header.as_str()).is_err()
    {
        mistakes.add(
            format!("{at}/backend/credential/header"),
            format!("`{}` cannot name a header", header.escape_debug()),
        );
    }
    let document = match (&file.openapi, &backend.document) {
        (Some(file), None) => {
            mistakes.add(format!("{at}/document"), format!("`{file}` is named but its text is not here"));
            return None;
        }
        (_, None) => Document::any_path(),
        (_, Some(text)) => match Document::parse(text) {
            Ok(document) => document,
            Err(wrong) => {
                for mistake in wrong {
                    mistakes.add(format!("{at}/document"), mistake.to_string());
                }
                return None;
            }
        },
    };
    for (operation, limits) in &file.operations {
        let place = format!("{at}/backend/operations/{operation}");
        if document.operation(operation).is_none() {
            mistakes.add(&place, format!("backend `{name}` has no operation `{operation}`"));
        }
        if let Some(rate) = limits.per_second {
            check_positive(&place, "per_second", rate, mistakes);
        }
    }
    Some((name.clone(), document))
}

fn check_url(at: &str, url: &Url, mistakes: &mut Mistakes) {
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        mistakes.add(at, "expected `http://HOST…` or `https://HOST…`");
    }
    if !url.username().is_empty() || url.password().is_some() {
        let message =
            "a URL holds no user or password: `postern secret set NAME` and `credential = \"NAME\"`";
        mistakes.add(at, message);
    }
    if url.query().is_some() || url.fragment().is_some() {
        mistakes.add(at, "a base URL ends with its path: drop `?…` and `#…`");
    }
}

fn check_attachment(at: &str, filter: &FilterName, files: &TenantFiles, mistakes: &mut Mistakes) {
    if !files.filters.contains_key(filter) {
        let message =
            format!("there is no filter `{filter}`: put it in `filters/{filter}/`, or take it off here");
        mistakes.add(format!("{at}/backend/filters"), message);
    }
}

fn check_policies(
    tenant: &TenantId,
    files: &TenantFiles,
    documents: &[(BackendName, Document)],
    mistakes: &mut Mistakes,
) -> Option<TenantPolicies> {
    let backends: Vec<_> =
        documents.iter().map(|(name, document)| schema_from_openapi(name, document)).collect();
    let schema = match TenantSchema::build(tenant, &backends) {
        Ok(schema) => schema,
        Err(error) => {
            mistakes.add("/backends", error.to_string());
            return None;
        }
    };
    let policies = check_set(&schema, "policies", files.policies.as_ref(), mistakes);
    if !files.shadow_policies.is_empty() {
        check_set(&schema, "policies/shadow", Some(&files.shadow_policies), mistakes);
    }
    policies
}

/// What a tenant's policies may speak of.
///
/// # Errors
/// What is wrong with its backends' documents.
pub(crate) fn schema(tenant: &TenantId, files: &TenantFiles) -> Result<Arc<TenantSchema>, Vec<FieldError>> {
    let mut mistakes = Mistakes::default();
    let backends: Vec<_> = files
        .backends
        .iter()
        .filter_map(|(name, backend)| check_backend(name, backend, files, &mut mistakes))
        .map(|(name, document)| schema_from_openapi(&name, &document))
        .collect();
    let schema = TenantSchema::build(tenant, &backends)
        .map_err(|error| vec![FieldError { pointer: "/backends".to_owned(), message: error.to_string() }])?;
    mistakes.into_result(schema)
}

/// Judges a whole set; the pointers of its mistakes begin as the folder of its files does.
fn check_set(
    schema: &Arc<TenantSchema>,
    folder: &str,
    files: Option<&BTreeMap<PolicyName, String>>,
    mistakes: &mut Mistakes,
) -> Option<TenantPolicies> {
    let sources: Option<Vec<PolicySource>> = files.map(|files| sources(files, folder));
    let loaded = TenantPolicies::load(schema, sources.as_deref());
    let wrong = match loaded {
        Ok(policies) => return Some(policies),
        Err(wrong) => wrong,
    };
    for mistake in wrong {
        let file = mistake.file.strip_suffix(".cedar").unwrap_or(&mistake.file);
        mistakes.add(format!("/{file}"), mistake.to_string());
    }
    None
}

/// Runs the tenant's own tests of its policies: one that fails is a mistake, with file and case.
fn check_cases(policies: &TenantPolicies, files: &TenantFiles, mistakes: &mut Mistakes) {
    let source = |(name, text): (&PolicyName, &String)| PolicySource {
        name: format!("policies/tests/{name}.toml"),
        text: text.clone(),
    };
    let sources: Vec<PolicySource> = files.policy_tests.iter().map(source).collect();
    let pointer = |file: &str| {
        let name = file.strip_prefix("policies/tests/").and_then(|name| name.strip_suffix(".toml"));
        format!("/policy_tests/{}", name.unwrap_or(file))
    };
    match run_tests(policies, &sources) {
        Ok(report) => {
            for case in report.cases {
                if let Some(failure) = case.failure {
                    let message = format!("{}: case `{}` fails: {failure}", case.file, case.name);
                    mistakes.add(pointer(&case.file), message);
                }
            }
        }
        Err(wrong) => {
            for mistake in wrong {
                mistakes.add(pointer(&mistake.file), mistake.to_string());
            }
        }
    }
}

/// Files of policies as the engine reads them.
pub(crate) fn sources(files: &BTreeMap<PolicyName, String>, folder: &str) -> Vec<PolicySource> {
    let source = |(name, text): (&PolicyName, &String)| PolicySource {
        name: format!("{folder}/{name}.cedar"),
        text: text.clone(),
    };
    files.iter().map(source).collect()
}

fn check_template(
    name: &TemplateName,
    template: &TemplateFile,
    catalogue: &Catalogue,
    are_documents_good: bool,
    mistakes: &mut Mistakes,
) {
    let at = format!("/templates/{name}");
    for (place, grant) in template.operations.iter().enumerate() {
        if are_documents_good && !catalogue.offers(grant) {
            mistakes.add(format!("{at}/operations/{place}"), format!("no backend offers `{grant}`"));
        }
        if *grant == Grant::FilesSync {
            mistakes.add(format!("{at}/operations/{place}"), "`files:sync` is not a template's to give");
        }
    }
    if let Some(cpu) = template.cpu {
        check_positive(&at, "cpu", cpu, mistakes);
    }
    for (field, size) in [("memory", template.memory), ("disk", template.disk)] {
        const LEAST: u64 = 16 << 20;
        if size.is_some_and(|size| size.as_u64() < LEAST) {
            mistakes.add(format!("{at}/{field}"), "less than 16 MiB is not enough for a sandbox");
        }
    }
    if template.pids == Some(0) {
        mistakes.add(format!("{at}/pids"), "0 processes are not enough for a sandbox");
    }
    for (field, time) in [("ttl", template.ttl), ("idle", template.idle), ("paused", template.paused)] {
        if time.is_some_and(|time| time.is_zero() || time > MAX_TTL) {
            mistakes.add(format!("{at}/{field}"), "expected more than 0 and at most 24h");
        }
    }
    if template.start.len() > MAX_START_COMMANDS {
        mistakes.add(format!("{at}/start"), format!("at most {MAX_START_COMMANDS} commands"));
    }
    for (place, command) in template.start.iter().enumerate() {
        if command.is_empty() || command.len() > MAX_START_BYTES || command.contains('\0') {
            let message = format!("expected 1 to {MAX_START_BYTES} bytes without a zero byte");
            mistakes.add(format!("{at}/start/{place}"), message);
        }
    }
    for (pointer, message) in environment_mistakes(&template.env) {
        mistakes.add(format!("{at}/env{pointer}"), message);
    }
}

fn check_for_machine(name: &TemplateName, template: &TemplateFile, mistakes: &mut Mistakes) {
    let at = format!("/templates/{name}");
    if template.isolation == Some(Isolation::Kata) {
        mistakes.add(format!("{at}/isolation"), "this machine offers `gvisor` and `namespaces`");
    }
    if template.image.as_deref().is_some_and(|image| !is_image_name(image)) {
        let message = "expected the name of an image that the operator has put into the folder of images, such \
                       as `debian-12`: 1 to 64 of a-z, 0-9, `-`, `_` and `.`, without its `.tar`";
        mistakes.add(format!("{at}/image"), message);
    }
    if template.kubernetes.is_some() {
        mistakes.add(
            format!("{at}/kubernetes"),
            "this orchestrator makes sandboxes on its own machine: leave it out",
        );
    }
}

/// Images, limits and what is kept ready are the cluster's: a tenant that could set them here would
/// get around what the operator has set there.
fn check_for_cluster(name: &TemplateName, template: &TemplateFile, mistakes: &mut Mistakes) {
    let own = [
        ("image", template.image.is_some()),
        ("cpu", template.cpu.is_some()),
        ("memory", template.memory.is_some()),
        ("disk", template.disk.is_some()),
        ("pids", template.pids.is_some()),
        ("warm_pool", template.warm_pool.is_some()),
    ];
    for (field, _) in own.iter().filter(|(_, is_set)| *is_set) {
        mistakes.add(
            format!("/templates/{name}/{field}"),
            "on a cluster this is the SandboxTemplate's to say: leave it out, and name one by `kubernetes`",
        );
    }
}

/// What a template asks for beyond what the operator allows.
fn check_caps(name: &TemplateName, template: &TemplateFile, caps: &SandboxCaps, mistakes: &mut Mistakes) {
    let mut refuse = |field: &str, asked: String, cap: String| {
        let message = format!("{asked} is more than the operator allows: at most {cap}");
        mistakes.add(format!("/templates/{name}/{field}"), message);
    };
    for (field, size, cap) in [("memory", template.memory, caps.memory), ("disk", template.disk, caps.disk)] {
        if let Some(size) = size.filter(|size| *size > cap) {
            refuse(field, size.to_string(), cap.to_string());
        }
    }
    if let Some(cpu) = template.cpu.filter(|cpu| *cpu > caps.cpu) {
        refuse("cpu", cpu.to_string(), caps.cpu.to_string());
    }
    if let Some(pids) = template.pids.filter(|pids| *pids > caps.pids) {
        refuse("pids", pids.to_string(), caps.pids.to_string());
    }
    if let Some(count) = template.warm_pool.filter(|count| *count > caps.warm_pool) {
        refuse("warm_pool", count.to_string(), caps.warm_pool.to_string());
    }
    for (field, time) in [("ttl", template.ttl), ("idle", template.idle)] {
        if let Some(time) = time.filter(|time| *time > caps.ttl && *time <= MAX_TTL) {
            refuse(field, compact(time), compact(caps.ttl));
        }
    }
}

/// A duration as configurations spell it, such as `1h`.
pub(crate) fn compact(time: Duration) -> String {
    use jiff::fmt::friendly::{Designator, SpanPrinter};
    SpanPrinter::new().designator(Designator::Compact).unsigned_duration_to_string(&time)
}

/// What is wrong with an environment, with pointers into it.
#[must_use]
pub(crate) fn environment_mistakes(env: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut wrong = Vec::new();
    for (name, value) in env {
        let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        let is_name = name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name {
            wrong.push((
                pointer,
                "a variable's name has letters, digits and `_`, and begins with no digit".to_owned(),
            ));
        } else if OWN_VARIABLES.contains(&name.as_str()) {
            wrong.push((pointer, format!("`{name}` is set by Postern")));
        } else if value.contains('\0') {
            wrong.push((pointer, "a value holds no zero byte".to_owned()));
        }
    }
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if bytes > MAX_ENV_BYTES {
        wrong
            .push((String::new(), format!("the environment has {bytes} bytes; {MAX_ENV_BYTES} are allowed")));
    }
    wrong
}

fn check_rate(at: &str, rate: &Rate, mistakes: &mut Mistakes) {
    check_positive(at, "per_second", rate.per_second, mistakes);
    if rate.concurrent == Some(0) {
        mistakes.add(format!("{at}/concurrent"), "0 would refuse every request: leave it out for no limit");
    }
    if rate.burst == Some(0) {
        mistakes.add(format!("{at}/burst"), "0 would refuse every request");
    }
}

fn check_positive(at: &str, field: &str, value: f64, mistakes: &mut Mistakes) {
    if !(value.is_finite() && value > 0.0) {
        mistakes.add(format!("{at}/{field}"), "expected a number above 0");
    }
}

fn check_counts(files: &TenantFiles, mistakes: &mut Mistakes) {
    let counts = [
        ("backends", files.backends.len()),
        ("filters", files.filters.len()),
        ("templates", files.templates.len()),
        ("policies", files.policies.as_ref().map_or(0, BTreeMap::len)),
        ("policy_tests", files.policy_tests.len()),
    ];
    for (field, count) in counts {
        if count > MAX_NAMED {
            mistakes.add(format!("/{field}"), format!("there are {count}; {MAX_NAMED} are allowed"));
        }
    }
    // Two names that Cedar spells alike (`a-b`, `a_b` cannot both be) would share a namespace.
    let mut spelled = BTreeSet::new();
    for name in files.backends.keys() {
        if !spelled.insert(postern_policies::namespace(name)) {
            mistakes.add(
                format!("/backends/{name}"),
                "another backend has the same name in policies: rename one",
            );
        }
    }
}

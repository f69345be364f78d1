// SPDX-License-Identifier: Apache-2.0
//! Tests of policies, written as data: a request, and what it must be answered.
//!
//! A file of `policies/tests/` holds any number of cases. Running them also tells which policies
//! never applied and which clauses were never seen to hold or to fail, so that an author knows
//! what no case speaks of.
//!
//! ```toml
//! [[case]]
//! name = "a refund over the limit is refused"
//! operation = "support-desk/createRefund"
//! session = { user = "alice", operations = ["support-desk/write"] }
//! request = { path = { order_id = 7 }, body = { amount = 250, count = 1 } }
//! expect = "deny"
//! policies = ["refund-limit"]
//! ```
//!
//! `backend_of = "rival"` in the request asks another tenant's backend of that name. The gateway
//! routes no request so; it is there for rules that hold even then.

use crate::compile::OWN_PREFIX;
use crate::decide::Decision;
use crate::entities::SessionEntities;
use crate::explain::{ClauseOutcome, Considered, Explanation, text_of};
use crate::mistake::{Mistake, Place};
use crate::names;
use crate::party::Party;
use crate::request::{PeerFacts, RequestFacts, TypedRequest};
use crate::schema::shared_entities;
use crate::set::TenantPolicies;
use crate::source::PolicySource;
use jiff::Timestamp;
use postern_common::decision::Verdict;
use postern_common::id::{
    BackendName, ConversationId, OperationId, SandboxId, TemplateName, TenantId, UserId,
};
use postern_common::problem::Code;
use postern_common::session::{Grant, Isolation, Peer, Session};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Cases of one run.
const CASES: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    #[serde(default)]
    case: Vec<CaseText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseText {
    name: String,
    operation: toml::Spanned<String>,
    #[serde(default)]
    session: SessionText,
    #[serde(default)]
    request: RequestText,
    expect: Expected,
    /// Exactly these determine the answer.
    policies: Option<Vec<String>>,
    code: Option<ExpectedCode>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ExpectedCode {
    PolicyDenied,
    PolicyError,
}

/// A session; what is left out is what a test need not care about.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SessionText {
    user: UserId,
    conversation: ConversationId,
    operations: Vec<Grant>,
    template: TemplateName,
    isolation: Isolation,
    labels: BTreeMap<String, String>,
    claims: Map<String, Value>,
}

impl Default for SessionText {
    fn default() -> Self {
        // INVARIANT: constants of the right form, which every test reads.
        let read = |text: &str| Value::String(text.to_owned());
        Self {
            user: constant(read("alice")),
            conversation: constant(read("a-conversation")),
            operations: vec![Grant::Everything],
            template: constant(read("default")),
            isolation: Isolation::Namespaces,
            labels: BTreeMap::new(),
            claims: Map::new(),
        }
    }
}

#[expect(clippy::expect_used, reason = "called with constants that every test reads")]
fn constant<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a constant of the right form")
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RequestText {
    path: Map<String, Value>,
    query: Map<String, Value>,
    header: Map<String, Value>,
    body: Option<Value>,
    now: Option<Timestamp>,
    /// The tenant whose backend of this name is asked, where it is another's.
    backend_of: Option<TenantId>,
}

/// What a run of tests found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TestReport {
    /// Every case, in order.
    pub cases: Vec<TestResult>,
    /// The tenant's policies, by id; the baseline's, if the tenant has none.
    pub coverage: Vec<PolicyCoverage>,
}

/// One case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TestResult {
    /// The file.
    pub file: String,
    /// The case's name.
    pub name: String,
    /// Why it failed, if it did: what was expected, what came, and how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// How much the cases say of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyCoverage {
    /// The policy.
    pub id: String,
    /// Cases to which it applied.
    pub applied: usize,
    /// Its clauses.
    pub clauses: Vec<ClauseCoverage>,
}

/// How much the cases say of one clause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClauseCoverage {
    /// As it stands in the policy.
    pub text: String,
    /// Cases in which it held.
    pub held: usize,
    /// Cases in which it did not.
    pub failed: usize,
}

impl PolicyCoverage {
    /// Whether it applied at least once, and each clause was seen both ways.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.applied > 0 && self.clauses.iter().all(|clause| clause.held > 0 && clause.failed > 0)
    }
}

impl TestReport {
    /// Whether every case passed.
    #[must_use]
    pub fn has_passed(&self) -> bool {
        self.cases.iter().all(|case| case.failure.is_none())
    }
}

/// Runs the cases of `files` against a set.
///
/// # Errors
/// Files that cannot be read as cases, each with its line; then no case was run.
pub fn run_tests(policies: &TenantPolicies, files: &[PolicySource]) -> Result<TestReport, Vec<Mistake>> {
    let (read, mut mistakes) = read(files);
    let mut coverage = coverage_of(policies);
    let mut results = Vec::new();
    for (place, case) in &read {
        match ready(policies, *place, case) {
            Ok(ready) => {
                let explanation = policies.explain(&ready.session, &ready.request);
                explanation.considered.iter().for_each(|considered| count(&mut coverage, considered));
                let failure = case.failure(&explanation);
                results.push(TestResult { file: place.file.to_owned(), name: case.name.clone(), failure });
            }
            Err(mistake) => mistakes.push(*mistake),
        }
    }
    let report = TestReport { cases: results, coverage: coverage.into_values().collect() };
    if mistakes.is_empty() { Ok(report) } else { Err(mistakes) }
}

/// The cases of all files, each with its file; and what cannot be read.
fn read(files: &[PolicySource]) -> (Vec<(Place<'_>, CaseText)>, Vec<Mistake>) {
    let (mut found, mut mistakes) = (Vec::new(), Vec::new());
    for file in files {
        let place = Place { file: &file.name, text: &file.text };
        match toml::from_str::<CaseFile>(&file.text) {
            Ok(cases) => found.extend(cases.case.into_iter().map(|case| (place, case))),
            Err(error) => {
                let message = error.message().to_owned();
                mistakes.push(place.mistake(error.span().unwrap_or_default(), message, None));
            }
        }
    }
    if found.len() > CASES {
        let message = format!("{} cases are too many; {CASES} may run at once", found.len());
        mistakes.push(Place { file: "policies/tests", text: "" }.mistake(0..0, message, None));
    }
    (found, mistakes)
}

/// A case that can be decided again and again: what `postern policy bench` measures.
#[derive(Debug)]
pub struct ReadyCase {
    /// Its name.
    pub name: String,
    session: SessionEntities,
    request: TypedRequest,
}

impl ReadyCase {
    /// Decides it, exactly as the gateway would.
    #[must_use]
    pub fn decide(&self, policies: &TenantPolicies) -> Decision {
        policies.decide(&self.session, &self.request)
    }
}

/// The cases of `files`, ready to be decided by `policies`.
///
/// # Errors
/// As [`run_tests`].
pub fn ready_cases(
    policies: &TenantPolicies,
    files: &[PolicySource],
) -> Result<Vec<ReadyCase>, Vec<Mistake>> {
    let (read, mut mistakes) = read(files);
    let mut found = Vec::new();
    for (place, case) in &read {
        match ready(policies, *place, case) {
            Ok(ready) => found.push(ready),
            Err(mistake) => mistakes.push(*mistake),
        }
    }
    if mistakes.is_empty() { Ok(found) } else { Err(mistakes) }
}

fn coverage_of(policies: &TenantPolicies) -> BTreeMap<String, PolicyCoverage> {
    let (baseline, own): (Vec<_>, Vec<_>) =
        policies.ids().into_iter().partition(|id| id.starts_with(OWN_PREFIX));
    let covered = if own.is_empty() { baseline } else { own };
    covered
        .into_iter()
        .filter_map(|id| policies.policy(id))
        .map(|policy| {
            let clause = |part| ClauseCoverage { text: text_of(part), held: 0, failed: 0 };
            let clauses = policy.conditions().map(clause).collect();
            let id = policy.id.to_string();
            (id.clone(), PolicyCoverage { id, applied: 0, clauses })
        })
        .collect()
}

fn count(coverage: &mut BTreeMap<String, PolicyCoverage>, considered: &Considered) {
    let Some(policy) = coverage.get_mut(&considered.policy.id) else { return };
    policy.applied += usize::from(considered.outcome == ClauseOutcome::Held);
    for (clause, seen) in policy.clauses.iter_mut().zip(&considered.clauses) {
        clause.held += usize::from(seen.outcome == ClauseOutcome::Held);
        clause.failed += usize::from(seen.outcome == ClauseOutcome::Failed);
    }
}

fn ready(policies: &TenantPolicies, place: Place<'_>, case: &CaseText) -> Result<ReadyCase, Box<Mistake>> {
    let schema = policies.schema();
    let refuse = |message: String, help: &str| {
        Box::new(place.mistake(case.operation.span(), message, Some(help.to_owned())))
    };
    let operation = case.operation.get_ref();
    let named = operation.split_once('/').and_then(|(backend, operation)| {
        Some((BackendName::parse(backend).ok()?, OperationId::parse(operation).ok()?))
    });
    let found = named.and_then(|(backend, operation)| {
        let action = Arc::clone(schema.action(&backend, &operation)?);
        Some((backend, action))
    });
    let (backend, action) = found.ok_or_else(|| {
        refuse(
            format!("there is no operation `{operation}`"),
            "write `BACKEND/OPERATION`, as in the backend's document",
        )
    })?;
    let foreign = case.request.backend_of.as_ref().filter(|tenant| *tenant != schema.tenant());
    let others = foreign.map(|tenant| shared_entities(tenant, [&backend])).unwrap_or_default();
    let session = SessionEntities::beside(schema, &case.session.session(policies), others)
        .map_err(|error| refuse(error.to_string(), "change the case's session"))?;
    let action = match foreign {
        Some(tenant) => {
            let uid = names::owned(&names::BACKEND, tenant, backend.as_str());
            Arc::new(action.to(Party::new(Arc::new(uid), session.world().without_actions())))
        }
        None => action,
    };
    let facts = RequestFacts {
        path: &case.request.path,
        query: &case.request.query,
        header: &case.request.header,
        body: case.request.body.as_ref(),
        peer: PeerFacts::Socket,
        now: case.request.now.unwrap_or(Timestamp::UNIX_EPOCH),
    };
    let request = TypedRequest::new(&session, &action, &facts);
    Ok(ReadyCase { name: case.name.clone(), session, request })
}

impl SessionText {
    fn session(&self, policies: &TenantPolicies) -> Session {
        let sandbox: SandboxId = constant(Value::String("sandbox-aaaaaaaaaaaa".to_owned()));
        Session {
            sandbox_id: sandbox,
            tenant: policies.schema().tenant().clone(),
            user_id: self.user.clone(),
            conversation_id: self.conversation.clone(),
            operations: self.operations.clone(),
            tokens: Vec::new(),
            peer: Peer::Address(std::net::Ipv4Addr::LOCALHOST.into()),
            expires_at: Timestamp::MAX,
            template: self.template.clone(),
            isolation: self.isolation,
            labels: self.labels.clone(),
            claims: self.claims.clone(),
        }
    }
}

impl CaseText {
    /// What is not as the case wants it.
    fn failure(&self, explanation: &Explanation) -> Option<String> {
        let is_allowed = explanation.verdict == Verdict::Allow;
        let mut wrong = Vec::new();
        if is_allowed != (self.expect == Expected::Allow) {
            let (wanted, came) = if is_allowed { ("deny", "allow") } else { ("allow", "deny") };
            wrong.push(format!("expected {wanted}, got {came}"));
        }
        if let Some(wanted) = &self.policies {
            let mut wanted = wanted.clone();
            wanted.sort();
            if wanted != explanation.determining {
                let list = |ids: &[String]| if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
                wrong.push(format!(
                    "expected the policies {}, got {}",
                    list(&wanted),
                    list(&explanation.determining)
                ));
            }
        }
        let code = match explanation.code {
            Some(Code::PolicyDenied) => Some(ExpectedCode::PolicyDenied),
            Some(Code::PolicyError) => Some(ExpectedCode::PolicyError),
            _ => None,
        };
        if self.code.is_some() && self.code != code {
            let came = explanation.code.map_or("none", Code::as_str);
            wrong.push(format!("expected another code, got {came}"));
        }
        (!wrong.is_empty()).then(|| format!("{}\n{explanation}", wrong.join("; ")))
    }
}

impl fmt::Display for TestReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in &self.cases {
            match &case.failure {
                None => writeln!(formatter, "ok      {}", case.name)?,
                Some(failure) => {
                    writeln!(formatter, "FAILED  {} ({})", case.name, case.file)?;
                    failure.lines().try_for_each(|line| writeln!(formatter, "        {line}"))?;
                }
            }
        }
        for policy in self.coverage.iter().filter(|policy| !policy.is_whole()) {
            let never = if policy.applied == 0 { ": no case makes it apply" } else { "" };
            writeln!(formatter, "untested  {}{never}", policy.id)?;
            for clause in &policy.clauses {
                match (clause.held, clause.failed) {
                    (0, _) => writeln!(formatter, "          never true: {}", clause.text)?,
                    (_, 0) => writeln!(formatter, "          never false: {}", clause.text)?,
                    _ => {}
                }
            }
        }
        let failed = self.cases.iter().filter(|case| case.failure.is_some()).count();
        let whole = self.coverage.iter().filter(|policy| policy.is_whole()).count();
        let passed = self.cases.len() - failed;
        write!(
            formatter,
            "{passed} passed, {failed} failed; {whole} of {} policies tested whole",
            self.coverage.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{load, schema, told};

    const POLICIES: &str = r#"
@id("writes") permit (principal, action in support_desk::Action::"write", resource);
@id("limit") forbid (principal, action == support_desk::Action::"createRefund", resource)
when { context.body.count > 5 && context.body has urgent };
@id("never-asked") permit (principal, action == support_desk::Action::"ping", resource);
"#;

    fn file(text: &str) -> PolicySource {
        PolicySource { name: "policies/tests/refunds.toml".to_owned(), text: text.to_owned() }
    }

    fn run(text: &str) -> Result<TestReport, Vec<Mistake>> {
        run_tests(&load(&schema(), POLICIES), &[file(text)])
    }

    const CASES: &str = r#"
[[case]]
name = "small refunds pass"
operation = "support-desk/createRefund"
request = { path = { order_id = 1 }, body = { amount = 1.5, count = 1 } }
expect = "allow"
policies = ["writes"]

[[case]]
name = "large ones do not"
operation = "support-desk/createRefund"
session = { user = "bob", operations = ["support-desk/write"], labels = { plan = "pro" } }
request = { path = { order_id = 1 }, body = { amount = 1, count = 9, urgent = true } }
expect = "deny"
code = "policy-denied"
policies = ["limit"]
"#;

    #[test]
    fn cases_that_hold_pass_and_what_they_leave_out_is_named() {
        let report = run(CASES).unwrap_or_else(|mistakes| panic!("{}", told(&mistakes)));
        assert!(report.has_passed());
        insta::assert_snapshot!(report);
    }

    #[test]
    fn another_tenant_s_backend_is_out_of_reach_whatever_is_permitted() {
        let case = |of: &str, expect: &str| {
            let request = format!("request = {{ backend_of = \"{of}\" }}");
            format!("[[case]]\nname = \"{of}\"\noperation = \"support-desk/ping\"\n{request}\n{expect}\n")
        };
        let cases = [
            case("acme", "expect = \"allow\"\npolicies = [\"never-asked\"]"),
            case("rival", "expect = \"deny\"\npolicies = [\"postern-tenant\"]"),
        ];
        let report = run(&cases.join("\n")).unwrap_or_else(|mistakes| panic!("{}", told(&mistakes)));
        assert!(report.has_passed(), "{report}");
    }

    #[test]
    fn a_case_that_fails_is_explained() {
        let report = run(&CASES.replace("count = 9", "count = 2"))
            .unwrap_or_else(|mistakes| panic!("{}", told(&mistakes)));
        assert!(!report.has_passed());
        insta::assert_snapshot!(report);
    }

    #[test]
    fn a_case_that_cannot_be_read_is_a_mistake_with_its_line() {
        let mut mistakes = run(&CASES.replace("createRefund", "creatRefund")).expect_err("no such operation");
        mistakes
            .extend(run(&CASES.replace("expect = \"deny\"", "expects = \"deny\"")).expect_err("no such key"));
        insta::assert_snapshot!(told(&mistakes));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! `/openapi.json`, made from the table of routes.

use super::routes::ROUTES;
use super::{Access, Answer, Api, Call, Route, body, json};
use http::StatusCode;
use serde_json::{Map, Value, json as value};
use std::sync::Arc;

/// `GET /openapi.json`.
pub(super) async fn document(_api: Arc<Api>, _call: Call) -> Answer {
    json(StatusCode::OK, &of(&ROUTES))
}

/// The document of these routes.
pub(super) fn of(routes: &[Route]) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in routes {
        // A parameter that takes the rest of the path has no sign of its own in the document.
        let item = paths.entry(route.path.replace("{*", "{")).or_insert_with(|| value!({}));
        if let Some(item) = item.as_object_mut() {
            item.insert(route.method.as_str().to_ascii_lowercase(), operation(route));
        }
    }
    value!({
        "openapi": "3.1.0",
        "info": {
            "title": "Postern",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Makes and destroys sandboxes and configures what may leave them.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "key": { "type": "apiKey", "in": "header", "name": "X-API-Key" },
            },
            "schemas": {
                "Problem": problem(),
                "Sandbox": schema::<super::sandboxes::Shown>(),
                "Snapshot": schema::<super::snapshots::Shown>(),
                "Process": schema::<super::processes::Shown>(),
                "SandboxFile": schema::<super::sandbox_files::Entry>(),
                "Edited": schema::<crate::configuration::Edited>(),
                "PolicyVersion": schema::<crate::store::PolicyVersion>(),
                "Event": schema::<crate::store::Event>(),
                "Backend": schema::<postern_common::folder::BackendFile>(),
                "Template": schema::<postern_common::folder::TemplateFile>(),
                "Limits": schema::<postern_common::folder::LimitsFile>(),
            },
        },
    })
}

fn schema<T: schemars::JsonSchema>() -> Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12();
    let settings = settings.with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("$schema");
    }
    schema
}

fn problem() -> Value {
    value!({
        "type": "object",
        "required": ["type", "title", "status", "code", "detail"],
        "properties": {
            "type": { "type": "string", "description": "`/problems/<code>`, a page that exists" },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "code": { "type": "string", "description": "stable; programs may match on it" },
            "detail": { "type": "string", "description": "what happened to what" },
            "hint": { "type": "string", "description": "what to do next" },
            "request_id": { "type": "string" },
            "errors": { "type": "array", "items": { "type": "object", "properties": {
                "pointer": { "type": "string" }, "message": { "type": "string" } } } },
        },
    })
}

fn operation(route: &Route) -> Value {
    let mut parameters: Vec<Value> = path_parameters(route.path)
        .map(|name| value!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    parameters.extend(route.query.iter().map(
        |(name, about)| value!({ "name": name, "in": "query", "description": about, "schema": { "type": "string" } }),
    ));
    if matches!(route.id, "createSandbox" | "exec") {
        parameters.push(value!({ "name": "Idempotency-Key", "in": "header", "schema": { "type": "string" },
            "description": "a repeat with the same key and body gets the same sandbox (for a day) or command (while its output is kept); another body is refused" }));
    }
    let mut responses: Map<String, Value> = route
        .answers
        .iter()
        .map(|(status, about)| (status.to_string(), value!({ "description": about })))
        .collect();
    let problem = value!({ "description": "a problem (RFC 9457)",
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } } });
    responses.insert("default".to_owned(), problem);
    let mut operation = value!({
        "operationId": route.id,
        "summary": route.about,
        "parameters": parameters,
        "responses": responses,
        "security": match route.access {
            Access::Open => value!([]),
            Access::Key(_) | Access::Installation => value!([{ "bearer": [] }, { "key": [] }]),
        },
        "x-role": match route.access {
            Access::Open => "none",
            Access::Key(role) => role.as_str(),
            Access::Installation => "admin of the whole installation",
        },
    });
    if let (body::Kind::Json(bound), Some(operation)) = (route.body, operation.as_object_mut()) {
        let body = value!({ "content": { "application/json": { "schema": request(route.id) } },
            "description": format!("at most {bound} bytes") });
        operation.insert("requestBody".to_owned(), body);
    }
    if let (body::Kind::Stream, Some(operation)) = (route.body, operation.as_object_mut()) {
        let body = value!({ "required": true, "content": { "application/octet-stream": {} } });
        operation.insert("requestBody".to_owned(), body);
    }
    operation
}

/// The names in braces.
fn path_parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| name.trim_start_matches('*'))
}

/// What a request's body is.
fn request(id: &str) -> Value {
    let text = value!({ "type": "string" });
    let texts = value!({ "type": "object", "additionalProperties": { "type": "string" } });
    let list = value!({ "type": "array", "items": { "type": "string" } });
    let object = |required: &[&str], properties: Value| value!({ "type": "object", "additionalProperties": false, "required": required, "properties": properties });
    match id {
        "createSandbox" => object(
            &["user_id", "conversation_id"],
            value!({ "user_id": text, "conversation_id": text, "template": text, "operations": list, "env": texts,
                "labels": texts, "claims": { "type": "object" }, "ttl": text, "idle": text, "snapshot": text }),
        ),
        "exec" => object(
            &["command"],
            value!({ "command": { "oneOf": [text, list] }, "cwd": text, "env": texts, "stdin": { "type": ["string", "boolean"] },
                "timeout": text, "collect": { "type": "boolean" } }),
        ),
        "signalProcess" => object(&[], value!({ "signal": text })),
        "holdUser" => object(&["reason"], value!({ "reason": text })),
        "retireFiles" => {
            object(&[], value!({ "dry_run": { "type": "boolean" }, "after": { "type": ["string", "null"] } }))
        }
        "openPort" => object(&[], value!({ "ttl": text })),
        "moveSandboxFile" => object(&["from", "to"], value!({ "from": text, "to": text })),
        "createTenant" => object(&["name"], value!({ "name": text })),
        "createGateway" => object(&["name"], value!({ "name": text })),
        "createSession" => object(
            &["user_id", "conversation_id", "peer"],
            value!({ "user_id": text, "conversation_id": text, "operations": list, "peer": text, "ttl": text }),
        ),
        "createKey" => object(
            &["role"],
            value!({ "role": { "enum": ["admin", "developer", "auditor", "filters:push", "filters:activate"] }, "label": text, "tenant": text,
                "operations": list, "templates": list, "labels": texts, "whole_installation": { "type": "boolean" } }),
        ),
        "putBackend" => object(
            &["backend"],
            value!({ "backend": { "$ref": "#/components/schemas/Backend" }, "document": text }),
        ),
        "putPolicy" => object(&["text"], value!({ "text": text })),
        "putPolicySet" => object(
            &["policies"],
            value!({ "policies": texts, "tests": texts, "mode": { "enum": ["enforce", "shadow"] } }),
        ),
        "promotePolicies" => object(&[], value!({ "policies": list })),
        "rollBackPolicies" => object(&[], value!({ "version": { "type": "integer" } })),
        "diffPolicies" => object(&["policies"], value!({ "policies": texts })),
        "putFilter" => object(&["manifest", "component"], value!({ "manifest": text, "component": text })),
        "putTemplate" => value!({ "$ref": "#/components/schemas/Template" }),
        "putSecret" => object(&["value"], value!({ "value": text })),
        "apply" => object(
            &[],
            value!({ "backends": { "type": "object" }, "policies": { "type": ["object", "null"] },
                "shadow_policies": texts, "policy_tests": texts, "filters": { "type": "object" }, "templates": { "type": "object" },
                "limits": { "$ref": "#/components/schemas/Limits" } }),
        ),
        _ => object(&[], value!({})),
    }
}

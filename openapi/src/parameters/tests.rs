// SPDX-License-Identifier: Apache-2.0
use crate::{Document, Lookup, Method, Query, RequestPath, TypedParameters, Violation};
use postern_common::id::OperationId;
use serde_json::{Value, json};

const DESK: &str = include_str!("../document/desk.yaml");

/// The typed parameters of `GET target`, or the violations as text.
fn get(target: &str, headers: &[(&str, &str)]) -> Result<TypedParameters, Vec<String>> {
    let document = Document::parse(DESK).expect("the desk");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = RequestPath::parse(path).expect("a path");
    let Lookup::Found(found) = document.routes().lookup(Some(Method::Get), &path) else {
        panic!("{target} not found")
    };
    let query = Query::parse(query).expect("a query");
    let operation = &document.operations()[found.operation];
    operation.typed_parameters(&found.parameters, &query, headers).map_err(|found| told(&found))
}

fn told(violations: &[Violation]) -> Vec<String> {
    violations.iter().map(ToString::to_string).collect()
}

#[test]
fn text_becomes_values_of_the_declared_types() {
    let target = "/customers/c%201/orders?limit=7&status=open&status=sent&fields=a,b&paid=true";
    let typed = get(target, &[("x-TRACE", "0123abcd"), ("Accept", "*/*")]).expect("typed");
    assert_eq!(Value::Object(typed.path), json!({ "customerId": "c 1" }));
    assert_eq!(
        Value::Object(typed.query),
        json!({ "limit": 7, "status": ["open", "sent"], "fields": ["a", "b"], "paid": true })
    );
    assert_eq!(Value::Object(typed.header), json!({ "x-trace": "0123abcd" }));
    let bare = get("/customers/c/orders", &[]).expect("typed");
    assert!(bare.query.is_empty() && bare.header.is_empty(), "absent ones are left out");
}

#[test]
fn text_that_could_be_read_in_two_ways_is_no_value() {
    for limit in ["07", "+7", "7.0", "7e0", "%207", "0x7", "", "-", "1_0", "99999999999999999999", "%D9%A7"] {
        let found = get(&format!("/customers/c/orders?limit={limit}"), &[]).expect_err(limit);
        assert_eq!(
            found,
            ["/query/limit: must be an integer of at most 64 bits, in plain digits"],
            "{limit}"
        );
    }
    for paid in ["1", "True", "yes", ""] {
        assert!(get(&format!("/customers/c/orders?paid={paid}"), &[]).is_err(), "{paid}");
    }
    assert!(get("/orders/7", &[]).is_ok() && get("/orders/-7", &[]).is_ok());
    assert_eq!(get("/orders/seven", &[]).expect_err("refused").len(), 1);
}

#[test]
fn undeclared_and_repeated_query_parameters_are_refused() {
    let found = get("/customers/c/orders?limit=1&limit=2&user_id=eve&Limit=3", &[]).expect_err("refused");
    assert_eq!(
        found,
        [
            "/query/limit: stands more than once; send it once",
            "/query/user_id: is not declared by the operation",
            "/query/Limit: is not declared by the operation",
        ]
    );
    assert!(get("/customers/c/orders?fields=a&fields=b", &[]).is_err(), "`explode: false` is one text");
    assert!(get("/customers/c/orders", &[("X-Trace", "0123abcd"), ("x-trace", "0123abce")]).is_err());
}

#[test]
fn values_are_checked_against_their_schemas() {
    for (target, pointer) in [
        ("/customers/c/orders?limit=0", "/query/limit: "),
        ("/customers/c/orders?limit=101", "/query/limit: "),
        ("/customers/c/orders?status=lost", "/query/status/0: "),
        ("/customers/c/orders?status=open&status=sent&status=open", "/query/status: "),
    ] {
        let found = get(target, &[]).expect_err(target);
        assert!(found.len() == 1 && found[0].starts_with(pointer), "{target}: {found:?}");
    }
    let found = get("/customers/c/orders", &[("X-Trace", "secret!!")]).expect_err("refused");
    assert!(found[0].starts_with("/header/x-trace: ") && !found[0].contains("secret"), "{found:?}");
}

#[test]
fn violations_of_a_flood_of_names_are_bounded() {
    let query: String = (0..200).map(|number| format!("&n{number}=1")).collect();
    let found = get(&format!("/customers/c/orders?limit=1{query}"), &[]).expect_err("refused");
    assert_eq!(found.len(), crate::limits::VIOLATIONS);
}

#[test]
fn a_backend_without_a_document_declares_nothing_and_refuses_nothing() {
    let document = Document::any_path();
    let query = Query::parse("a=1&a=2").expect("a query");
    let typed = document.operations()[0].typed_parameters(
        &crate::route::PathParameters::default(),
        &query,
        &[("x", "y")],
    );
    assert_eq!(typed, Ok(TypedParameters::default()));
}

fn form(text: &str) -> Result<Value, Vec<String>> {
    let document = Document::parse(DESK).expect("the desk");
    let id = OperationId::parse("createRefund").expect("an id");
    let body = document.operation(&id).and_then(|it| it.body.clone()).expect("a body");
    let content = body.content(Some("application/x-www-form-urlencoded")).expect("a form");
    content.typed_form(&Query::parse(text).expect("a form")).map_err(|found| told(&found))
}

#[test]
fn a_form_is_typed_and_checked_like_a_body() {
    let value = form("order_id=7&amount=12.50&reasons=late&reasons=torn").expect("typed");
    assert_eq!(value, json!({ "order_id": 7, "amount": 12.5, "reasons": ["late", "torn"] }));
    assert_eq!(form("order_id=7").expect_err("refused"), ["/body/amount: is required"]);
    assert_eq!(
        form("order_id=7&amount=1&user_id=eve").expect_err("refused"),
        ["/body/user_id: is not declared by the schema"]
    );
    assert_eq!(
        form("order_id=7&amount=1&amount=2").expect_err("refused"),
        ["/body/amount: stands more than once; send it once"]
    );
    for amount in ["1e400", "0.1000000000000000055", "1.", ".5", "01", "NaN", "inf", "1e", "0x1p1", "--1"] {
        assert!(form(&format!("order_id=7&amount={amount}")).is_err(), "{amount}");
    }
    for amount in ["1", "-1", "0.5", "1e2", "1E-2", "0"] {
        assert!(form(&format!("order_id=7&amount={amount}")).is_ok(), "{amount}");
    }
}

#[test]
fn a_backend_may_have_undeclared_parameters_dropped_first() {
    let document = Document::parse(DESK).expect("the desk");
    let id = OperationId::parse("listOrders").expect("an id");
    let query = Query::parse("limit=1&user_id=eve&status=open").expect("a query");
    let kept = document.operation(&id).expect("an operation").declared_query(&query);
    assert_eq!(kept.rebuild(), "limit=1&status=open");
    assert_eq!(Document::any_path().operations()[0].declared_query(&query), query);
}

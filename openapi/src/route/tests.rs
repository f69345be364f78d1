// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::Document;
use proptest::prelude::*;

fn table(templates: &[(Method, &str)]) -> (RouteTable, Vec<PathTemplate>) {
    let parsed: Vec<_> = templates.iter().map(|(_, text)| PathTemplate::parse(text).expect(text)).collect();
    let table =
        RouteTable::compile(templates.iter().zip(&parsed).map(|((method, _), template)| (*method, template)));
    (table, parsed)
}

fn told(table: &RouteTable, method: &str, path: &str) -> String {
    match table.lookup(Method::parse(method), &RequestPath::parse(path).expect(path)) {
        Lookup::Found(found) => {
            let values: Vec<_> =
                found.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{} {}", found.operation, values.join(","))
        }
        Lookup::MethodNotAllowed { allow } => format!("allow {allow:?}"),
        Lookup::Unknown => "unknown".to_owned(),
    }
}

#[test]
fn literals_win_and_dead_ends_fall_back_to_parameters() {
    let (table, _) = table(&[
        (Method::Get, "/orders/{id}"),
        (Method::Get, "/orders/latest"),
        (Method::Delete, "/orders/{id}"),
        (Method::Get, "/orders/{id}/lines"),
        (Method::Get, "/orders/latest/total"),
        (Method::Get, "/orders/"),
        (Method::Get, "/"),
    ]);
    for (method, path, wanted) in [
        ("GET", "/orders/7", "0 id=7"),
        ("GET", "/orders/latest", "1 "),
        ("GET", "/orders/%6Catest", "1 "),
        ("DELETE", "/orders/a%20b", "2 id=a b"),
        ("DELETE", "/orders/latest", "allow [Get]"),
        ("GET", "/orders/latest/lines", "3 id=latest"),
        ("GET", "/orders/latest/total", "4 "),
        ("GET", "/orders/", "5 "),
        ("GET", "/orders", "unknown"),
        ("GET", "/orders/7/", "unknown"),
        ("GET", "/Orders/7", "unknown"),
        ("GET", "/", "6 "),
        ("POST", "/orders/7", "allow [Get, Delete]"),
        ("get", "/orders/7", "allow [Get, Delete]"),
        ("CONNECT", "/orders/7", "allow [Get, Delete]"),
    ] {
        assert_eq!(told(&table, method, path), wanted, "{method} {path}");
    }
}

#[test]
fn any_path_takes_every_path_and_the_six_methods() {
    let document = Document::any_path();
    let path = RequestPath::parse("/a%2Db/v1:x/é".replace('é', "%c3%a9").as_str()).expect("a path");
    let Lookup::Found(found) = document.routes().lookup(Method::parse("PUT"), &path) else {
        panic!("not found")
    };
    assert_eq!(document.operations()[found.operation].id.as_str(), "put");
    assert_eq!(found.forwarded_path(&path).expect("a path"), "/a-b/v1:x/%C3%A9");
    assert!(matches!(
        document.routes().lookup(Method::parse("OPTIONS"), &path),
        Lookup::MethodNotAllowed { .. }
    ));
}

#[test]
fn a_replaced_parameter_is_forwarded_encoded_or_refused() {
    let (table, _) = table(&[(Method::Get, "/users/{user}/files")]);
    let path = RequestPath::parse("/users/eve/files").expect("a path");
    let Lookup::Found(mut found) = table.lookup(Some(Method::Get), &path) else { panic!("not found") };
    assert!(found.parameters.replace("user", "alice@x") && !found.parameters.replace("other", "x"));
    assert_eq!(found.forwarded_path(&path).expect("a path"), "/users/alice%40x/files");
    assert!(found.parameters.replace("user", ".."));
    assert_eq!(found.forwarded_path(&path), Err(PathRefusal::DotSegment));
}

fn any_template() -> impl Strategy<Value = String> {
    let part = prop_oneof![Just("a"), Just("b"), Just("{x}")];
    prop::collection::vec(part, 1..4).prop_map(|parts| {
        let numbered = parts.iter().enumerate().map(|(index, part)| part.replace('x', &format!("x{index}")));
        numbered.map(|part| format!("/{part}")).collect()
    })
}

proptest! {
    #[test]
    fn without_conflicts_the_answer_does_not_depend_on_order(texts in prop::collection::vec(any_template(), 1..8), segments in prop::collection::vec("[abc]", 1..4)) {
        let mut kept: Vec<PathTemplate> = Vec::new();
        for text in &texts {
            let template = PathTemplate::parse(text).expect("a template");
            if kept.iter().all(|other| conflict(other, &template).is_none()) {
                kept.push(template);
            }
        }
        let path = RequestPath::parse(&segments.iter().map(|segment| format!("/{segment}")).collect::<String>()).expect("a path");
        let forwards = RouteTable::compile(kept.iter().map(|template| (Method::Get, template)));
        let backwards = RouteTable::compile(kept.iter().rev().map(|template| (Method::Get, template)));
        let template = |table: &RouteTable| match table.lookup(Some(Method::Get), &path) {
            Lookup::Found(found) => Some((found.template.to_string(), found.forwarded_path(&path).expect("a path"))),
            _ => None,
        };
        prop_assert_eq!(template(&forwards), template(&backwards));
        if let Some((_, forwarded)) = template(&forwards) {
            prop_assert_eq!(RequestPath::parse(&forwarded).expect("own writing"), path);
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Putting a filter into a backend's chain, beside whoever else changes that backend.

use crate::client::{Over, segment};
use crate::commands::Server;
use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use http::HeaderValue;
use postern_common::problem::Code;
use serde_json::{Value, json};

/// How often a change that somebody else's came before is made again.
const ATTEMPTS: usize = 5;
/// The tag of a backend that nobody has stored: it is the one of `BACKEND_URL`.
const NOT_STORED: &str = "\"built-in\"";

/// Whether the filter can be attached as it is wanted: asked before anything is uploaded.
pub(super) async fn check(
    server: &Server,
    name: &str,
    backend: &str,
    operations: &[String],
) -> Result<(), Failure> {
    let mut found = server.get(&path(backend)).await?;
    place(&mut found, name, (backend, operations)).map(drop)
}

/// Adds the filter to the end of a backend's chain, or widens it there. What the server answers;
/// `None` if there was nothing to do.
pub(super) async fn attach(
    server: &Server,
    name: &str,
    backend: &str,
    operations: &[String],
) -> Result<Option<Value>, Failure> {
    let path = path(backend);
    for _ in 0..ATTEMPTS {
        let (mut found, tag) = server.tagged(&path).await?;
        if !place(&mut found, name, (backend, operations))? {
            return Ok(None);
        }
        match server.put_over(&path, &found, over(tag)).await {
            // Somebody else has changed the backend since: nothing of theirs is lost.
            Err(Failure::Refused(problem)) if problem.code == Code::PreconditionFailed => {}
            put => return put.map(Some),
        }
    }
    Err(anyhow!("`{backend}` is being changed by somebody else; push again").into())
}

fn path(backend: &str) -> String {
    format!("/backends/{}", segment(backend))
}

fn over(tag: Option<HeaderValue>) -> Over {
    match tag {
        Some(tag) if tag == NOT_STORED => Over::Nothing,
        Some(tag) => Over::Tagged(tag),
        None => Over::Anything,
    }
}

/// Changes a backend as it is shown; `false` if the filter is in its chain as it is wanted.
fn place(found: &mut Value, name: &str, (backend, operations): (&str, &[String])) -> Result<bool, Failure> {
    let file = found.get_mut("backend").and_then(Value::as_object_mut);
    let file = file.context("the server's answer holds no backend")?;
    let filters = file.entry("filters").or_insert_with(|| json!([]));
    let filters = filters.as_array_mut().context("the backend's filters are no list")?;
    let mut attached: Vec<_> = filters.iter_mut().filter(|it| name_of(it) == Some(name)).collect();
    let already = match attached.as_mut_slice() {
        [] => {
            let all = operations.is_empty();
            filters.push(if all { json!(name) } else { json!({ "name": name, "operations": operations }) });
            return Ok(true);
        }
        [_, ..] if operations.is_empty() => return Ok(false),
        [one] => one.get_mut("operations").and_then(Value::as_array_mut).filter(|has| !has.is_empty()),
        _ => {
            return Err(Failure::Usage(format!(
                "`{name}` is in the chain of `{backend}` more than once: leave out --operation, and name \
                 operations in the backend itself"
            )));
        }
    };
    // Fewer operations than before would leave some without the filter: that is not a push's to do.
    let already = already.ok_or_else(|| {
        Failure::Usage(format!(
            "`{name}` is in the chain of `{backend}` for every operation: leave out --operation, or narrow \
             it in the backend itself"
        ))
    })?;
    let before = already.len();
    for operation in operations {
        if !already.iter().any(|it| it == operation.as_str()) {
            already.push(json!(operation));
        }
    }
    Ok(already.len() > before)
}

/// The name in an attachment.
pub(super) fn name_of(attached: &Value) -> Option<&str> {
    attached.as_str().or_else(|| attached.get("name")?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::connection::Connection;
    use crate::output::Output;
    use postern_common::problem::Problem;
    use postern_common::secret::Secret;
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::TcpListener;

    fn placed(filters: &Value, operations: &[&str]) -> Result<Value, String> {
        let operations: Vec<String> = operations.iter().map(|it| (*it).to_owned()).collect();
        let mut found = json!({ "backend": { "url": "http://desk", "filters": filters } });
        let is_new = place(&mut found, "guard", ("desk", &operations)).map_err(|error| error.to_string())?;
        let after = found["backend"]["filters"].clone();
        Ok(if is_new { after } else { json!("as it was") })
    }

    #[test]
    fn a_filter_goes_to_the_end_of_the_chain_or_is_widened() {
        let as_it_was = Ok(json!("as it was"));
        let of = |operations: &[&str]| json!({ "name": "guard", "operations": operations });
        assert_eq!(placed(&json!(["first"]), &[]), Ok(json!(["first", "guard"])));
        assert_eq!(placed(&json!(["first"]), &["read"]), Ok(json!(["first", of(&["read"])])));
        assert_eq!(placed(&json!(["guard", "last"]), &[]), as_it_was);
        assert_eq!(placed(&json!([of(&["read"])]), &[]), as_it_was);
        assert_eq!(placed(&json!([of(&["read"])]), &["read"]), as_it_was);
        let widened = json!([of(&["read", "write"]), "last"]);
        assert_eq!(placed(&json!([of(&["read"]), "last"]), &["write", "read"]), Ok(widened));
        for all in [json!(["guard"]), json!([{ "name": "guard", "mode": "shadow" }]), json!([of(&[])])] {
            let told = placed(&all, &["read"]).expect_err("would take the filter away from others");
            assert!(told.contains("for every operation: leave out --operation"), "{all}: {told}");
        }
        let told = placed(&json!([of(&["read"]), of(&["write"])]), &["read"]).expect_err("which of them?");
        assert!(told.contains("more than once"), "{told}");
    }

    #[test]
    fn a_backend_that_nobody_stored_is_put_where_there_is_none() {
        let tag = |text| Some(HeaderValue::from_static(text));
        assert_eq!(over(tag("\"abc\"")), Over::Tagged(HeaderValue::from_static("\"abc\"")));
        assert_eq!(over(tag(NOT_STORED)), Over::Nothing);
        assert_eq!(over(None), Over::Anything);
    }

    /// A server that says these things, one after the other, and what it was asked meanwhile.
    fn scripted(answers: Vec<String>) -> (Server, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("is bound"));
        let connection = Connection { url: url.parse().expect("a URL"), key: Secret::new("key".to_owned()) };
        let server = Server { client: Client::new(connection), tenant: None, output: Output::new(true) };
        let serving = std::thread::spawn(move || {
            let serve = |answer: String| {
                let (mut stream, _) = listener.accept().expect("is asked");
                let mut asked = String::new();
                let mut reader = BufReader::new(&stream);
                while !asked.ends_with("\r\n\r\n") {
                    assert_ne!(reader.read_line(&mut asked).expect("reads"), 0, "{asked}");
                }
                let length = asked.lines().find_map(|line| line.strip_prefix("content-length: "));
                let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a number"))];
                reader.read_exact(&mut body).expect("reads");
                stream.write_all(answer.as_bytes()).expect("writes");
                asked + &String::from_utf8_lossy(&body)
            };
            answers.into_iter().map(serve).collect()
        });
        (server, serving)
    }

    fn said(status: &str, tag: &str, body: &Value) -> String {
        let body = body.to_string();
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\netag: \"{tag}\"\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
    }

    #[tokio::test]
    async fn what_somebody_else_changed_meanwhile_is_kept() {
        let shown = |filters: Value| json!({ "backend": { "url": "http://desk", "filters": filters } });
        let moved = Problem::new(Code::PreconditionFailed, "the backend is another by now");
        let moved = serde_json::to_value(moved).expect("has a form");
        let (server, serving) = scripted(vec![
            said("200 OK", "a", &shown(json!([]))),
            said("412 Precondition Failed", "b", &moved),
            said("200 OK", "b", &shown(json!(["theirs"]))),
            said("200 OK", "c", &json!({ "gateways_in_force": 1 })),
        ]);
        let put = attach(&server, "guard", "desk", &[]).await.expect("is attached");
        assert_eq!(put, Some(json!({ "gateways_in_force": 1 })));
        let asked = serving.join().expect("serves");
        let puts: Vec<_> = asked.iter().filter(|it| it.starts_with("PUT /backends/desk ")).collect();
        assert_eq!(puts.len(), 2, "{asked:?}");
        assert!(puts[0].contains("if-match: \"a\"") && puts[1].contains("if-match: \"b\""), "{puts:?}");
        assert!(puts[1].ends_with(&shown(json!(["theirs", "guard"])).to_string()), "{puts:?}");
    }

    #[test]
    fn an_attachment_is_a_name_or_more() {
        assert_eq!(name_of(&json!("a")), Some("a"));
        assert_eq!(name_of(&json!({ "name": "b", "operations": ["read"] })), Some("b"));
    }
}

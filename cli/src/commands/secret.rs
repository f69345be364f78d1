// SPDX-License-Identifier: Apache-2.0
//! `postern secret`: secrets of backends. The value comes from standard input, so that it is in no
//! process list and no shell history, and it cannot be read back.

use super::Server;
use crate::arguments::Secret;
use crate::client::segment;
use crate::failure::Failure;
use postern_common::id::SecretName;
use serde_json::json;
use std::io::Read as _;

/// The longest secret: a certificate chain with its key is a few KiB.
const MAX_BYTES: u64 = 64 * 1024;

/// Runs one of the commands.
pub(super) async fn run(server: &Server, wanted: Secret) -> Result<(), Failure> {
    match wanted {
        Secret::Set { name } => {
            let name = checked(&name)?;
            let value = tokio::task::spawn_blocking(read_value).await.map_err(anyhow::Error::new)??;
            server.put(&format!("/secrets/{name}"), &json!({ "value": value })).await?;
            server.output.note(&format!("secret {name} is set"));
            Ok(())
        }
        Secret::Ls => server.list(&server.get("/secrets").await?, "secrets", &["name", "updated_at"]),
        Secret::Rm { name } => {
            server.delete(&format!("/secrets/{}", segment(&name))).await?;
            let removed = json!({ "name": name, "removed": true });
            server.output.done(&removed, || format!("secret {name} is removed"));
            Ok(())
        }
    }
}

fn checked(name: &str) -> Result<SecretName, Failure> {
    name.parse().map_err(|error| Failure::Usage(format!("{error}")))
}

fn read_value() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin().lock().take(MAX_BYTES + 1).read_to_string(&mut text)?;
    trimmed(text)
}

/// The value without the line break that `echo` and editors put at its end.
fn trimmed(mut text: String) -> Result<String, Failure> {
    if text.len() as u64 > MAX_BYTES {
        return Err(Failure::Usage(format!("the secret is over {MAX_BYTES} bytes")));
    }
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() {
        return Err(Failure::Usage(
            "no secret on standard input: `postern secret set NAME < FILE`".to_owned(),
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_line_break_is_no_part_of_a_secret() {
        assert_eq!(trimmed("a\nb \r\n".to_owned()).expect("is one"), "a\nb ");
        assert_eq!(trimmed("\n".to_owned()).expect_err("is empty").exit_code(), 2);
    }
}

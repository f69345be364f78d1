// SPDX-License-Identifier: Apache-2.0
//! `postern tenant`: who there is. For keys of the whole installation.

use super::Server;
use crate::arguments::Tenant;
use crate::client::segment;
use crate::failure::Failure;
use http::Method;
use serde_json::json;

/// Runs one of the commands. They are about no tenant of `--tenant`: none is said.
pub(super) async fn run(server: &Server, wanted: Tenant) -> Result<(), Failure> {
    let call =
        async |method, path: &str, body| Ok::<_, Failure>(server.client.call(method, path, body).await?.body);
    match wanted {
        Tenant::Create { name } => {
            let made = call(Method::POST, "/tenants", Some(&json!({ "name": name }))).await?;
            server.output.answer(&made, || format!("tenant {name} is made"));
            Ok(())
        }
        Tenant::Ls => {
            let all = call(Method::GET, "/tenants", None).await?;
            server.list(&all, "tenants", &["name", "owner", "version", "created_at"])
        }
        Tenant::Rm { name } => {
            call(Method::DELETE, &format!("/tenants/{}", segment(&name)), None).await?;
            server.output.note(&format!(
                "tenant {name} is removed with all that it owned; its name is never given again"
            ));
            Ok(())
        }
    }
}

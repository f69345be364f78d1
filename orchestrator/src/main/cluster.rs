// SPDX-License-Identifier: Apache-2.0
//! From settings to the runtime of a cluster.

use anyhow::{Context as _, bail};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_common::settings::{Settings, name};
use postern_common::tasks::Tasks;
use postern_orchestrator::Prepared;
use postern_orchestrator::runtime::agent::{GatewayAt, GatewayTls};
use postern_orchestrator::runtime::kubernetes::{KubernetesRuntime, KubernetesSettings};
use std::sync::Arc;
use url::{Host, Url};

/// Connects to the cluster.
pub(crate) async fn open(
    settings: &Settings,
    prepared: &Prepared,
    tasks: &Tasks,
) -> anyhow::Result<KubernetesRuntime> {
    let control_key = control_key(settings)?;
    let told = STANDARD.encode(control_key.public_key().as_ref());
    tracing::info!(public_key = told, "orders to pods are signed; their `--control-key` must be this one");
    let given = KubernetesSettings {
        installation: prepared.installation().clone(),
        namespace: settings.text(name::SANDBOX_NAMESPACE).context("a setting with a default")?.to_owned(),
        template: settings.text(name::SANDBOX_TEMPLATE).context("a setting with a default")?.to_owned(),
        kubeconfig: settings.path(name::KUBECONFIG),
        control_key: Arc::new(control_key),
        gateway: Some(gateway(settings).await?),
        brings_syncs: settings.files_api().is_some(),
    };
    Ok(KubernetesRuntime::open(given, tasks.clone()).await?)
}

/// The public half of the key that signs what is said to pods, in base64.
pub(crate) fn public_key(settings: &Settings) -> anyhow::Result<String> {
    Ok(STANDARD.encode(control_key(settings)?.public_key().as_ref()))
}

fn control_key(settings: &Settings) -> anyhow::Result<Ed25519KeyPair> {
    let variable = name::SANDBOX_CONTROL_KEY.variable;
    let Some(seed) = settings.sandbox_control_key() else {
        bail!(
            "`{variable}` is not set: pods believe orders by its public half. Make one with `openssl rand -base64 32`"
        );
    };
    Ed25519KeyPair::from_seed_unchecked(seed.reveal())
        .map_err(|_rejected| anyhow::anyhow!("`{variable}` is no key"))
}

/// Where pods find the gateway. They can ask for no names, so that is done for them, here.
async fn gateway(settings: &Settings) -> anyhow::Result<GatewayAt> {
    let variable = name::SANDBOX_GATEWAY.variable;
    let url = settings.sandbox_gateway();
    let url = url.with_context(|| format!("`{variable}` is not set: pods would find no gateway"))?;
    let (host, port) = host_of(&url).with_context(|| format!("`{variable}` names no host and port"))?;
    let found = tokio::net::lookup_host((host.as_str(), port)).await;
    let found = found.with_context(|| format!("`{host}` of `{variable}` was not found"))?.next();
    let address = found.with_context(|| format!("`{host}` of `{variable}` has no address"))?;
    let tls = match url.scheme() {
        "http" => None,
        _ => {
            let ca = settings.path(name::SANDBOX_GATEWAY_CA);
            let ca = ca.with_context(|| {
                format!("`{}` is not set: pods could not tell the gateway", name::SANDBOX_GATEWAY_CA.variable)
            })?;
            let ca =
                std::fs::read_to_string(&ca).with_context(|| format!("could not read `{}`", ca.display()))?;
            Some(GatewayTls { name: host, ca })
        }
    };
    Ok(GatewayAt { address, tls })
}

fn host_of(url: &Url) -> Option<(String, u16)> {
    let host = match url.host()? {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    Some((host, url.port_or_known_default()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::settings::Sources;

    fn settings(given: &[(&str, &str)]) -> Settings {
        let environment = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::resolve(&Sources { environment: environment.collect(), ..Sources::default() })
            .expect("resolves")
    }

    #[test]
    fn the_public_half_of_a_seed_is_always_the_same() {
        let seed = STANDARD.encode([7; 32]);
        let key = public_key(&settings(&[("POSTERN_SANDBOX_CONTROL_KEY", &seed)])).expect("a key");
        assert_eq!(STANDARD.decode(&key).expect("base64").len(), 32);
        assert_eq!(key, public_key(&settings(&[("POSTERN_SANDBOX_CONTROL_KEY", &seed)])).expect("a key"));
        let missing = public_key(&settings(&[])).expect_err("there is none").to_string();
        assert!(missing.contains("POSTERN_SANDBOX_CONTROL_KEY") && missing.contains("openssl"), "{missing}");
    }

    #[tokio::test]
    async fn a_gateway_by_tls_needs_its_authority_and_one_by_plain_http_does_not() {
        let plain = settings(&[("POSTERN_SANDBOX_GATEWAY", "http://10.96.0.12:8081")]);
        let found = gateway(&plain).await.expect("is one");
        assert_eq!((found.address.to_string().as_str(), found.tls), ("10.96.0.12:8081", None));
        let tls = settings(&[("POSTERN_SANDBOX_GATEWAY", "https://10.96.0.12:8081")]);
        let refused = gateway(&tls).await.expect_err("no authority").to_string();
        assert!(refused.contains("POSTERN_SANDBOX_GATEWAY_CA"), "{refused}");
        assert!(gateway(&settings(&[])).await.is_err());
    }
}

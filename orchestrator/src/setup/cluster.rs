// SPDX-License-Identifier: Apache-2.0
//! The Secrets of one namespace: looked at and created, never changed, listed or deleted. And the one
//! ConfigMap that follows a key.

use super::{Dry, Entries};
use k8s_openapi::api::core::v1::{ConfigMap, Secret as ClusterSecret};
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, Config};
use postern_common::secret::Secret;
use std::collections::BTreeMap;

/// Who writes, as the API server records it.
const FIELD_MANAGER: &str = "postern-orchestrator";

/// A namespace of a cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    secrets: Api<ClusterSecret>,
    namespace: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// The cluster could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// This is no pod.
    #[error("could not find the API server: this runs in a pod with a service account, or beside KUBECONFIG")]
    Elsewhere(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No right.
    #[error("the API server refuses to {verb} {kind} `{name}`: give this service account that right")]
    Forbidden {
        /// What was tried.
        verb: &'static str,
        /// Of what.
        kind: &'static str,
        /// Which.
        name: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// Anything else.
    #[error("could not {verb} {kind} `{name}`")]
    Refused {
        /// What was tried.
        verb: &'static str,
        /// Of what.
        kind: &'static str,
        /// Which.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

impl Cluster {
    /// The namespace that this process runs in, as its pod or `KUBECONFIG` says.
    ///
    /// # Errors
    /// [`ClusterError::Elsewhere`].
    pub async fn around() -> Result<Self, ClusterError> {
        let config = Config::infer().await.map_err(|error| ClusterError::Elsewhere(Box::new(error)))?;
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|error| ClusterError::Elsewhere(Box::new(error)))?;
        Ok(Self { secrets: Api::namespaced(client.clone(), &namespace), client, namespace })
    }

    /// Another namespace of the same cluster.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Self {
        let (client, namespace) = (self.client.clone(), namespace.to_owned());
        Self { secrets: Api::namespaced(client.clone(), &namespace), client, namespace }
    }

    /// What the Secret holds, as far as it is text; `None` if there is none.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn secret(&self, name: &str) -> Result<Option<Entries>, ClusterError> {
        let found =
            self.secrets.get_opt(name).await.map_err(|error| failed("get", ("Secret", name), error))?;
        Ok(found.map(|secret| {
            let text = |(key, bytes): (String, k8s_openapi::ByteString)| {
                Some((key, Secret::new(String::from_utf8(bytes.0).ok()?)))
            };
            secret.data.unwrap_or_default().into_iter().filter_map(text).collect()
        }))
    }

    /// Creates a Secret; `false` if there is one.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub(super) async fn create_secret(
        &self,
        name: &str,
        entries: &Entries,
        dry: Dry,
    ) -> Result<bool, ClusterError> {
        let data = entries.iter().map(|(key, value)| (key.clone(), value.reveal().clone())).collect();
        let labels = BTreeMap::from([("app.kubernetes.io/part-of".to_owned(), "postern".to_owned())]);
        let secret = ClusterSecret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            string_data: Some(data),
            ..ClusterSecret::default()
        };
        let how = PostParams { dry_run: dry == Dry::Run, ..PostParams::default() };
        match self.secrets.create(&how, &secret).await {
            Ok(_created) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(failed("create", ("Secret", name), error)),
        }
    }

    /// Makes one entry of a ConfigMap what it should be.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub(super) async fn put_config_map(
        &self,
        name: &str,
        key: &str,
        value: &str,
    ) -> Result<(), ClusterError> {
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace);
        let map = serde_json::json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": name, "labels": { "app.kubernetes.io/part-of": "postern" } },
            "data": { key: value },
        });
        let as_us = PatchParams::apply(FIELD_MANAGER).force();
        let applied = maps.patch(name, &as_us, &Patch::Apply(&map)).await;
        applied.map(drop).map_err(|error| failed("apply", ("ConfigMap", name), error))
    }
}

fn failed(verb: &'static str, (kind, name): (&'static str, &str), error: kube::Error) -> ClusterError {
    let (name, source) = (name.to_owned(), Box::new(error));
    match &*source {
        kube::Error::Api(status) if status.code == 403 => {
            ClusterError::Forbidden { verb, kind, name, source }
        }
        _ => ClusterError::Refused { verb, kind, name, source },
    }
}

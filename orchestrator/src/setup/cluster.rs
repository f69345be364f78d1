// SPDX-License-Identifier: Apache-2.0
//! The Secrets of one namespace: looked at and created, never changed, listed or deleted.

use super::{Dry, Entries};
use k8s_openapi::api::core::v1::Secret as ClusterSecret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Config};
use postern_common::secret::Secret;
use std::collections::BTreeMap;

/// A namespace of a cluster.
#[derive(Clone)]
pub struct Cluster {
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
    #[error("the API server refuses to {verb} Secret `{secret}`: give this service account that right")]
    Forbidden {
        /// What was tried.
        verb: &'static str,
        /// On which.
        secret: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// Anything else.
    #[error("could not {verb} Secret `{secret}`")]
    Refused {
        /// What was tried.
        verb: &'static str,
        /// On which.
        secret: String,
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
        Ok(Self { secrets: Api::namespaced(client, &namespace), namespace })
    }

    /// What the Secret holds, as far as it is text; `None` if there is none.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn secret(&self, name: &str) -> Result<Option<Entries>, ClusterError> {
        let found = self.secrets.get_opt(name).await.map_err(|error| failed("get", name, error))?;
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
            Err(error) => Err(failed("create", name, error)),
        }
    }
}

fn failed(verb: &'static str, secret: &str, error: kube::Error) -> ClusterError {
    let (secret, source) = (secret.to_owned(), Box::new(error));
    match &*source {
        kube::Error::Api(status) if status.code == 403 => ClusterError::Forbidden { verb, secret, source },
        _ => ClusterError::Refused { verb, secret, source },
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What a pod's spec refers to: ConfigMaps, Secrets and a token of its account, read before it starts,
//! as a kubelet does.

use super::pod::Wrong;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{
    ConfigMap, KeyToPath, NFSVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, Secret,
    ServiceAccount, Volume,
};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt as _};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The API server's address for pods, as every cluster's kubelet tells them.
pub(super) const API_SERVER: (&str, &str) = ("10.96.0.1", "443");

/// A kubelet tries again for as long as it takes; here the next pod waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an object holds, by key.
type Data = BTreeMap<String, Vec<u8>>;

/// Everything that was read for one pod.
#[derive(Debug, Default)]
pub(super) struct Given {
    namespace: String,
    maps: BTreeMap<String, Data>,
    secrets: BTreeMap<String, Data>,
    token: Option<String>,
    /// The exports that claims are bound to.
    exports: BTreeMap<String, NFSVolumeSource>,
}

impl Given {
    /// Reads it.
    ///
    /// # Errors
    /// [`Wrong::Spec`] names what is not there, or could not be asked for.
    pub(super) async fn read(client: &Client, pod: &Pod) -> Result<Self, Wrong> {
        let namespace = pod.namespace().expect("has one");
        let (map_names, secret_names) = names(pod);
        let mut given = Self { namespace: namespace.clone(), ..Self::default() };
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
        for name in map_names {
            let found = patiently(&maps, &name).await?;
            let data = found.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes()));
            given.maps.insert(name, data.collect());
        }
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
        for name in secret_names {
            let found = secrets.get_opt(&name).await;
            let found = found.map_err(|error| Wrong::Spec(format!("secret \"{name}\": {error}")))?;
            let found = found.ok_or_else(|| Wrong::Spec(format!("secret \"{name}\" not found")))?;
            let data = found.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0));
            given.secrets.insert(name, data.collect());
        }
        if volumes(pod).iter().any(wants_token) {
            let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
            let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
            let wanted = TokenRequest::default();
            let account = account.unwrap_or_else(|| "default".to_owned());
            let made = accounts.create_token_request(&account, &PostParams::default(), &wanted).await;
            let made = made.map_err(|error| Wrong::Spec(format!("token of \"{account}\": {error}")))?;
            given.token = made.status.map(|status| status.token);
        }
        for volume in volumes(pod) {
            let Some(claim) = volume.persistent_volume_claim.as_ref() else { continue };
            let export = bound(client, &namespace, &claim.claim_name).await?;
            given.exports.insert(claim.claim_name.clone(), export);
        }
        Ok(given)
    }

    /// The NFS export that a volume is, if it is one.
    pub(super) fn export(&self, volume: &Volume) -> Option<&NFSVolumeSource> {
        self.exports.get(&volume.persistent_volume_claim.as_ref()?.claim_name)
    }

    /// One value of a ConfigMap.
    pub(super) fn of_map(&self, name: &str, key: &str) -> Option<String> {
        text(self.maps.get(name)?.get(key)?)
    }

    /// One value of a Secret.
    pub(super) fn of_secret(&self, name: &str, key: &str) -> Option<String> {
        text(self.secrets.get(name)?.get(key)?)
    }

    /// The files that a volume begins with; none: it is empty.
    ///
    /// # Errors
    /// [`Wrong::Spec`]: it is of a kind that this node has not.
    pub(super) fn files(&self, volume: &Volume) -> Result<Data, Wrong> {
        let refused = || Wrong::Spec(format!("volume {} is of a kind that is not to be had", volume.name));
        if volume.empty_dir.is_some() || self.export(volume).is_some() {
            return Ok(Data::new());
        }
        let map = |name: &str, items: Option<&[KeyToPath]>| chosen(self.maps.get(name)?, items);
        let secret = |name: &str, items: Option<&[KeyToPath]>| chosen(self.secrets.get(name)?, items);
        if let Some(of) = &volume.config_map {
            return map(&of.name, of.items.as_deref()).ok_or_else(refused);
        }
        if let Some(of) = &volume.secret {
            let name = of.secret_name.as_deref().unwrap_or_default();
            return secret(name, of.items.as_deref()).ok_or_else(refused);
        }
        let sources = volume.projected.as_ref().ok_or_else(refused)?.sources.as_deref().unwrap_or_default();
        let mut files = Data::new();
        for source in sources {
            if let Some(token) = source.service_account_token.as_ref() {
                files.insert(token.path.clone(), self.token.clone().unwrap_or_default().into_bytes());
            }
            if let Some(of) = &source.config_map {
                files.extend(map(&of.name, of.items.as_deref()).ok_or_else(refused)?);
            }
            if let Some(of) = &source.secret {
                files.extend(secret(&of.name, of.items.as_deref()).ok_or_else(refused)?);
            }
            for item in source.downward_api.iter().flat_map(|api| api.items.iter().flatten()) {
                let field = item.field_ref.as_ref().map(|field| field.field_path.as_str());
                if field == Some("metadata.namespace") {
                    files.insert(item.path.clone(), self.namespace.clone().into_bytes());
                }
            }
        }
        Ok(files)
    }
}

/// What of an object's data a volume shows, by the names that it gives; `None`: a key is not there.
fn chosen(data: &Data, items: Option<&[KeyToPath]>) -> Option<Data> {
    let Some(items) = items else { return Some(data.clone()) };
    items.iter().map(|item| Some((item.path.clone(), data.get(&item.key)?.clone()))).collect()
}

/// A ConfigMap that a controller may be about to make: a new namespace's certificates of the cluster.
async fn patiently(maps: &Api<ConfigMap>, name: &str) -> Result<ConfigMap, Wrong> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let why = match maps.get_opt(name).await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => "not found".to_owned(),
            Err(error) => error.to_string(),
        };
        if tokio::time::Instant::now() > deadline {
            return Err(Wrong::Spec(format!("configmap \"{name}\": {why}")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a claim is bound to, which its controller may be about to do.
async fn bound(client: &Client, namespace: &str, name: &str) -> Result<NFSVolumeSource, Wrong> {
    let wrong = |why: &str| Wrong::Spec(format!("claim \"{name}\": {why}"));
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let volume = loop {
        let claim = claims.get_opt(name).await.map_err(|error| wrong(&error.to_string()))?;
        let claim = claim.ok_or_else(|| wrong("not found"))?;
        let phase = claim.status.and_then(|status| status.phase);
        if phase.as_deref() == Some("Bound") {
            break claim.spec.and_then(|spec| spec.volume_name).unwrap_or_default();
        }
        if tokio::time::Instant::now() > deadline {
            return Err(wrong(&format!("is {phase:?} and not bound")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let volume = Api::<PersistentVolume>::all(client.clone()).get(&volume).await;
    let volume = volume.map_err(|error| wrong(&error.to_string()))?;
    volume.spec.and_then(|spec| spec.nfs).ok_or_else(|| wrong("is of no NFS export"))
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

fn volumes(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
}

fn wants_token(volume: &Volume) -> bool {
    let sources = volume.projected.as_ref().and_then(|projected| projected.sources.as_deref());
    sources.unwrap_or_default().iter().any(|source| source.service_account_token.is_some())
}

/// The ConfigMaps and Secrets that volumes and variables name.
fn names(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for volume in volumes(pod) {
        maps.extend(volume.config_map.as_ref().map(|map| map.name.clone()));
        secrets.extend(volume.secret.as_ref().and_then(|secret| secret.secret_name.clone()));
        let sources = volume.projected.as_ref().and_then(|projected| projected.sources.as_deref());
        for source in sources.unwrap_or_default() {
            maps.extend(source.config_map.as_ref().map(|map| map.name.clone()));
            secrets.extend(source.secret.as_ref().map(|secret| secret.name.clone()));
        }
    }
    let containers =
        pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    for from in containers.flat_map(|it| it.env.iter().flatten()).filter_map(|it| it.value_from.as_ref()) {
        maps.extend(from.config_map_key_ref.as_ref().map(|map| map.name.clone()));
        secrets.extend(from.secret_key_ref.as_ref().map(|secret| secret.name.clone()));
    }
    (maps, secrets)
}

// SPDX-License-Identifier: Apache-2.0
//! The escape suite (`tests/security/validate_isolation.sh`) against the sandboxes of a namespace: it
//! holds with the walls that the chart makes, and tells each hole where they are taken away.

use crate::cluster::{ADMIN, Cluster, kubeconfig, until};
use crate::manifests;
use crate::parts::cache;
use crate::postern::Postern;
use crate::running::project;
use serde_json::json;
use std::collections::BTreeSet;
use std::process::{Command, Output};

/// The fewest that must be held of everything that is tried without breaking a sandbox.
const AT_LEAST: usize = 75;

fn validate(postern: &Postern<'_>, only: &[&str]) -> Output {
    let mut command = Command::new(project().join("tests/security/validate_isolation.sh"));
    command.arg(&postern.namespace);
    for pattern in only {
        command.args(["--only", pattern]);
    }
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", cache().display());
    command.env_clear().env("PATH", path).env("HOME", postern.data()).env("POSTERN_DATA_DIR", postern.data());
    command.env("KUBECONFIG", kubeconfig("admin", ADMIN)).output().expect("runs")
}

fn said(output: &Output) -> String {
    let [out, errors] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{out}\n{errors}")
}

/// The names of the checks whose line begins so.
fn names(said: &str, verdict: &str) -> BTreeSet<String> {
    let lines = said.lines().filter(|line| line.starts_with(verdict) && !line.contains("# SKIP "));
    lines.filter_map(|line| Some(line.split_once(" - ")?.1.split_once(": ")?.0.to_owned())).collect()
}

pub(crate) async fn the_escape_suite_holds_in_a_namespace_and_sees_walls_that_are_missing(cluster: &Cluster) {
    let postern = Postern::start(cluster, "isolation").await;
    let calm = ["cluster/*", "kernel/*", "files/*", "network/*", "neighbours/*", "slot/*"];
    let output = validate(&postern, &calm);
    let told = said(&output);
    assert!(output.status.success(), "{told}");
    let held = names(&told, "ok ");
    assert!(held.len() >= AT_LEAST, "{} held: {told}", held.len());

    let mut open = manifests::template("default", &postern.control_key());
    open["spec"]["networkPolicy"] = json!({ "ingress": [{}], "egress": [{}] });
    cluster.apply(&open, &postern.namespace).await;
    let policies = cluster.api("networking.k8s.io/v1", "NetworkPolicy", &postern.namespace);
    until("the controller opens the walls", async || {
        let policy = policies.get("default-network-policy").await.ok()?;
        (policy.data["spec"]["egress"] == json!([{}])).then_some(())
    })
    .await;
    let output = validate(&postern, &["cluster/*"]);
    let told = said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let holes = [
        "api-server",
        "dns-tcp",
        "dns-udp",
        "from-elsewhere-sandboxd",
        "from-elsewhere-server",
        "internet",
        "kubelet",
        "metadata",
        "neighbour-sandboxd",
        "neighbour-server",
        "other-pods",
        "public-dns",
        "services",
    ];
    let holes: BTreeSet<_> = holes.iter().map(|name| format!("cluster/{name}")).collect();
    assert_eq!(names(&told, "not ok "), holes, "{told}");
    // Walls of another kind stand.
    let others =
        ["account-token", "dns-resolver", "given-to-containers", "privileged-pod", "store-credentials"];
    let others: BTreeSet<_> = others.iter().map(|name| format!("cluster/{name}")).collect();
    assert_eq!(names(&told, "ok "), others, "{told}");
}

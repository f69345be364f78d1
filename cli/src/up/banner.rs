// SPDX-License-Identifier: Apache-2.0
//! What `up` says once everything runs: where it all is, and how well sandboxes are kept apart.

use std::fmt;
use std::path::PathBuf;

/// Everything that the reader may look for.
#[derive(Debug)]
pub(crate) struct Banner {
    /// The REST API.
    pub api: String,
    /// Of each listener that is not where it usually is, where it is and why.
    pub moved: Vec<String>,
    /// The admin key's file.
    pub key_file: PathBuf,
    /// The gateway's door over TCP.
    pub gateway: Option<String>,
    /// Where each sandbox's own socket is.
    pub sockets: PathBuf,
    /// The control stream that gateways of their own follow.
    pub control: Option<String>,
    /// Health and metrics: of the orchestrator, of the gateway.
    pub admin: [Option<String>; 2],
    /// Each isolation that was tried, and what became of it.
    pub isolation: Vec<String>,
    /// The tenant and its watched folder.
    pub config: Option<(String, PathBuf)>,
    /// The data folder.
    pub data: PathBuf,
    /// Of the run before: sandboxes adopted, sandboxes that had ended, things that nobody knew.
    pub before: (usize, usize, usize),
}

impl fmt::Display for Banner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let off = || "off".to_owned();
        let [orchestrator, gateway] = &self.admin;
        writeln!(formatter, "postern {} is up", env!("CARGO_PKG_VERSION"))?;
        let mut line = |name: &str, text: String| writeln!(formatter, "  {name:<14} {text}");
        line("API", self.api.clone())?;
        for moved in &self.moved {
            line("", moved.clone())?;
        }
        line("admin key", format!("{} (keep it to yourself)", self.key_file.display()))?;
        line("console", "none yet".to_owned())?;
        line("gateway", self.gateway.clone().unwrap_or_else(off))?;
        line("sockets", format!("{}/SANDBOX", self.sockets.display()))?;
        line("control", self.control.clone().unwrap_or_else(off))?;
        let admin = [orchestrator, gateway].map(|it| it.clone().unwrap_or_else(off));
        line("health", admin.join(" (orchestrator), ") + " (gateway)")?;
        for (at, level) in self.isolation.iter().enumerate() {
            line(if at == 0 { "isolation" } else { "" }, level.clone())?;
        }
        line(
            "configuration",
            match &self.config {
                Some((tenant, folder)) => format!("{} (watched, tenant {tenant})", folder.display()),
                None => "by the API; `postern up --config DIR` watches a folder".to_owned(),
            },
        )?;
        line("data", self.data.display().to_string())?;
        let (adopted, ended, orphans) = self.before;
        if adopted + ended + orphans > 0 {
            line(
                "from before",
                format!("{adopted} sandboxes run on, {ended} had ended, {orphans} orphans removed"),
            )?;
        }
        formatter.write_str("Ctrl-C ends it and its sandboxes; users' files are kept.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_says_where_everything_is() {
        let banner = Banner {
            api: "http://127.0.0.1:41234".into(),
            moved: vec!["8080 is in use by another process: the API is at http://127.0.0.1:41234".into()],
            key_file: "/w/.postern/api-key".into(),
            gateway: Some("http://127.0.0.1:8081".into()),
            sockets: "/run/postern/abcd".into(),
            control: Some("127.0.0.1:8082".into()),
            admin: [Some("http://127.0.0.1:9090".into()), None],
            isolation: vec!["gvisor: works".into(), "namespaces: works, disk unenforced".into()],
            config: Some(("default".into(), "/w/config".into())),
            data: "/w/.postern".into(),
            before: (2, 1, 0),
        };
        insta::assert_snapshot!(banner, @r"
        postern 0.1.0 is up
          API            http://127.0.0.1:41234
                         8080 is in use by another process: the API is at http://127.0.0.1:41234
          admin key      /w/.postern/api-key (keep it to yourself)
          console        none yet
          gateway        http://127.0.0.1:8081
          sockets        /run/postern/abcd/SANDBOX
          control        127.0.0.1:8082
          health         http://127.0.0.1:9090 (orchestrator), off (gateway)
          isolation      gvisor: works
                         namespaces: works, disk unenforced
          configuration  /w/config (watched, tenant default)
          data           /w/.postern
          from before    2 sandboxes run on, 1 had ended, 0 orphans removed
        Ctrl-C ends it and its sandboxes; users' files are kept.
        ");
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What a container's root holds. An image is a name here: behind it is this machine's `/usr` and, for our
//! own, the programs of this build.
//!
//! Where `POSTERN_PROVE_IMAGES` names a folder of layouts (`scripts/images.sh layouts`), our own images are
//! what those hold and nothing else, but for the tools by which the node becomes a container's user.

use crate::parts::{folder, must};
use crate::running::project;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Images of ours, and the programs of each: it runs the first, which finds the others beside it.
const OWN: [(&str, &[&str]); 3] = [
    ("postern-sandbox", &["postern-sandboxd", "postern-sync"]),
    ("postern-gateway", &["postern-gateway"]),
    ("postern-orchestrator", &["postern-orchestrator", "postern-compile"]),
];
/// The folder of layouts.
const LAYOUTS: &str = "POSTERN_PROVE_IMAGES";
/// Where programs of this build are in a container, and where the node's tools are in an unpacked one.
const PROGRAMS: &str = "/image";
const NODE: &str = "/node";

/// What is behind an image's name.
#[derive(Debug)]
pub(super) enum Image {
    /// A root like this machine's.
    Other,
    /// The same, with programs of this build.
    Built(&'static [&'static str]),
    /// Our own, unpacked here, and what it runs.
    Unpacked(PathBuf, Vec<String>),
}

impl Image {
    /// The image of this name.
    pub(super) fn of(name: &str) -> Self {
        let Some((own, programs)) = OWN.into_iter().find(|(own, _)| name.contains(own)) else {
            return Self::Other;
        };
        let Some(layouts) = std::env::var_os(LAYOUTS) else { return Self::Built(programs) };
        let (root, about) = (unpacked(&Path::new(&layouts).join(own), own), format!("{own}.json"));
        let text = fs::read_to_string(root.with_file_name(about)).expect("was written beside it");
        let about: Value = serde_json::from_str(&text).expect("is JSON");
        let words = about["entrypoint"].as_array().expect("it runs something");
        let words = words.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Self::Unpacked(root, words)
    }

    /// What runs in it if a container says nothing else.
    pub(super) fn entrypoint(&self) -> Vec<String> {
        match self {
            Self::Other => Vec::new(),
            Self::Built(programs) => {
                programs.first().map(|name| format!("{PROGRAMS}/{name}")).into_iter().collect()
            }
            Self::Unpacked(_, words) => words.clone(),
        }
    }

    /// Has bubblewrap show its files.
    pub(super) fn show(&self, command: &mut Command) {
        // What bubblewrap makes by itself on the way to something is root's alone.
        command.args(["--perms", "0755", "--dir", "/etc"]);
        if let Self::Unpacked(root, _) = self {
            for name in ["usr", "etc/passwd", "etc/group", "etc/ssl"] {
                command.arg("--ro-bind").arg(root.join(name)).arg(Path::new("/").join(name));
            }
            command.args(["--ro-bind", "/usr", NODE]);
            return;
        }
        command.args(["--ro-bind", "/usr", "/usr"]);
        for link in ["bin", "sbin", "lib", "lib64"] {
            command.args(["--symlink", &format!("usr/{link}"), &format!("/{link}")]);
        }
        let Self::Built(programs) = self else { return };
        command.args(["--perms", "0755", "--dir", PROGRAMS]);
        for name in *programs {
            command.arg("--ro-bind").arg(program(name)).arg(Path::new(PROGRAMS).join(name));
        }
    }

    /// The words before a command that is to run as another user.
    pub(super) fn setpriv(&self) -> Vec<String> {
        if !matches!(self, Self::Unpacked(..)) {
            return vec!["setpriv".to_owned()];
        }
        let libraries = format!("{NODE}/lib/{}-linux-gnu", std::env::consts::ARCH);
        let loader =
            if cfg!(target_arch = "aarch64") { "ld-linux-aarch64.so.1" } else { "ld-linux-x86-64.so.2" };
        let loader = format!("{libraries}/{loader}");
        vec![loader, "--library-path".to_owned(), libraries, format!("{NODE}/bin/setpriv")]
    }
}

/// The root of a layout, unpacked once for each run.
fn unpacked(layout: &Path, name: &str) -> PathBuf {
    let root = folder().join("images").join(name);
    if !root.with_file_name(format!("{name}.json")).is_file() {
        fs::create_dir_all(folder().join("images")).expect("a folder");
        let script = project().join("scripts/images/unpack.py");
        let words = [script.as_path(), layout, root.as_path()].map(|path| path.to_str().expect("is text"));
        must("python3", &words);
    }
    root
}

/// A program of this build; `sandboxd` with what pods need, as a build of everything has it.
fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("knows where it is");
    let found = own.ancestors().map(|folder: &Path| folder.join(name)).find(|path| path.is_file());
    found.expect("`scripts/build.sh` builds it beside this test")
}

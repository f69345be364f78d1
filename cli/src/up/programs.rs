// SPDX-License-Identifier: Apache-2.0
//! Finds what `postern` needs beside itself: sandboxd, the shim, the sync, the compiler.
//!
//! A shipped `postern` carries them and lays them out, once for each build, in the data folder; a
//! built one has them beside itself.

mod own;

use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use aws_lc_rs::digest::{Context, SHA256};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Each companion's name and content; empty in a build that embeds none.
static EMBEDDED: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Where the companions are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Programs {
    /// Process 1 inside a sandbox.
    pub sandboxd: PathBuf,
    /// The process that carries a sandbox's files.
    pub sync: PathBuf,
    /// The process that owns a sandbox.
    pub shim: PathBuf,
    /// Compiles filters.
    pub compile: PathBuf,
}

impl Programs {
    /// The embedded ones, laid out below `data`; else those beside this program.
    pub(crate) fn find(data: &Path) -> Result<Self, Failure> {
        if !EMBEDDED.is_empty() {
            return Self::inside(&laid_out(EMBEDDED, &data.join("bin"))?);
        }
        let own = std::env::current_exe().context("this program does not know where it is")?;
        let beside = own.parent().context("this program is nowhere")?;
        Self::inside(beside)
    }

    fn inside(folder: &Path) -> Result<Self, Failure> {
        let found = |name: &str| {
            let path = folder.join(name);
            if path.is_file() {
                Ok(path)
            } else {
                Err(anyhow!("`{name}` is not in `{}`; `make build` puts it there", folder.display()))
            }
        };
        Ok(Self {
            sandboxd: found("postern-sandboxd")?,
            sync: found("postern-sync")?,
            shim: found("postern-shim")?,
            compile: found("postern-compile")?,
        })
    }
}

/// Writes the files into a folder named after what they hold, and says which. What is there
/// already is compared, not trusted.
fn laid_out(files: &[(&str, &[u8])], below: &Path) -> Result<PathBuf, Failure> {
    let folder = below.join(digest(files).context("this program's file cannot be read")?);
    for (name, content) in files {
        let path = folder.join(name);
        if own::is_at(content, &path).unwrap_or(false) {
            continue;
        }
        let parent = path.parent().context("a file in a folder")?;
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        write_program(&path, content).with_context(|| format!("`{}` cannot be written", path.display()))?;
    }
    Ok(folder)
}

fn write_program(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o500).open(&beside)?;
    own::write(content, &mut file)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

fn digest(files: &[(&str, &[u8])]) -> io::Result<String> {
    let mut digest = Context::new(&SHA256);
    for (name, content) in files {
        digest.update(&(name.len() as u64).to_le_bytes());
        digest.update(name.as_bytes());
        digest.update(&(content.len() as u64).to_le_bytes());
        own::each_part(content, |part| digest.update(part))?;
    }
    // 96 bits name a build; the content itself is compared as well.
    Ok(digest.finish().as_ref().iter().take(12).map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const FILES: &[(&str, &[u8])] = &[
        ("postern-sandboxd", b"sandboxd"),
        ("postern-sync", b"sync"),
        ("postern-shim", b"shim"),
        ("postern-compile", b"compile"),
        ("filters/card-guard.wasm", b"\0asm"),
    ];

    #[test]
    fn companions_are_laid_out_for_their_owner_and_mended() {
        let data = tempfile::tempdir().expect("a folder");
        let folder = laid_out(FILES, data.path()).expect("lays out");
        let programs = Programs::inside(&folder).expect("finds");
        let mode = fs::metadata(&programs.shim).expect("is there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o500);
        fs::remove_file(&programs.shim).expect("removes");
        fs::write(&programs.shim, "not ours").expect("replaces");
        assert_eq!(laid_out(FILES, data.path()).expect("lays out again"), folder);
        assert_eq!(fs::read(&programs.shim).expect("reads"), b"shim");
    }

    #[test]
    fn a_shipped_build_embeds_each_companion() {
        let embedded = include_str!("../../build.rs");
        for (name, _) in FILES.iter().filter(|(name, _)| !name.contains('/')) {
            assert!(embedded.contains(&format!("\"{name}\"")), "`build.rs` leaves {name} out");
        }
    }

    #[test]
    fn another_build_has_another_folder() {
        let other: &[(&str, &[u8])] = &[("postern-sandboxd", b"sandboxd"), ("postern-shim", b"shimcompile")];
        assert_ne!(digest(FILES).expect("reads"), digest(other).expect("reads"));
    }

    #[test]
    fn a_missing_companion_is_named() {
        let empty = tempfile::tempdir().expect("a folder");
        let told = Programs::inside(empty.path()).expect_err("is empty").to_string();
        assert!(told.contains("postern-sandboxd") && told.contains("make build"), "{told}");
    }
}

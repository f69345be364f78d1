// SPDX-License-Identifier: Apache-2.0
//! A filter's folder: `filter.toml`, `NAME.wasm`, `tests/*.toml`, and for one in Rust `Cargo.toml`.

use crate::failure::Failure;
use crate::up::Programs;
use anyhow::{Context as _, anyhow};
use postern_common::folder::FilterFiles;
use postern_common::id::FilterName;
use std::fs;
use std::path::{Path, PathBuf};

/// A filter's folder, with the filter's name.
#[derive(Debug, Clone)]
pub(super) struct FilterFolder {
    /// Where it is, from the root.
    pub(super) path: PathBuf,
    /// The package's name, else the folder's own.
    pub(super) name: FilterName,
}

impl FilterFolder {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let path = path.canonicalize().map_err(|_absent| {
            Failure::Usage(format!(
                "there is no folder `{}`; `postern filter new NAME` makes one",
                path.display()
            ))
        })?;
        if !path.join("filter.toml").is_file() {
            let place = path.display();
            return Err(Failure::Usage(format!(
                "`{place}` is no filter's folder: it has no filter.toml; `postern filter new NAME` makes one"
            )));
        }
        let name = package(&path).or_else(|| Some(path.file_name()?.to_str()?.to_owned()));
        let name = name.unwrap_or_default();
        let name = FilterName::parse(&name)
            .map_err(|error| Failure::Usage(format!("`{name}` cannot name a filter: {error}")))?;
        Ok(Self { path, name })
    }

    /// Where the component is.
    pub(super) fn component_path(&self) -> PathBuf {
        self.path.join(format!("{}.wasm", self.name))
    }

    pub(super) fn manifest(&self) -> Result<String, Failure> {
        read_text(&self.path.join("filter.toml"))
    }

    pub(super) fn component(&self) -> Result<Vec<u8>, Failure> {
        let path = self.component_path();
        fs::read(&path).map_err(|error| {
            anyhow!("`{}` cannot be read ({error}): `postern filter build` makes it", path.display()).into()
        })
    }

    /// Manifest and component, as they are pushed.
    pub(super) fn files(&self) -> Result<FilterFiles, Failure> {
        Ok(FilterFiles { manifest: self.manifest()?, component: self.component()? })
    }

    /// The files of cases, by name.
    pub(super) fn case_files(&self) -> Result<Vec<PathBuf>, Failure> {
        let folder = self.path.join("tests");
        let Ok(entries) = fs::read_dir(&folder) else { return Ok(Vec::new()) };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.with_context(|| format!("`{}` cannot be read", folder.display()))?.path();
            if path.extension().is_some_and(|ending| ending == "toml") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// The compiler, laid out where the folder keeps what is built if this program carries it.
    pub(super) fn compiler(&self) -> Result<PathBuf, Failure> {
        Ok(Programs::find(&self.path.join("target/postern"))?.compile)
    }
}

pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    Ok(fs::read_to_string(path).with_context(|| format!("`{}` cannot be read", path.display()))?)
}

/// The name of the package in `Cargo.toml`, if there is one.
fn package(folder: &Path) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Cargo {
        package: Package,
    }
    #[derive(serde::Deserialize)]
    struct Package {
        name: String,
    }
    let cargo: Cargo = toml::from_str(&fs::read_to_string(folder.join("Cargo.toml")).ok()?).ok()?;
    // First-party filters have a prefix that keeps their packages apart from others.
    let name = cargo.package.name;
    Some(name.strip_prefix("postern-plugin-").map_or(name.clone(), str::to_owned))
}

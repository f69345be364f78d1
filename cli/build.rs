// SPDX-License-Identifier: Apache-2.0
//! Puts the companions (sandboxd, shim, sync, compiler, first-party filters) into the binary when
//! `POSTERN_EMBED` names the folder that holds them; without it the table is empty and `postern`
//! looks for them beside itself.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The programs; filters are whatever `filters/` holds.
const PROGRAMS: [&str; 4] = ["postern-sandboxd", "postern-shim", "postern-sync", "postern-compile"];

fn main() -> io::Result<()> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| !path.as_os_str().is_empty());
    let told = |line: String| io::Write::write_all(&mut io::stdout(), line.as_bytes());
    told("cargo::rerun-if-env-changed=POSTERN_EMBED\n".to_owned())?;
    let out = variable("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?;
    let mut table = "&[\n".to_owned();
    if let Some(folder) = variable("POSTERN_EMBED") {
        for (name, path) in companions(&folder)? {
            told(format!("cargo::rerun-if-changed={}\n", path.display()))?;
            writeln!(table, "    ({name:?}, include_bytes!({path:?})),").map_err(io::Error::other)?;
        }
    }
    table.push_str("]\n");
    fs::write(out.join("embedded.rs"), table)
}

/// Each companion's name below the programs' folder, and where it is now.
fn companions(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found: Vec<_> = PROGRAMS.iter().map(|name| ((*name).to_owned(), folder.join(name))).collect();
    for entry in fs::read_dir(folder.join("filters"))? {
        let path = entry?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            found.push((format!("filters/{name}"), path.clone()));
        }
    }
    found.sort();
    Ok(found)
}

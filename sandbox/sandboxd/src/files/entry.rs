// SPDX-License-Identifier: Apache-2.0
//! What is told of one file.

use rustix::fs::{AtFlags, CWD, FileType, Stat};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Extended attributes of this prefix are a file's metadata (the SDKs' own name).
pub(super) const METADATA: &str = "user.e2b.";
/// All names of attributes, and the value of one, that are looked at.
const ATTRIBUTE_BYTES: usize = 4096;

/// A file as `filesystem.EntryInfo`. Where it is a link, what is told is of what it leads to, but
/// its name and path.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub(super) name: String,
    #[serde(rename = "type")]
    kind: Kind,
    path: String,
    /// 64-bit numbers are text in this codec.
    size: String,
    mode: u32,
    permissions: String,
    owner: String,
    group: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    modified_time: Option<jiff::Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    symlink_target: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_symlink: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Kind {
    #[serde(rename = "FILE_TYPE_FILE")]
    File,
    #[serde(rename = "FILE_TYPE_DIRECTORY")]
    Folder,
    #[serde(rename = "FILE_TYPE_SYMLINK")]
    Link,
    #[serde(rename = "FILE_TYPE_UNSPECIFIED")]
    Other,
}

impl Kind {
    fn of(kind: FileType) -> Self {
        match kind {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Folder,
            FileType::Symlink => Self::Link,
            _ => Self::Other,
        }
    }
}

impl Entry {
    /// # Errors
    /// If there is nothing at `path`.
    pub(super) fn of(path: &Path, names: &Names) -> io::Result<Self> {
        let own = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_symlink = FileType::from_raw_mode(own.st_mode) == FileType::Symlink;
        // A link that leads nowhere is itself.
        let stat =
            if is_symlink { rustix::fs::statat(CWD, path, AtFlags::empty()).unwrap_or(own) } else { own };
        let target = if is_symlink { std::fs::read_link(path).ok() } else { None };
        let kind = FileType::from_raw_mode(stat.st_mode);
        Ok(Self {
            name: text(path.file_name().unwrap_or(path.as_os_str())),
            kind: Kind::of(kind),
            path: text(path.as_os_str()),
            size: stat.st_size.to_string(),
            mode: stat.st_mode & 0o7777,
            permissions: permissions(kind, stat.st_mode),
            owner: names.user(stat.st_uid),
            group: names.group(stat.st_gid),
            modified_time: modified(&stat),
            symlink_target: target.map(|target| text(target.as_os_str())),
            metadata: if kind == FileType::RegularFile { metadata(path) } else { BTreeMap::new() },
            is_symlink,
        })
    }

    /// Whether it is a folder and no link to one.
    pub(super) fn is_folder(&self) -> bool {
        self.kind == Kind::Folder && !self.is_symlink
    }
}

fn text(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

fn modified(stat: &Stat) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(stat.st_mtime, i32::try_from(stat.st_mtime_nsec).ok()?).ok()
}

/// As `ls -l` writes them.
fn permissions(kind: FileType, mode: u32) -> String {
    let mut text = String::with_capacity(10);
    text.push(match kind {
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        _ => '-',
    });
    for (place, letter) in "rwxrwxrwx".chars().enumerate() {
        text.push(if mode & (0o400 >> place) == 0 { '-' } else { letter });
    }
    text
}

/// What was stored with a file, as far as it is text.
fn metadata(path: &Path) -> BTreeMap<String, String> {
    let mut list = [0_u8; ATTRIBUTE_BYTES];
    let Ok(length) = rustix::fs::listxattr(path, &mut list) else { return BTreeMap::new() };
    let names = list.get(..length).unwrap_or_default().split(|byte| *byte == 0);
    let names = names.filter_map(|name| std::str::from_utf8(name).ok());
    names
        .filter_map(|name| {
            let key = name.strip_prefix(METADATA)?;
            let mut value = [0_u8; ATTRIBUTE_BYTES];
            let length = rustix::fs::getxattr(path, name, &mut value).ok()?;
            Some((key.to_owned(), String::from_utf8(value.get(..length)?.to_vec()).ok()?))
        })
        .collect()
}

/// Names of users and groups, as they were at the start: the agent cannot change them.
#[derive(Debug, Default)]
pub(super) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    pub(super) fn read() -> Self {
        Self { users: table(Path::new("/etc/passwd")), groups: table(Path::new("/etc/group")) }
    }

    fn user(&self, id: u32) -> String {
        self.users.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    fn group(&self, id: u32) -> String {
        self.groups.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }
}

/// `name:password:id:…`, a line each; without the file there are no names.
fn table(path: &Path) -> HashMap<u32, String> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let named = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = OsStr::from_bytes(fields.next()?).to_str()?.to_owned();
        Some((std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?, name))
    };
    bytes.split(|byte| *byte == b'\n').filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_read_as_ls_writes_them() {
        assert_eq!(permissions(FileType::RegularFile, 0o644), "-rw-r--r--");
        assert_eq!(permissions(FileType::Directory, 0o750), "drwxr-x---");
    }

    #[test]
    fn of_a_link_what_it_leads_to_is_told_and_of_a_broken_one_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "12345").expect("writes");
        std::os::unix::fs::symlink("file", at("link")).expect("links");
        std::os::unix::fs::symlink("nowhere", at("broken")).expect("links");
        let names = Names::read();
        let told =
            |name: &str| serde_json::to_value(Entry::of(&at(name), &names).expect("is there")).expect("JSON");
        let link = told("link");
        assert_eq!(
            (&link["type"], &link["size"], &link["isSymlink"]),
            (&"FILE_TYPE_FILE".into(), &"5".into(), &true.into())
        );
        assert_eq!(link["symlinkTarget"], "file");
        assert_eq!(told("broken")["type"], "FILE_TYPE_SYMLINK");
        assert!(told("file").get("isSymlink").is_none());
        assert!(Entry::of(&at("none"), &names).is_err());
    }
}

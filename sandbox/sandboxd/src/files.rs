// SPDX-License-Identifier: Apache-2.0
//! The sandbox's files: listed, moved, watched, carried in and out.
//!
//! All of it happens with the agent's own rights, so a path that leads somewhere unexpected leads
//! nowhere that the agent could not go itself, with one exception: this process's own memory and
//! descriptors. So no magic link is followed and nothing of `/proc` is opened (see `path`).

pub(crate) mod archive;
mod copy;
mod disk;
mod entry;
mod multipart;
mod path;
pub(crate) mod service;
pub(crate) mod transfer;
mod tree;
mod watch;

use crate::connect::{Code, Failure};
use disk::Disk;
use entry::Names;
use postern_common::tasks::Tasks;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Semaphore;
use watch::Watchers;

/// Everything that file calls need. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    home: Arc<Path>,
    names: Arc<Names>,
    disk: Disk,
    watchers: Watchers,
    trees: Arc<Semaphore>,
    tasks: Tasks,
}

impl Files {
    /// # Errors
    /// If the kernel gives no threads.
    pub(crate) fn open(home: &Path, tasks: Tasks) -> io::Result<Self> {
        let names = Arc::new(Names::read());
        let (disk, watchers) = (Disk::open()?, Watchers::default());
        let trees = Arc::new(Semaphore::new(archive::TREES));
        Ok(Self { home: home.into(), names, disk, watchers, trees, tasks })
    }

    /// What a caller's path means.
    fn resolve(&self, text: &str) -> Result<PathBuf, Failure> {
        path::resolve(&self.home, text)
    }
}

/// Whether the path leads nowhere, or to something that is no file: a loop of links, a pipe that nobody
/// reads. These have no stable kinds of their own.
fn is_no_file(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let number = error.raw_os_error();
    [Errno::LOOP, Errno::NXIO, Errno::NODEV].iter().any(|errno| number == Some(errno.raw_os_error()))
}

/// A failed call on a path, as its caller is told.
fn failed(path: &Path, error: &io::Error) -> Failure {
    use io::ErrorKind as Kind;
    let code = match error.kind() {
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Code::PermissionDenied,
        Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge | Kind::OutOfMemory => {
            Code::ResourceExhausted
        }
        Kind::NotADirectory
        | Kind::IsADirectory
        | Kind::DirectoryNotEmpty
        | Kind::InvalidInput
        | Kind::InvalidData
        | Kind::InvalidFilename
        | Kind::UnexpectedEof
        | Kind::Unsupported => Code::InvalidArgument,
        _ if is_no_file(error) => Code::InvalidArgument,
        _ => Code::Internal,
    };
    Failure::new(code, format!("`{}`: {error}", path.display()))
}

// SPDX-License-Identifier: Apache-2.0
//! The run folder of one sandbox: what lies where. It is named after the sandbox and lies in the
//! installation's own folder, so its path in a command line tells whose process that is.

use std::path::{Path, PathBuf};

/// The paths of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder(PathBuf);

impl RunFolder {
    /// The folder at `path`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The spec, written by the orchestrator.
    #[must_use]
    pub fn spec(&self) -> PathBuf {
        self.0.join("spec.json")
    }

    /// The shim's socket, for the orchestrator only (0600).
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// The folder that holds nothing but the gateway's socket; bound into the sandbox.
    #[must_use]
    pub fn gateway(&self) -> PathBuf {
        self.0.join("gateway")
    }

    /// The socket that the gateway makes for this sandbox.
    #[must_use]
    pub fn gateway_socket(&self) -> PathBuf {
        self.gateway().join("gateway.sock")
    }

    /// The folder that holds nothing but the gateway's sockets for this sandbox's sync.
    #[must_use]
    pub fn sync_gateway(&self) -> PathBuf {
        self.0.join("sync")
    }

    /// Where the slot is mounted; below it `data` and `home`.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.0.join("disk")
    }

    /// Where an image is shown, read-only, to a user who could not reach it otherwise.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }

    /// How the sandbox ended, written by the shim as its last act.
    #[must_use]
    pub fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }

    /// gVisor's configuration of this sandbox.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.0.join("bundle")
    }

    /// Where the picture of its memory is, while it is written or read.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.0.join("memory")
    }

    /// gVisor's state of this sandbox.
    #[must_use]
    pub fn runsc_state(&self) -> PathBuf {
        self.0.join("runsc")
    }
}

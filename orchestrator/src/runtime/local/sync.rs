// SPDX-License-Identifier: Apache-2.0
//! The process that a sandbox's sync runs in: bubblewrap, as the sandbox's own user, with namespaces of
//! its own. It sees the sandbox's slot, the folder of its own socket of the gateway, its program and
//! `/usr`, and nothing else of this machine: no network, no neighbour, no database, no credential.
//!
//! Its memory of what the store has lies on the slot, beside what the sandbox sees of it (`sync`), so
//! that it lives exactly as long.

use super::LocalRuntime;
use crate::keys::{hex, random};
use crate::runtime::{Isolation, RuntimeError};
use postern_common::id::SandboxId;
use postern_shim::disk;
use postern_shim::rootfs::{MASKED, inside};
use postern_shim::spec::{IsolatedBy, guest_uid};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, lchown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Its memory's place on the slot, which no sandbox is shown.
const STATE: &str = "sync";
/// Who it is inside its namespaces.
const UID: u32 = 1000;
/// What tells one of its sockets from the one before.
const SOCKET_BYTES: usize = 4;

impl LocalRuntime {
    /// Whether it has the program.
    #[must_use]
    pub const fn has_sync_program(&self) -> bool {
        self.sync.is_some()
    }

    /// The socket where the gateway is to listen for a sandbox's sync, the folder of what it remembers,
    /// and the process itself; `None`
    /// if this runtime has no such program, or nothing is left of the slot. Each time it is another
    /// socket: the gateway takes that of a session that ended away when it gets to it.
    ///
    /// # Errors
    /// [`RuntimeError::Machine`].
    pub async fn prepare_sync(
        &self,
        sandbox: &SandboxId,
    ) -> Result<Option<(PathBuf, PathBuf, Command)>, RuntimeError> {
        let Some(program) = &self.sync else { return Ok(None) };
        let Some((files, _)) = self.find_user_files(sandbox).await? else { return Ok(None) };
        // Its `data/user`, wherever that is shown now.
        let Some(disk) = files.ancestors().nth(2).map(Path::to_owned) else { return Ok(None) };
        let folder = self.folder(sandbox);
        let failed =
            |source| RuntimeError::Machine { sandbox: sandbox.clone(), what: "prepare the sync", source };
        let guest = self.is_root.then(|| guest_uid(sandbox));
        self.make_places(&folder.sync_gateway(), &disk, guest).map_err(failed)?;
        let IsolatedBy::Namespaces { bwrap } =
            self.program(Isolation::Namespaces).map_err(|why| failed(io::Error::other(why)))?
        else {
            return Ok(None);
        };
        let mut command = Command::new(bwrap);
        let unique = random(SOCKET_BYTES).map_err(|error| failed(io::Error::other(error)))?;
        let socket = format!("{}.sock", hex(unique.reveal()));
        command.args(self.arguments(program, &disk, (&folder.sync_gateway(), &socket)));
        command.env_clear().current_dir("/").process_group(0);
        if let Some(guest) = guest {
            // The standard library also drops all supplementary groups here.
            command.uid(guest).gid(guest);
        }
        Ok(Some((folder.sync_gateway().join(socket), disk.join(STATE), command)))
    }

    /// The folders that it is shown. A slot that can only be read any more has what it needs.
    fn make_places(&self, gateway: &Path, disk: &Path, guest: Option<u32>) -> io::Result<()> {
        fs::create_dir_all(gateway)?;
        let above = gateway.parent().unwrap_or(gateway);
        if let Some(guest) = guest {
            disk::open_to(above, guest)?;
            disk::open_below(gateway)?;
        } else {
            fs::set_permissions(above, fs::Permissions::from_mode(0o700))?;
        }
        let state = disk.join(STATE);
        let made = fs::create_dir(&state).and_then(|()| {
            fs::set_permissions(&state, fs::Permissions::from_mode(0o700))?;
            guest.map_or(Ok(()), |guest| lchown(&state, Some(guest), Some(guest)))
        });
        match made {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    fn arguments(&self, program: &Path, disk: &Path, (gateway, socket): (&Path, &str)) -> Vec<OsString> {
        let mut line: Vec<OsString> = Vec::new();
        let words = |line: &mut Vec<OsString>, words: &str| line.extend(words.split(' ').map(OsString::from));
        let bind = |line: &mut Vec<OsString>, how: &str, outside: &Path, inside: &str| {
            line.extend([how.into(), outside.into(), inside.into()]);
        };
        words(&mut line, "--unshare-all --unshare-user --as-pid-1 --new-session --cap-drop ALL --clearenv");
        words(&mut line, &format!("--uid {UID} --gid {UID} --hostname sync"));
        bind(&mut line, "--ro-bind", &self.skeleton, "/");
        bind(&mut line, "--ro-bind", Path::new("/usr"), "/usr");
        for path in MASKED.into_iter().filter(|path| Path::new(path).is_dir()) {
            words(&mut line, &format!("--size 4096 --tmpfs {path} --remount-ro {path}"));
        }
        words(&mut line, "--proc /proc");
        bind(&mut line, "--ro-bind", gateway, inside::GATEWAY);
        bind(&mut line, "--ro-bind", program, inside::SANDBOXD);
        // A mount that can only be read stays so.
        bind(&mut line, "--bind", disk, inside::DATA);
        let (tree, state) = (format!("{}/data/user", inside::DATA), format!("{}/{STATE}", inside::DATA));
        let socket = format!("{}/{socket}", inside::GATEWAY);
        words(&mut line, &format!("--chdir / -- {} {tree} {state} {socket}", inside::SANDBOXD));
        line
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Keeping a user's files when their sandbox ends, and what happens when that cannot be done: a
//! sandbox must come to its end, and files must not go unnoticed.

use super::{Cause, DriveError, Driver, entry};
use crate::files::{Kept, Owned};
use crate::runtime::RuntimeError;
use crate::store::{Action, SandboxRow};

/// Tries before files are set aside. The sweep begins one every ten seconds: five minutes, in
/// which an operator may free a full disk.
pub(super) const KEEP_ATTEMPTS: u32 = 30;

impl Driver {
    pub(super) async fn keep_files(&self, row: &SandboxRow) -> Result<(), DriveError> {
        let error = match self.try_to_keep(row).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let id = &row.new.id;
        if self.0.lanes.count_failure(id) < KEEP_ATTEMPTS {
            return Err(error);
        }
        let aside = self.parts().host.set_aside(id).await?;
        let place = aside.as_ref().map(|path| path.display().to_string());
        tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, place, "files were not kept, but set aside");
        self.record(row, Action::FilesSetAside, "they could not be kept; the operator has them".to_owned())
            .await
    }

    /// One try to keep the files, which sets nothing aside when it fails.
    pub(super) async fn try_to_keep(&self, row: &SandboxRow) -> Result<(), DriveError> {
        let id = &row.new.id;
        if let Some(report) = self.parts().syncs.finish(row).await? {
            let failed =
                |source| RuntimeError::Machine { sandbox: id.clone(), what: "note what was kept", source };
            self.parts().files.note_kept(id).map_err(failed)?;
            if report.left_count > 0 || report.conflict_count > 0 || report.files > 0 || report.deleted > 0 {
                let text = serde_json::to_string(&report).unwrap_or_default();
                self.record(row, Action::FilesKept, text).await?;
            }
            return Ok(());
        }
        let slot = self.parts().host.user_folder(id).await?;
        let report = match self.parts().files.keep(&owned(row), slot).await {
            Ok(Kept::Carried(report)) => report,
            Ok(Kept::Lost) => {
                tracing::error!(sandbox = %id, "the files that were brought in are gone: nothing could be kept");
                let reason = if self.parts().host.has_syncs() {
                    "there was nothing left of them where it ran; what its sync had carried is in the store"
                } else {
                    "there was nothing left of them on the machine"
                };
                return self.record(row, Action::FilesLost, reason.to_owned()).await;
            }
            Err(source) => {
                let source = std::io::Error::other(source);
                let what = "keep the files";
                return Err(RuntimeError::Machine { sandbox: id.clone(), what, source }.into());
            }
        };
        if report.left_count > 0 || report.files > 0 || report.deleted > 0 {
            let text = serde_json::to_string(&report).unwrap_or_default();
            self.record(row, Action::FilesKept, text).await?;
        }
        Ok(())
    }

    async fn record(&self, row: &SandboxRow, action: Action, reason: String) -> Result<(), DriveError> {
        let cause = Cause::own(reason);
        Ok(self.parts().store.record(&entry(&row.new, action, &cause).reason(cause.reason)).await?)
    }
}

/// Whose a sandbox's files are.
pub(super) fn owned(row: &SandboxRow) -> Owned {
    let new = &row.new;
    Owned {
        sandbox: new.id.clone(),
        tenant: new.tenant.clone(),
        user: new.user_id.clone(),
        disk_bytes: new.asked.limits.disk_bytes,
    }
}

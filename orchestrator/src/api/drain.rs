// SPDX-License-Identifier: Apache-2.0
//! Whether new work is taken: not any more while the orchestrator ends.

use postern_common::problem::{Code, Problem};
use tokio::sync::{RwLock, RwLockReadGuard};

/// Closed once, for good.
#[derive(Debug, Default)]
pub(crate) struct Drain(RwLock<bool>);

impl Drain {
    /// Lets work begin. While what is returned is held, [`Drain::close`] waits: it is held until
    /// the work is written down, and no longer.
    ///
    /// # Errors
    /// `shutting-down`.
    pub(crate) async fn enter(&self) -> Result<RwLockReadGuard<'_, bool>, Problem> {
        let closed = self.0.read().await;
        if *closed {
            return Err(Problem::new(Code::ShuttingDown, "this server is ending and takes no new work")
                .hint("ask again when it is up"));
        }
        Ok(closed)
    }

    /// Takes no more work. When this returns, all that was taken is written down.
    pub(crate) async fn close(&self) {
        *self.0.write().await = true;
    }
}

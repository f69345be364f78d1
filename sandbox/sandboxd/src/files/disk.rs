// SPDX-License-Identifier: Apache-2.0
//! Where calls that may wait for a disk are made: a few threads, started before the agent's first
//! process, so that an agent which uses up its processes takes none of them away.

use crate::connect::{Code, Failure};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Enough that a long listing does not hold a short read up.
const THREADS: usize = 4;
/// Calls that may wait; each caller waits for its own.
const QUEUED: usize = 64;
/// Deep enough for the deepest folders that are gone through, see `tree`.
const STACK_BYTES: usize = 1 << 20;

type Act = Box<dyn FnOnce() + Send>;

/// The threads. Clones share them; they end with the last.
#[derive(Clone)]
pub(super) struct Disk(mpsc::Sender<Act>);

impl fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Disk")
    }
}

impl Disk {
    pub(super) fn open() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Act>(QUEUED);
        let receiver = Arc::new(Mutex::new(receiver));
        for number in 0..THREADS {
            let receiver = Arc::clone(&receiver);
            let thread = std::thread::Builder::new().name(format!("disk-{number}")).stack_size(STACK_BYTES);
            thread.spawn(move || {
                loop {
                    let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
                    let Some(act) = next else { return };
                    act();
                }
            })?;
        }
        Ok(Self(sender))
    }

    /// Runs `act` on one of the threads. It runs to its end even if nobody waits any more.
    pub(super) async fn run<Answer: Send + 'static>(
        &self,
        act: impl FnOnce() -> Result<Answer, Failure> + Send + 'static,
    ) -> Result<Answer, Failure> {
        let gone = || Failure::new(Code::Internal, "the file threads have ended");
        let (sender, receiver) = oneshot::channel();
        // Whoever asked may have left.
        let act: Act = Box::new(move || drop(sender.send(act())));
        self.0.send(act).await.map_err(|_closed| gone())?;
        receiver.await.map_err(|_closed| gone())?
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Descriptors that whoever started this process left open. None is ours, and all that we start would
//! have them too, the agent's processes inside included.

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

const LAST_STANDARD_STREAM: RawFd = 2;

/// Closes everything but the standard streams. Call it first: whatever is opened later is closed on
/// exec by itself.
pub fn close() {
    let listed = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<RawFd> = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > LAST_STANDARD_STREAM) {
        // The list itself was one of them, and is closed by now.
        if fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok() {
            #[expect(unsafe_code, reason = "only a number tells of an inherited descriptor")]
            // SAFETY: it is open, and nothing in this process owns it: `main` has opened nothing yet.
            let inherited = unsafe { OwnedFd::from_raw_fd(number) };
            drop(inherited);
        }
    }
}

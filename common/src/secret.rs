// SPDX-License-Identifier: Apache-2.0
//! A value that may be used but never shown.
//!
//! `Debug` prints `Secret(…)`, there is no `Display` and no `Serialize`, and the memory is
//! wiped on drop. Reading it takes a call that stands out in review: [`Secret::reveal`].

use std::fmt;
use zeroize::Zeroize;

/// A secret value; shows nothing of itself in logs, errors or debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Wraps a value so that it can no longer be printed by accident.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself. Never pass it to a log, an error or a serializer.
    pub const fn reveal(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_shows_nothing_of_the_value() {
        let secret = Secret::new("hunter2".to_owned());
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "Secret(…) Some(Secret(…))");
        assert_eq!(secret.reveal(), "hunter2");
    }
}

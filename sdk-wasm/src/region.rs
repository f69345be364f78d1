// SPDX-License-Identifier: Apache-2.0
//! Where the next block of memory goes: the arithmetic of the bump allocator, without memory.

/// A free stretch of addresses that is handed out from its low end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Region {
    /// The first free address.
    pub(crate) next: usize,
    /// One past the last address.
    pub(crate) end: usize,
}

impl Region {
    /// Takes a block, or nothing if it does not fit. `align` is a power of two.
    ///
    /// INVARIANT: what is handed out lies between the old `next` and the new one, so blocks never
    /// overlap until [`Region::give_back`] returns the last of them.
    pub(crate) fn take(&mut self, size: usize, align: usize) -> Option<usize> {
        let start = self.next.checked_add(align.checked_sub(1)?)? & !(align - 1);
        let next = start.checked_add(size)?;
        if next > self.end {
            return None;
        }
        self.next = next;
        Some(start)
    }

    /// Returns a block. Only the last one that was taken becomes free again.
    pub(crate) fn give_back(&mut self, start: usize, size: usize) {
        if start.checked_add(size) == Some(self.next) {
            self.next = start;
        }
    }

    /// Makes the last block that was taken longer or shorter where it lies, if it can.
    pub(crate) fn resize(&mut self, start: usize, old: usize, new: usize) -> bool {
        if start.checked_add(old) != Some(self.next) {
            return false;
        }
        match start.checked_add(new) {
            Some(next) if next <= self.end => {
                self.next = next;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_that_does_not_fit_is_refused_and_changes_nothing() {
        let mut region = Region { next: 16, end: 32 };
        assert_eq!(region.take(17, 1), None);
        assert_eq!(region.take(usize::MAX, 8), None);
        assert_eq!(region.take(16, 1), Some(16));
        assert_eq!(region.take(1, 1), None);
    }

    #[test]
    fn only_the_last_block_grows_in_place_or_comes_back() {
        let mut region = Region { next: 0, end: 64 };
        let first = region.take(8, 8).expect("fits");
        let last = region.take(8, 8).expect("fits");
        assert!(!region.resize(first, 8, 16));
        assert!(region.resize(last, 8, 16));
        assert!(!region.resize(last, 16, 65));
        region.give_back(first, 8);
        assert_eq!(region.next, 24);
        region.give_back(last, 16);
        assert_eq!(region.next, 8);
    }

    proptest! {
        #[test]
        fn blocks_are_aligned_inside_and_apart(
            requests in prop::collection::vec((0usize..200, 0u32..6), 1..60),
            begin in 0usize..1000,
        ) {
            let mut region = Region { next: begin, end: begin + 4096 };
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for (size, power) in requests {
                let align = 1 << power;
                if let Some(start) = region.take(size, align) {
                    prop_assert_eq!(start % align, 0);
                    prop_assert!(start >= begin && start + size <= begin + 4096);
                    prop_assert!(taken.iter().all(|&(other, length)| start >= other + length));
                    taken.push((start, size));
                }
            }
        }
    }
}

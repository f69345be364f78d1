// SPDX-License-Identifier: Apache-2.0
//! Suites that cross crates, in one binary: a module for each subject.

#[cfg(test)]
mod edges;
#[cfg(test)]
mod isolation;

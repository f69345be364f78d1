// SPDX-License-Identifier: Apache-2.0
//! Suites that cross crates, in one binary: a module for each subject.

#[cfg(test)]
mod alone;
#[cfg(test)]
mod apply;
#[cfg(test)]
mod artefacts;
#[cfg(test)]
mod asleep;
#[cfg(test)]
mod audits;
#[cfg(test)]
mod author;
#[cfg(test)]
mod chart;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod crash_in_the_middle;
#[cfg(test)]
mod doctor;
#[cfg(test)]
mod documents;
#[cfg(test)]
mod edges;
#[cfg(test)]
mod ending;
#[cfg(test)]
mod exec_crash;
#[cfg(test)]
mod following;
#[cfg(test)]
mod fresh;
#[cfg(test)]
mod gateways;
#[cfg(test)]
#[path = "../../gateway/compile/tests/compile/handmade.rs"]
mod handmade;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod images;
#[cfg(test)]
mod isolation;
#[cfg(test)]
mod kit;
#[cfg(test)]
mod loss;
#[cfg(test)]
mod quickstart;
#[cfg(test)]
mod readme;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod repeat;
#[cfg(test)]
mod replicas;
#[cfg(test)]
mod retention;
#[cfg(test)]
mod rollout;
#[cfg(test)]
mod running;
#[cfg(test)]
mod s3;
#[cfg(test)]
mod sdk;
#[cfg(test)]
mod shell;
#[cfg(test)]
mod starting;
#[cfg(test)]
mod story;
#[cfg(test)]
mod sync;
#[cfg(test)]
mod tokens;
#[cfg(test)]
mod unread;
#[cfg(test)]
mod verbs;
#[cfg(test)]
mod websocket;

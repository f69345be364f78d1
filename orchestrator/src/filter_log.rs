// SPDX-License-Identifier: Apache-2.0
//! What tenants' filters log, kept for a while for their authors.
//!
//! In memory only: it is a help while a filter is written, not a record. Each tenant has room for
//! so many lines; a new one takes the place of the oldest.

use postern_common::decision::FilterLine;
use postern_common::id::{FilterName, TenantId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{broadcast, mpsc};

/// Lines of one tenant: those of a thousand calls or so.
const LINES: usize = 2_000;
/// Tenants that have lines, whatever gateways say.
const TENANTS: usize = 10_000;
/// Lines that a slow reader may be behind before it misses some.
const BEHIND: usize = 1_024;

/// The lines of all tenants. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct FilterLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lines: Mutex<BTreeMap<TenantId, VecDeque<Arc<FilterLine>>>>,
    new: broadcast::Sender<Arc<FilterLine>>,
}

impl Default for FilterLog {
    fn default() -> Self {
        Self(Arc::new(Inner { lines: Mutex::default(), new: broadcast::channel(BEHIND).0 }))
    }
}

impl FilterLog {
    /// Keeps what a gateway sends until it is gone.
    pub(crate) async fn keep(self, mut lines: mpsc::Receiver<FilterLine>) {
        while let Some(line) = lines.recv().await {
            self.add(line);
        }
    }

    /// Keeps one line.
    pub(crate) fn add(&self, line: FilterLine) {
        let line = Arc::new(line);
        let mut lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= TENANTS && !lines.contains_key(&line.tenant) {
            return;
        }
        let own = lines.entry(line.tenant.clone()).or_default();
        if own.len() >= LINES {
            own.pop_front();
        }
        own.push_back(Arc::clone(&line));
        drop(lines);
        // Nobody may be listening.
        let _heard = self.0.new.send(line).is_ok();
    }

    /// A filter's lines so far, oldest first, and those that come.
    pub(crate) fn follow(
        &self,
        tenant: &TenantId,
        filter: &FilterName,
    ) -> (Vec<Arc<FilterLine>>, broadcast::Receiver<Arc<FilterLine>>) {
        let lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that no line falls in between.
        let new = self.0.new.subscribe();
        let own = lines.get(tenant).into_iter().flatten();
        (own.filter(|line| line.filter == *filter).cloned().collect(), new)
    }

    /// Forgets a tenant that is no more.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::id::SandboxId;

    fn line(tenant: &str, filter: &str, message: &str) -> FilterLine {
        FilterLine {
            at: jiff::Timestamp::UNIX_EPOCH,
            tenant: TenantId::parse(tenant).expect("a name"),
            filter: FilterName::parse(filter).expect("a name"),
            sandbox_id: SandboxId::from_random([0; 12]),
            level: "info".into(),
            message: message.to_owned(),
        }
    }

    fn messages(log: &FilterLog, tenant: &str, filter: &str) -> Vec<String> {
        let tenant = TenantId::parse(tenant).expect("a name");
        let (lines, _) = log.follow(&tenant, &FilterName::parse(filter).expect("a name"));
        lines.iter().map(|line| line.message.clone()).collect()
    }

    #[test]
    fn a_tenant_sees_its_own_filters_lines_and_old_ones_make_room() {
        let log = FilterLog::default();
        log.add(line("a", "one", "first"));
        log.add(line("b", "one", "not yours"));
        log.add(line("a", "two", "of another"));
        assert_eq!(messages(&log, "a", "one"), ["first"]);
        (0..LINES).for_each(|number| log.add(line("a", "two", &number.to_string())));
        assert!(messages(&log, "a", "one").is_empty());
        assert_eq!(messages(&log, "a", "two").len(), LINES);
        assert_eq!(messages(&log, "b", "one"), ["not yours"], "one tenant's flood is its own");
        log.forget(&TenantId::parse("b").expect("a name"));
        assert!(messages(&log, "b", "one").is_empty());
    }

    #[tokio::test]
    async fn who_follows_hears_what_comes() {
        let log = FilterLog::default();
        let (tenant, filter) =
            (TenantId::parse("a").expect("a name"), FilterName::parse("f").expect("a name"));
        let (_, mut new) = log.follow(&tenant, &filter);
        log.add(line("a", "f", "hello"));
        assert_eq!(new.recv().await.expect("a line").message, "hello");
    }
}

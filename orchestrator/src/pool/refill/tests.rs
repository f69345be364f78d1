// SPDX-License-Identifier: Apache-2.0
//! What is to be made, as shelves come and go. No sandbox is: the host is a stand-in.

use super::*;
use crate::driver::tests::Stand;
use crate::host::Host;
use crate::runtime::{Agent, Enforced, Running};
use crate::store::tests::{Database, sandbox};
use postern_common::tasks::Tasks;
use std::sync::Arc;

/// A pool that has what is wanted of one place.
struct Bench {
    pool: Pool,
    place: Place,
    asked: Asked,
    tasks: Tasks,
    _database: Database,
}

impl Bench {
    async fn full(count: u8) -> Self {
        let (database, tasks) = (Database::sqlite().await, Tasks::new());
        let host = Stand::new(false) as Arc<dyn Host>;
        let pool = Pool::new(database.store.clone(), host, tasks.clone());
        let new = sandbox(1, "c1");
        let (place, asked) = (Place { tenant: new.tenant, template: new.template }, new.asked);
        let wanted = Wanted { asked: asked.clone(), count: usize::from(count) };
        pool.retire(BTreeMap::from([(place.clone(), wanted)]));
        for number in 0..count {
            let running = Running {
                sandbox: sandbox(number, "any").id,
                isolation: Isolation::Namespaces,
                limits: asked.limits,
                enforced: Enforced::default(),
            };
            pool.shelve(place.clone(), Ready { asked: asked.clone(), running });
        }
        Self { pool, place, asked, tasks, _database: database }
    }

    /// Whether one is to be made now; it is not.
    fn lacks_one(&self) -> bool {
        let missing = self.pool.missing(&BTreeMap::new());
        self.pool.shelves().making.clear();
        missing.is_some()
    }

    fn ready(&self) -> usize {
        self.pool.shelves().ready.get(&self.place).map_or(0, VecDeque::len)
    }
}

#[tokio::test]
async fn one_that_is_given_away_is_replaced_once_its_claimer_has_it() {
    let bench = Bench::full(2).await;
    assert!(!bench.lacks_one(), "the control: the shelf is full");
    let mut claim = bench.pool.pick(&bench.place, &bench.asked).expect("is ready");
    assert_eq!(bench.ready(), 1);
    assert!(!bench.lacks_one(), "whoever waits for it comes first");
    let (ours, _theirs) = tokio::io::duplex(1024);
    claim.agent = Some(Agent::on(ours, &bench.tasks).await.expect("begins"));
    let (_running, _agent, given) = claim.settle().expect("is reached");
    assert!(!bench.lacks_one(), "they do not have it yet");
    let changed = bench.pool.0.changed.notified();
    drop(given);
    changed.await;
    assert!(bench.lacks_one());
}

#[tokio::test]
async fn one_that_comes_back_to_its_shelf_is_not_made_a_second_time() {
    let bench = Bench::full(1).await;
    drop(bench.pool.pick(&bench.place, &bench.asked).expect("is ready"));
    assert_eq!(bench.ready(), 1);
    assert!(!bench.lacks_one());
    assert_eq!(bench.pool.shelves().given.len(), 0);
}

#[tokio::test]
async fn one_that_cannot_be_used_is_replaced() {
    let bench = Bench::full(1).await;
    bench.pool.pick(&bench.place, &bench.asked).expect("is ready").discard();
    assert!(bench.lacks_one());
}

#[tokio::test]
async fn one_whose_claimer_takes_long_is_replaced_all_the_same() {
    let bench = Bench::full(1).await;
    tokio::time::pause();
    let claim = bench.pool.pick(&bench.place, &bench.asked).expect("is ready");
    tokio::time::advance(GIVEN_TIME - Duration::from_millis(1)).await;
    assert!(!bench.lacks_one());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(bench.lacks_one());
    drop(claim);
}

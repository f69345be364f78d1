// SPDX-License-Identifier: Apache-2.0
//! Has every process in here stand still, and go on.
//!
//! What is kept on disk with its memory sleeps before the picture is taken, so that after a restore
//! nothing but this program runs until the sandbox has its new identity.

use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// Looks at the table of processes; who forks faster than that is left running.
const LOOKS: u32 = 50;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);
/// Our own id in a sandbox.
const FIRST: i32 = 1;

/// Processes that were stopped here, with their parents.
#[derive(Debug, Default)]
pub(crate) struct Stopped(BTreeMap<i32, i32>);

/// Stops every process but this one that is not stopped already; which, and whether all stand still. One that
/// makes others faster than they are stopped is never done with.
pub(crate) async fn stop_all() -> (Stopped, bool) {
    // INVARIANT: of a machine that is no sandbox nothing is ever stopped.
    if std::process::id().cast_signed() != FIRST {
        return (Stopped::default(), true);
    }
    let (mut stopped, mut others) = (Stopped::default(), None::<BTreeSet<i32>>);
    for _ in 0..LOOKS {
        let here = look(Path::new("/proc"));
        let others = others.get_or_insert_with(|| {
            // Somebody else stopped these, and is to have them go on.
            here.iter().filter(|it| it.state == 'T').map(|it| it.pid).collect()
        });
        let running: Vec<_> = here
            .iter()
            .filter(|it| it.pid != FIRST && !others.contains(&it.pid))
            .filter(|it| !matches!(it.state, 'T' | 't' | 'Z' | 'X'))
            .collect();
        if running.is_empty() {
            return (stopped, true);
        }
        for process in running {
            // Another user's cannot be stopped, nor one that has just ended.
            if Pid::from_raw(process.pid).is_some_and(|pid| kill_process(pid, Signal::STOP).is_ok()) {
                stopped.0.insert(process.pid, process.parent);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    (stopped, false)
}

impl Stopped {
    /// More that were stopped.
    pub(crate) fn add(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// Lets them go on, children first: a shell that goes on never finds its command stopped.
    pub(crate) fn go_on(self) {
        for pid in self.deepest_first() {
            if let Some(pid) = Pid::from_raw(pid) {
                // It may have been killed meanwhile.
                let _ = kill_process(pid, Signal::CONT).is_ok();
            }
        }
    }

    fn deepest_first(&self) -> Vec<i32> {
        let depth = |pid: i32| {
            let parents = std::iter::successors(self.0.get(&pid), |parent| self.0.get(parent));
            // A table that was read while it changed may have a circle in it.
            parents.take(self.0.len()).count()
        };
        let mut order: Vec<i32> = self.0.keys().copied().collect();
        order.sort_by_key(|pid| std::cmp::Reverse(depth(*pid)));
        order
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    state: char,
}

/// What there is now; what ends meanwhile is left out.
fn look(table: &Path) -> Vec<Process> {
    let entries = std::fs::read_dir(table).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| parse(pid, &std::fs::read(table.join(format!("{pid}/stat"))).ok()?)).collect()
}

/// `PID (NAME) STATE PARENT …`, whose name may hold anything.
fn parse(pid: i32, stat: &[u8]) -> Option<Process> {
    let text = String::from_utf8_lossy(stat);
    let mut rest = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = rest.next()?.chars().next()?;
    Some(Process { pid, parent: rest.next()?.parse().ok()?, state })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    #[test]
    fn a_line_of_the_table_is_read_whatever_a_process_calls_itself() {
        let wanted = Process { pid: 7, parent: 3, state: 'S' };
        assert_eq!(parse(7, b"7 (a) T 9) S 3 7 7 0").as_ref(), Some(&wanted));
        assert_eq!(parse(7, b"7 (\xff) S 3").as_ref(), Some(&wanted));
        assert_eq!(parse(7, b"7 (sh) S"), None);
        assert_eq!(parse(7, b""), None);
    }

    #[test]
    fn children_go_on_before_their_parents_and_a_circle_ends() {
        let stopped = Stopped(BTreeMap::from([(5, 1), (9, 5), (7, 9), (20, 1)]));
        let order = stopped.deepest_first();
        let place = |pid| order.iter().position(|it| *it == pid);
        assert!(place(7) < place(9) && place(9) < place(5), "{order:?}");
        assert_eq!(order.len(), 4);
        assert_eq!(Stopped(BTreeMap::from([(5, 6), (6, 5)])).deepest_first().len(), 2);
    }

    #[tokio::test]
    async fn outside_a_sandbox_nothing_is_stopped() {
        assert!(stop_all().await.0.0.is_empty());
    }

    #[test]
    fn what_was_stopped_goes_on() {
        let mut child: Child =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("starts");
        let pid = i32::try_from(child.id()).expect("fits");
        let state = || look(Path::new("/proc")).into_iter().find(|it| it.pid == pid).map(|it| it.state);
        kill_process(Pid::from_raw(pid).expect("not 0"), Signal::STOP).expect("ours");
        let wait = |wanted: fn(char) -> bool| {
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while !state().is_some_and(wanted) {
                assert!(std::time::Instant::now() < deadline, "{:?}", state());
                std::thread::yield_now();
            }
        };
        wait(|state| state == 'T');
        Stopped(BTreeMap::from([(pid, 1)])).go_on();
        wait(|state| state != 'T');
        drop(child.stdin.take());
        assert!(child.wait().expect("ends").success());
    }
}

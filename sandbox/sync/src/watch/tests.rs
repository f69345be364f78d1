// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::tree::tests::{Bench, path};
use std::fs;
use std::io::Write as _;
use std::time::Duration;

/// Events until `is_it`, or a minute.
async fn until(watch: &mut Watch, is_it: impl Fn(&Dirty) -> bool) -> Dirty {
    let mut all = Dirty::default();
    let seen = async {
        while !is_it(&all) {
            all.add(watch.changed().await.expect("the kernel tells"));
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen).await.expect("is seen in time");
    all
}

fn is_dirty(folder: &str) -> impl Fn(&Dirty) -> bool {
    move |dirty| dirty.folders.contains(folder)
}

#[tokio::test]
async fn writes_names_modes_and_removals_are_seen_in_their_folder() {
    let bench = Bench::new();
    bench.write("d/f", "");
    let mut watch = Watch::new().expect("watches");
    watch.add(&bench.tree, None);
    watch.add(&bench.tree, Some(&path("d")));
    bench.write("new", "");
    assert!(!until(&mut watch, is_dirty("")).await.all);
    let file = fs::File::options().append(true).open(bench.at("d/f")).expect("opens");
    // Not closed: gVisor keeps files open too.
    (&file).write_all(b"more").expect("writes");
    until(&mut watch, is_dirty("d")).await;
    fs::rename(bench.at("d/f"), bench.at("d/g")).expect("renames");
    until(&mut watch, is_dirty("d")).await;
    fs::remove_file(bench.at("d/g")).expect("removes");
    until(&mut watch, is_dirty("d")).await;
}

#[tokio::test]
async fn a_folder_that_moves_makes_everything_doubtful() {
    let bench = Bench::new();
    bench.write("d/e/f", "");
    let mut watch = Watch::new().expect("watches");
    for folder in [None, Some(path("d")), Some(path("d/e"))] {
        watch.add(&bench.tree, folder.as_ref());
    }
    fs::rename(bench.at("d"), bench.at("moved")).expect("renames");
    until(&mut watch, |dirty| dirty.all).await;
    watch.begin_anew();
    watch.add(&bench.tree, Some(&path("moved/e")));
    bench.write("moved/e/g", "");
    until(&mut watch, is_dirty("moved/e")).await;
}

#[test]
fn an_overflow_makes_everything_doubtful_and_the_end_of_a_watch_nothing() {
    let folders = BTreeMap::from([(1, "d".to_owned())]);
    let noted = |watch, events| {
        let mut dirty = Dirty::default();
        note(&mut dirty, &folders, watch, events);
        dirty
    };
    assert!(noted(-1, ReadFlags::QUEUE_OVERFLOW).all);
    assert!(noted(1, ReadFlags::IGNORED).is_empty());
    assert!(noted(7, ReadFlags::MODIFY).all, "a folder that nobody knows any more");
    assert_eq!(noted(1, ReadFlags::MODIFY).folders.len(), 1);
}

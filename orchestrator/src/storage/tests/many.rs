// SPDX-License-Identifier: Apache-2.0
//! Many files: written at once, and listed in ranges.

use super::*;
use crate::storage::objects::Found;

async fn listed(files: &UserFiles, ends: &[Key]) -> Vec<String> {
    let found = files.storage.objects.list(&files.prefix, ends).await.expect("lists");
    let mut names: Vec<String> = found
        .into_iter()
        .filter_map(|found| match found {
            Found::Object { key, .. } => Some(key),
            Found::Folder { .. } => None,
        })
        .collect();
    names.sort_unstable();
    names
}

/// Wherever it is divided: at names that are there, that are gone, and that sort otherwise as folders do.
pub(super) async fn a_divided_list_has_each_object_once(bench: &Bench) {
    let files = bench.user("divided");
    let there = ["a-b/1", "a/1", "a/2", "a.c", "b!", "b/2", "odd.", "z"];
    let written = files.write_many(&by(), there.iter().map(|it| small(it, it)).collect()).await;
    assert!(written.iter().all(Result::is_ok), "{written:?}");
    let all = listed(&files, &[]).await;
    assert_eq!(all.len(), there.len());
    let key = |name: &str| files.prefix.file(&path(name));
    for ends in
        [&["a"][..], &["a/2"], &["a-b/1", "a.c", "a/1", "a/2", "b!", "b/2", "z"], &["a/1", "a/9"], &["zz"]]
    {
        let divided = listed(&files, &ends.iter().map(|name| key(name)).collect::<Vec<_>>()).await;
        assert_eq!(divided, all, "divided at {ends:?}");
    }
}

pub(super) async fn many_small_files_have_answers_of_their_own(bench: &Bench) {
    let files = bench.user("many");
    put(&files, "d/7", &Condition::Nothing, "was there").await.expect("writes");
    let batch = (0..50).map(|number| small(&format!("d/{number}"), &number.to_string())).collect();
    let answers = files.write_many(&by(), batch).await;
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.is_ok(), number != 7, "{number}: {answer:?}");
    }
    let listing = files.list().await.expect("lists");
    assert_eq!(listing.files.len(), 50);
    assert_eq!(text(&files, "d/7").await, "was there");
    assert_eq!(text(&files, "d/49").await, "49");
    let page = files.page("d/4", Some(&path("d/41")), 5).await.expect("pages");
    let page: Vec<&str> = page.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(page, ["d/42", "d/43", "d/44", "d/45", "d/46"]);
    let all = listing.files.into_iter().map(|file| (file.path, Condition::Version(file.version))).collect();
    let answers = files.remove_many(&by(), all).await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(true))), "{answers:?}");
    assert_eq!(files.usage().await.expect("counts"), Usage::default());
    let events = bench.database.store.file_events(&files.owner).await.expect("reads");
    assert_eq!(events.iter().filter(|event| event.action == "file.written").count(), 50);
    assert_eq!(events.iter().filter(|event| event.action == "file.removed").count(), 50);
}

/// Modes are noted in one place for all of a user's files.
pub(super) async fn many_who_note_something_at_once_are_all_heard(bench: &Bench) {
    let files = bench.user("noted");
    let pack = |number: usize| (0..10).map(|file| program(&format!("p{number}/{file}"))).collect();
    let write = async |number: usize| files.write_many(&by(), pack(number)).await;
    let writing = (0..12).map(write);
    for answers in futures_util::future::join_all(writing).await {
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }
    let listed = files.list().await.expect("lists").files;
    assert!(listed.len() == 120 && listed.iter().all(|file| file.mode == 0o755), "{listed:?}");
}

fn program(at: &str) -> SmallFile {
    let file = small(at, "#!");
    let about = NewFile { mode: Some(0o755), ..file.about };
    SmallFile { about, ..file }
}

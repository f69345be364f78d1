// SPDX-License-Identifier: Apache-2.0
//! The commands against a real orchestrator, which has nothing to run sandboxes with.

use super::*;
use crate::client::Client;
use crate::connection::Connection;
use crate::output::Output;
use postern_common::tasks::Tasks;
use postern_orchestrator::runtime::local::{LocalRuntime, LocalSettings};
use postern_orchestrator::{Config, Orchestrator, Prepared};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;

#[test]
fn a_path_keeps_its_slashes_and_nothing_else_of_its_own() {
    assert_eq!(address("a/b", "d e/../f?.txt"), "/users/a%2Fb/files/d%20e/%2E%2E/f%3F.txt");
}

#[test]
fn sizes_are_told_in_the_unit_that_fits() {
    let shown = ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB"];
    assert_eq!([0, 1023, 1024, 1536, 5 << 30].map(shown_size), shown);
}

#[test]
fn a_draft_lies_beside_its_place() {
    assert_eq!(draft(Path::new("d/f.txt")).expect("has a name"), Path::new("d/.f.txt.part"));
    assert_eq!(draft(Path::new("..")).expect_err("has none").exit_code(), 2);
}

struct Bench {
    server: Server,
    folder: TempDir,
    orchestrator: Orchestrator,
    tasks: Tasks,
}

impl Bench {
    async fn new() -> Self {
        let (folder, tasks) = (tempfile::tempdir().expect("a folder"), Tasks::new());
        let prepared = Prepared::open(Config::new(folder.path().join("data"))).await.expect("opens");
        let settings = LocalSettings {
            installation: prepared.installation().clone(),
            run_root: folder.path().join("run"),
            slot_root: folder.path().join("slots"),
            images: folder.path().join("images"),
            unpacked: folder.path().join("unpacked"),
            shim: "/bin/false".into(),
            sandboxd: "/bin/false".into(),
            sync: None,
            runsc: None,
            search_path: Vec::new(),
        };
        let runtime = LocalRuntime::open(settings, tasks.clone()).expect("opens");
        let orchestrator = prepared.start(Arc::new(runtime), &tasks).await.expect("starts");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("an address")).parse().expect("a URL");
        orchestrator.serve(listener);
        let key = orchestrator.admin_key(&folder.path().join("key")).await.expect("makes a key");
        let client = Client::new(Connection { url, key });
        Self {
            server: Server { client, tenant: None, output: Output::new(false) },
            folder,
            orchestrator,
            tasks,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn put(&self, from: &str, path: &str, resume: Option<String>) -> Result<(), Failure> {
        let wanted = Files::Put {
            user: "al/ice".to_owned(),
            from: self.at(from),
            path: Some(path.to_owned()),
            resume,
        };
        run(&self.server, wanted).await
    }

    async fn get(&self, path: &str, to: &str) -> Result<(), Failure> {
        run(
            &self.server,
            Files::Get { user: "al/ice".to_owned(), path: path.to_owned(), to: Some(self.at(to)) },
        )
        .await
    }

    async fn close(self) {
        self.tasks.shut_down(Duration::from_secs(30)).await.expect("ends");
        self.orchestrator.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_goes_there_and_back_whole_also_in_parts() {
    let bench = Bench::new().await;
    let large: Vec<u8> = (0..(WHOLE_BYTES + 5)).map(|at| u8::try_from(at % 251).expect("small")).collect();
    for (name, content) in [("small", b"hello".to_vec()), ("large", large), ("empty", Vec::new())] {
        std::fs::write(bench.at(name), &content).expect("writes");
        bench.put(name, &format!("d/{name} ?.bin"), None).await.expect("is kept");
        bench.get(&format!("d/{name} ?.bin"), "back").await.expect("comes");
        assert_eq!(std::fs::read(bench.at("back")).expect("is there"), content, "{name}");
    }
    assert!(!bench.at(".back.part").exists());
    let listed = bench.server.get("/users/al%2Fice/files").await.expect("lists");
    let names: Vec<_> = items(&listed, "files").map(|file| super::super::cell(file, "path")).collect();
    assert_eq!(names, ["d/empty ?.bin", "d/large ?.bin", "d/small ?.bin"]);
    let url = Files::Url { user: "al/ice".to_owned(), path: "d/small ?.bin".to_owned(), expires_in: None };
    run(&bench.server, url).await.expect("signs");
    run(&bench.server, Files::Ls { user: "al/ice".to_owned(), prefix: Some("d/s".to_owned()) })
        .await
        .expect("lists");
    run(&bench.server, Files::Rm { user: "al/ice".to_owned(), path: "d/small ?.bin".to_owned() })
        .await
        .expect("removes");
    let gone = bench.get("d/small ?.bin", "gone").await.expect_err("is gone");
    assert_eq!(gone.exit_code(), 4);
    assert!(!bench.at("gone").exists());
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_broke_off_goes_on_where_it_was() {
    let bench = Bench::new().await;
    let content: Vec<u8> = (0..(6_u64 << 20)).map(|at| u8::try_from(at % 241).expect("small")).collect();
    std::fs::write(bench.at("file"), &content).expect("writes");
    let body = json!({ "path": "f", "size": content.len(), "part_size": 5 << 20 });
    let upload = bench.server.post("/users/al%2Fice/uploads", &body).await.expect("begins");
    let id = text(&upload, "upload_id").expect("an id").to_owned();
    let first = items(&upload, "parts").next().expect("a part");
    let headers = first.get("headers").expect("headers");
    let part = Bytes::copy_from_slice(&content[..5 << 20]);
    bench.server.client.put_signed(text(first, "url").expect("a URL"), headers, part).await.expect("comes");
    std::fs::write(bench.at("other"), "another file").expect("writes");
    let other = bench.put("other", "f", Some(id.clone())).await.expect_err("is another file");
    assert_eq!(other.exit_code(), 2);
    bench.put("file", "f", Some(id)).await.expect("goes on");
    bench.get("f", "back").await.expect("comes");
    assert_eq!(std::fs::read(bench.at("back")).expect("is there"), content);
    bench.close().await;
}

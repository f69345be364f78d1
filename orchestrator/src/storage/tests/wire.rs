// SPDX-License-Identifier: Apache-2.0
//! What is sent to Google Cloud Storage, of which no server can be run here: an end of the wire that
//! answers as the service's documentation says (`gcs.rs`).

use super::gcs::{TOKEN, chosen, served};
use super::servers::{put as send, send as request};
use super::*;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use postern_common::tasks::Tasks;
use url::Url;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcs_at_the_wire_does_all_of_it() {
    let tasks = Tasks::new();
    let (bucket, endpoint) = served(&tasks).await;
    let (file, public) = account();
    bucket.lock().expect("not poisoned").signer = Some(public);
    every_case(Server::served(chosen(&endpoint, ("GOOGLE_SERVICE_ACCOUNT_KEY", &file)))).await;
    let sent = bucket.lock().expect("not poisoned").sent.len();
    assert!(sent > 500, "the control: it was asked {sent} times");
    tasks.shut_down(Duration::from_secs(10)).await.expect("ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcs_is_told_conditions_as_generations() {
    let tasks = Tasks::new();
    let (bucket, endpoint) = served(&tasks).await;
    let bench = Bench::new(Server::served(chosen(&endpoint, ("GOOGLE_BEARER_TOKEN", TOKEN)))).await;
    let files = bench.user("u");
    let first = put(&files, "f", &Condition::Nothing, "1").await.expect("is free").version;
    put(&files, "f", &Condition::Nothing, "x").await.expect_err("is taken");
    let second = put(&files, "f", &Condition::Version(first.clone()), "2").await.expect("is as seen").version;
    put(&files, "f", &Condition::Version(first), "x").await.expect_err("is another");
    put(&files, "f", &Condition::Version(second), "3").await.expect("is as seen");
    let sent = bucket.lock().expect("not poisoned").sent.clone();
    let puts: Vec<_> = sent.iter().filter(|sent| sent.method == "PUT").collect();
    let generations: Vec<_> = puts.iter().map(|put| put.generation.as_deref()).collect();
    assert_eq!(generations, [Some("0"), Some("0"), Some("1"), Some("2")], "the fourth was not even sent");
    for one in &sent {
        assert_eq!(one.path, "/bucket/tenants%2Facme%2Fusers%2Fu%2Ffiles%2Ff");
        assert_eq!(one.authorization.as_deref(), Some("Bearer a-token-of-the-operator"));
    }
    tasks.shut_down(Duration::from_secs(10)).await.expect("ends");
}

/// The order of names is promised, and a divided list relies on it; what is known of the files finds it out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_lists_in_an_order_of_its_own_is_listed_whole() {
    let tasks = Tasks::new();
    let (bucket, endpoint) = served(&tasks).await;
    let bench = Bench::new(Server::served(chosen(&endpoint, ("GOOGLE_BEARER_TOKEN", TOKEN)))).await;
    let files = bench.user("u");
    let pack = (0..15).flat_map(|number| [format!("a/{number}"), format!("a-b/{number}")]);
    let written = files.write_many(&by(), pack.map(|name| small(&name, "x")).collect()).await;
    assert!(written.iter().all(Result::is_ok), "{written:?}");
    bucket.lock().expect("not poisoned").lists_by_folders = true;
    // Written past us: nobody would look for it by its name.
    let (key, notes) = (files.prefix.file(&path("a-b/new")), objects::Notes::default());
    let put = bench.storage.objects.put(&key, &Condition::Anything, &notes, Bytes::from_static(b"x")).await;
    assert!(put.is_ok(), "{put:?}");
    let listed = files.list().await.expect("lists");
    assert!(listed.files.len() == 31 && names(&listed).contains(&"a-b/new"), "{:?}", names(&listed));
    tasks.shut_down(Duration::from_secs(10)).await.expect("ends");
}

/// A service account's key, as its file has it, and its public half.
fn account() -> (String, Vec<u8>) {
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("a key");
    let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).expect("encodes");
    let lines: Vec<String> = BASE64
        .encode(private.as_ref())
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    let file = serde_json::json!({
        "type": "service_account", "private_key": pem, "private_key_id": "k",
        "client_email": "postern@project.iam.gserviceaccount.com", "client_id": "1",
        "disable_oauth": false,
    });
    (file.to_string(), pair.public_key().as_ref().to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_of_gcs_is_signed_for_what_it_was_made_for_and_nothing_else() {
    let tasks = Tasks::new();
    let (bucket, endpoint) = served(&tasks).await;
    let (file, public) = account();
    let bench = Bench::new(Server::served(chosen(&endpoint, ("GOOGLE_SERVICE_ACCOUNT_KEY", &file)))).await;
    let upload = UploadId::generate();
    let made = bench.storage.part_url(&upload, 0, Duration::from_secs(60)).await.expect("signs");
    let url = made.expect("a URL");
    assert!(
        send(&url, &[], Bytes::new()).await.is_err(),
        "the control: of a key that the bucket does not know"
    );
    bucket.lock().expect("not poisoned").signer = Some(public);
    let bent = |from: &str, to: &str| -> Url { url.as_str().replacen(from, to, 1).parse().expect("a URL") };
    assert!(url.query_pairs().any(|pair| pair == ("X-Goog-Expires".into(), "60".into())), "{url}");
    for (what, other) in [
        ("another part", bent(upload.as_str(), UploadId::generate().as_str())),
        ("a longer life", bent("X-Goog-Expires=60", "X-Goog-Expires=600")),
        ("another time", bent("X-Goog-Date=2", "X-Goog-Date=3")),
        ("one more parameter", bent("X-Goog-Algorithm", "uploadId=u&X-Goog-Algorithm")),
    ] {
        assert_ne!(other, url, "{what}");
        assert_eq!(send(&other, &[], Bytes::from_static(b"mine")).await, Err(403), "{what}: {other}");
    }
    for method in ["GET", "DELETE"] {
        assert_eq!(request(method, &url, &[], Bytes::new()).await, 403, "{method}");
    }
    send(&url, &[], Bytes::from_static(b"mine")).await.expect("the control: what it was made for");
    tasks.shut_down(Duration::from_secs(10)).await.expect("ends");
}

// SPDX-License-Identifier: Apache-2.0
//! Connections to Postgres: how long a query may take, and who may listen to it.

use super::database::{PostgresUser, Server, postgres_programs, postgres_user};
use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

#[tokio::test]
async fn no_query_takes_for_ever_on_any_connection() {
    let Some(database) = Database::postgres().await else { return };
    let pool = &database.store.pool;
    let mut connections = Vec::new();
    for _ in 0..4 {
        connections.push(pool.acquire().await.expect("is free"));
    }
    for connection in &mut connections {
        for (setting, time) in [
            ("statement_timeout", "10s"),
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "30s"),
        ] {
            let show = sqlx::query("SELECT current_setting($1) AS time").bind(setting);
            let row = show.fetch_one(&mut **connection).await.expect("answers");
            assert_eq!(row.text("time").expect("a text"), time, "{setting}");
        }
    }
    // And Postgres does end what takes longer: here with less, so that nobody waits.
    let connection = connections.first_mut().expect("four");
    sqlx::raw_sql("SET statement_timeout = '50ms'").execute(&mut **connection).await.expect("is set");
    let ended =
        sqlx::raw_sql("SELECT pg_sleep(30)").execute(&mut **connection).await.expect_err("takes too long");
    assert!(ended.to_string().contains("statement timeout"), "{ended}");
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("is ASCII"));
    let lines: Vec<&str> = lines.collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// An authority, and a certificate of its for this name, with key, in PEM.
fn certificates(name: &str) -> (String, String, String) {
    let authority_key = KeyPair::generate().expect("a key");
    let mut authority = CertificateParams::new([]).expect("no names");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = pem("CERTIFICATE", authority.self_signed(&authority_key).expect("signs").der());
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().expect("a key");
    let own = CertificateParams::new([name.to_owned()]).expect("a name").signed_by(&key, &issuer);
    (root, pem("CERTIFICATE", own.expect("signs").der()), pem("PRIVATE KEY", &key.serialize_der()))
}

/// A Postgres that speaks by TLS alone, on loopback, with its port; gone with the test.
fn by_tls(folder: &Path, certificate: &str, key: &str) -> Option<(Server, u16)> {
    let bin = postgres_programs()?;
    let user = postgres_user(folder);
    let data = folder.join("data");
    let mut init = user.command(&bin.join("initdb"));
    init.args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"]).arg(&data);
    assert!(init.stdout(Stdio::null()).status().expect("initdb runs").success());
    std::fs::write(data.join("pg_hba.conf"), "hostssl all all 127.0.0.1/32 trust\n").expect("writes");
    for (name, text) in [("server.crt", certificate), ("server.key", key)] {
        let file = data.join(name);
        std::fs::write(&file, text).expect("writes");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("sets");
        if matches!(user, PostgresUser::Nobody) {
            std::os::unix::fs::chown(&file, Some(65534), Some(65534)).expect("root may");
        }
    }
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
    let mut server = user.command(&bin.join("postgres"));
    let listen = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "ssl=on", "-k", "", "-p"];
    server.args(listen).arg(port.to_string()).arg("-D").arg(&data);
    let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("postgres runs");
    Some((Server(server), port))
}

#[tokio::test]
async fn postgres_is_spoken_to_by_tls_and_only_if_it_is_the_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let (root, certificate, key) = certificates("localhost");
    let Some((_server, port)) = by_tls(folder.path(), &certificate, &key) else {
        println!("left out: Postgres is not installed");
        return;
    };
    let (right, wrong) = (folder.path().join("root.pem"), folder.path().join("other.pem"));
    std::fs::write(&right, root).expect("writes");
    std::fs::write(&wrong, certificates("localhost").0).expect("writes");
    let url = |host: &str, mode: &str, root: &Path| {
        let root = root.display().to_string().replace('/', "%2F");
        Secret::new(format!("postgres://postgres@{host}:{port}/postgres?sslmode={mode}&sslrootcert={root}"))
    };
    let good = url("localhost", "verify-full", &right);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let store = loop {
        match Store::open(&good).await {
            Ok(store) => break store,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let about = "SELECT CAST(ssl AS INTEGER) AS ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let row = sqlx::query(about).fetch_one(&store.pool).await.expect("answers");
    assert_eq!(row.try_get::<i32, _>("ssl").expect("a number"), 1);
    assert!(row.text("version").expect("a text").starts_with("TLSv1."));
    // Notices of other orchestrators come the same way.
    assert!(store.listen(&good).await.expect("listens").is_some());
    for (what, bad) in [
        ("another authority's", url("localhost", "verify-full", &wrong)),
        ("another name's", url("127.0.0.1", "verify-full", &right)),
        ("in clear", url("localhost", "disable", &right)),
    ] {
        let refused = Store::open(&bad).await.expect_err(what);
        assert!(matches!(refused, OpenError::Connect(_)), "{what}: {refused:?}");
    }
    assert!(Store::open(&url("localhost", "require", &right)).await.is_ok(), "the control");
    store.close().await;
}

// SPDX-License-Identifier: Apache-2.0
//! `postern up` and the support desk's backend as children of a test, and what a client needs to
//! talk to them. Everything goes through the programs that `make build` made.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// For whatever a busy machine may be late with.
const PATIENCE: Duration = Duration::from_secs(90);

/// The project's folder.
pub(crate) fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in it").to_owned()
}

/// Where `make build` puts programs: beside the folder that this test was built into.
pub(crate) fn programs() -> PathBuf {
    let own = std::env::current_exe().expect("knows where it is");
    let found = own.ancestors().map(|folder| folder.join("programs")).find(|it| it.join("postern").is_file());
    found.expect("`make build` has not been run for this target folder")
}

/// Waits until `found` finds something.
pub(crate) fn wait_for<Found>(what: &str, mut found: impl FnMut() -> Option<Found>) -> Found {
    let begun = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not come about in time");
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Says that something is left out, and why; without `POSTERN_ALLOW_SKIP=1` nothing is, and the test fails.
pub(crate) fn leave_out(what: &str) {
    let is_allowed = std::env::var_os("POSTERN_ALLOW_SKIP").is_some_and(|value| value == "1");
    assert!(is_allowed, "{what}; POSTERN_ALLOW_SKIP=1 leaves that out");
    println!("LEFT OUT: {what}");
}

/// Where the programs of a Postgres server are, of whatever version is installed.
pub(crate) fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let usual = ["/usr/lib/postgresql/15/bin", "/usr/local/bin", "/usr/bin"].map(PathBuf::from);
    let mut places = usual.into_iter().chain(versions.map(|version| version.path().join("bin")));
    places.find(|bin| bin.join("initdb").is_file() && bin.join("postgres").is_file())
}

/// Whether this sandbox's memory can be kept; if not, that is left out.
pub(crate) fn keeps_memory(made: &Value) -> bool {
    let keeps = made["isolation"] == "gvisor" && rustix::process::geteuid().is_root();
    if !keeps {
        leave_out("memory is kept by gVisor and for root only");
    }
    keeps
}

/// The example's backend on a free port.
#[derive(Debug)]
pub(crate) struct Backend {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
    /// Where it listens.
    pub port: u64,
}

impl Backend {
    pub(crate) fn start() -> Self {
        let mut child = Command::new("python3")
            .arg(project().join("examples/support-desk/backend.py"))
            .args(["--port", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let lines: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = Arc::clone(&lines);
        let output = BufReader::new(child.stdout.take().expect("is piped"));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                kept.lock().expect("no panic").push(serde_json::from_str(&line).expect("is JSON"));
            }
        });
        let port =
            wait_for("the backend", || lines.lock().expect("no panic").first()?.get("listening")?.as_u64());
        Self { child, lines, port }
    }

    /// Requests that have reached it.
    pub(crate) fn reached(&self) -> usize {
        self.lines.lock().expect("no panic").len() - 1
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.child.kill().expect("ends");
        self.child.wait().expect("has ended");
    }
}

/// A data folder, a configuration folder that points at the backend, and `up` on both.
#[derive(Debug)]
pub(crate) struct Up {
    child: Child,
    /// Holds `config/` and `data/`.
    pub folder: Arc<tempfile::TempDir>,
    log: Arc<Mutex<String>>,
}

impl Up {
    /// Starts with the example's configuration.
    pub(crate) fn start(backend: &Backend) -> Self {
        Self::start_with(backend, &[])
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The same with settings of the test's own.
    pub(crate) fn start_with(backend: &Backend, settings: &[(&str, &str)]) -> Self {
        Self::on_with(Arc::new(configured(backend)), settings)
    }

    /// Starts without a watched folder: the API owns the tenant, and `config/` waits to be applied.
    pub(crate) fn unwatched(backend: &Backend) -> Self {
        Self::unwatched_with(backend, &[])
    }

    fn unwatched_with(backend: &Backend, settings: &[(&str, &str)]) -> Self {
        let folder = Arc::new(configured(backend));
        let mut command = postern(folder.path());
        command.arg("up").env("POSTERN_UPSTREAMS_ALLOW", format!("127.0.0.1:{}", backend.port));
        command.envs(settings.iter().copied());
        Self::launch(folder, command)
    }

    /// The same, and the configuration is applied.
    pub(crate) fn by_api(backend: &Backend) -> Self {
        Self::by_api_with(backend, &[])
    }

    /// The same with settings of the test's own.
    pub(crate) fn by_api_with(backend: &Backend, settings: &[(&str, &str)]) -> Self {
        let up = Self::unwatched_with(backend, settings);
        up.told(&["apply", up.config().to_str().expect("is text")]);
        up
    }

    /// Starts on folders that are there already, and waits until it serves.
    pub(crate) fn on(folder: Arc<tempfile::TempDir>) -> Self {
        Self::on_with(folder, &[])
    }

    /// The same with settings of the test's own.
    pub(crate) fn on_with(folder: Arc<tempfile::TempDir>, settings: &[(&str, &str)]) -> Self {
        let mut command = postern(folder.path());
        command.args(["up", "--config"]).arg(folder.path().join("config")).envs(settings.iter().copied());
        Self::launch(folder, command)
    }

    /// Starts without a watched folder on folders that are there already.
    pub(crate) fn plain_on(backend: &Backend, folder: Arc<tempfile::TempDir>) -> Self {
        let mut command = postern(folder.path());
        command.arg("up").env("POSTERN_UPSTREAMS_ALLOW", format!("127.0.0.1:{}", backend.port));
        Self::launch(folder, command)
    }

    /// Runs this command, which must be an `up` on the folder, and waits until it serves.
    pub(crate) fn launch(folder: Arc<tempfile::TempDir>, mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("postern starts");
        let log = Arc::new(Mutex::new(String::new()));
        follow(child.stdout.take().expect("is piped"), &log);
        follow(child.stderr.take().expect("is piped"), &log);
        let mut up = Self { child, folder, log };
        let pid = u64::from(up.child.id());
        wait_for("`postern up`", || {
            let ended = up.child.try_wait().expect("can be asked");
            assert!(ended.is_none(), "`postern up` ended: {ended:?}\n{}", up.log());
            let written: Value =
                serde_json::from_str(&fs::read_to_string(up.data().join("connection.json")).ok()?).ok()?;
            (written.get("pid")?.as_u64()? == pid).then_some(())
        });
        up
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    /// All that it has printed.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("no panic").clone()
    }

    /// A field of what it wrote for other commands.
    pub(crate) fn written(&self, field: &str) -> String {
        let text = fs::read_to_string(self.data().join("connection.json")).expect("is there");
        let written: Value = serde_json::from_str(&text).expect("is JSON");
        written.get(field).and_then(Value::as_str).expect(field).to_owned()
    }

    pub(crate) fn key(&self) -> String {
        fs::read_to_string(self.written("key_file")).expect("is there").trim().to_owned()
    }

    /// Runs `postern` against it.
    pub(crate) fn postern(&self, arguments: &[&str]) -> Output {
        postern(self.folder.path()).arg("--json").args(arguments).output().expect("postern runs")
    }

    /// Runs `postern` against it; what it prints is JSON.
    pub(crate) fn told(&self, arguments: &[&str]) -> Value {
        let printed = self.done(arguments);
        serde_json::from_str(&printed)
            .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON ({error}): {printed:?}"))
    }

    /// Runs `postern` against it, which must end well; returns what it prints.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let output = self.postern(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}\n{}", self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What the REST API answers, which must be good.
    pub(crate) fn told_by(&self, method: &str, path: &str) -> Value {
        let answer = self.call(method, path, None);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    /// A call of the REST API with the admin's key.
    pub(crate) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let authorization = format!("Bearer {}", self.key());
        http(&self.written("url"), method, path, &[("Authorization", &authorization)], body)
    }

    /// What a caller that goes on beside the test needs: where it is, and the admin's key.
    pub(crate) fn caller(&self) -> (String, String) {
        (self.written("url"), format!("Bearer {}", self.key()))
    }

    /// A sandbox for this conversation.
    pub(crate) fn sandbox(&self, user: &str, conversation: &str) -> Value {
        self.told(&["sandbox", "create", "--user", user, "--conversation", conversation])
    }

    /// What the agent gets for a request to the backend from inside a sandbox.
    pub(crate) fn agent(&self, sandbox: &str, arguments: &[&str]) -> Value {
        let script = fs::read_to_string(project().join("examples/support-desk/agent.py")).expect("reads");
        let mut all = vec!["sandbox", "exec", sandbox, "--", "python3", "-I", "-c", &script];
        all.extend(arguments);
        self.told(&all)
    }

    /// Kills it as a crash would: nothing of it gets to clean up.
    pub(crate) fn crash(mut self) -> Arc<tempfile::TempDir> {
        self.child.kill().expect("is killed");
        self.child.wait().expect("has ended");
        Arc::clone(&self.folder)
    }

    /// Presses Ctrl-C and waits; the end must be a good one.
    pub(crate) fn stop(mut self) -> Arc<tempfile::TempDir> {
        self.interrupt();
        let status = wait_for("the end of `postern up`", || self.child.try_wait().expect("can be asked"));
        assert!(status.success(), "{status}\n{}", self.log());
        Arc::clone(&self.folder)
    }

    fn interrupt(&self) {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.interrupt();
            let begun = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) {
                if begun.elapsed() > PATIENCE {
                    drop(self.child.kill());
                }
                std::thread::park_timeout(Duration::from_millis(10));
            }
        }
    }
}

/// A folder with the example's configuration, which points at the backend.
pub(crate) fn configured(backend: &Backend) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("postern-test-").tempdir().expect("a folder");
    let config = folder.path().join("config");
    copy_folder(&project().join("examples/support-desk/config"), &config);
    let file = config.join("backends/support-desk/backend.toml");
    let text = fs::read_to_string(&file).expect("reads");
    fs::write(&file, text.replace("127.0.0.1:9000", &format!("127.0.0.1:{}", backend.port))).expect("writes");
    folder
}

/// Where what was built once lies, gVisor too: no setting of an installation.
const CACHE: &str = "POSTERN_CACHE";

/// `postern` with nothing of this process's own settings, on this folder's data.
pub(crate) fn postern(folder: &Path) -> Command {
    let mut command = Command::new(programs().join("postern"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("POSTERN_") && name != CACHE {
            command.env_remove(name);
        }
    }
    command.current_dir(folder).arg("--data-dir").arg(folder.join("data")).stdin(Stdio::null());
    command
}

pub(crate) fn follow(output: impl std::io::Read + Send + 'static, log: &Arc<Mutex<String>>) {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let mut log = log.lock().expect("no panic");
            log.push_str(&line);
            log.push('\n');
        }
    });
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("makes folders");
    for entry in fs::read_dir(from).expect("reads") {
        let entry = entry.expect("reads");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("has one").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("copies");
        }
    }
}

/// An answer over plain HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A problem's code.
    pub(crate) fn code(&self) -> String {
        self.json().get("code").and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}

/// One request on a connection of its own, with exactly these headers.
pub(crate) fn http(
    url: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Answer {
    try_http(url, method, path, headers, body).expect("is answered")
}

/// [`http`], where nobody may be there, or leave in the middle.
pub(crate) fn try_http(
    url: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> std::io::Result<Answer> {
    let authority = url.trim_start_matches("http://").trim_end_matches('/');
    let body = body.map(ToString::to_string).unwrap_or_default();
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        request.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    request.push_str(&format!("\r\n{body}"));
    let mut stream = TcpStream::connect(authority)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let cut = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    read_answer(&answer).ok_or_else(cut)
}

/// `None` if the connection ended in the middle.
fn read_answer(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|it| it.parse::<u16>().ok());
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let is_chunked = headers.get("transfer-encoding").is_some_and(|it| it == "chunked");
    let text = if is_chunked { unchunked(body)? } else { body.to_owned() };
    let is_whole = headers.get("content-length").is_none_or(|length| length.parse() == Ok(text.len()));
    is_whole.then_some(Answer { status: status?, text })
}

fn unchunked(mut body: &str) -> Option<String> {
    let mut text = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(text);
        }
        let (chunk, after) = rest.split_at_checked(size)?;
        text.push_str(chunk);
        body = after.trim_start_matches("\r\n");
    }
}

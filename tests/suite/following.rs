// SPDX-License-Identifier: Apache-2.0
//! Following a command as a caller does that was cut off: it goes on where it was (`Last-Event-ID`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// Counts until it is told to stop, so that it runs through every crash.
pub(crate) const COUNT: &str =
    "i=0; until [ -e /data/scratch/stop ]; do i=$((i+1)); echo $i; sleep 0.005; done; echo end $i; exit 7";

/// A follower of a command's events.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    name: String,
    /// The number of the last event that came.
    pub(crate) last: u64,
    /// Everything that came.
    pub(crate) stdout: Vec<u8>,
    /// The command's, once it has ended.
    pub(crate) code: Option<i64>,
}

impl Follower {
    /// Opens a stream of events: of a new command, or of the one that is followed after the last event.
    /// The caller is where the server is, and what it is told in `Authorization`.
    pub(crate) fn open(
        &self,
        (url, key): &(String, String),
        sandbox: &str,
        command: &str,
    ) -> BufReader<TcpStream> {
        let authority = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let mut stream = TcpStream::connect(&authority).expect("listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("sets");
        let head = format!("Host: {authority}\r\nAuthorization: {key}\r\nConnection: close\r\n");
        let request = if self.name.is_empty() {
            let body = json!({ "command": command }).to_string();
            let length = body.len();
            format!(
                "POST /sandbox/{sandbox}/exec HTTP/1.1\r\n{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            )
        } else {
            let (name, last) = (&self.name, self.last);
            format!("GET /sandbox/{sandbox}/exec/{name} HTTP/1.1\r\n{head}Last-Event-ID: {last}\r\n\r\n")
        };
        stream.write_all(request.as_bytes()).expect("writes");
        BufReader::new(stream)
    }

    /// Reads until `is_enough`, or the end of the stream in the middle of whatever it was.
    pub(crate) fn read(&mut self, stream: &mut BufReader<TcpStream>, is_enough: impl Fn(&Self) -> bool) {
        let mut event = [const { String::new() }; 2];
        let mut id = None;
        while !is_enough(self) {
            let mut line = String::new();
            match stream.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let line = line.trim_end();
            // Sizes of chunks stand between events and mean nothing here.
            if let Some(number) = line.strip_prefix("id: ") {
                id = number.parse::<u64>().ok();
            } else if let Some(kind) = line.strip_prefix("event: ") {
                event[0] = kind.to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                event[1] = data.to_owned();
                let Some(id) = id.take() else { continue };
                let data: Value = serde_json::from_str(&event[1]).expect("JSON");
                self.take(id, &event[0], &data);
            }
        }
    }

    fn take(&mut self, id: u64, kind: &str, data: &Value) {
        assert_eq!(id, self.last + 1, "events are numbered without a gap");
        self.last = id;
        match kind {
            "start" => self.name = data["exec_id"].as_str().expect("a name").to_owned(),
            "stdout" => {
                self.stdout.extend(STANDARD.decode(data["data"].as_str().expect("text")).expect("base64"));
            }
            "exit" => self.code = data["code"].as_i64(),
            other => panic!("{other}: {data}"),
        }
    }
}

impl Follower {
    /// Fails unless the command counted from 1 without a gap, and then told its end.
    pub(crate) fn has_all(&self) {
        let text = String::from_utf8(self.stdout.clone()).expect("is text");
        let lines: Vec<&str> = text.lines().collect();
        let count = lines.len() - 1;
        for (place, line) in lines.iter().take(count).enumerate() {
            assert_eq!(*line, (place + 1).to_string(), "each line once and in order");
        }
        assert_eq!(lines[count], format!("end {count}"));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! A change of policies rolled out while an agent works: compared with the past, watched, promoted,
//! explained, rolled back. The commands are those of docs/policies.md.

use crate::running::{Backend, Up, copy_folder, wait_for};
use serde_json::Value;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

const SMALL: &str = r#"{"order_id": "ord-1001", "amount": 20.0}"#;
const LARGE: &str = r#"{"order_id": "ord-1001", "amount": 60.0}"#;

/// What the agent asks again and again, until it is told to stop: what it was answered.
fn work(up: &Up, sandbox: &str, is_over: &AtomicBool, seen: &Mutex<Vec<(&'static str, u64)>>) {
    while !is_over.load(Ordering::SeqCst) {
        for (what, arguments) in [
            ("read", &["GET", "/orders"][..]),
            ("small", &["POST", "/refunds", SMALL][..]),
            ("large", &["POST", "/refunds", LARGE][..]),
        ] {
            let status = up.agent(sandbox, arguments)["status"].as_u64().expect("a status");
            seen.lock().expect("no panic").push((what, status));
        }
    }
}

/// Waits until the agent was answered so, from now on.
fn answered(seen: &Mutex<Vec<(&'static str, u64)>>, what: &str, status: u64) {
    let from = seen.lock().expect("no panic").len();
    wait_for(&format!("{what} answered with {status}"), || {
        let seen = seen.lock().expect("no panic");
        seen.iter().skip(from).any(|(asked, answer)| *asked == what && *answer == status).then_some(())
    });
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("no `{field}` in {value}")).to_owned()
}

#[test]
fn a_stricter_set_is_watched_promoted_and_rolled_back_while_an_agent_works() {
    let backend = Backend::start();
    let up = Up::unwatched(&backend);
    let config = up.config().display().to_string();
    up.told(&["apply", &config]);
    let sandbox = text(&up.sandbox("alice", "c1"), "sandbox_id");
    let next = up.folder.path().join("next");
    copy_folder(&up.config(), &next);
    let file = next.join("policies/support-desk.cedar");
    let set = fs::read_to_string(&file).expect("reads").replace("decimal(\"100.0\")", "decimal(\"50.0\")");
    fs::write(&file, set).expect("writes");
    let next = next.display().to_string();

    let (is_over, seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|threads| {
        threads.spawn(|| work(&up, &sandbox, &is_over, &seen));
        let rolled_out =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| roll_out(&up, &next, &seen)));
        is_over.store(true, Ordering::SeqCst);
        if let Err(panic) = rolled_out {
            std::panic::resume_unwind(panic);
        }
    });
    let seen = seen.into_inner().expect("no panic");
    let is_odd = |(what, status): &&(&str, u64)| {
        !matches!((*what, *status), ("read", 200) | ("small", 201) | ("large", 201 | 403) | (_, 429))
    };
    assert!(seen.iter().filter(is_odd).collect::<Vec<_>>().is_empty(), "only the change is felt: {seen:?}");
}

fn roll_out(up: &Up, next: &str, seen: &Mutex<Vec<(&'static str, u64)>>) {
    answered(seen, "large", 201);
    up.told(&["policy", "check", next]);
    let compared = wait_for("a record of a large refund", || {
        let compared = up.told(&["policy", "diff", "--candidate", next]);
        (compared["policies"]["refund-limit"]["denied"].as_u64()? > 0).then_some(compared)
    });
    assert!(
        text(&compared, "text")
            .contains("support-desk/createRefund: allowed by give-refunds, then denied by refund-limit"),
        "{compared}"
    );

    up.told(&["policy", "push", next, "--shadow"]);
    answered(seen, "large", 201);
    wait_for("what the set in shadow would have done", || {
        let status = up.told(&["policy", "status"]);
        let recent = &status["set"]["shadow_set"]["of_recent_requests"];
        (recent["would_change"].as_u64()? > 0 && recent["would_allow"].as_u64()? > 0).then_some(())
    });

    up.told(&["policy", "promote"]);
    answered(seen, "large", 403);
    answered(seen, "small", 201);
    let decision = wait_for("the record of a denial", || {
        let denied = up.call("GET", "/decisions?verdict=deny", None).json();
        let denied = denied["decisions"].as_array()?.iter().find(|it| it["code"] == "policy-denied")?.clone();
        denied["id"].as_str().map(str::to_owned)
    });
    let explained = up.told(&["policy", "explain", &decision]);
    let told = text(&explained, "text");
    assert!(told.contains("denied by refund-limit") && told.contains("decimal(\"50.0\")"), "{told}");

    up.told(&["policy", "rollback"]);
    answered(seen, "large", 201);
    let explained = up.told(&["policy", "explain", &decision]);
    assert!(text(&explained, "text").contains("denied by refund-limit"), "still as it was decided then");
    let status = up.told(&["policy", "status"]);
    let versions = status["versions"].as_array().expect("a list");
    let how: Vec<String> = versions.iter().map(|version| text(version, "how")).collect();
    assert_eq!(how, ["rolled-back", "promoted", "applied", "before"]);
}

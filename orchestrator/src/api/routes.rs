// SPDX-License-Identifier: Apache-2.0
//! The table of routes: what there is, who may call it, what goes in and what comes out.
//!
//! The router and `/openapi.json` are both made from it, so neither can know what the other does
//! not.

use super::body::{CONFIGURATION_BYTES, JSON_BYTES, Kind, SECRET_BYTES};
use super::configuration::{Backends, Filters, Policies, Templates};
use super::{Access, Answer, Api, Call, Route};
use super::{
    audit, configuration, exec, files, filters, gateways, keys, observe, openapi, policy_set, ports,
    problems, processes, retention, sandbox_files, sandboxes, secrets, sessions, snapshots, tenants,
    terminal, tickets, trees, uploads, users,
};
use crate::store::Role::{Admin, Auditor, Developer};
use futures_util::future::BoxFuture;
use http::Method;
use std::sync::{Arc, LazyLock};

type Query = &'static [(&'static str, &'static str)];

const TENANT: (&str, &str) =
    ("tenant", "the tenant, for keys of the whole installation; `default` if absent");
const DRY_RUN: (&str, &str) = ("dry_run", "only check and tell the difference");
const LIMIT: (&str, &str) = ("limit", "how many at most: 1 to 1000, 100 if absent");
const SIGNED: Query =
    &[("expires", "when the URL ends, in seconds since 1970"), ("signature", "of all that it allows")];
const LOG: (&str, &str) = ("log", "`sandboxes` (as if absent) or `files`");
const OF_TENANT: Query = &[TENANT];
const OF_EDIT: Query = &[TENANT, DRY_RUN];

macro_rules! routes {
    ($($method:ident $path:literal $id:literal $access:expr, $body:expr, $query:expr, $answers:expr, $run:path, $about:literal;)*) => {
        /// Every route.
        pub(super) static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| vec![$({
            fn run(api: Arc<Api>, call: Call) -> BoxFuture<'static, Answer> {
                Box::pin($run(api, call))
            }
            Route {
                method: Method::$method,
                path: $path,
                id: $id,
                about: $about,
                access: $access,
                query: $query,
                body: $body,
                answers: $answers,
                run,
            }
        },)*]);
    };
}

const OK: &[(u16, &str)] = &[(200, "as asked")];
const DONE: &[(u16, &str)] = &[(204, "done")];
const GONE: &[(u16, &str)] = &[(204, "it is no more")];
const PUT: &[(u16, &str)] = &[(200, "changed, or the same as before"), (201, "made")];
const READ: Access = Access::Key(Auditor);
const USE: Access = Access::Key(Developer);
const CHANGE: Access = Access::Key(Admin);

routes! {
    POST "/sandbox" "createSandbox" USE, Kind::Json(JSON_BYTES),
        &[TENANT, ("wait", "`running`: answer once it runs or has failed")],
        &[(200, "the conversation's sandbox was there; a fresh token"), (201, "made")],
        sandboxes::create, "Makes the sandbox of a conversation, or finds it";
    GET "/sandbox" "listSandboxes" READ, Kind::None,
        &[TENANT, LIMIT, ("user_id", "of this user"), ("conversation_id", "of this conversation"), ("status", "with this status"), ("label", "with this label: NAME=VALUE"), ("after", "after this sandbox, for the next page")],
        OK, sandboxes::list, "Lists sandboxes, newest first";
    GET "/sandbox/{id}" "getSandbox" READ, Kind::None, OF_TENANT, OK, sandboxes::show, "Shows a sandbox";
    GET "/sandbox/{id}/usage" "getUsage" READ, Kind::None, OF_TENANT, OK, sandboxes::usage, "Tells what a sandbox uses now: memory, processors' time since its start, processes";
    PATCH "/sandbox/{id}" "changeSandbox" USE, Kind::Json(JSON_BYTES), OF_TENANT, OK, sandboxes::change, "Extends a sandbox's life (`ttl`, from now), or changes its `idle` or `labels`";
    DELETE "/sandbox/{id}" "destroySandbox" USE, Kind::None,
        &[TENANT, ("wait", "`destroyed` (as if absent): answer once it is gone; `no`: at once")],
        &[(200, "it is gone"), (202, "it is being destroyed")],
        sandboxes::destroy, "Ends the session, keeps the files and removes the sandbox; may be repeated";
    POST "/sandbox/{id}/pause" "pauseSandbox" USE, Kind::Json(JSON_BYTES), OF_TENANT, OK, sandboxes::pause, "Has all of a sandbox stand still, with its memory, until it is resumed";
    POST "/sandbox/{id}/resume" "resumeSandbox" USE, Kind::Json(JSON_BYTES), OF_TENANT, OK, sandboxes::resume, "Lets a paused sandbox go on, or wakes one that is stopped";
    POST "/sandbox/{id}/stop" "stopSandbox" USE, Kind::Json(JSON_BYTES), OF_TENANT, OK, sandboxes::stop, "Keeps a sandbox on disk until it is used: with its memory (`kept` `memory`) where that can be, else its files; `keep` asks for one of them";
    POST "/sandbox/{id}/exec" "exec" USE, Kind::Json(JSON_BYTES),
        &[TENANT, ("collect", "answer with the whole output when the command has ended")],
        &[(200, "server-sent events `start`, `stdout`, `stderr`, `exit`, `error`; or the whole, collected")],
        exec::run, "Runs a command in a sandbox";
    GET "/sandbox/{id}/exec/{exec}" "followExec" USE, Kind::None, OF_TENANT,
        &[(200, "server-sent events, as of `exec`")],
        exec::follow, "Goes on with a command's events after `Last-Event-ID`; the last 1 MiB is kept, until a minute after its end";
    GET "/sandbox/{id}/processes" "listProcesses" USE, Kind::None, OF_TENANT, OK, processes::list, "Lists the processes that were started in a sandbox and run";
    GET "/sandbox/{id}/processes/{pid}" "attachProcess" USE, Kind::None, OF_TENANT,
        &[(200, "server-sent events, as of `exec`")],
        processes::attach, "Follows what a process writes from now on, whoever started it";
    POST "/sandbox/{id}/processes/{pid}/signal" "signalProcess" USE, Kind::Json(JSON_BYTES), OF_TENANT, DONE, processes::signal, "Sends a signal to a process and its group: `TERM` if none is named";
    POST "/sandbox/{id}/processes/{pid}/stdin" "writeStdin" USE, Kind::Stream,
        &[TENANT, ("close", "the input ends with this")],
        DONE, processes::stdin, "Writes to the input of a process that was started with `stdin` `true`; answers when it has been read";
    GET "/sandbox/{id}/terminal" "openTerminal" USE, Kind::WebSocket,
        &[TENANT, ("ticket", "instead of a key, which browsers cannot send here"), ("cols", "columns: 80 if absent"), ("rows", "rows: 24 if absent"),
            ("term", "the kind of terminal: `xterm-256color` if absent"), ("command", "for the shell to run: a login shell if absent"), ("cwd", "its working folder"),
            ("pid", "comes back to this process instead of starting one"), ("keep", "it lives on when the socket closes")],
        &[(101, "a WebSocket: binary messages are the terminal's bytes; text is JSON, `resize` and `signal` from you, `start`, `exit` and `error` from us")],
        terminal::open, "Opens a terminal in a sandbox";
    POST "/sandbox/{id}/tickets" "createTicket" USE, Kind::Json(JSON_BYTES), OF_TENANT, &[(201, "good for one socket and 30 seconds")], tickets::create, "Makes a ticket with which a browser opens a terminal of this sandbox";
    POST "/sandbox/{id}/ports" "openPort" USE, Kind::Json(JSON_BYTES), OF_TENANT, &[(201, "open; whoever on this machine knows the URL has the sandbox")], ports::open, "Opens a port on the loopback of the orchestrator's machine that speaks E2B's wire, for `ttl`: 10 minutes if absent, at most an hour";
    DELETE "/sandbox/{id}/ports" "closePorts" USE, Kind::None, OF_TENANT, GONE, ports::close, "Closes the sandbox's ports";
    GET "/sandbox/{id}/files/{*path}" "readSandboxFile" USE, Kind::None, OF_TENANT, OK, sandbox_files::read, "Reads a file";
    PUT "/sandbox/{id}/files/{*path}" "writeSandboxFile" USE, Kind::Stream, OF_TENANT, DONE, sandbox_files::write, "Writes a file, making the folders above it";
    DELETE "/sandbox/{id}/files/{*path}" "removeSandboxFile" USE, Kind::None, OF_TENANT, GONE, sandbox_files::remove, "Removes a file, or a folder with all that is in it; may be repeated";
    GET "/sandbox/{id}/entries/{*path}" "statSandboxFile" USE, Kind::None, OF_TENANT, OK, sandbox_files::stat, "Tells what there is at a path";
    GET "/sandbox/{id}/folders/{*path}" "listFolder" USE, Kind::None,
        &[TENANT, ("depth", "how many folders deep: 1 if absent")],
        OK, sandbox_files::list, "Lists a folder, at most 20,000 entries";
    PUT "/sandbox/{id}/folders/{*path}" "makeFolder" USE, Kind::Json(JSON_BYTES), OF_TENANT,
        &[(200, "it was there"), (201, "made")],
        sandbox_files::make, "Makes a folder and those above it";
    POST "/sandbox/{id}/move" "moveSandboxFile" USE, Kind::Json(JSON_BYTES), OF_TENANT, OK, sandbox_files::rename, "Moves a file or a folder, making the folders above its new place";
    GET "/sandbox/{id}/trees/{*path}" "readTree" USE, Kind::None, OF_TENANT, OK, trees::read, "Reads a folder with all that is in it, as a tar stream";
    PUT "/sandbox/{id}/trees/{*path}" "writeTree" USE, Kind::Stream, OF_TENANT, OK, trees::write, "Unpacks a tar stream into a folder, which is made if need be";
    GET "/sandbox/{id}/watch/{*path}" "watchFolder" USE, Kind::None,
        &[TENANT, ("recursive", "the folders in it too")],
        &[(200, "server-sent events `created`, `written`, `moved`, `removed`, `changed`, with `name` within the folder; or `error`")],
        sandbox_files::watch, "Tells what happens in a folder";
    POST "/sandbox/{id}/snapshot" "takeSnapshot" USE, Kind::Json(JSON_BYTES), OF_TENANT, &[(201, "taken")], snapshots::take, "Keeps a sandbox's home folder and `/data/scratch`, and with `memory` `true` its processes, sealed, for other sandboxes of its user (`POST /sandbox` with `snapshot`)";
    GET "/snapshots" "listSnapshots" READ, Kind::None,
        &[TENANT, LIMIT, ("user_id", "of this user"), ("before", "older than this snapshot, for the next page")],
        OK, snapshots::list, "Lists snapshots, newest first";
    GET "/snapshots/{id}" "getSnapshot" READ, Kind::None, OF_TENANT, OK, snapshots::show, "Shows a snapshot";
    DELETE "/snapshots/{id}" "deleteSnapshot" USE, Kind::None, OF_TENANT, GONE, snapshots::remove, "Removes a snapshot";
    POST "/tokens/{sandbox}/refresh" "refreshToken" USE, Kind::Json(JSON_BYTES), OF_TENANT, OK, sandboxes::refresh, "Replaces a session's token; the one before stays good for a minute";
    GET "/tenants" "listTenants" READ, Kind::None, &[], OK, tenants::list, "Lists the tenants that the key sees";
    POST "/tenants" "createTenant" Access::Installation, Kind::Json(JSON_BYTES), &[], &[(201, "made")], tenants::create, "Makes a tenant";
    GET "/tenants/{name}" "getTenant" READ, Kind::None, &[], OK, tenants::show, "Shows a tenant";
    DELETE "/tenants/{name}" "deleteTenant" Access::Installation, Kind::None, &[], GONE, tenants::remove, "Removes a tenant that has no live sandbox";
    GET "/keys" "listKeys" CHANGE, Kind::None, OF_TENANT, OK, keys::list, "Lists API keys, without their secrets";
    POST "/keys" "createKey" CHANGE, Kind::Json(JSON_BYTES), OF_TENANT, &[(201, "made; the key is shown this once")], keys::create, "Makes an API key that can do no more than the one that makes it";
    DELETE "/keys/{id}" "deleteKey" CHANGE, Kind::None, OF_TENANT, GONE, keys::remove, "Removes an API key at once";
    GET "/backends" "listBackends" READ, Kind::None, OF_TENANT, OK, configuration::list::<Backends>, "Lists backends";
    GET "/backends/{name}" "getBackend" READ, Kind::None, OF_TENANT, OK, configuration::get::<Backends>, "Shows a backend";
    PUT "/backends/{name}" "putBackend" CHANGE, Kind::Json(CONFIGURATION_BYTES), OF_EDIT, PUT, configuration::put::<Backends>, "Puts a backend";
    DELETE "/backends/{name}" "deleteBackend" CHANGE, Kind::None, OF_EDIT, GONE, configuration::remove::<Backends>, "Removes a backend";
    GET "/policies" "listPolicies" READ, Kind::None, OF_TENANT, OK, configuration::list::<Policies>, "Lists policy files";
    GET "/policies/{name}" "getPolicy" READ, Kind::None, OF_TENANT, OK, configuration::get::<Policies>, "Shows a policy file";
    PUT "/policies/{name}" "putPolicy" CHANGE, Kind::Json(CONFIGURATION_BYTES), OF_EDIT, PUT, configuration::put::<Policies>, "Puts a policy file";
    DELETE "/policies/{name}" "deletePolicy" CHANGE, Kind::None, OF_EDIT, GONE, configuration::remove::<Policies>, "Removes a policy file";
    GET "/policy-set" "getPolicySet" READ, Kind::None, OF_TENANT, OK, policy_set::show, "Shows the policy set in force, its version, and what policies in shadow would have done of the newest requests";
    PUT "/policy-set" "putPolicySet" CHANGE, Kind::Json(CONFIGURATION_BYTES), OF_EDIT, OK, policy_set::push, "Puts a whole policy set, in force or in shadow, all or nothing";
    DELETE "/policy-set/shadow" "dropShadowSet" CHANGE, Kind::None, OF_EDIT, OK, policy_set::drop_shadow, "Takes the set in shadow away";
    POST "/policy-set/promote" "promotePolicies" CHANGE, Kind::Json(JSON_BYTES), OF_EDIT, OK, policy_set::promote, "Puts the set in shadow, or single policies in shadow, in force";
    POST "/policy-set/rollback" "rollBackPolicies" CHANGE, Kind::Json(JSON_BYTES), OF_EDIT, OK, policy_set::roll_back, "Puts an older version of the policy set in force again";
    GET "/policy-set/versions" "listPolicyVersions" READ, Kind::None, OF_TENANT, OK, policy_set::versions, "Lists the versions of the policy set, newest first";
    GET "/policy-set/versions/{number}" "getPolicyVersion" READ, Kind::None, OF_TENANT, OK, policy_set::version, "Shows a version of the policy set";
    POST "/policy-set/diff" "diffPolicies" READ, Kind::Json(CONFIGURATION_BYTES), &[TENANT, ("limit", "how many of the newest requests at most: 1 to 10000, 1000 if absent")], OK, policy_set::compare, "Decides recorded requests again under a candidate set and tells what would change";
    GET "/filters" "listFilters" READ, Kind::None, OF_TENANT, OK, filters::list, "Lists filters, and in how many gateways each is in force as it should be";
    GET "/filters/{name}" "getFilter" READ, Kind::None, OF_TENANT, OK, filters::show, "Shows a filter, without its component, and where each gateway stands with it";
    PUT "/filters/{name}" "putFilter" CHANGE, Kind::Json(CONFIGURATION_BYTES), OF_EDIT, PUT, configuration::put::<Filters>, "Puts a filter: its manifest and its component";
    DELETE "/filters/{name}" "deleteFilter" CHANGE, Kind::None, OF_EDIT, GONE, configuration::remove::<Filters>, "Removes a filter";
    GET "/filters/{name}/versions" "listFilterVersions" READ, Kind::None, OF_TENANT, OK, filters::versions, "Lists what was pushed of a filter, newest first";
    POST "/filters/{name}/versions" "pushFilter" USE, Kind::Json(CONFIGURATION_BYTES), OF_TENANT, &[(201, "kept as a version that is not in force")], filters::push, "Inspects, compiles and keeps a filter without putting it in force";
    POST "/filters/{name}/activate" "activateFilter" CHANGE, Kind::Json(JSON_BYTES), OF_EDIT, OK, filters::activate, "Puts a pushed version of a filter in force: the newest if none is named";
    POST "/filters/{name}/rollback" "rollBackFilter" CHANGE, Kind::Json(JSON_BYTES), OF_EDIT, OK, filters::roll_back, "Puts in force what a filter was before, as a new version";
    GET "/filters/{name}/logs" "readFilterLog" READ, Kind::None, &[TENANT, ("follow", "stream what comes as server-sent events `line` and `missed`")], OK, filters::logs, "Shows what a filter logged lately";
    GET "/templates" "listTemplates" READ, Kind::None, OF_TENANT, OK, configuration::list::<Templates>, "Lists templates";
    GET "/templates/{name}" "getTemplate" READ, Kind::None, OF_TENANT, OK, configuration::get::<Templates>, "Shows a template";
    PUT "/templates/{name}" "putTemplate" CHANGE, Kind::Json(JSON_BYTES), OF_EDIT, PUT, configuration::put::<Templates>, "Puts a template";
    DELETE "/templates/{name}" "deleteTemplate" CHANGE, Kind::None, OF_EDIT, GONE, configuration::remove::<Templates>, "Removes a template";
    GET "/secrets" "listSecrets" CHANGE, Kind::None, OF_TENANT, OK, secrets::list, "Lists the names of secrets";
    PUT "/secrets/{name}" "putSecret" CHANGE, Kind::Json(SECRET_BYTES), OF_TENANT, &[(204, "set")], secrets::put, "Gives a secret a value, which is never shown again";
    DELETE "/secrets/{name}" "deleteSecret" CHANGE, Kind::None, OF_TENANT, GONE, secrets::remove, "Removes a secret";
    POST "/apply" "apply" CHANGE, Kind::Json(CONFIGURATION_BYTES),
        &[TENANT, DRY_RUN, ("prune", "take away what the body does not name"),
            ("version", "only if the configuration still is at this version, as a dry run told it")],
        OK, configuration::apply, "Checks a whole configuration and puts it in force, all or nothing";
    GET "/gateways" "listGateways" Access::Installation, Kind::None, &[], OK, gateways::list, "Lists the gateways that may follow the control stream, and those that do";
    POST "/gateways" "createGateway" Access::Installation, Kind::Json(JSON_BYTES), &[], &[(201, "made; the credential is shown this once")], gateways::create, "Gives a gateway a credential of its own";
    DELETE "/gateways/{name}" "deleteGateway" Access::Installation, Kind::None, &[], GONE, gateways::remove, "Revokes a gateway's credential and cuts its connections";
    GET "/sessions" "listSessions" Access::Installation, Kind::None, &[], OK, sessions::list, "Lists the sessions that are bound to an address";
    POST "/sessions" "createSession" Access::Installation, Kind::Json(JSON_BYTES), OF_TENANT, &[(201, "made; the token is shown this once")], sessions::create, "Registers a session for an address, for tests and clients that are no sandboxes";
    DELETE "/sessions/{id}" "deleteSession" Access::Installation, Kind::None, &[], GONE, sessions::remove, "Ends a session of an address";
    GET "/events" "listEvents" READ, Kind::None,
        &[TENANT, LIMIT, ("sandbox_id", "of this sandbox"), ("after", "after this place in the log, for the next page")],
        &[(200, "a page; or, for a reader that accepts `text/event-stream`, all that comes, from `Last-Event-ID` or `after` on")],
        observe::events, "Shows what happened, oldest first";
    GET "/audit" "listAudit" READ, Kind::None,
        &[TENANT, LIMIT, LOG, ("user_id", "about this user"), ("sandbox_id", "about this sandbox"), ("after", "after this place in the log, for the next page")],
        OK, audit::lines, "Shows lines of an audit log with their hashes, oldest first";
    GET "/audit/marks" "listAuditMarks" READ, Kind::None,
        &[TENANT, LIMIT, LOG, ("after", "after the mark with this number, for the next page")],
        OK, audit::marks, "Shows the places of an audit log that the installation has signed, and the key to check them with";
    GET "/decisions" "listDecisions" READ, Kind::None,
        &[TENANT, LIMIT, ("sandbox_id", "of this sandbox"), ("verdict", "`allow`, `deny` or `error`"), ("before", "older than this decision, for the next page"), ("after", "streams what came home after this number")],
        &[(200, "a page; or, for a reader that accepts `text/event-stream`, all that comes, as events `decision`, from `Last-Event-ID` or `after` on")],
        observe::decisions, "Shows what gateways decided, newest first";
    GET "/decisions/{id}/explanation" "explainDecision" READ, Kind::None, OF_TENANT, OK, policy_set::explain, "Shows why a request was decided as it was";
    GET "/users/{user_id}/files" "listFiles" USE, Kind::None,
        &[TENANT, LIMIT, ("prefix", "whose path begins so"), ("after", "after this path, for the next page")],
        OK, files::list, "Lists a user's files by path, with folders and links on the first page";
    GET "/users/{user_id}/files/{*path}" "readFile" USE, Kind::None, OF_TENANT,
        &[(200, "the file"), (206, "the range of it that was asked for"), (304, "the reader has it")],
        files::read, "Reads a user's file";
    HEAD "/users/{user_id}/files/{*path}" "headFile" USE, Kind::None, OF_TENANT,
        &[(200, "what is known of the file"), (304, "the reader has it")],
        files::head, "Tells about a user's file";
    PUT "/users/{user_id}/files/{*path}" "writeFile" USE, Kind::Stream,
        &[TENANT, ("mode", "its mode, such as `755`; that of before if absent"), ("modified", "when it was changed, if not now")],
        &[(200, "written"), (201, "made (`If-None-Match: *`)")],
        files::write, "Writes a user's file, whole or not at all";
    DELETE "/users/{user_id}/files/{*path}" "deleteFile" USE, Kind::None, OF_TENANT, GONE, files::remove, "Removes a user's file";
    POST "/users/{user_id}/copies" "copyFile" USE, Kind::Json(JSON_BYTES), OF_TENANT, OK, files::copy, "Copies or moves a user's file";
    POST "/users/{user_id}/shape" "shapeFiles" USE, Kind::Json(JSON_BYTES), OF_TENANT, &[(204, "changed")], files::shape, "Changes modes, empty folders and links, all at once";
    POST "/users/{user_id}/uploads" "beginUpload" USE, Kind::Json(JSON_BYTES), OF_TENANT, &[(201, "begun; each part has its URL")], uploads::begin, "Begins an upload by URLs that need no key";
    GET "/users/{user_id}/uploads/{id}" "getUpload" USE, Kind::None, OF_TENANT, OK, uploads::show, "Tells which parts of an upload have come, with fresh URLs";
    DELETE "/users/{user_id}/uploads/{id}" "abandonUpload" USE, Kind::None, OF_TENANT, GONE, uploads::abandon, "Abandons an upload";
    POST "/users/{user_id}/uploads/{id}/complete" "completeUpload" USE, Kind::Json(JSON_BYTES), OF_TENANT, OK, uploads::complete, "Checks an upload and makes it a file; may be repeated";
    POST "/users/{user_id}/downloads" "signDownload" USE, Kind::Json(JSON_BYTES), OF_TENANT, OK, uploads::sign_download, "Signs a URL by which a user's file can be read without a key";
    DELETE "/users/{user_id}" "eraseUser" CHANGE, Kind::None, OF_TENANT, OK, users::erase, "Erases a user's files, archive, uploads, snapshots, decisions, sessions and ended sandboxes, unless they are held; may be repeated";
    PUT "/users/{user_id}/hold" "holdUser" CHANGE, Kind::Json(JSON_BYTES), OF_TENANT, OK, retention::hold, "Holds a user: retention and erasure leave what they have";
    GET "/users/{user_id}/hold" "getHold" CHANGE, Kind::None, OF_TENANT, OK, retention::show, "Tells why a user is held";
    DELETE "/users/{user_id}/hold" "releaseUser" CHANGE, Kind::None, OF_TENANT, GONE, retention::release, "Lets a held user's files go again";
    GET "/holds" "listHolds" CHANGE, Kind::None, &[TENANT, LIMIT, ("after", "`next` of the page before")], OK, retention::list, "Lists who is held";
    POST "/retention" "retireFiles" CHANGE, Kind::Json(JSON_BYTES), OF_TENANT, OK, retention::step, "Retires the next files whose time has come, as `limits.toml` of their tenants says, and tells where to go on";
    PUT "/uploads/{id}/{part}" "putPart" Access::Open, Kind::Stream, SIGNED, &[(204, "it has come")], uploads::put_part, "Takes a part of an upload, by a signed URL";
    GET "/downloads/{tenant}/{user_id}/{*path}" "download" Access::Open, Kind::None, SIGNED,
        &[(200, "the file"), (206, "the range of it that was asked for"), (304, "the reader has it")],
        uploads::download, "Reads a user's file, by a signed URL";
    GET "/openapi.json" "openapi" Access::Open, Kind::None, &[], OK, openapi::document, "This document";
    GET "/problems/{code}" "problem" Access::Open, Kind::None, &[], OK, problems::page, "What a problem's code means";
    GET "/healthz" "health" Access::Open, Kind::None, &[], OK, observe::health, "Whether the orchestrator answers";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::api::Caller;
    use crate::rights::Rights;
    use crate::store::{KeyScope, Role};

    /// The single rights that let a key make this call.
    fn alone(id: &str) -> &'static [Role] {
        match id {
            "pushFilter" => &[Role::PushFilters],
            "activateFilter" | "rollBackFilter" => &[Role::ActivateFilters],
            "listFilters" | "getFilter" | "listFilterVersions" | "readFilterLog" | "listBackends"
            | "getBackend" => &[Role::PushFilters, Role::ActivateFilters],
            _ => &[],
        }
    }

    fn caller(role: Role, is_whole: bool) -> Caller {
        Caller {
            key: "aaaaaaaaaaaaaaaa".parse().expect("an id"),
            tenant: (!is_whole).then(|| "acme".parse().expect("a name")),
            role,
            operations: None,
            scope: KeyScope::default(),
        }
    }

    #[test]
    fn the_policies_of_the_control_plane_say_what_the_table_says() {
        let rights = Rights::shipped().expect("are sound");
        for route in ROUTES.iter() {
            for role in Role::ALL {
                for is_whole in [false, true] {
                    let wanted = match route.access {
                        Access::Open => continue,
                        Access::Key(least) => role >= least || alone(route.id).contains(&role),
                        Access::Installation => is_whole && role == Admin,
                    };
                    let allowed = rights.call(&caller(role, is_whole), route.id).is_ok();
                    assert_eq!(allowed, wanted, "{} as {role:?}, whole: {is_whole}", route.id);
                }
            }
        }
        let known = rights.operations();
        let routes: Vec<&str> = ROUTES.iter().map(|route| route.id).collect();
        let groups = [
            "read",
            "use",
            "change",
            "install",
            "enter",
            "survey",
            "filters:push",
            "filters:activate",
            "filters:read",
        ];
        let extra: Vec<&&str> =
            known.iter().filter(|id| !routes.contains(id) && !groups.contains(id)).collect();
        assert!(extra.is_empty(), "policies/control.cedarschema names what the API has not: {extra:?}");
    }
}

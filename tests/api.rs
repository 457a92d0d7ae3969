//! What is served over HTTP beside the sender APIs, as operators and their programs meet it, and the
//! document of all of it, judged by schemathesis. The sender API itself is in `server_api.rs`.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use common::{Answer, DEADLINE, Server, curl, python_for, so, until};
use device::{Device, codes, error_name, post, request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const APP: &str = "org.example.Chat";
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api");
const OWN_LISTENER: &str = "[admin]\nlisten = \"127.0.0.1:0\"";

/// A new token, as an operator makes it.
fn token_add(server: &Server, name: &str) -> String {
    let output = server.admin(&["--json", "token", "add", name]);
    assert!(output.status.success(), "{output:?}");
    let made: Value = serde_json::from_slice(&output.stdout).expect("--json prints JSON");
    assert_eq!(made["name"], name);
    made["token"].as_str().expect("a text").to_owned()
}

fn get(base: &str, path: &str) -> Answer {
    curl(&[&format!("{base}{path}")], b"")
}

/// A program of an operator.
struct Operator {
    base: String,
    token: String,
}

impl Operator {
    fn new(server: &Server) -> Self {
        Self { base: server.api.clone(), token: token_add(server, "test") }
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let (url, token) = (format!("{}{path}", self.base), format!("Authorization: Bearer {}", self.token));
        let arguments = ["--request", method, "--header", &token, &url];
        match body {
            None => curl(&arguments, b""),
            Some(body) => {
                let json = ["--header", "Content-Type: application/json", "--data-binary", "@-"];
                curl(&[&arguments[..], &json].concat(), body.to_string().as_bytes())
            }
        }
    }

    /// The status and the body.
    fn told(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let answer = self.call(method, path, body);
        assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
        (answer.status, answer.json())
    }

    #[track_caller]
    fn assert_refused(&self, method: &str, path: &str, body: Option<&Value>, status: u16, error: &str) {
        let (told, body) = self.told(method, path, body);
        assert_eq!((told, &body["error"]), (status, &json!(error)), "{method} {path}: {body}");
        assert!(body["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{body}");
    }
}

#[test]
fn health_and_readiness_are_told_to_everybody() {
    let server = Server::start("00", "");
    let (health, ready) = (get(&server.api, "/healthz"), get(&server.api, "/readyz"));
    assert_eq!((health.status, health.json()), (200, json!({ "alive": true })));
    assert_eq!((ready.status, ready.json()), (200, json!({ "ready": true })));
    let head = curl(&["--head", &format!("{}/healthz", server.api)], b"");
    assert_eq!((head.status, head.body.trim()), (200, ""));
    for method in ["POST", "DELETE", "OPTIONS"] {
        let other = curl(&["--request", method, &format!("{}/readyz", server.api)], b"");
        assert_eq!((other.status, other.header("allow")), (405, Some("GET,HEAD")), "{other:?}");
        assert_eq!(other.json()["error"], "method-not-allowed");
    }
}

#[tokio::test]
async fn a_store_that_does_not_write_is_not_ready_and_recovers() {
    let server = Server::start("00", "");
    let operator = Operator::new(&server);
    // Somebody else writes, and does not come to an end.
    let disk = rusqlite::Connection::open(server.folder.path().join("state/server.db")).expect("it is there");
    disk.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes for long");
    let refused = operator.call("POST", "/v1/admin/apps", Some(&json!({ "appID": "x" })));
    assert!(refused.status >= 500, "a write that failed: {refused:?}");
    let ready = get(&server.api, "/readyz");
    assert_eq!((ready.status, &ready.json()["ready"]), (503, &json!(false)), "{ready:?}");
    assert!(ready.json()["reason"].as_str().is_some_and(|reason| reason.contains("the store")), "{ready:?}");
    assert_eq!(get(&server.api, "/healthz").status, 200, "the process lives all the same");
    disk.execute_batch("ROLLBACK").expect("it is ours");
    until(async || {
        let ready = get(&server.api, "/readyz");
        so(ready.status == 200, || format!("{ready:?}"))
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_stopping_says_so_on_the_listener_of_operators() {
    let mut server = Server::start("00", OWN_LISTENER);
    let admin = own_listener(&server);
    assert_eq!(get(&admin, "/readyz").status, 200);
    let app = server.app_add(APP);
    // A request that has yet to send its body holds the stop up.
    let mut slow = TcpStream::connect(server.api.strip_prefix("http://").expect("a URL")).expect("it listens");
    slow.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let sender = format!("appID: {}\r\nappSecret: {}", app.id, app.secret);
    let body = "Content-Length: 2\r\nExpect: 100-continue";
    let head = format!("POST /spp/pns/api/push HTTP/1.1\r\nHost: x\r\n{sender}\r\n{body}\r\n\r\n");
    slow.write_all(head.as_bytes()).expect("it reads");
    let mut go_on = [0; 25];
    slow.read_exact(&mut go_on).expect("it waits for the body");
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    kill(Pid::from_raw(i32::try_from(server.child.id()).expect("small")), Signal::SIGTERM).expect("it is ours");
    until(async || {
        let ready = get(&admin, "/readyz");
        so(ready.status == 503, || format!("{ready:?}"))
    })
    .await;
    assert_eq!(get(&admin, "/readyz").json(), json!({ "ready": false, "reason": "the server is stopping" }));
    slow.write_all(b"{}").expect("it reads");
    let mut answer = String::new();
    slow.read_to_string(&mut answer).expect("it is answered and closed");
    assert!(answer.starts_with("HTTP/1.1 200 "), "what was begun is answered: {answer}");
    assert!(server.stop().success());
}

/// The URL of the listener of operators.
fn own_listener(server: &Server) -> String {
    let log = server.log();
    let named = log.split_whitespace().find_map(|word| word.strip_prefix("admin="));
    named.unwrap_or_else(|| panic!("no listener of operators: {log}")).to_owned()
}

#[test]
fn operators_may_have_a_listener_of_their_own() {
    let server = Server::start("00", &format!("{OWN_LISTENER}\nmetrics = \"open\""));
    let admin = own_listener(&server);
    for path in ["/metrics", "/v1/admin/apps"] {
        assert_eq!(get(&server.api, path).status, 404, "{path} is not for the public");
    }
    assert_eq!(get(&admin, "/metrics").status, 200, "it is open");
    assert_eq!(get(&admin, "/v1/admin/apps").status, 401, "this is not");
    assert_eq!(get(&admin, "/spp/pns/api/push").status, 404, "senders have their own listener");
    for base in [&server.api, &admin] {
        for path in ["/healthz", "/readyz", "/openapi.json"] {
            assert_eq!(get(base, path).status, 200, "{path}");
        }
    }
}

#[test]
fn nothing_is_administered_without_a_good_token() {
    let server = Server::start("00", "");
    let operator = Operator::new(&server);
    let paths = [
        ("GET", "/metrics"),
        ("GET", "/v1/admin/status"),
        ("GET", "/v1/admin/apps"),
        ("POST", "/v1/admin/apps"),
        ("GET", "/v1/admin/apps/x"),
        ("DELETE", "/v1/admin/apps/x"),
        ("POST", "/v1/admin/apps/x/rotate"),
        ("GET", "/v1/admin/keys"),
        ("POST", "/v1/admin/keys/rotate"),
        ("GET", "/v1/admin/tokens"),
        ("DELETE", "/v1/admin/tokens/test"),
    ];
    let wrong = ["X: y", "Authorization: Bearer", "Authorization: Bearer x", "Authorization: Basic eDp5"];
    let shorter = format!("Authorization: Bearer {}", &operator.token[1..]);
    let scheme = format!("Authorization: Token {}", operator.token);
    for (method, path) in paths {
        for header in wrong.into_iter().chain([&*shorter, &*scheme]) {
            let url = format!("{}{path}", server.api);
            let answer = curl(&["--request", method, "--header", header, &url], b"");
            assert_eq!((answer.status, &answer.json()["error"]), (401, &json!("unauthorized")), "{header}: {answer:?}");
            assert!(answer.header("www-authenticate").is_some_and(|how| how.starts_with("Bearer")), "{answer:?}");
        }
    }
    assert_eq!(operator.told("GET", "/v1/admin/apps", None), (200, json!({ "apps": [] })), "nothing was done");
    assert!(server.admin(&["token", "remove", "test"]).status.success());
    operator.assert_refused("GET", "/v1/admin/apps", None, 401, "unauthorized");
    assert!(!server.log().contains(&operator.token));
}

#[test]
fn apps_are_the_same_over_http_and_on_the_command_line() {
    let server = Server::start("00", "");
    let operator = Operator::new(&server);
    let secret = "a secret of sixteen".replace(' ', "-");
    let added = operator.call("POST", "/v1/admin/apps", Some(&json!({ "appID": APP, "appSecret": secret })));
    assert_eq!((added.status, added.header("location")), (201, Some("/v1/admin/apps/org.example.Chat")));
    assert_eq!(added.json(), json!({ "appID": APP, "appSecret": secret }));
    operator.assert_refused("POST", "/v1/admin/apps", Some(&json!({ "appID": APP })), 409, "conflict");
    let (status, random) = operator.told("POST", "/v1/admin/apps", None);
    assert_eq!((status, random["appID"].as_str().map(str::len)), (201, Some(16)), "{random}");

    let (_, over_http) = operator.told("GET", "/v1/admin/apps", None);
    let printed = server.admin(&["--json", "app", "list"]);
    assert_eq!(over_http, serde_json::from_slice::<Value>(&printed.stdout).expect("JSON"));
    assert_eq!(over_http["apps"].as_array().map(Vec::len), Some(2), "{over_http}");
    let (status, one) = operator.told("GET", "/v1/admin/apps/org.example.Chat", None);
    assert_eq!((status, &one["appID"], &one["registrations"]), (200, &json!(APP), &json!(0)));

    let rotate = "/v1/admin/apps/org.example.Chat/rotate";
    let (status, rotated) = operator.told("POST", rotate, Some(&json!({ "grace_hours": 0 })));
    assert!(status == 200 && rotated["appSecret"] != json!(secret), "{rotated}");
    let app = common::App { id: APP.into(), secret: rotated["appSecret"].as_str().expect("a text").into() };
    let nobody = format!("00{}", "5c".repeat(49));
    assert_eq!(codes(&post(&server, &app, &request(nobody.clone(), "1", "x"))), [3008]);
    let old = common::App { id: APP.into(), secret };
    assert_eq!(post(&server, &old, &request(nobody, "1", "x")).status, 401);

    let callback = "/v1/admin/apps/org.example.Chat/callback";
    let wanted = json!({ "url": "https://chat.example.org/receipts" });
    let (status, set) = operator.told("PUT", callback, Some(&wanted));
    assert!(status == 200 && set["callback"] == wanted["url"] && set["key"].is_string(), "{set}");
    let (_, shown) = operator.told("GET", "/v1/admin/apps/org.example.Chat", None);
    assert_eq!(shown["callback"], wanted["url"]);
    let plain = json!({ "url": "http://chat.example.org/receipts" });
    operator.assert_refused("PUT", callback, Some(&plain), 400, "bad-request");
    assert_eq!(operator.told("DELETE", callback, None).0, 200);

    let one = "/v1/admin/apps/org.example.Chat";
    assert_eq!(operator.told("DELETE", one, None), (200, json!({ "removed": APP })));
    for (method, path) in [("DELETE", one), ("GET", one), ("POST", rotate)] {
        operator.assert_refused(method, path, None, 404, "not-found");
    }
    assert_eq!(server.admin(&["app", "rotate", APP]).status.code(), Some(1));
}

#[test]
fn keys_tokens_and_the_state_of_the_server_are_shown() {
    let server = Server::start("03", "");
    let operator = Operator::new(&server);
    assert_eq!(operator.told("POST", "/v1/admin/keys/rotate", None), (200, json!({ "number": 3 })));
    let (_, over_http) = operator.told("GET", "/v1/admin/keys", None);
    let printed = server.admin(&["--json", "key", "list"]);
    assert_eq!(over_http, serde_json::from_slice::<Value>(&printed.stdout).expect("JSON"));
    assert_eq!((&over_http["keys"][0]["number"], &over_http["keys"][0]["in_use"]), (&json!(3), &json!(true)));

    token_add(&server, "other");
    let (_, over_http) = operator.told("GET", "/v1/admin/tokens", None);
    let printed = server.admin(&["--json", "token", "list"]);
    assert_eq!(over_http, serde_json::from_slice::<Value>(&printed.stdout).expect("JSON"));
    assert!(!over_http.to_string().contains(&operator.token));
    assert_eq!(operator.told("DELETE", "/v1/admin/tokens/other", None), (200, json!({ "removed": "other" })));
    operator.assert_refused("DELETE", "/v1/admin/tokens/other", None, 404, "not-found");
    let again = server.admin(&["token", "add", "test"]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");

    let (status, state) = operator.told("GET", "/v1/admin/status", None);
    assert_eq!((status, &state["region"], &state["version"]), (200, &json!("03"), &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!((&state["devices_connected"], &state["messages_waiting"]), (&json!(0), &json!(0)));
    assert!(state["uptime_s"].is_u64(), "{state}");
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    let server = Server::start("00", "");
    let operator = Operator::new(&server);
    for body in [
        json!([]),
        json!([null, null]),
        json!({ "appId": "x" }),
        json!({ "appID": "a b" }),
        json!({ "appID": 7 }),
        json!({ "appSecret": "short" }),
        json!({ "appSecret": "0123456789 abcdef" }),
    ] {
        operator.assert_refused("POST", "/v1/admin/apps", Some(&body), 400, "bad-request");
    }
    operator.assert_refused("GET", "/v1/admin/apps/a%20b", None, 400, "bad-request");
    operator.assert_refused("GET", "/v1/admin/apps/%ff", None, 400, "bad-request");
    operator.assert_refused("GET", "/v1/admin/apps/x/y", None, 404, "not-found");
    operator.assert_refused("GET", "/v1/nothing", None, 404, "not-found");
    operator.assert_refused("PUT", "/v1/admin/apps", None, 405, "method-not-allowed");
    let long = json!({ "appID": "x".repeat(17_000) });
    operator.assert_refused("POST", "/v1/admin/apps", Some(&long), 413, "too-large");
    let token = format!("Authorization: Bearer {}", operator.token);
    let url = format!("{}/v1/admin/apps", server.api);
    let form = curl(&["--header", &token, "--data", "{\"appID\": \"x\"}", &url], b"");
    assert_eq!((form.status, &form.json()["error"]), (415, &json!("unsupported-media-type")));
    let broken = curl(
        &[
            "--header",
            &token,
            "--header",
            "Content-Type: application/json; charset=utf-8",
            "--data",
            "{\"appID\"",
            &url,
        ],
        b"",
    );
    assert_eq!((broken.status, &broken.json()["error"]), (400, &json!("bad-request")));
    assert_eq!(operator.told("GET", "/v1/admin/apps", None), (200, json!({ "apps": [] })));
}

#[tokio::test]
async fn a_connected_device_is_told_at_once_that_its_app_was_removed() {
    let server = Server::start("00", "");
    let operator = Operator::new(&server);
    server.app_add(APP);
    let device = Device::start(&server.gateway, "");
    let app = device.app(APP).await;
    assert_eq!(app.call::<String>("GetRegistrationId", &APP).await.expect("it is registered"), app.reg_id);
    let (_, state) = operator.told("GET", "/v1/admin/status", None);
    assert_eq!(state["devices_connected"], 1);
    assert_eq!(operator.told("DELETE", "/v1/admin/apps/org.example.Chat", None).0, 200);
    until(async || {
        let told = app.call::<String>("GetRegistrationId", &APP).await;
        so(told.is_err(), || format!("{told:?}"))
    })
    .await;
    assert_eq!(error_name(app.call::<String>("GetRegistrationId", &APP).await), "NotRegistered");
}

#[test]
fn the_document_is_printed_and_served_alike_and_has_what_is_served() {
    let server = Server::start("00", "");
    let served = get(&server.api, "/openapi.json");
    assert_eq!((served.status, served.header("content-type")), (200, Some("application/json")));
    let printed = server.admin(&["openapi"]);
    assert!(printed.status.success());
    let printed: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    assert_eq!(served.json(), printed);
    assert_eq!(
        (&printed["openapi"], &printed["info"]["version"]),
        (&json!("3.1.0"), &json!(env!("CARGO_PKG_VERSION")))
    );
    let push = &printed["paths"]["/spp/pns/api/push"]["post"]["responses"];
    let statuses: Vec<&String> = push.as_object().expect("it is there").keys().collect();
    assert_eq!(statuses, ["200", "400", "401", "404", "405", "411", "413", "429", "503"]);
}

#[test]
fn every_path_is_in_the_manual() {
    let document: Value = serde_json::from_str(&bellwire::server::api::document_text()).expect("JSON");
    let page = |name: &str| {
        let path = format!("{}/man/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path)
            .expect("the page is there")
            .replace("\\fB", "")
            .replace("\\fI", "")
            .replace("\\-", "-")
    };
    let pages = page("bellwire-server-api.7") + &page("bellwire-tizen.7");
    let paths = document["paths"].as_object().expect("it has paths");
    assert!(paths.len() > 10, "{paths:?}");
    for path in paths.keys() {
        // Names are in capitals there.
        let told: String = path
            .split_inclusive(['{', '}'])
            .map(|part| part.strip_suffix('}').map_or_else(|| part.into(), str::to_uppercase))
            .collect();
        let told = told.replace('{', "");
        assert!(pages.contains(&told), "no {told}");
    }
}

/// A metric of the manual: its name, its kind, and its labels.
type Metric = (String, String, Vec<String>);

/// The metrics of the manual, from lines such as `.BR bellwire_verdicts_total " (counter; door, code)"`.
fn metrics_in_the_manual() -> Vec<Metric> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/man/bellwire-server-api.7");
    let page = std::fs::read_to_string(path).expect("the page is there");
    let rows = page.lines().filter_map(|line| line.strip_prefix(".BR bellwire_")?.split_once(" \" ("));
    let mut metrics: Vec<Metric> = rows
        .map(|(name, rest)| {
            let told = rest.trim_end_matches(")\"");
            let (kind, labels) = told.split_once("; ").unwrap_or((told, ""));
            let mut labels: Vec<String> = labels.split(", ").filter(|l| !l.is_empty()).map(str::to_owned).collect();
            labels.sort();
            (format!("bellwire_{name}"), kind.to_owned(), labels)
        })
        .collect();
    metrics.sort();
    metrics
}

/// What the Python client of Prometheus reads in the metrics: each with its value.
fn scraped(operator: &Operator) -> BTreeMap<Metric, f64> {
    let answer = operator.call("GET", "/metrics", None);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)));
    let mut parser = Command::new(python_for("api"))
        .arg(format!("{FOLDER}/scrape.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the environment has a python");
    parser.stdin.take().expect("it is piped").write_all(answer.body.as_bytes()).expect("it reads");
    let output = parser.wait_with_output().expect("it is ours");
    assert!(output.status.success(), "the parser does not take:\n{}", answer.body);
    let rows: Vec<(String, String, Vec<String>, f64)> = serde_json::from_slice(&output.stdout).expect("its JSON");
    rows.into_iter().map(|(name, kind, labels, value)| ((name, kind, labels), value)).collect()
}

#[tokio::test]
async fn every_metric_is_in_the_manual_and_counts() {
    let server = Server::start("00", "[limits]\nwaiting-per-registration = 2");
    let operator = Operator::new(&server);
    let credentials = server.app_add(APP);
    let mut device = Device::start(&server.gateway, "");
    let mut app = device.app(APP).await;
    for data in ["1", "2", "3"] {
        assert_eq!(codes(&post(&server, &credentials, &request(app.reg_id.clone(), data, data))), [1000]);
    }
    assert_eq!(app.next_data(3).await, ["1", "2", "3"]);
    // What a device tells of a delivery comes a little later than the delivery.
    until(async || {
        let text = operator.call("GET", "/metrics", None).body;
        so(text.contains("bellwire_outcomes_total{fate=\"delivered\"} 3"), || text)
    })
    .await;
    // While the device is away one of three has to go.
    device.stop_agent();
    until(async || {
        let (_, state) = operator.told("GET", "/v1/admin/status", None);
        so(state["devices_connected"] == 0, || state.to_string())
    })
    .await;
    for data in ["4", "5", "6"] {
        assert_eq!(codes(&post(&server, &credentials, &request(app.reg_id.clone(), data, data))), [1000]);
    }
    let wrong = common::App { id: APP.into(), secret: "wrong".into() };
    assert_eq!(post(&server, &wrong, &request("x", "1", "x")).status, 401);

    let value = |metrics: &BTreeMap<Metric, f64>, name: &str| {
        let found = metrics.iter().find(|((known, _, _), _)| known == name);
        *found.unwrap_or_else(|| panic!("no {name} in {metrics:?}")).1
    };
    let metrics = scraped(&operator);
    assert_eq!(metrics.keys().cloned().collect::<Vec<_>>(), metrics_in_the_manual());
    for (name, expected) in [
        ("bellwire_verdicts_total", 7.0),
        ("bellwire_message_stored_seconds", 6.0),
        ("bellwire_message_sent_seconds", 3.0),
        ("bellwire_message_acknowledged_seconds", 3.0),
        ("bellwire_message_delivered_seconds", 3.0),
        ("bellwire_message_taken_seconds", 3.0),
        ("bellwire_messages_replaced_total", 0.0),
        ("bellwire_messages_acknowledged_total", 3.0),
        ("bellwire_outcomes_total", 3.0),
        ("bellwire_messages_dropped_total", 1.0),
        ("bellwire_messages_expired_total", 0.0),
        ("bellwire_messages_waiting", 2.0),
        ("bellwire_devices_connected", 0.0),
        ("bellwire_handshakes_total", 1.0),
        ("bellwire_store_failed_commits_total", 0.0),
        ("bellwire_build_info", 1.0),
    ] {
        assert_eq!(value(&metrics, name), expected, "{name}");
    }
    assert!(value(&metrics, "bellwire_store_commit_seconds") >= 6.0);
    assert!(value(&metrics, "bellwire_store_bytes") > 4096.0);
    assert!(value(&metrics, "bellwire_http_requests_total") >= 8.0);

    let text = operator.call("GET", "/metrics", None).body;
    for line in [
        "bellwire_verdicts_total{door=\"tizen\",code=\"1000\"} 6",
        "bellwire_verdicts_total{door=\"tizen\",code=\"3045\"} 1",
        "bellwire_outcomes_total{fate=\"delivered\"} 3",
        "bellwire_handshakes_total{result=\"enrolled\"} 1",
        "bellwire_http_requests_total{route=\"/spp/pns/api/push\",status=\"200\"} 6",
    ] {
        assert!(text.contains(line), "no {line} in:\n{text}");
    }
    assert!(!text.contains(APP) && !text.contains(&app.reg_id), "ids are no labels");
}

/// Runs schemathesis on the served document; fails with all that it says. The last arguments say
/// which part of the API, and what is not checked there.
fn schemathesis(server: &Server, headers: &[String], part: &[&str]) {
    // `make test-api` takes its time; else it is a few examples of each, always the same.
    let long = std::env::var_os("BELLWIRE_TEST_API").is_some_and(|form| form == "long");
    let effort = match long {
        true => &["--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "300"][..],
        false => &["--phases", "coverage,fuzzing", "--max-examples", "10", "--seed", "1"],
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = Command::new(python_for("api"))
        .args(["-m", "schemathesis.cli", "run", &format!("{}/openapi.json", server.api), "--checks", "all"])
        .args(["--no-color", "--continue-on-failure", "--generation-database", "none", "--warnings", "off"])
        .args(headers.iter().flat_map(|header| ["--header", header.as_str()]))
        .args(effort)
        .args(part)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("the environment has a python");
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{wrong}\nthe server said:\n{}", server.log());
    assert!(said.contains("Tested:"), "{said}");
    if long {
        println!("{said}");
    }
}

const PUSH: &str = "POST /spp/pns/api/push";
const SET_CALLBACK: &str = "PUT /v1/admin/apps/{id}/callback";
const REMOVE_TOKEN: &str = "DELETE /v1/admin/tokens/{name}";

#[test]
fn the_sender_api_is_as_its_document_says() {
    let server = Server::start("00", "");
    let app = server.app_add(APP);
    let headers = [format!("appID: {}", app.id), format!("appSecret: {}", app.secret)];
    // negative_data_rejection cannot hold: by contract a message with wrong contents is answered 200,
    // with a verdict of its own for each recipient.
    schemathesis(&server, &headers, &["--include-name", PUSH, "--exclude-checks", "negative_data_rejection"]);
    schemathesis(&server, &headers, &["--include-path-regex", "^/v1/messages"]);
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[test]
fn the_rest_of_the_api_is_as_its_document_says() {
    let server = Server::start("00", "");
    let headers = |token: String| [format!("Authorization: Bearer {token}")];
    // Removing tokens comes last: it finds its own in the list.
    let but_these = [
        "--exclude-name",
        PUSH,
        "--exclude-name",
        REMOVE_TOKEN,
        "--exclude-name",
        SET_CALLBACK,
        "--exclude-path-regex",
        "^/v1/messages",
    ];
    schemathesis(&server, &headers(token_add(&server, "judge")), &but_these);
    // positive_data_acceptance cannot hold: which URLs are safe to tell a receipt to, no schema says.
    let callback = ["--include-name", SET_CALLBACK, "--exclude-checks", "positive_data_acceptance"];
    schemathesis(&server, &headers(token_add(&server, "teller")), &callback);
    schemathesis(&server, &headers(token_add(&server, "remover")), &["--include-name", REMOVE_TOKEN]);
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

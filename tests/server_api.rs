//! The Tizen door as an application server meets it: the built program, and curl as the client.

#![cfg(feature = "server")]

mod common;

use common::{Answer, App, Server, curl};
use serde_json::{Value, json};

const PATH: &str = "/spp/pns/api/push";
/// The largest body of the default configuration.
const BODY_MAX: usize = 200 * 1024;

/// A regId of this region that nobody issued.
fn unknown(region: &str) -> String {
    format!("{region}{}", "5c".repeat(49))
}

fn post_to(server: &Server, path: &str, app: &App, body: &[u8]) -> Answer {
    let (url, id) = (format!("{}{path}", server.api), format!("appID: {}", app.id));
    let secret = format!("appSecret: {}", app.secret);
    let content = "Content-Type: application/json";
    curl(&["--data-binary", "@-", "-H", content, "-H", &id, "-H", &secret, &url], body)
}

fn post(server: &Server, app: &App, request: &Value) -> Answer {
    post_to(server, PATH, app, request.to_string().as_bytes())
}

/// Posts with these headers alone.
fn post_with(server: &Server, headers: &[&str]) -> Answer {
    let url = format!("{}{PATH}", server.api);
    let mut arguments = vec!["--data-binary", "@-", &url];
    headers.iter().for_each(|header| arguments.extend(["-H", header]));
    curl(&arguments, request(&unknown("00"), "1").to_string().as_bytes())
}

fn request(reg_id: &str, request_id: &str) -> Value {
    json!({ "regID": reg_id, "requestID": request_id, "message": "action=ALERT&alertMessage=Hi" })
}

fn result(reg_id: &str, request_id: &str, code: u16, message: &str) -> Value {
    json!({ "regID": reg_id, "requestID": request_id, "statusCode": code, "statusMsg": message })
}

/// An answer that refuses the whole request: one result with empty ids.
fn assert_refused(answer: &Answer, status: u16, code: u16) {
    let body = answer.json();
    assert_eq!((answer.status, &body["results"][0]["statusCode"]), (status, &json!(code)), "{answer:?}");
    assert_eq!(body["results"].as_array().map(Vec::len), Some(1), "{answer:?}");
    assert_eq!((&body["results"][0]["regID"], &body["results"][0]["requestID"]), (&json!(""), &json!("")));
    assert!(body["results"][0]["statusMsg"].is_string());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.header("bellwire-detail").is_some(), "{answer:?}");
}

/// The codes and request ids of an answer, in order.
fn codes(answer: &Answer) -> Vec<(u64, String)> {
    let results = answer.json()["results"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    results
        .iter()
        .map(|one| (one["statusCode"].as_u64(), text(&one["requestID"])))
        .map(|(code, id)| (code.expect("a number"), id.expect("a text")))
        .collect()
}

#[test]
fn a_sender_proves_itself_by_both_headers() {
    let server = Server::start("00", "");
    let app = server.app_add("org.example.Chat");
    let (id, secret) = (&*format!("appID: {}", app.id), &*format!("appSecret: {}", app.secret));
    for headers in [&[][..], &[id], &[secret], &["appID;", secret], &[id, "appSecret;"]] {
        assert_refused(&post_with(&server, headers), 401, 3045);
    }
    assert_refused(&post_with(&server, &[id, "appSecret: dYo/o/m11gmWmjs7+5f+2zLNVOc="]), 401, 3045);
    assert_refused(&post_with(&server, &["appID: org.example.Other", secret]), 401, 3009);
    assert_refused(&post_with(&server, &["appID: not an app id", secret]), 401, 3009);
    // Header names are the same in any case, and need no space.
    let spelled = [format!("APPID:{}", app.id), format!("appsecret:{}", app.secret)];
    assert_eq!(post_with(&server, &[&spelled[0], &spelled[1]]).status, 200);
}

#[test]
fn an_app_is_known_as_soon_as_it_is_added_and_until_it_is_removed() {
    let server = Server::start("00", "");
    let app = server.app_add("1234567890987654");
    assert_eq!(post(&server, &app, &request(&unknown("00"), "1")).status, 200);
    assert!(server.admin(&["app", "rotate", &app.id, "--grace", "0"]).status.success());
    assert_refused(&post(&server, &app, &request(&unknown("00"), "1")), 401, 3045);
    assert!(server.admin(&["app", "remove", &app.id]).status.success());
    assert_refused(&post(&server, &app, &request(&unknown("00"), "1")), 401, 3009);
}

#[test]
fn a_rotated_secret_works_on_for_its_grace() {
    let server = Server::start("00", "[limits]\nsecret-grace-hours = 3");
    let first = server.app_add("chat");
    let rotate = |more: &[&str]| {
        let output = server.admin(&[&["--json", "app", "rotate", "chat"], more].concat());
        assert!(output.status.success(), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let secret = answer["appSecret"].as_str().unwrap().to_owned();
        (App { id: "chat".into(), secret }, answer["old_secret_until_ms"].as_i64())
    };
    let status = |app: &App| post(&server, app, &request(&unknown("00"), "1")).status;
    let listed = || serde_json::from_slice::<Value>(&server.admin(&["--json", "app", "list"]).stdout).unwrap();

    let (second, until) = rotate(&[]);
    assert_eq!([status(&first), status(&second)], [200; 2]);
    assert_eq!(listed()["apps"][0]["old_secret_until_ms"].as_i64(), until);
    let text = String::from_utf8(server.admin(&["app", "list"]).stdout).unwrap();
    assert!(text.contains("its old secret works for 2 h "), "{text}");
    let (third, _) = rotate(&["--grace", "1"]);
    assert_eq!([status(&first), status(&second), status(&third)], [401, 200, 200]);
    let (fourth, until) = rotate(&["--grace", "0"]);
    assert_eq!([status(&second), status(&third), status(&fourth)], [401, 401, 200]);
    assert_eq!((until, &listed()["apps"][0]["old_secret_until_ms"]), (None, &Value::Null));
}

#[test]
fn other_paths_are_nowhere() {
    let server = Server::start("00", "");
    let app = server.app_add("chat");
    for path in ["/", "/spp", "/spp/pns/api", "/spp/pns/api/push/x", "/SPP/pns/api/push", "/spp/pns/api/push//"] {
        assert_refused(&post_to(&server, path, &app, b"{}"), 404, 3016);
    }
    assert_refused(&curl(&[&server.api], b""), 404, 3016);
}

#[test]
fn only_posting_is_served() {
    let server = Server::start("00", "");
    let url = format!("{}{PATH}", server.api);
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let answer = curl(&["--request", method, &url], b"");
        assert_refused(&answer, 405, 3017);
        assert_eq!(answer.header("allow"), Some("POST"));
    }
}

#[test]
fn what_is_no_request_is_refused_whole_and_says_why() {
    let server = Server::start("00", "");
    let app = server.app_add("chat");
    let refused = |body: &str, status, code| -> String {
        let answer = post_to(&server, PATH, &app, body.as_bytes());
        assert_refused(&answer, status, code);
        answer.header("bellwire-detail").unwrap_or_default().to_owned()
    };
    assert!(refused("{\n \"regID\": 5 \"x\" }", 400, 3023).contains("line 2"));
    assert_eq!(refused(r#"{"regID": "ab", "requestID": 7}"#, 400, 3023), "requestID is not a string");
    assert_eq!(refused("[]", 400, 3023), "the body is not a JSON object");
    assert_eq!(refused("", 400, 3022), "the body is empty");
    assert_eq!(refused(r#"{"messages": []}"#, 400, 3036), "messages is empty");
}

#[test]
fn a_body_over_the_limit_is_refused_however_large() {
    let server = Server::start("00", "");
    let app = server.app_add("chat");
    let mut body = request(&unknown("00"), "1").to_string();
    body.push_str(&" ".repeat(BODY_MAX - body.len()));
    assert_eq!(codes(&post_to(&server, PATH, &app, body.as_bytes())), [(3008, "1".to_owned())]);
    body.push(' ');
    assert_refused(&post_to(&server, PATH, &app, body.as_bytes()), 413, 3035);
    body.push_str(&" ".repeat(5_000_000));
    assert_refused(&post_to(&server, PATH, &app, body.as_bytes()), 413, 3035);
}

#[test]
fn a_body_without_a_length_is_refused_as_the_guide_does() {
    let server = Server::start("00", "");
    let app = server.app_add("chat");
    let (id, secret) = (format!("appID: {}", app.id), format!("appSecret: {}", app.secret));
    let url = format!("{}{PATH}", server.api);
    let chunked = "Transfer-Encoding: chunked";
    let arguments = ["--request", "POST", "--upload-file", "-", "-H", chunked, "-H", &id, "-H", &secret, &url];
    let answer = curl(&arguments, request(&unknown("00"), "1").to_string().as_bytes());
    assert_refused(&answer, 411, 3032);
}

#[test]
fn a_reg_id_that_nobody_has_is_answered_with_its_own_words() {
    let server = Server::start("00", "");
    let app = server.app_add("chat");
    let reg_id = unknown("00");
    let answer = post(&server, &app, &request(&reg_id, "0000001"));
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let expected = result(&reg_id, "0000001", 3008, "error of not registered regID");
    assert_eq!(answer.json(), json!({ "results": [expected] }));
    // A reader of the first 499 bytes finds all of it.
    assert!(answer.body.len() < 499);
}

#[test]
fn answers_come_in_the_order_of_the_request() {
    let server = Server::start("00", "");
    let app = server.app_add("chat");
    let (here, elsewhere) = (unknown("00"), unknown("04"));
    let messages = json!({ "messages": [
        request("ab123456", "1"),
        { "regID": [here, "xyz", "", elsewhere], "requestID": "2", "appData": "x" },
        { "regID": here, "requestID": "3" },
        { "regID": here, "requestID": "" , "message": "m" },
    ]});
    let answer = post(&server, &app, &messages);
    assert_eq!(answer.status, 200);
    let expected = json!({ "results": [
        result("ab123456", "1", 3008, "error of not registered regID"),
        result(&here, "2", 3008, "error of not registered regID"),
        result("xyz", "2", 3025, "error occurred while decoding regID"),
        result("", "2", 3005, "error of no regID field"),
        result(&elsewhere, "2", 3008, "error of not registered regID"),
        result(&here, "3", 3007, "error of at least either message or appData is needed"),
        result(&here, "", 3006, "error of no requestID field"),
    ]});
    assert_eq!(answer.json(), expected);
}

#[test]
fn senders_need_not_be_exact_about_type_and_slash() {
    let server = Server::start("00", "");
    let app = server.app_add("chat");
    let (id, secret) = (format!("appID: {}", app.id), format!("appSecret: {}", app.secret));
    // curl's own type is that of a form, as in Tizen's test kit.
    let answer = post_with(&server, &[&id, &secret]);
    assert_eq!((answer.status, codes(&answer)), (200, vec![(3008, "1".to_owned())]));
    let body = request(&unknown("00"), "1").to_string();
    let answer = post_to(&server, "/spp/pns/api/push/", &app, body.as_bytes());
    assert_eq!((answer.status, codes(&answer)), (200, vec![(3008, "1".to_owned())]));
}

#[test]
fn recipients_of_another_region_are_answered_by_it() {
    let other = Server::start("03", "");
    let home = Server::start("00", &format!("[regions]\n03 = \"{}/\"", other.api));
    let app = home.app_add("chat");
    let (here, there, nowhere) = (unknown("00"), unknown("03"), unknown("04"));
    let mixed = json!({ "messages": [
        { "regID": [there, here], "requestID": "1", "message": "m" },
        { "regID": [nowhere, there], "requestID": "2", "message": "m" },
    ]});
    let verdicts = |code_there: u16, message_there: &str| {
        let unknown = "error of not registered regID";
        json!({ "results": [
            result(&there, "1", code_there, message_there),
            result(&here, "1", 3008, unknown),
            result(&nowhere, "2", 3008, unknown),
            result(&there, "2", code_there, message_there),
        ]})
    };

    // The other region does not know the app yet: that is said of its recipients, by name.
    let answer = post(&home, &app, &mixed);
    assert_eq!((answer.status, answer.json()), (200, verdicts(3009, "error of not registered appID")));
    let answer = post(&home, &app, &request(&there, "5"));
    assert_eq!(answer.json(), json!({ "results": [result(&there, "5", 3009, "error of not registered appID")] }));

    let secret_file = home.folder.path().join("secret");
    std::fs::write(&secret_file, &app.secret).unwrap();
    let output = other.admin(&["app", "add", &app.id, "--secret-file", secret_file.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let answer = post(&home, &app, &mixed);
    assert_eq!((answer.status, answer.json()), (200, verdicts(3008, "error of not registered regID")));
    // The other region does not pass on what is not its own.
    assert_eq!(codes(&post(&other, &app, &request(&here, "1"))), [(3008, "1".to_owned())]);
}

#[test]
fn a_region_that_is_down_spoils_only_its_own_recipients() {
    let mut other = Server::start("03", "");
    let home = Server::start("00", &format!("[regions]\n03 = \"{}\"", other.api));
    let app = home.app_add("chat");
    other.kill();
    let mixed = json!({ "regID": [unknown("03"), unknown("00")], "requestID": "1", "message": "m" });
    let answer = post(&home, &app, &mixed);
    assert_eq!((answer.status, codes(&answer)), (200, vec![(3015, "1".to_owned()), (3008, "1".to_owned())]));
    // Nothing of this one could be done now, and all of it may be tried again.
    let answer = post(&home, &app, &request(&unknown("03"), "2"));
    assert_eq!((answer.status, codes(&answer)), (503, vec![(3015, "2".to_owned())]));
    assert_eq!(answer.header("retry-after"), Some("30"));
}

#[test]
fn apps_survive_a_crash() {
    let mut server = Server::start("00", "");
    let app = server.app_add("chat");
    let api = server.api.clone();
    server.kill();
    server.restart();
    assert_eq!(server.api, api);
    assert_eq!(post(&server, &app, &request(&unknown("00"), "1")).status, 200);
}

#[test]
fn the_server_stops_in_order_and_says_so_in_one_line() {
    let mut server = Server::start("00", "");
    let status = server.stop();
    let log = server.log();
    assert!(status.success(), "{status}: {log}");
    assert_eq!(log.lines().count(), 2, "{log}");
    assert!(log.contains(" stopped ") && log.contains("orderly=true"), "{log}");
}

#[test]
fn no_secret_reaches_the_log() {
    let mut server = Server::start("00", "log = \"debug\"");
    let app = server.app_add("chat");
    let body = json!({ "regID": unknown("00"), "requestID": "1", "message": "nobody else's", "appData": "private" });
    assert_eq!(post(&server, &app, &body).status, 200);
    let headers = ["appID: chat", "appSecret: a secret that is wrong"];
    assert_eq!(post_with(&server, &headers).status, 401);
    assert_eq!(post_to(&server, PATH, &app, b"{\"private\": ").status, 400);
    server.stop();
    let log = server.log();
    for secret in [&app.secret, "a secret that is wrong", "nobody else's", "private", &unknown("00")] {
        assert!(!log.contains(secret), "{log}");
    }
}

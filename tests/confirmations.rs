//! What senders of Web Push are told of their messages, and messages at their URLs: the built program, curl and a
//! reader of events in Python as senders, and a device of our own that acknowledges when it is told to. Rows of
//! RFC 8030's checklist are in the names.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/raw.rs"]
mod raw;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use common::{Answer, DEADLINE, Server, curl, first_line, so, until};
use raw::{RawDevice, RawSender, bytes, send};
use serde_json::{Value, json};

const METRICS: &str = "[admin]\nmetrics = \"open\"\n";
const ASKED: &str = "Prefer: respond-async";
const EVENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/events.py");
const RECEIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/receiver.py");

/// A server, and the endpoint of a channel on a device that takes what is urgent alone until it comes anew.
struct World {
    server: Server,
    device: Option<RawDevice>,
    app: String,
    endpoint: String,
}

impl World {
    async fn start(settings: &str) -> Self {
        let server = Server::start("00", &format!("{METRICS}{settings}"));
        let mut device = RawDevice::enrol(&server).await;
        let (app, endpoint) = device.channel(None).await;
        // It is there, and takes what is urgent alone.
        device.say(json!({ "ping": { "seq": 1, "next_s": 300, "least": "high" } })).await;
        device.until("pong").await;
        Self { server, device: Some(device), app, endpoint }
    }

    /// The device comes.
    async fn connect(&mut self) -> RawDevice {
        let device = self.device.take().expect("it comes once");
        device.again(&self.server, json!({})).await
    }

    /// Sends a message with these further headers.
    fn post(&self, body: &str, headers: &[&str]) -> Answer {
        let mut all = headers.to_vec();
        if !headers.iter().any(|header| header.starts_with("TTL:")) {
            all.push("TTL: 600");
        }
        send(&self.endpoint, &all, body.as_bytes())
    }

    /// Sends a message and asks to be told, by this link if there is one already.
    fn ask(&self, body: &str, link: Option<&Asked>) -> Asked {
        let link = link.map(|asked| format!("Link: {}", asked.link));
        let headers: Vec<&str> = [ASKED].into_iter().chain(link.as_deref()).collect();
        let answer = self.post(body, &headers);
        assert_eq!(answer.status, 202, "{answer:?}");
        let header = |name: &str| answer.header(name).unwrap_or_else(|| panic!("no {name}: {answer:?}")).to_owned();
        let (message, link) = (header("location"), header("link"));
        let target = link.strip_prefix('<').and_then(|rest| rest.split_once('>')).expect("a link").0.to_owned();
        Asked { message, link, receipts: target }
    }

    async fn until_waiting(&self, count: usize) {
        until(async || {
            let metrics = curl(&[&format!("{}/metrics", self.server.api)], b"").body;
            so(metrics.contains(&format!("bellwire_receipt_waiters {count}\n")), || metrics.clone())
        })
        .await;
    }
}

/// What a sender has in its hands.
struct Asked {
    message: String,
    link: String,
    receipts: String,
}

impl Asked {
    /// What there is to tell now: messages and statuses, and what is next.
    fn list(&self, after: &str) -> (Vec<(String, u64)>, String) {
        listed(&curl(&[&format!("{}{after}", self.receipts)], b""))
    }

    async fn until_told(&self, expected: &[(&Asked, u64)]) {
        let expected: Vec<_> = expected.iter().map(|(asked, status)| (asked.message.clone(), *status)).collect();
        until(async || so(self.list("").0 == expected, || format!("{:?}, not {expected:?}", self.list("")))).await;
    }
}

fn listed(answer: &Answer) -> (Vec<(String, u64)>, String) {
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{answer:?}");
    let list = answer.json();
    let receipts = list["receipts"].as_array().expect("a list").iter();
    let one = |one: &Value| {
        assert!(one["time"].as_i64().is_some_and(|time| time > 1_700_000_000_000), "{one}");
        (one["message"].as_str().expect("a text").to_owned(), one["status"].as_u64().expect("a number"))
    };
    (receipts.map(one).collect(), list["next"].as_str().expect("a text").to_owned())
}

/// A reader of a stream. Dropping it kills it.
struct Reader {
    child: Child,
    lines: Receiver<String>,
}

impl Reader {
    fn open(url: &str, last: Option<&str>) -> Self {
        let mut command = Command::new("python3");
        command.arg(EVENTS).arg(url).args(last).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 is missing: apt-get install python3");
        let (sender, lines) = channel();
        let stdout = child.stdout.take().expect("it is piped");
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let reader = Self { child, lines };
        assert_eq!(reader.line(), "open");
        reader
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("a line in time")
    }

    /// The next event: its id, message and status.
    fn event(&self) -> (String, String, u64) {
        let line: Value = serde_json::from_str(&self.line()).expect("an event");
        assert_eq!(line["type"], "message");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        (text(&line["id"]), text(&line["data"]["message"]), line["data"]["status"].as_u64().expect("a number"))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a3_who_asks_to_be_told_is_answered_202_with_the_places_to_look() {
    let world = World::start("").await;
    let told = world.ask("asked", None);
    let origin = &world.server.api;
    assert!(told.message.starts_with(&format!("{origin}/wp/m/")), "{}", told.message);
    assert!(told.receipts.starts_with(&format!("{origin}/wp/r/")), "{}", told.receipts);
    assert!(told.link.ends_with("; rel=\"urn:ietf:params:push:receipt\""), "{}", told.link);
    for headers in [&[][..], &["Prefer: return=minimal"], &[ASKED, "TTL: 0"]] {
        let answer = world.post("not asked", headers);
        assert_eq!((answer.status, answer.header("link")), (201, None), "{answer:?}");
    }
    assert_eq!(world.post("among others", &["Prefer: return=minimal", "Prefer: wait=1, respond-async"]).status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a4_a_link_that_is_repeated_collects_and_one_that_is_not_ours_is_refused() {
    let mut world = World::start("").await;
    let first = world.ask("one", None);
    let second = world.ask("two", Some(&first));
    assert_eq!((&second.link, second.message == first.message), (&first.link, false));
    for bad in [&first.message, "https://push.example.org/wp/r/AAAA", &format!("{}A", first.receipts)] {
        let answer = world.post("", &[ASKED, &format!("Link: <{bad}>; rel=\"urn:ietf:params:push:receipt\"")]);
        assert_eq!((answer.status, &answer.json()["errno"]), (400, &json!(111)), "{bad}: {answer:?}");
    }
    // A repeated request is the same message, and its receipt is where the first answer said.
    let repeat = || world.post("once", &[ASKED, "X-Request-ID: 7"]);
    let (once, again) = (repeat(), repeat());
    assert_eq!(once.header("location"), again.header("location"));
    assert_eq!(once.header("link"), again.header("link"));
    let mut device = world.connect().await;
    device.take().await;
    device.take().await;
    first.until_told(&[(&first, 204), (&second, 204)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_who_waits_is_told_when_the_device_has_the_message_and_again_until_it_is_taken() {
    let mut world = World::start("").await;
    let asked = world.ask("hello", None);
    let nothing = curl(&["-H", "Prefer: wait=1", &asked.receipts], b"");
    assert_eq!((listed(&nothing), nothing.header("preference-applied")), ((vec![], "0".into()), Some("wait=1")));

    let receipts = asked.receipts.clone();
    let polled = std::thread::spawn(move || curl(&["-H", "Prefer: respond-async, wait=100", &receipts], b""));
    let reader = Reader::open(&asked.receipts, None);
    world.until_waiting(2).await;
    let mut device = world.connect().await;
    device.take().await;
    let (id, message, status) = reader.event();
    assert_eq!((&message, status), (&asked.message, 204));
    let polled = polled.join().expect("curl is ours");
    assert_eq!(polled.header("preference-applied"), Some("wait=60"));
    assert_eq!(listed(&polled), (vec![(asked.message.clone(), 204)], id.clone()));
    // Who reads a stream has not said yet that it has it.
    assert_eq!(asked.list("").0.len(), 1);
    drop(reader);
    world.until_waiting(0).await;
    let reader = Reader::open(&asked.receipts, Some(&id));
    asked.until_told(&[]).await;
    let later = world.ask("later", Some(&asked));
    device.take().await;
    let (later_id, message, _) = reader.event();
    assert_eq!(message, later.message);
    let after = asked.list(&format!("?after={id}"));
    assert_eq!(after, (vec![(later.message.clone(), 204)], later_id.clone()));
    assert_eq!(asked.list(&format!("?after={later_id}")), (vec![], later_id));
    asked.until_told(&[]).await;
    let nonsense = curl(&[&format!("{}?after=x", asked.receipts)], b"");
    assert_eq!(nonsense.status, 400, "{nonsense:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a5_what_is_given_up_is_410_and_s10_what_is_replaced_is_not_told() {
    let mut world = World::start("[limits]\nwaiting-per-registration = 2").await;
    let first = world.ask("too many", None);
    let replaced = ["Topic: score", ASKED, &format!("Link: {}", first.link)];
    assert_eq!(world.post("replaced", &replaced).status, 202);
    assert_eq!(world.post("in its place", &["Topic: score"]).status, 201);
    let last = world.ask("ends with its endpoint", Some(&first));
    first.until_told(&[(&first, 410)]).await;
    let mut device = world.connect().await;
    // RFC 8030, section 5.4, and whom the server tells is the server's own.
    let sent = device.until("push").await["push"].clone();
    assert!(sent.get("collapse_key").is_none() && sent.get("receipts_to").is_none(), "{sent}");
    device.deregister(&world.app).await;
    first.until_told(&[(&first, 410), (&last, 410)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_survive_a_crash_of_the_server() {
    let mut world = World::start("").await;
    let asked = world.ask("hello", None);
    let mut device = world.connect().await;
    device.take().await;
    asked.until_told(&[(&asked, 204)]).await;
    world.server.kill();
    world.server.restart();
    asked.until_told(&[(&asked, 204)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_lets_everybody_who_waits_go_in_order() {
    let mut world = World::start("").await;
    let asked = world.ask("hello", None);
    let receipts = asked.receipts.clone();
    let polled = std::thread::spawn(move || curl(&["-H", "Prefer: wait=60", &receipts], b""));
    let reader = Reader::open(&asked.receipts, None);
    world.until_waiting(2).await;
    assert!(world.server.stop().success());
    assert_eq!(reader.line(), "end");
    assert_eq!(listed(&polled.join().expect("curl is ours")).0, []);
    assert!(world.server.log().contains("orderly=true"), "{}", world.server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_wait_as_may_and_of_one_subscription_the_oldest_goes() {
    let mut world = World::start("[limits]\nreceipt-waiters = 5").await;
    let (one, two) = (world.ask("one", None), world.ask("two", None));
    let oldest = Reader::open(&one.receipts, None);
    let others: Vec<_> = (0..3).map(|_| Reader::open(&one.receipts, None)).collect();
    world.until_waiting(4).await;
    let newest = Reader::open(&one.receipts, None);
    assert_eq!(oldest.line(), "end");
    let other = Reader::open(&two.receipts, None);
    world.until_waiting(5).await;
    // All places are taken: of all who wait the oldest has to go.
    let three = world.ask("three", None);
    let waited = curl(&["-H", "Prefer: wait=1", &three.receipts], b"");
    assert_eq!((waited.status, listed(&waited).0), (200, vec![]), "{waited:?}");
    assert_eq!(others[0].line(), "end");
    drop((newest, others));
    world.until_waiting(1).await;
    let mut device = world.connect().await;
    device.take().await;
    device.take().await;
    assert_eq!(other.event().1, two.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_ended_tells_nothing_more() {
    let mut world = World::start("").await;
    let asked = world.ask("on its way", None);
    let reader = Reader::open(&asked.receipts, None);
    let delete = || curl(&["-X", "DELETE", &asked.receipts], b"").status;
    assert_eq!(delete(), 204);
    assert_eq!(reader.line(), "end");
    let mut device = world.connect().await;
    device.take().await;
    assert_eq!(delete(), 404);
    let gone = curl(&[&asked.receipts], b"");
    assert_eq!((gone.status, &gone.json()["code"]), (404, &json!(404)), "{gone:?}");
    assert_eq!(world.post("", &[ASKED, &format!("Link: {}", asked.link)]).status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a7_a8_a_message_can_be_read_and_taken_back_while_it_waits() {
    let mut world = World::start("").await;
    // No text, and a line's end of its own.
    let body = "aes128gcm \u{7f}\u{0}\r\n\r\n\u{fffd}";
    let asked = world.ask(body, None);
    let message = |method: &str| curl(&["-X", method, &asked.message], b"");
    let read = message("GET");
    assert_eq!((read.status, read.body.as_str()), (200, body), "{read:?}");
    assert_eq!(read.header("content-type"), None);
    let ttl: u32 = read.header("ttl").and_then(|ttl| ttl.parse().ok()).expect("a TTL");
    assert!((500..=600).contains(&ttl), "{ttl}");
    assert!(read.header("last-modified").is_some_and(|date| date.ends_with(" GMT")), "{read:?}");
    assert_eq!(message("DELETE").status, 204);
    for method in ["GET", "DELETE"] {
        assert_eq!(message(method).status, 404);
    }
    let old =
        ["Content-Type: text/x-test", "Content-Encoding: aesgcm", "Encryption: salt=c2FsdA", "Crypto-Key: dh=ZGg"];
    let other = world.post("old", &old);
    let read = curl(&[other.header("location").expect("a message")], b"");
    for header in old {
        let (name, value) = header.split_once(": ").expect("a header");
        assert_eq!(read.header(name), Some(value), "{read:?}");
    }
    // What was taken back is not delivered and not told.
    let mut device = world.connect().await;
    assert_eq!(bytes(&device.take().await), b"old");
    assert_eq!(asked.list("").0, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a7_what_may_be_on_its_way_is_not_taken_back() {
    let mut world = World::start("").await;
    let asked = world.ask("on its way", None);
    let mut device = world.connect().await;
    let push = device.until("push").await["push"].clone();
    let message = |method: &str| curl(&["-X", method, &asked.message], b"").status;
    assert_eq!((message("DELETE"), message("GET")), (404, 200));
    device.ack(&push).await;
    asked.until_told(&[(&asked, 204)]).await;
    assert_eq!((message("DELETE"), message("GET")), (404, 404));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forged_costs_no_look_into_the_database() {
    let world = World::start("").await;
    let asked = world.ask("hello", None);
    let forged = |url: &str| format!("{}{}", &url[..url.len() - 2], if url.ends_with("AA") { "BB" } else { "AA" });
    let database = rusqlite::Connection::open(world.server.folder.path().join("state/server.db")).expect("a database");
    database
        .execute_batch("DROP TABLE confirmations; DROP TABLE ended_links; DROP TABLE history;")
        .expect("nobody else writes");
    let status = |method: &str, url: &str| curl(&["-X", method, url], b"").status;
    for method in ["GET", "DELETE"] {
        for url in [&asked.receipts, &asked.message] {
            assert_eq!((status(method, url), status(method, &forged(url))), (503, 404), "{method} {url}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a6_the_callback_of_the_app_whose_key_has_signed_is_told_too() {
    const KEY: &str = "the-key-of-the-receipts";
    let mut world = World::start("").await;
    let (app, signer) = (world.server.app_add("org.example.Chat"), RawSender::new());
    let file = world.server.folder.path().join("receipts");
    let mut receiver = Command::new("python3")
        .args([RECEIVER, "0"])
        .arg(&file)
        .arg(KEY)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is missing: apt-get install python3");
    let port = first_line(receiver.stdout.take().expect("it is piped"));
    let key_file = world.server.folder.path().join("key");
    std::fs::write(&key_file, KEY).expect("the folder is ours");
    let url = format!("http://127.0.0.1:{port}/");
    let set = ["app", "callback", &app.id, &url, "--key-file", key_file.to_str().expect("a plain name")];
    assert!(world.server.admin(&set).status.success());
    assert!(world.server.admin(&["app", "vapid-key", &app.id, &signer.key()]).status.success());

    let (signed, other) = (signer.authorization(&world.endpoint), RawSender::new().authorization(&world.endpoint));
    let mut messages = Vec::new();
    for headers in [&[ASKED, &other][..], &[&signed], &[ASKED, &signed]] {
        let answer = world.post("hello", headers);
        messages.push(answer.header("location").unwrap_or_else(|| panic!("{answer:?}")).to_owned());
    }
    let mut device = world.connect().await;
    for _ in 0..3 {
        device.take().await;
    }
    let told = until(async || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let batch = text.lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok());
        batch.ok_or_else(|| format!("nothing was told:\n{}", world.server.log()))
    })
    .await;
    receiver.kill().expect("the receiver is ours");
    receiver.wait().expect("the receiver is ours");
    assert_eq!((&told["wrong"], &told["batch"]["appID"]), (&Value::Null, &json!(app.id)), "{told}");
    // Of another's message, and of one for which nobody has asked, it hears nothing.
    let receipts = told["batch"]["receipts"].as_array().expect("a list");
    assert_eq!(receipts.len(), 1, "{told}");
    let one = receipts[0].as_object().expect("an object");
    assert_eq!((&one["message"], &one["status"], &one["statusCode"]), (&json!(messages[2]), &json!(204), &json!(1000)));
    assert!(!one.contains_key("regID"), "{told}");
}

#[test]
fn a_vapid_key_is_set_shown_and_removed_on_the_command_line_and_by_programs() {
    let server = Server::start("00", "");
    let [chat, mail] = ["org.example.Chat", "org.example.Mail"].map(|id| server.app_add(id).id);
    let (key, other) = (RawSender::new().key(), RawSender::new().key());
    let set = |arguments: &[&str]| server.admin(&[&["app", "vapid-key"], arguments].concat()).status.code();
    let shown = |id: &str| {
        let list: Value = serde_json::from_slice(&server.admin(&["--json", "app", "list"]).stdout).expect("JSON");
        let apps = list["apps"].as_array().expect("a list").clone();
        apps.iter().find(|app| app["appID"] == id).expect("it is there")["vapid_key"].clone()
    };
    assert_eq!((set(&[&chat, &key]), set(&[&mail, &key]), set(&["nobody", &other])), (Some(0), Some(1), Some(1)));
    assert_eq!((set(&[&chat]), set(&[&chat, "no key"]), set(&[&chat, &key, "--none"])), (Some(64), Some(64), Some(64)));
    assert_eq!((shown(&chat), shown(&mail)), (json!(key), Value::Null));
    let text = String::from_utf8(server.admin(&["app", "list"]).stdout).expect("text");
    assert!(text.contains(&format!("VAPID key {key}")), "{text}");

    let token: Value = serde_json::from_slice(&server.admin(&["--json", "token", "add"]).stdout).expect("JSON");
    let token = format!("Authorization: Bearer {}", token["token"].as_str().expect("a text"));
    let call = |method: &str, id: &str, body: Value| {
        let url = format!("{}/v1/admin/apps/{id}/vapid-key", server.api);
        let json = "Content-Type: application/json";
        let body = if body.is_null() { String::new() } else { body.to_string() };
        curl(&["-X", method, "-H", &token, "-H", json, "--data-binary", "@-", &url], body.as_bytes()).status
    };
    assert_eq!(call("PUT", &mail, json!({ "key": key })), 409);
    assert_eq!(call("PUT", &mail, json!({ "key": "no key" })), 400);
    assert_eq!(call("PUT", "nobody", json!({ "key": other })), 404);
    assert_eq!(call("PUT", &mail, json!({ "key": other })), 200);
    assert_eq!(call("DELETE", &chat, Value::Null), 200);
    assert_eq!((shown(&chat), shown(&mail)), (Value::Null, json!(other)));
    assert_eq!((set(&[&mail, "--none"]), shown(&mail)), (Some(0), Value::Null));
}

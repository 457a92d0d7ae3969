//! Every status code of the push server guide: the table in the code is the guide's, and each code
//! that has a trigger here is driven over HTTP.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::collections::BTreeMap;
use std::path::Path;

use bellwire::server::doors::tizen::{TABLE, Use};
use common::{Answer, App, Server, curl};
use device::Device;
use rusqlite::Connection;
use serde_json::{Value, json};

const PATH: &str = "/spp/pns/api/push";
const APP: &str = "org.example.Codes";

/// The lines of a table as the guide writes it: `| 1000 | Success |`.
fn lines(text: &str) -> Vec<(u16, String)> {
    let line = |line: &str| {
        let mut cells = line.trim().strip_prefix('|')?.split('|').map(str::trim);
        let number = cells.next()?.parse().ok()?;
        Some((number, cells.next()?.to_owned()))
    };
    text.lines().filter_map(line).filter(|(number, _)| *number >= 1000).collect()
}

#[test]
fn the_table_is_the_guide_s() {
    let ours: Vec<(u16, String)> = TABLE.iter().map(|row| (row.number, row.text.to_owned())).collect();
    assert_eq!(ours, lines(include_str!("seed/codes.txt")));
    // Where the guide itself is at hand, the copy is compared with it.
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/seeds/001_dbb0b6e7a8ad09f4.txt");
    if let Ok(guide) = std::fs::read_to_string(guide) {
        let table = guide.split_once("**Table: Push notification error codes**").expect("the guide has the table").1;
        assert_eq!(ours, lines(table));
    }
    assert_eq!(TABLE.len(), 49);
}

struct Sender {
    server: Server,
    app: App,
}

impl Sender {
    fn post(&self, body: &str, headers: &[&str]) -> Answer {
        let (id, secret) = (format!("appID: {}", self.app.id), format!("appSecret: {}", self.app.secret));
        let url = format!("{}{PATH}", self.server.api);
        let mut arguments = vec!["--data-binary", "@-", "-H", "Content-Type: application/json"];
        // A header that is given goes before ours.
        let given = |name: &str| headers.iter().any(|header| header.starts_with(name));
        if !given("appID") {
            arguments.extend(["-H", &id]);
        }
        if !given("appSecret") {
            arguments.extend(["-H", &secret]);
        }
        headers.iter().for_each(|header| arguments.extend(["-H", header]));
        arguments.push(&url);
        curl(&arguments, body.as_bytes())
    }

    /// A message to nobody in particular with these members changed; a null takes one away.
    fn with(&self, members: &Value) -> Answer {
        let mut message = json!({ "regID": "00".repeat(50), "requestID": "1", "appData": "x" });
        let all = message.as_object_mut().expect("an object");
        for (name, value) in members.as_object().expect("an object") {
            all.remove(name);
            if !value.is_null() {
                all.insert(name.clone(), value.clone());
            }
        }
        self.post(&message.to_string(), &[])
    }

    /// The server's database, from beside the server.
    fn database(&self) -> Connection {
        let path = self.server.folder.path().join("state/server.db");
        Connection::open(path).expect("the server has a database")
    }

    /// A message while somebody else writes to the database and does not end.
    fn while_the_disk_is_taken(&self, reg_id: &str) -> Answer {
        let database = self.database();
        database.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
        self.with(&json!({ "regID": reg_id }))
    }

    /// A request for two to a region that takes one at a time.
    async fn one_at_a_time(&self) -> Answer {
        let server = Server::start("00", "[api]\nmultiple = false");
        let app = server.app_add(APP);
        let device = Device::start(&server.gateway, "");
        let here = device.app(APP).await;
        let one = device::request(here.reg_id.as_str(), "1", "x");
        assert_eq!(code(&device::post(&server, &app, &one)), 1000);
        device::post(&server, &app, &device::request(vec![here.reg_id.as_str(); 2], "1", "x"))
    }

    /// A message to a server that has lost a part of its database.
    fn with_a_broken_store(&self) -> Answer {
        self.database().execute_batch("DROP TABLE apps").expect("nobody else writes");
        self.with(&json!({}))
    }
}

fn code(answer: &Answer) -> u16 {
    let code = answer.json()["results"][0]["statusCode"].as_u64();
    code.and_then(|code| u16::try_from(code).ok()).unwrap_or_else(|| panic!("no code in {}", answer.body))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_code_that_has_a_trigger_is_answered() {
    let server = Server::start("00", "[regions]\n01 = \"http://127.0.0.1:9\"");
    let app = server.app_add(APP);
    let sender = Sender { server, app };
    let get = |path: &str| curl(&[&format!("{}{path}", sender.server.api)], b"");
    let long = |length: usize| "x".repeat(length);
    let mut seen = BTreeMap::from([
        (3005, sender.with(&json!({ "regID": null }))),
        (3006, sender.with(&json!({ "requestID": null }))),
        (3007, sender.with(&json!({ "appData": null }))),
        (3008, sender.with(&json!({}))),
        (3009, sender.post("{}", &["appID: org.example.Nobody"])),
        (3014, sender.post(&json!({ "cancel": "never sent", "regID": "00".repeat(50) }).to_string(), &[])),
        (3015, sender.with(&json!({ "regID": "01".repeat(50) }))),
        (3016, get("/elsewhere")),
        (3017, get(PATH)),
        (3018, sender.with(&json!({ "sender": "a\u{0}b" }))),
        (3019, sender.with(&json!({ "sessionInfo": long(1025) }))),
        (3020, sender.with(&json!({ "reliableOption": "Sometimes" }))),
        (3022, sender.post("", &[])),
        (3023, sender.post("[]", &[])),
        (3025, sender.with(&json!({ "regID": "xyz" }))),
        (3028, sender.with(&json!({ "encoding": "base58" }))),
        (3030, sender.with(&json!({ "message": long(2048) }))),
        (3032, sender.post("{}", &["Transfer-Encoding: chunked"])),
        (3033, sender.with(&json!({ "expiryDate": -1 }))),
        (3034, sender.with(&json!({ "delayDate": 2881 }))),
        (3035, sender.post(&long(300_000), &[])),
        (3036, sender.post("{\"messages\": []}", &[])),
        (3042, sender.with(&json!({ "timeStamp": "noon" }))),
        (3043, sender.with(&json!({ "type": 1.5 }))),
        (3045, sender.post("{}", &["appSecret: wrong"])),
    ]);
    let device = Device::start(&sender.server.gateway, "");
    let app = device.app(APP).await;
    seen.insert(3010, sender.one_at_a_time().await);
    seen.insert(1000, sender.with(&json!({ "regID": app.reg_id })));
    seen.insert(3013, sender.while_the_disk_is_taken(&app.reg_id));
    seen.insert(3002, sender.with_a_broken_store());
    for (number, answer) in &seen {
        assert_eq!(code(answer), *number, "{number}: {} {}", answer.status, answer.body);
        assert!(answer.body.contains("statusMsg"), "{number}");
    }
    let answered = TABLE.iter().filter(|row| matches!(row.when, Use::Answered(_))).map(|row| row.number);
    assert_eq!(Vec::from_iter(seen.into_keys()), Vec::from_iter(answered));
}

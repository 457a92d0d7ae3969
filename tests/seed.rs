//! The examples of Tizen's push server guide, word for word (`tests/seed/`), against the built
//! programs. As printed they are not JSON: commas are missing, and two close their brackets in the
//! wrong order. With the comments removed and nothing else they are answered as the guide says for
//! malformed requests; repaired, with real regIds, as it says for good ones.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Answer, Server, curl};
use device::{Device, DeviceApp};
use serde_json::{Value, json};

const SINGLE: &str = include_str!("seed/single.txt");
const MULTIPLE: &str = include_str!("seed/multiple.txt");
const MULTICAST: &str = include_str!("seed/multicast.txt");
const SUCCESS_SINGLE: &str = include_str!("seed/answer-success-single.txt");
const SUCCESS_MULTIPLE: &str = include_str!("seed/answer-success-multiple.txt");
const SUCCESS_MULTICAST: &str = include_str!("seed/answer-success-multicast.txt");
const PARTLY_MULTIPLE: &str = include_str!("seed/answer-partly-failed-multiple.txt");
const PARTLY_MULTICAST: &str = include_str!("seed/answer-partly-failed-multicast.txt");
const NOT_REGISTERED: &str = include_str!("seed/answer-not-registered.txt");
const MALFORMED: &str = include_str!("seed/answer-malformed.txt");
const ALL: [&str; 10] = [
    SINGLE,
    MULTIPLE,
    MULTICAST,
    SUCCESS_SINGLE,
    SUCCESS_MULTIPLE,
    SUCCESS_MULTICAST,
    PARTLY_MULTIPLE,
    PARTLY_MULTICAST,
    NOT_REGISTERED,
    MALFORMED,
];
/// The regIds of the examples.
const REG_IDS: [&str; 3] = ["ab123456", "ab234567", "ab345678"];
/// The guide's application.
const APP: &str = "1234567890987654";
const SECRET: &str = "dYo/o/m11gmWmjs7+5f+2zLNVOc=";

fn without_comments(example: &str) -> String {
    let mut text = String::new();
    let mut rest = example;
    while let Some((before, after)) = rest.split_once("/*") {
        text.push_str(before);
        rest = after.split_once("*/").expect("every comment ends").1;
    }
    text + rest
}

/// The example as the JSON that it means: commas between values and nowhere else, brackets closed
/// in order.
fn repaired(example: &str) -> String {
    let (mut text, mut open) = (String::new(), Vec::new());
    for token in tokens(&without_comments(example)) {
        let begins = !matches!(token.as_str(), "}" | "]" | "," | ":");
        if begins && !text.is_empty() && !text.ends_with(['{', '[', ':']) {
            text.push(',');
        }
        match token.as_str() {
            "," => continue,
            "{" => open.push('}'),
            "[" => open.push(']'),
            "}" | "]" => {
                text.push(open.pop().expect("as many brackets close as open"));
                continue;
            }
            _ => {}
        }
        text.push_str(&token);
    }
    text
}

/// Brackets, commas, colons, strings and numbers. No string of the examples has a quote in it.
fn tokens(text: &str) -> Vec<String> {
    let (mut tokens, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => rest[1..].find('"').expect("every string ends") + 2,
            '0'..='9' => rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        tokens.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    tokens
}

/// An example with these in the place of its regIds.
fn with_reg_ids(example: &str, reg_ids: &[String; 3]) -> Value {
    let text = repaired(example);
    let text = REG_IDS.iter().zip(reg_ids).fold(text, |text, (theirs, ours)| text.replace(theirs, ours));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The same request with regIds in hexadecimal: nothing said about their encoding.
fn without_encoding(mut request: Value) -> Value {
    let messages = match request.get_mut("messages") {
        Some(messages) => messages.as_array_mut().expect("a list").iter_mut().collect(),
        None => vec![&mut request],
    };
    for message in messages {
        assert_eq!(message.as_object_mut().expect("an object").remove("encoding"), Some(json!("base64")));
    }
    request
}

fn base64(reg_id: &str) -> String {
    STANDARD.encode(hex::decode(reg_id).expect("a regId is hexadecimal"))
}

fn post(server: &Server, body: &str) -> Answer {
    let url = format!("{}/spp/pns/api/push", server.api);
    let secret = format!("appSecret: {SECRET}");
    let arguments = ["--data-binary", "@-", "-H", "appID: 1234567890987654", "-H", &secret, &url];
    curl(&arguments, body.as_bytes())
}

/// Region 00 with two devices, and region 03 with one: a registration for each regId of the guide.
struct World {
    near: Server,
    far: Server,
    apps: Vec<DeviceApp>,
    devices: Vec<Device>,
}

impl World {
    async fn start() -> Self {
        let far = Server::start("03", "");
        let near = Server::start("00", &format!("[regions]\n\"03\" = {:?}", far.api));
        let (mut devices, mut apps) = (Vec::new(), Vec::new());
        for server in [&near, &far] {
            let secret = server.folder.path().join("secret");
            std::fs::write(&secret, SECRET).expect("the folder is ours");
            let added = server.admin(&["app", "add", APP, "--secret-file", &secret.to_string_lossy()]);
            assert!(added.status.success(), "{added:?}");
        }
        for server in [&near, &near, &far] {
            let device = Device::start(&server.gateway, "");
            apps.push(device.app(APP).await);
            devices.push(device);
        }
        Self { near, far, apps, devices }
    }

    fn reg_ids(&self) -> [String; 3] {
        [0, 1, 2].map(|number| self.apps[number].reg_id.clone())
    }

    /// Posts the example with regIds in both encodings; the answer is the guide's, and so is what
    /// arrives at the apps that are named.
    async fn expect(&mut self, example: &str, reg_ids: &[String; 3], answer: &str, receivers: &[usize]) {
        let in_base64 = reg_ids.clone().map(|reg_id| base64(&reg_id));
        for (request, ids) in [
            (with_reg_ids(example, &in_base64), &in_base64),
            (without_encoding(with_reg_ids(example, reg_ids)), reg_ids),
        ] {
            let answered = post(&self.near, &request.to_string());
            assert_eq!((answered.status, answered.json()), (200, with_reg_ids(answer, ids)), "{request}");
            for receiver in receivers {
                let message = self.apps[*receiver].next().await;
                assert_eq!(message.data(), "{id:asdf&passwd:1234}");
                assert_eq!(message.text("sender").as_deref(), Some("oscal"));
                assert!(example.contains(&format!("\"message\": {:?}", message.text("message").expect("text"))));
                assert!(
                    example.contains(&format!("\"sessionInfo\": {:?}", message.text("session_info").expect("text")))
                );
                assert_eq!(i64::try_from(message.members["time_stamp"].clone()).expect("a number"), 1234567890);
                assert_eq!(i64::try_from(message.members["type"].clone()).expect("a number"), 0);
            }
        }
    }
}

#[test]
fn as_printed_without_comments_they_are_malformed() {
    let server = Server::start("00", "");
    let secret = server.folder.path().join("secret");
    std::fs::write(&secret, SECRET).expect("the folder is ours");
    assert!(server.admin(&["app", "add", APP, "--secret-file", &secret.to_string_lossy()]).status.success());
    let expected: Value = serde_json::from_str(MALFORMED).expect("this one is JSON as it is");
    for example in [SINGLE, MULTIPLE, MULTICAST] {
        let answer = post(&server, &without_comments(example));
        assert_eq!((answer.status, answer.json()), (400, expected.clone()), "{example}");
    }
}

#[tokio::test]
async fn repaired_they_succeed_and_fail_in_part_as_the_guide_shows() {
    let mut world = World::start().await;
    let good = world.reg_ids();
    world.expect(SINGLE, &good, SUCCESS_SINGLE, &[0]).await;
    world.expect(MULTIPLE, &good, SUCCESS_MULTIPLE, &[0, 1]).await;
    // The guide answers a request with one requestID, 0000001, by two. Its partly failed multicast
    // has the one.
    let one_request = SUCCESS_MULTICAST.replace("0000002", "0000001");
    world.expect(MULTICAST, &good, &one_request, &[0, 1, 2]).await;

    let ended = [good[0].clone(), format!("00{}", "5c".repeat(49)), good[2].clone()];
    world.expect(MULTIPLE, &ended, PARTLY_MULTIPLE, &[0]).await;
    let unknown = [ended[1].clone(), good[1].clone(), good[2].clone()];
    world.expect(SINGLE, &unknown, NOT_REGISTERED, &[]).await;

    // The third recipient's region cannot store.
    let database = rusqlite::Connection::open(world.far.folder.path().join("state/server.db")).expect("a database");
    database.execute_batch("ALTER TABLE messages RENAME TO elsewhere").expect("the database is ours");
    world.expect(MULTICAST, &ended, PARTLY_MULTICAST, &[0]).await;
    database.execute_batch("ALTER TABLE elsewhere RENAME TO messages").expect("the database is ours");
    // It had sent its device away meanwhile.
    world.devices[2].until_online().await;
    world.expect(MULTICAST, &good, &one_request, &[0, 1, 2]).await;
}

/// Every line without its indentation.
fn lines(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_copies_are_the_guides_own_words() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/seeds");
    let guide = std::fs::read_dir(seeds).ok().and_then(|folder| {
        folder.map_while(Result::ok).find(|file| file.file_name().to_string_lossy().starts_with("001_"))
    });
    let Some(guide) = guide else { return println!("the guide itself is not beside this checkout: not compared") };
    let guide = lines(&std::fs::read_to_string(guide.path()).expect("it can be read"));
    for example in ALL {
        assert!(guide.contains(lines(example).trim()), "not in the guide:\n{example}");
    }
}

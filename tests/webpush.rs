//! The Web Push door by the rows of the conformance checklist, each test named by its row: RFC 8030, 8291
//! and 8292 against the built server, with curl for a sender and a WebSocket for a device.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/raw.rs"]
mod raw;

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use common::{Answer, Server, WallClock, curl};
use raw::{RawDevice, RawSender, bytes, send};
use serde_json::{Value, json};

const TTL: &str = "TTL: 60";

/// A server, a device, and a channel on it.
struct World {
    server: Server,
    device: RawDevice,
    app: String,
    endpoint: String,
}

impl World {
    async fn start(settings: &str) -> Self {
        let server = Server::start("00", settings);
        let mut device = RawDevice::enrol(&server).await;
        let (app, endpoint) = device.channel(None).await;
        Self { server, device, app, endpoint }
    }

    fn send(&self, headers: &[&str], body: &[u8]) -> Answer {
        send(&self.endpoint, headers, body)
    }
}

/// The secret part of an endpoint.
fn secret(endpoint: &str) -> &str {
    endpoint.rsplit('/').next().expect("a path")
}

/// The status and Mozilla's number of a refusal, whose body has the form that senders know.
fn refusal(answer: &Answer) -> (u16, u64) {
    let body = answer.json();
    assert_eq!(body["code"], answer.status, "{body}");
    assert!(body["error"].as_str().is_some_and(|words| !words.is_empty()), "{body}");
    assert!(body["message"].as_str().is_some_and(|words| words.len() > 10), "{body}");
    assert_eq!(body["more_info"], "bellwire-webpush(7)");
    (answer.status, body["errno"].as_u64().expect("a number"))
}

#[tokio::test]
async fn t2_t3_endpoints_of_one_device_have_nothing_in_common() {
    const CHANNELS: usize = 1000;
    let server = Server::start("00", &format!("[limits]\nregistrations-per-device = {CHANNELS}"));
    let mut device = RawDevice::enrol(&server).await;
    let (mut seen, mut prefixes) = (HashSet::new(), HashSet::new());
    for _ in 0..CHANNELS {
        let (_, endpoint) = device.channel(None).await;
        assert!(endpoint.len() < 200, "{endpoint}");
        let sealed = secret(&endpoint);
        // Region and virtual shard are two bytes; what follows is 56 sealed ones, of which 16 are proof.
        prefixes.insert(sealed[..2].to_owned());
        let pieces: Vec<&str> = (3..sealed.len() - 7).map(|at| &sealed[at..at + 7]).collect();
        assert!(pieces.len() >= 60, "{endpoint}");
        for piece in pieces {
            assert!(seen.insert(piece.to_owned()), "{piece} stands in two endpoints");
        }
    }
    assert_eq!(prefixes.len(), 1);
}

#[tokio::test]
async fn t4_no_log_line_shows_an_endpoint_a_signature_or_a_message() {
    let mut world = World::start("log = \"debug\"").await;
    let sender = RawSender::new();
    let (_, restricted) = world.device.channel(Some(&sender)).await;
    let signed = sender.authorization(&restricted);
    assert_eq!(send(&restricted, &[TTL, &signed], b"private words").status, 201);
    assert_eq!(world.send(&[TTL, "Topic: private-topic"], b"private words").status, 201);
    assert_eq!(send(&format!("{}x", world.endpoint), &[TTL], b"private words").status, 404);
    world.device.take().await;
    world.device.take().await;
    let log = world.server.log();
    let token = signed.split(['=', ',']).nth(1).expect("a token");
    for hidden in [secret(&world.endpoint), secret(&restricted), token, &sender.key(), "private", &world.device.secret]
    {
        assert!(!log.contains(hidden), "{hidden} in {log}");
    }
}

#[tokio::test]
async fn t5_endpoints_begin_with_the_origin_that_the_operator_names() {
    let server = Server::start("00", "[web-push]\norigin = \"https://Push.Example.org:443\"");
    let (_, endpoint) = RawDevice::enrol(&server).await.channel(None).await;
    assert!(endpoint.starts_with("https://push.example.org/wp/"), "{endpoint}");
}

/// What a device is answered that subscribes over HTTP.
fn subscribe(world: &World, headers: &[&str], body: &str) -> Answer {
    let basic = STANDARD.encode(format!("{}:{}", world.device.id, world.device.secret));
    let (basic, url) = (format!("Authorization: Basic {basic}"), format!("{}/wp/subscribe", world.server.api));
    send(&url, &[&[basic.as_str()], headers].concat(), body.as_bytes())
}

/// The endpoint and the subscription of an answer.
fn subscribed(answer: &Answer) -> (String, String) {
    assert_eq!(answer.status, 201, "{answer:?}");
    let link = answer.header("link").expect("a link");
    let endpoint = link.strip_suffix(">; rel=\"urn:ietf:params:push\"").and_then(|link| link.strip_prefix('<'));
    let subscription = answer.header("location").expect("a location");
    (endpoint.expect("an endpoint").to_owned(), subscription.to_owned())
}

#[tokio::test]
async fn b1_a_subscription_over_http_is_201_with_its_own_url_and_that_of_its_endpoint() {
    let mut world = World::start("").await;
    let (endpoint, subscription) = subscribed(&subscribe(&world, &[], ""));
    assert_ne!(endpoint, subscription);
    assert_eq!(send(&endpoint, &[TTL], b"over http").status, 201);
    let push = world.device.take().await;
    assert_eq!(bytes(&push), b"over http");
    assert!(push["app"].as_str().is_some_and(|app| app.starts_with("webpush:")), "{push}");
    // The one is not the other.
    assert_eq!(send(&subscription, &[TTL], b"").status, 405);
    let api = &world.server.api;
    for stranger in ["Authorization: Basic YTpi", "Authorization: Bearer a", "X: y"] {
        let answer = send(&format!("{api}/wp/subscribe"), &[stranger], b"");
        assert_eq!((refusal(&answer).0, answer.header("www-authenticate")), (401, Some("Basic realm=\"bellwire\"")));
    }
}

#[tokio::test]
async fn b2_a_subscription_is_restricted_by_a_body_of_its_own_media_type_only() {
    let mut world = World::start("").await;
    let sender = RawSender::new();
    let body = json!({ "vapid": sender.key(), "another": [1] }).to_string();
    let (restricted, _) = subscribed(&subscribe(&world, &["Content-Type: application/webpush-options+json"], &body));
    assert_eq!(refusal(&send(&restricted, &[TTL], b"")), (401, 109));
    assert_eq!(send(&restricted, &[TTL, &sender.authorization(&restricted)], b"signed").status, 201);
    assert_eq!(bytes(&world.device.take().await), b"signed");
    let (open, _) = subscribed(&subscribe(&world, &["Content-Type: application/json"], &body));
    assert_eq!(send(&open, &[TTL], b"").status, 201);
    for bad in ["", "[]", "{\"vapid\":null}", "{\"vapid\":1}", "{\"vapid\":\"BAAA\"}"] {
        let answer = subscribe(&world, &["Content-Type: application/webpush-options+json; charset=utf-8"], bad);
        assert_eq!(refusal(&answer).0, 400, "{bad}");
    }
}

#[tokio::test]
async fn b4_b5_a_subscription_that_was_deleted_is_gone_for_good_and_the_next_one_is_another() {
    let world = World::start("").await;
    let (endpoint, subscription) = subscribed(&subscribe(&world, &[], ""));
    assert_eq!(curl(&["--request", "DELETE", &subscription], b"").status, 204);
    assert_eq!(refusal(&send(&endpoint, &[TTL], b"")), (410, 103));
    assert_eq!(curl(&["--request", "DELETE", &subscription], b"").status, 204);
    let (next, _) = subscribed(&subscribe(&world, &[], ""));
    assert_ne!(secret(&next)[3..10], secret(&endpoint)[3..10]);
    let forged = format!("{}/wp/s/{}", world.server.api, secret(&endpoint));
    assert_eq!(refusal(&curl(&["--request", "DELETE", &forged], b"")), (404, 102));
}

#[tokio::test]
async fn s1_what_is_answered_201_is_on_disk() {
    let mut world = World::start("").await;
    for number in 0..20 {
        let answer = world.send(&["TTL: 600"], format!("{number}").as_bytes());
        assert_eq!((answer.status, answer.header("ttl")), (201, Some("600")), "{answer:?}");
        assert!(answer.header("location").is_some_and(|url| url.starts_with(&format!("{}/wp/m/", world.server.api))));
    }
    world.server.kill();
    world.server.restart();
    world.device = world.device.again(&world.server, json!({})).await;
    for number in 0..20 {
        assert_eq!(bytes(&world.device.take().await), format!("{number}").as_bytes());
    }
}

#[tokio::test]
async fn s2_s3_s7_s9_a_header_that_makes_no_sense_is_400() {
    let world = World::start("").await;
    for (headers, errno) in [
        (vec![], 112),
        (vec!["TTL: -1"], 112),
        (vec!["TTL: 1.5"], 112),
        (vec!["TTL;"], 112),
        (vec![TTL, "Urgency: urgent"], 111),
        (vec![TTL, "Urgency: low", "Urgency: low"], 111),
        (vec![TTL, "Topic: a b"], 113),
        (vec![TTL, "Topic: 123456789012345678901234567890123"], 113),
        (vec![TTL, "Topic;"], 113),
        (vec![TTL, "Content-Encoding: gzip"], 101),
    ] {
        assert_eq!(refusal(&world.send(&headers, b"x")), (400, errno), "{headers:?}");
    }
}

#[tokio::test]
async fn s4_a_life_that_is_too_long_is_shortened_and_the_sender_told() {
    let mut world = World::start("[limits]\nexpiry-minutes = 60").await;
    for (asked, kept) in [("2419200", 3600), ("3600", 3600), ("3599", 3599), (&"9".repeat(30), 3600)] {
        let answer = world.send(&[&format!("TTL: {asked}")], b"");
        assert_eq!((answer.status, answer.header("ttl")), (201, Some(kept.to_string().as_str())));
        let push = world.device.take().await;
        let life = push["expires_ms"].as_i64().zip(push["accepted_ms"].as_i64()).map(|(end, begin)| end - begin);
        assert_eq!(life, Some(kept * 1000));
    }
}

#[tokio::test]
async fn s5_nothing_arrives_after_its_end() {
    let clock = WallClock::new();
    let now = clock.real();
    clock.set(now);
    let server = Server::start_with("00", "", clock.environment());
    let mut device = RawDevice::enrol(&server).await;
    let (_, endpoint) = device.channel(None).await;
    assert_eq!(send(&endpoint, &["TTL: 2"], b"short").status, 201);
    assert_eq!(send(&endpoint, &["TTL: 6000"], b"long").status, 201);
    // The session that was there when they came acknowledges nothing; the clock goes on.
    clock.set(now + 3000);
    let mut device = device.again(&server, json!({})).await;
    assert_eq!(bytes(&device.take().await), b"long");
    assert!(!device.has_push().await);
}

#[tokio::test]
async fn s6_a_message_without_a_life_is_delivered_now_or_never() {
    let mut world = World::start("").await;
    assert_eq!(world.send(&["TTL: 0"], b"now").status, 201);
    let push = world.device.until("push").await["push"].clone();
    assert_eq!(bytes(&push), b"now");
    world.server.kill();
    world.server.restart();
    let answer = world.send(&["TTL: 0"], b"never");
    assert_eq!((answer.status, answer.header("ttl")), (201, Some("0")));
    assert_eq!(world.send(&[TTL], b"later").status, 201);
    world.device = world.device.again(&world.server, json!({})).await;
    assert_eq!(bytes(&world.device.take().await), b"later");
}

#[tokio::test]
async fn s8_a_device_is_not_woken_for_less_than_it_takes_and_gets_it_later() {
    let mut world = World::start("").await;
    world.device = world.device.again(&world.server, json!({ "least": "high" })).await;
    for urgency in ["very-low", "low", "normal", "high"] {
        assert_eq!(world.send(&[TTL, &format!("Urgency: {urgency}")], urgency.as_bytes()).status, 201);
    }
    assert_eq!(bytes(&world.device.take().await), b"high");
    world.device.say(json!({ "ping": { "seq": 1, "next_s": 300, "least": "normal" } })).await;
    assert_eq!(bytes(&world.device.take().await), b"normal");
    world.device.say(json!({ "ping": { "seq": 2, "next_s": 300 } })).await;
    let rest = [world.device.take().await, world.device.take().await];
    assert_eq!(rest.map(|push| bytes(&push)), [b"very-low".to_vec(), b"low".to_vec()]);
}

#[tokio::test]
async fn s10_a_newer_message_of_a_topic_takes_the_place_of_what_waits() {
    let mut world = World::start("").await;
    let (_, other) = world.device.channel(None).await;
    world.device = world.device.again(&world.server, json!({ "least": "high" })).await;
    for (headers, body) in [
        (vec!["TTL: 600", "Topic: score"], "1:0"),
        (vec!["TTL: 600", "Topic: weather"], "rain"),
        (vec!["TTL: 600"], "no topic"),
        (vec!["TTL: 300", "Topic: score"], "2:0"),
    ] {
        assert_eq!(world.send(&headers, body.as_bytes()).status, 201);
    }
    assert_eq!(send(&other, &[TTL, "Topic: score"], b"another channel").status, 201);
    world.device.say(json!({ "ping": { "seq": 1, "next_s": 300 } })).await;
    let mut got = Vec::new();
    for _ in 0..4 {
        let push = world.device.take().await;
        assert_eq!(push.get("topic"), None);
        got.push(String::from_utf8(bytes(&push)).expect("text"));
    }
    assert_eq!(got, ["rain", "no topic", "2:0", "another channel"]);
    assert!(!world.device.has_push().await);
}

#[tokio::test]
async fn s10_what_was_sent_already_is_followed_by_the_newer_one_whenever_it_is_acknowledged() {
    let mut world = World::start("").await;
    assert_eq!(world.send(&[TTL, "Topic: score"], b"1:0").status, 201);
    let first = world.device.until("push").await["push"].clone();
    assert_eq!(world.send(&[TTL, "Topic: score"], b"2:0").status, 201);
    world.device.ack(&first).await;
    let second = world.device.until("push").await;
    assert_eq!((bytes(&second["push"]), second.get("replaces")), (b"2:0".to_vec(), None));
    world.device.ack(&second["push"]).await;
    assert!(!world.device.has_push().await);
}

#[tokio::test]
async fn s11_4096_bytes_are_never_too_many() {
    let mut world = World::start("").await;
    let body: Vec<u8> = (0..4096_u32).map(|at| (at * 7 % 256) as u8).collect();
    assert_eq!(world.send(&[TTL], &body).status, 201);
    assert_eq!(bytes(&world.device.take().await), body);
    assert_eq!(refusal(&world.send(&[TTL], &[0; 4097])), (413, 104));
    assert_eq!(world.send(&[TTL], b"").status, 201);
    assert_eq!(bytes(&world.device.take().await), b"");
    // In chunks as well.
    let chunked = curl(&["-T", "-", "-X", "POST", "--header", TTL, &world.endpoint], &[7; 4096]);
    assert_eq!(chunked.status, 201);
    assert_eq!(bytes(&world.device.take().await), [7; 4096]);
}

#[tokio::test]
async fn s12_a_message_says_when_it_was_accepted() {
    let mut world = World::start("").await;
    let before = WallClock::new().real();
    assert_eq!(world.send(&[TTL], b"").status, 201);
    let accepted = world.device.take().await["accepted_ms"].as_i64().expect("a time");
    assert!((before..=WallClock::new().real()).contains(&accepted));
}

#[tokio::test]
async fn s13_over_a_rate_a_sender_is_told_when_to_come_again() {
    let world = World::start("[limits]\ndevice-messages-per-minute = 3").await;
    let answers: Vec<Answer> = (0..4).map(|_| world.send(&[TTL], b"")).collect();
    assert_eq!(answers[..3].iter().map(|answer| answer.status).collect::<Vec<_>>(), [201; 3]);
    assert_eq!(refusal(&answers[3]), (429, 201));
    let retry: u64 = answers[3].header("retry-after").and_then(|text| text.parse().ok()).expect("seconds");
    assert!((1..=60).contains(&retry));
}

#[tokio::test]
async fn s14_s15_v9_the_body_arrives_as_it_was_and_the_signature_does_not() {
    let mut world = World::start("").await;
    let sender = RawSender::new();
    let signed = sender.authorization(&world.endpoint);
    let headers = [TTL, &signed, "Content-Encoding: aes128gcm", "Urgency: high", "Topic: t"];
    let body: Vec<u8> = (0..=255).collect();
    assert_eq!(world.send(&headers, &body).status, 201);
    let push = world.device.take().await;
    assert_eq!((bytes(&push), &push["payload"]["content_encoding"]), (body, &json!("aes128gcm")));
    let text = push.to_string();
    assert!(!text.contains(&sender.key()) && !text.contains("vapid"), "{text}");

    let draft = format!("Crypto-Key: dh=BNoR;p256ecdsa={}", sender.key());
    let legacy = signed.replace("vapid t=", "WebPush ");
    let legacy = legacy.split(", k=").next().expect("a token");
    let headers = [TTL, legacy, "Content-Encoding: aesgcm", "Encryption: salt=c2FsdA", &draft];
    assert_eq!(world.send(&headers, b"x").status, 201);
    let payload = world.device.take().await["payload"].clone();
    let expected =
        json!({ "text": "x", "content_encoding": "aesgcm", "encryption": "salt=c2FsdA", "crypto_key": "dh=BNoR" });
    assert_eq!(payload, expected);
}

#[tokio::test]
async fn s16_a_request_that_is_repeated_is_one_message() {
    let mut world = World::start("").await;
    let (_, other) = world.device.channel(None).await;
    let headers = [TTL, "X-Request-ID: 4711"];
    let (first, again) = (world.send(&headers, b"once"), world.send(&headers, b"once"));
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(first.header("location"), again.header("location"));
    assert_eq!(bytes(&world.device.take().await), b"once");
    assert!(!world.device.has_push().await);
    // Also when it has been delivered; and another endpoint's is another message.
    assert_eq!(world.send(&headers, b"once").header("location"), first.header("location"));
    assert_ne!(send(&other, &headers, b"other").header("location"), first.header("location"));
    assert_eq!(bytes(&world.device.take().await), b"other");
}

#[tokio::test]
async fn v6_only_its_sender_may_send_to_a_restricted_endpoint() {
    let mut world = World::start("").await;
    let (sender, other) = (RawSender::new(), RawSender::new());
    let (_, restricted) = world.device.channel(Some(&sender)).await;
    let unsigned = send(&restricted, &[TTL], b"");
    assert_eq!((refusal(&unsigned), unsigned.header("www-authenticate")), ((401, 109), Some("vapid")));
    for wrong in [
        other.authorization(&restricted),
        sender.authorization("https://elsewhere.example/wp/x"),
        sender.authorization(&restricted).replace("t=e", "t=f"),
        format!("{}A", sender.authorization(&restricted)),
        "Authorization: vapid t=, k=".to_owned(),
        "Authorization: Basic YTpi".to_owned(),
    ] {
        assert_eq!(refusal(&send(&restricted, &[TTL, &wrong], b"")), (403, 109), "{wrong}");
    }
    // The same token twice: the second time it is known.
    let signed = sender.authorization(&restricted);
    for body in [b"1", b"2"] {
        assert_eq!(send(&restricted, &[TTL, &signed], body).status, 201);
        assert_eq!(bytes(&world.device.take().await), body);
    }
    assert!(!world.device.has_push().await);
}

#[tokio::test]
async fn v7_a_bad_signature_is_refused_everywhere_unless_the_operator_ignores_it() {
    let wrong = "Authorization: vapid t=a.b.c, k=BAAA";
    assert_eq!(refusal(&World::start("").await.send(&[TTL, wrong], b"")), (403, 109));
    let mut world = World::start("[web-push]\nignore-bad-vapid = true").await;
    assert_eq!(world.send(&[TTL, wrong], b"").status, 201);
    let sender = RawSender::new();
    let (_, restricted) = world.device.channel(Some(&sender)).await;
    assert_eq!(refusal(&send(&restricted, &[TTL, wrong], b"")), (403, 109));
}

#[tokio::test]
async fn v8_the_key_of_the_signature_is_not_that_of_the_encryption() {
    let world = World::start("").await;
    let sender = RawSender::new();
    let signed = sender.authorization(&world.endpoint);
    let head = [&[0; 16][..], &4096_u32.to_be_bytes(), &[65], sender.point(), &[1; 30]].concat();
    let headers = [TTL, &signed, "Content-Encoding: aes128gcm"];
    assert_eq!(refusal(&world.send(&headers, &head)), (400, 101));
    let another = [&[0; 16][..], &4096_u32.to_be_bytes(), &[65], RawSender::new().point(), &[1; 30]].concat();
    assert_eq!(world.send(&headers, &another).status, 201);
}

#[tokio::test]
async fn gone_and_not_found_are_told_apart() {
    for (settings, ended) in [("", 410), ("[web-push]\nstrict-rfc8030 = true", 404)] {
        let regions = "[regions]\n07 = \"http://127.0.0.1:1\"";
        let mut world = World::start(&format!("{settings}\n{regions}")).await;
        assert_eq!(world.send(&[TTL], b"").status, 201);
        world.device.deregister(&world.app).await;
        assert_eq!(refusal(&world.send(&[TTL], b"")), (ended, 103));
        assert_eq!(refusal(&world.send(&["TTL: 0"], b"")), (ended, 103));
        let api = &world.server.api;
        let sealed = secret(&world.endpoint);
        let mut flipped = URL_SAFE_NO_PAD.decode(sealed).expect("base64url");
        flipped[20] ^= 1;
        let truncated = &sealed[..sealed.len() - 4];
        for forged in [URL_SAFE_NO_PAD.encode(&flipped).as_str(), truncated, "x", "%FF", "a%2Fb", &"A".repeat(300)] {
            let answer = send(&format!("{api}/wp/{forged}"), &[TTL], b"");
            assert_eq!((refusal(&answer), answer.header("bellwire-region")), ((404, 102), None), "{forged}");
        }
        assert_eq!(refusal(&send(&format!("{api}/wp/"), &[TTL], b"")), (404, 102));
        flipped[0] = 7;
        let elsewhere = send(&format!("{api}/wp/{}", URL_SAFE_NO_PAD.encode(&flipped)), &[TTL], b"");
        assert_eq!((refusal(&elsewhere), elsewhere.header("bellwire-region")), ((404, 102), Some("07")));
    }
}

#[tokio::test]
async fn an_endpoint_says_that_it_is_one() {
    let world = World::start("").await;
    let discovery = curl(&[&world.endpoint], b"");
    assert_eq!((discovery.status, discovery.json()), (200, json!({ "unifiedpush": { "version": 1 } })));
    assert_eq!(refusal(&curl(&[&format!("{}x", world.endpoint)], b"")), (404, 102));
}

/// What the gateway answers to a notification for these push keys.
fn notify(server: &Server, rest: &Value, push_keys: &[&str]) -> Answer {
    let devices: Vec<Value> =
        push_keys.iter().map(|key| json!({ "app_id": "org.example.chat", "pushkey": key, "pushkey_ts": 1 })).collect();
    let mut notification = rest.clone();
    notification["devices"] = json!(devices);
    let body = json!({ "notification": notification }).to_string();
    send(&format!("{}/_matrix/push/v1/notify", server.api), &["Content-Type: application/json"], body.as_bytes())
}

#[tokio::test]
async fn a_matrix_event_reaches_every_device_once() {
    let mut world = World::start("").await;
    let (_, other) = world.device.channel(None).await;
    let discovery = curl(&[&format!("{}/_matrix/push/v1/notify?up=1", world.server.api)], b"");
    assert_eq!(discovery.json(), json!({ "unifiedpush": { "gateway": "matrix" } }));
    let event = json!({ "event_id": "$1", "room_id": "!a:b", "content": { "body": "ä" }, "prio": "high" });
    // The homeserver sends it again, as it has not heard the first answer.
    for _ in 0..2 {
        let answer = notify(&world.server, &event, &[&world.endpoint, &format!("{other}?up=1")]);
        assert_eq!((answer.status, answer.json()), (200, json!({ "rejected": [] })));
    }
    for _ in 0..2 {
        let push = world.device.take().await;
        let body: Value = serde_json::from_slice(&bytes(&push)).expect("JSON");
        assert_eq!(body, json!({ "notification": event }));
        assert_eq!((&push["door"], &push["urgency"]), (&json!("matrix"), &json!("high")));
    }
    assert!(!world.device.has_push().await);
}

#[tokio::test]
async fn a_matrix_push_key_is_rejected_only_if_it_is_ours_and_dead() {
    let mut world = World::start("[regions]\n07 = \"http://127.0.0.1:1\"").await;
    let (gone, dead) = world.device.channel(None).await;
    world.device.deregister(&gone).await;
    let (_, restricted) = world.device.channel(Some(&RawSender::new())).await;
    let forged = format!("{}x", world.endpoint);
    let mut elsewhere = URL_SAFE_NO_PAD.decode(secret(&world.endpoint)).expect("base64url");
    elsewhere[0] = 7;
    let elsewhere = format!("{}/wp/{}", world.server.api, URL_SAFE_NO_PAD.encode(&elsewhere));
    let foreign = ["https://push.example.org/wp/abc", "abc", "", &elsewhere];
    let all = [&[world.endpoint.as_str(), &dead, &forged, &restricted], foreign.as_slice()].concat();
    let answer = notify(&world.server, &json!({ "event_id": "$2" }), &all);
    assert_eq!((answer.status, answer.json()), (200, json!({ "rejected": [dead, forged, restricted] })));
    assert_eq!(world.device.take().await["app"], json!(world.app));
    let url = format!("{}/_matrix/push/v1/notify", world.server.api);
    for bad in ["", "[]", "{}", "{\"notification\":{}}", "{\"notification\":{\"devices\":[{}]}}"] {
        let answer = send(&url, &[], bad.as_bytes());
        assert_eq!((answer.status, answer.json()["errcode"].clone()), (400, json!("M_BAD_JSON")), "{bad}");
    }
}

#[tokio::test]
async fn what_cannot_be_done_now_rejects_no_matrix_push_key() {
    let world = World::start("[limits]\ndevice-messages-per-minute = 1").await;
    let statuses: Vec<u16> = ["$1", "$2"]
        .iter()
        .map(|id| notify(&world.server, &json!({ "event_id": id }), &[&world.endpoint]))
        .map(|answer| {
            assert_eq!(answer.status == 429, answer.header("retry-after").is_some(), "{answer:?}");
            answer.status
        })
        .collect();
    assert_eq!(statuses, [200, 429]);
}

#[tokio::test]
async fn s16_a_request_is_repeated_by_its_own_sender_to_the_same_registration_only() {
    let mut world = World::start("").await;
    let (one, two) = (RawSender::new().authorization(&world.endpoint), RawSender::new().authorization(&world.endpoint));
    let first = world.send(&[TTL, "X-Request-ID: 1", "Prefer: respond-async", &one], b"of one");
    let second = world.send(&[TTL, "X-Request-ID: 1", &two], b"of another");
    let third = world.send(&[TTL, "X-Request-ID: 1"], b"of nobody");
    assert_eq!([first.status, second.status, third.status], [202, 201, 201]);
    assert_ne!(first.header("location"), second.header("location"));
    for body in ["of one", "of another", "of nobody"] {
        let push = world.device.take().await;
        assert_eq!((bytes(&push), push.get("request_id")), (body.into(), None));
    }
    // Neither is a homeserver's event what a sender has called so.
    assert_eq!(notify(&world.server, &json!({ "event_id": "1" }), &[&world.endpoint]).status, 200);
    assert_eq!(world.device.take().await["door"], "matrix");

    // What is registered anew has had nothing yet.
    world.device.deregister(&world.app).await;
    world.device.say(json!({ "register": { "req": 99, "app": world.app } })).await;
    let registered = world.device.until("registered").await;
    let endpoint = registered["endpoint"].as_str().expect("an endpoint");
    assert_eq!(send(endpoint, &[TTL, "X-Request-ID: 1"], b"to the new one").status, 201);
    assert_eq!(bytes(&world.device.take().await), b"to the new one");
}

#[tokio::test]
async fn s16_a_repeated_request_is_answered_as_the_first_and_one_that_came_to_nothing_is_taken_again() {
    let mut world = World::start("").await;
    world.device = world.device.again(&world.server, json!({ "least": "high" })).await;
    let first = world.send(&["TTL: 60", "X-Request-ID: 1"], b"once");
    let again = world.send(&["TTL: 600", "X-Request-ID: 1", "Prefer: respond-async"], b"once");
    assert_eq!((again.status, again.header("ttl"), again.header("link")), (201, Some("60"), None));
    let location = first.header("location").expect("a location");
    assert_eq!(again.header("location"), Some(location));
    assert_eq!(curl(&["-X", "DELETE", location], b"").status, 204);
    let once_more = world.send(&["TTL: 60", "X-Request-ID: 1", "Prefer: respond-async"], b"once more");
    assert_eq!(once_more.status, 202);
    assert_ne!(once_more.header("location"), Some(location));
    let repeated = world.send(&["TTL: 60", "X-Request-ID: 1", "Prefer: respond-async"], b"once more");
    assert_eq!((repeated.status, repeated.header("link")), (202, once_more.header("link")));
}

#[tokio::test]
async fn s10_a_message_that_does_not_wait_takes_out_what_does() {
    let mut world = World::start("").await;
    world.device = world.device.again(&world.server, json!({ "least": "high" })).await;
    assert_eq!(world.send(&["TTL: 600", "Topic: score"], b"old").status, 201);
    assert_eq!(world.send(&["TTL: 600", "Topic: weather"], b"rain").status, 201);
    assert_eq!(world.send(&["TTL: 0", "Topic: score"], b"").status, 201);
    world.device = world.device.again(&world.server, json!({})).await;
    assert_eq!(bytes(&world.device.take().await), b"rain");
    assert!(!world.device.has_push().await);
}

#[tokio::test]
async fn s13_an_endpoint_that_has_ended_uses_up_nothing() {
    let mut world = World::start("[limits]\ndevice-messages-per-minute = 3").await;
    let (_, other) = world.device.channel(None).await;
    world.device.deregister(&world.app).await;
    let gone: Vec<u16> = (0..10).map(|_| world.send(&[TTL], b"").status).collect();
    assert_eq!(gone, [410; 10]);
    assert_eq!(send(&other, &[TTL], b"").status, 201);
}

#[tokio::test]
async fn a8_no_browser_takes_a_message_for_a_page_of_the_server() {
    let mut world = World::start("").await;
    world.device = world.device.again(&world.server, json!({ "least": "high" })).await;
    let sent = world.send(&["TTL: 600", "Content-Type: text/html"], b"<script>");
    let shown = curl(&[sent.header("location").expect("a location")], b"");
    assert_eq!((shown.status, shown.body.as_str()), (200, "<script>"));
    let safe =
        ["x-content-type-options", "content-security-policy", "content-disposition"].map(|name| shown.header(name));
    assert_eq!(safe, [Some("nosniff"), Some("default-src 'none'; sandbox"), Some("attachment")]);
}

#[tokio::test]
async fn b1_a_device_that_has_to_register_anew_is_told_so_whatever_it_subscribes_to_over_http() {
    let server = Server::start("00", "");
    let device = RawDevice::enrol(&server).await;
    let world = World { app: String::new(), endpoint: String::new(), server, device };
    assert_eq!(subscribe(&world, &[], "").status, 201);
    let (mut device, welcome) = world.device.welcomed(&world.server).await;
    assert_eq!(welcome["enrolled"], true, "it may not have heard it");
    device.channel(None).await;
    let (_, welcome) = device.welcomed(&world.server).await;
    assert_ne!(welcome["enrolled"], true);
}

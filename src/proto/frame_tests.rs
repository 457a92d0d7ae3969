//! Tests of the wire: every frame survives it, its text is frozen, and no text can do harm.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::proto::message::{Bytes, CollapseKey, Door, MessageField, Payload, Reliability};
use crate::proto::samples;
use crate::proto::urgency::{Taking, Urgency};

// Strategies: any value that the types can hold.

fn app() -> impl Strategy<Value = AppId> {
    "[A-Za-z0-9._:@-]{1,128}".prop_map(|text| text.parse().unwrap())
}

fn message_id() -> impl Strategy<Value = MessageId> {
    any::<u128>().prop_map(|bits| MessageId::from_uuid(Uuid::from_u128(bits)))
}

fn reg_id() -> impl Strategy<Value = RegId> {
    vec(any::<u8>(), RegId::LEN).prop_map(|bytes| RegId::from_slice(&bytes).unwrap())
}

fn bye() -> impl Strategy<Value = Bye> {
    let reason = prop::sample::select(vec![
        Reason::Shutdown,
        Reason::Replaced,
        Reason::BadSecret,
        Reason::EnrolmentRefused,
        Reason::Protocol,
        Reason::Version,
        Reason::Silent,
        Reason::Unacknowledged,
        Reason::Busy,
    ]);
    (reason, option::of(any::<u32>()), option::of(any::<u32>())).prop_map(|(reason, retry_after_s, window_s)| Bye {
        reason,
        retry_after_s,
        window_s,
    })
}

fn hello() -> impl Strategy<Value = Hello> {
    let who = (any::<u16>(), any::<u128>(), any::<[u8; 32]>());
    let rest = (any::<String>(), option::of(any::<String>()), vec(message_id(), 0..4), any::<u32>(), taking());
    (who, rest).prop_map(|((version, device, secret), (agent, enrolment_key, resume, next_s, taking))| Hello {
        version,
        device: DeviceId::from_uuid(Uuid::from_u128(device)),
        secret: Secret::from_bytes(secret),
        agent,
        enrolment_key,
        resume,
        next_s,
        taking,
    })
}

fn taking() -> impl Strategy<Value = Taking> {
    (prop::sample::select(Urgency::ALL.to_vec()), any::<bool>()).prop_map(|(least, idle)| Taking { least, idle })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let fate =
        prop::sample::select(vec![Fate::Delivered, Fate::Expired, Fate::Dropped, Fate::Discarded, Fate::Unwanted]);
    (message_id(), fate, any::<i64>()).prop_map(|(id, fate, at)| Outcome { id, fate, at_ms: UnixMillis(at) })
}

fn payload() -> impl Strategy<Value = Payload> {
    let bytes = prop_oneof![any::<String>().prop_map(String::into_bytes), vec(any::<u8>(), 0..40)];
    let header = || option::of(any::<String>());
    (bytes, header(), header(), header(), header()).prop_map(
        |(bytes, content_type, content_encoding, encryption, crypto_key)| Payload {
            bytes: Bytes(bytes),
            content_type,
            content_encoding,
            encryption,
            crypto_key,
        },
    )
}

fn push() -> impl Strategy<Value = Push> {
    let doors = vec![Door::Tizen, Door::WebPush, Door::Matrix, Door::CodenameOne, Door::Iizi, Door::Gcm];
    let urgencies = vec![Urgency::VeryLow, Urgency::Low, Urgency::Normal, Urgency::High];
    let names = (message_id(), reg_id(), app(), prop::sample::select(doors));
    let texts = (
        option::of(payload()),
        option::of(any::<String>()),
        option::of(any::<String>()),
        option::of(any::<String>()),
        option::of(any::<String>()),
        option::of("[!-~]{1,64}"),
    );
    let numbers = (option::of(any::<i64>()), option::of(any::<i64>()), any::<i64>(), any::<i64>());
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), prop::sample::select(urgencies));
    (names, texts, numbers, flags).prop_map(|(names, texts, numbers, flags)| Push {
        id: names.0,
        reg_id: names.1,
        app: names.2,
        door: names.3,
        payload: texts.0,
        message: texts.1.map(MessageField::from),
        sender: texts.2,
        request_id: texts.3,
        session_info: texts.4,
        kind: numbers.0,
        time_stamp: numbers.1,
        accepted_ms: UnixMillis(numbers.2),
        expires_ms: UnixMillis(numbers.3),
        reliability: if flags.0 { Reliability::NoReliable } else { Reliability::Transport },
        urgency: flags.3,
        collapse_key: texts.5.map(|key| CollapseKey::try_from(key).unwrap()),
        receipt: flags.1,
        receipts_to: None,
        background_launch: flags.2,
    })
}

fn not_kept() -> impl Strategy<Value = NotKept> {
    prop_oneof![Just(NotKept::Expired), Just(NotKept::Unwanted)]
}

fn to_server() -> impl Strategy<Value = ToServer> {
    prop_oneof![
        hello().prop_map(ToServer::Hello),
        vec(message_id(), 0..4).prop_map(|ids| ToServer::Ack { ids }),
        (vec(message_id(), 0..4), not_kept()).prop_map(|(ids, why)| ToServer::NotKept { ids, why }),
        (any::<u32>(), app()).prop_map(|(req, app)| ToServer::Register { req, app }),
        (any::<u32>(), app()).prop_map(|(req, app)| ToServer::Deregister { req, app }),
        vec(outcome(), 0..4).prop_map(|list| ToServer::Outcomes { list }),
        (any::<u32>(), any::<u32>(), taking()).prop_map(|(seq, next_s, taking)| ToServer::Ping { seq, next_s, taking }),
        bye().prop_map(ToServer::Bye),
    ]
}

fn to_device() -> impl Strategy<Value = ToDevice> {
    let welcome =
        any::<(u16, u8, bool, u32, Vec<String>)>().prop_map(|(version, region, enrolled, ka_max_s, links)| Welcome {
            version,
            region: Region(region),
            enrolled,
            ka_max_s,
            links,
        });
    let delivery = (any::<u64>(), any::<u32>(), push())
        .prop_map(|(n, dropped, push)| ToDevice::Push(Box::new(Delivery { n, dropped, replaces: vec![], push })));
    let refusal = prop::sample::select(vec![Refusal::UnknownApp, Refusal::TooMany, Refusal::NoWebPush]);
    prop_oneof![
        welcome.prop_map(ToDevice::Welcome),
        delivery,
        (any::<u32>(), app(), reg_id(), any::<Option<String>>())
            .prop_map(|(req, app, reg_id, endpoint)| ToDevice::Registered { req, app, reg_id, endpoint }),
        (any::<u32>(), app(), refusal).prop_map(|(req, app, refusal)| ToDevice::Refused { req, app, refusal }),
        (any::<u32>(), app()).prop_map(|(req, app)| ToDevice::Deregistered { req, app }),
        app().prop_map(|app| ToDevice::Unregistered { app }),
        vec(message_id(), 0..4).prop_map(|ids| ToDevice::Noted { ids }),
        any::<u32>().prop_map(|seq| ToDevice::Pong { seq }),
        any::<String>().prop_map(|gateway| ToDevice::Redirect { gateway }),
        bye().prop_map(ToDevice::Bye),
    ]
}

proptest! {
    #[test]
    fn every_frame_to_the_server_survives_the_wire(frame in to_server()) {
        prop_assert_eq!(ToServer::decode(&frame.encode()).unwrap(), frame);
    }

    #[test]
    fn every_frame_to_the_device_survives_the_wire(frame in to_device()) {
        prop_assert_eq!(ToDevice::decode(&frame.encode()).unwrap(), frame);
    }

    #[test]
    fn no_text_makes_the_decoder_panic(bytes in vec(any::<u8>(), 0..300)) {
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(ToServer::decode(&text).is_err());
        prop_assert!(ToDevice::decode(&text).is_err());
    }

    #[test]
    fn no_damaged_frame_makes_the_decoder_panic(up in to_server(), down in to_device(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for text in [up.encode(), down.encode()] {
            let mut damaged = text.clone().into_bytes();
            damaged[at.index(text.len())] = byte;
            let damaged = String::from_utf8_lossy(&damaged).into_owned();
            let cut = String::from_utf8_lossy(&text.as_bytes()[..at.index(text.len())]).into_owned();
            for text in [damaged, cut] {
                let _ = (ToServer::decode(&text), ToDevice::decode(&text));
            }
        }
    }
}

// Frozen samples: devices in the field speak exactly this.

const ID: &str = "0190a0000000700080000000000000ff";
const ID_2: &str = "0190a000000070008000000000000100";
const DEVICE: &str = "00112233445566778899aabbccddeeff";

fn id(text: &str) -> MessageId {
    text.parse().unwrap()
}

fn chat() -> AppId {
    samples::app("org.example.Chat")
}

fn reg() -> RegId {
    RegId::new(Region(3), 0xa7, &[0x5c; 48])
}

fn plain_push() -> Push {
    samples::push(id(ID))
}

fn full_push() -> Push {
    Push {
        door: Door::WebPush,
        payload: Some(Payload {
            bytes: Bytes(vec![0xff, 0]),
            content_type: Some("text/plain".into()),
            content_encoding: Some("aesgcm".into()),
            encryption: Some("salt=s".into()),
            crypto_key: Some("dh=k".into()),
        }),
        message: Some(MessageField::from("action=ALERT&alertMessage=Hi".to_owned())),
        sender: Some("shop".into()),
        request_id: Some("000001".into()),
        session_info: Some("s".into()),
        kind: Some(-1),
        time_stamp: Some(1_377_525_562_000),
        reliability: Reliability::NoReliable,
        urgency: Urgency::VeryLow,
        collapse_key: Some(CollapseKey::try_from("score".to_owned()).unwrap()),
        receipt: true,
        background_launch: true,
        ..plain_push()
    }
}

fn assert_frozen<F: Frame + PartialEq + Debug>(samples: Vec<(F, String)>) {
    for (frame, text) in samples {
        assert_eq!(frame.encode(), text);
        assert_eq!(F::decode(&text).unwrap(), frame);
    }
}

#[test]
fn the_text_of_frames_to_the_server_is_frozen() {
    let hello = Hello {
        version: 1,
        device: DEVICE.parse().unwrap(),
        secret: Secret::from_bytes([0x7f; 32]),
        agent: "bellwired 0.1.0".into(),
        enrolment_key: None,
        resume: vec![],
        next_s: 260,
        taking: Taking::default(),
    };
    let secret = "7f".repeat(32);
    let taking = Taking { least: Urgency::Low, idle: true };
    let longer = Hello { enrolment_key: Some("key".into()), resume: vec![id(ID), id(ID_2)], taking, ..hello.clone() };
    let outcomes =
        [(Fate::Delivered, 1), (Fate::Expired, 2), (Fate::Dropped, 3), (Fate::Discarded, 4), (Fate::Unwanted, 5)]
            .map(|(fate, at)| Outcome { id: id(ID), fate, at_ms: UnixMillis(at) });
    assert_frozen(vec![
        (
            ToServer::Hello(hello),
            format!(
                r#"{{"hello":{{"version":1,"device":"{DEVICE}","secret":"{secret}","agent":"bellwired 0.1.0","next_s":260}}}}"#
            ),
        ),
        (
            ToServer::Hello(longer),
            format!(
                r#"{{"hello":{{"version":1,"device":"{DEVICE}","secret":"{secret}","agent":"bellwired 0.1.0","enrolment_key":"key","resume":["{ID}","{ID_2}"],"next_s":260,"least":"low","idle":true}}}}"#
            ),
        ),
        (ToServer::Ack { ids: vec![id(ID), id(ID_2)] }, format!(r#"{{"ack":{{"ids":["{ID}","{ID_2}"]}}}}"#)),
        (
            ToServer::NotKept { ids: vec![id(ID), id(ID_2)], why: NotKept::Expired },
            format!(r#"{{"not-kept":{{"ids":["{ID}","{ID_2}"],"why":"expired"}}}}"#),
        ),
        (
            ToServer::NotKept { ids: vec![id(ID)], why: NotKept::Unwanted },
            format!(r#"{{"not-kept":{{"ids":["{ID}"],"why":"unwanted"}}}}"#),
        ),
        (ToServer::Register { req: 7, app: chat() }, r#"{"register":{"req":7,"app":"org.example.Chat"}}"#.into()),
        (ToServer::Deregister { req: 8, app: chat() }, r#"{"deregister":{"req":8,"app":"org.example.Chat"}}"#.into()),
        (
            ToServer::Outcomes { list: outcomes.to_vec() },
            format!(
                r#"{{"outcomes":{{"list":[{{"id":"{ID}","fate":"delivered","at_ms":1}},{{"id":"{ID}","fate":"expired","at_ms":2}},{{"id":"{ID}","fate":"dropped","at_ms":3}},{{"id":"{ID}","fate":"discarded","at_ms":4}},{{"id":"{ID}","fate":"unwanted","at_ms":5}}]}}}}"#
            ),
        ),
        (
            ToServer::Ping { seq: 3, next_s: 260, taking: Taking::default() },
            r#"{"ping":{"seq":3,"next_s":260}}"#.into(),
        ),
        (
            ToServer::Ping { seq: 3, next_s: 260, taking: Taking { least: Urgency::High, idle: true } },
            r#"{"ping":{"seq":3,"next_s":260,"least":"high","idle":true}}"#.into(),
        ),
        (ToServer::Bye(Bye::because(Reason::Shutdown)), r#"{"bye":{"reason":"shutdown"}}"#.into()),
    ]);
}

#[test]
fn the_text_of_frames_to_the_device_is_frozen() {
    let reg_text = reg().to_string();
    let head = format!(r#""id":"{ID}","reg_id":"{reg_text}","app":"org.example.Chat""#);
    let times = r#""accepted_ms":1760000000000,"expires_ms":1760003600000"#;
    let text = Push { payload: Some(Payload::text("\"ä\"\n")), ..plain_push() };
    let delivery = |n, dropped, push| ToDevice::Push(Box::new(Delivery { n, dropped, replaces: vec![], push }));
    let links = vec!["mqtts://example.org".to_owned()];
    let welcome = Welcome { version: 1, region: Region(3), enrolled: true, ka_max_s: 300, links: Vec::new() };
    assert_frozen(vec![
        (
            ToDevice::Welcome(Welcome { links, ..welcome.clone() }),
            r#"{"welcome":{"version":1,"region":"03","enrolled":true,"ka_max_s":300,"links":["mqtts://example.org"]}}"#
                .into(),
        ),
        (
            ToDevice::Welcome(welcome),
            r#"{"welcome":{"version":1,"region":"03","enrolled":true,"ka_max_s":300}}"#.into(),
        ),
        (delivery(1, 0, plain_push()), format!(r#"{{"push":{{"n":1,"push":{{{head},"door":"tizen",{times}}}}}}}"#)),
        (
            delivery(1, 0, text),
            format!(r#"{{"push":{{"n":1,"push":{{{head},"door":"tizen","payload":{{"text":"\"ä\"\n"}},{times}}}}}}}"#),
        ),
        (
            delivery(2, 5, full_push()),
            format!(
                r#"{{"push":{{"n":2,"dropped":5,"push":{{{head},"door":"web-push","payload":{{"base64":"/wA=","content_type":"text/plain","content_encoding":"aesgcm","encryption":"salt=s","crypto_key":"dh=k"}},"message":"action=ALERT&alertMessage=Hi","sender":"shop","request_id":"000001","session_info":"s","type":-1,"time_stamp":1377525562000,{times},"reliability":"no-reliable","urgency":"very-low","collapse_key":"score","receipt":true,"background_launch":true}}}}}}"#
            ),
        ),
        (
            ToDevice::Registered { req: 7, app: chat(), reg_id: reg(), endpoint: None },
            format!(r#"{{"registered":{{"req":7,"app":"org.example.Chat","reg_id":"{reg_text}"}}}}"#),
        ),
        (
            ToDevice::Registered { req: 7, app: chat(), reg_id: reg(), endpoint: Some("https://a/wp/b".into()) },
            format!(
                r#"{{"registered":{{"req":7,"app":"org.example.Chat","reg_id":"{reg_text}","endpoint":"https://a/wp/b"}}}}"#
            ),
        ),
        (
            ToDevice::Refused { req: 7, app: chat(), refusal: Refusal::UnknownApp },
            r#"{"refused":{"req":7,"app":"org.example.Chat","refusal":"unknown-app"}}"#.into(),
        ),
        (
            ToDevice::Refused { req: 7, app: chat(), refusal: Refusal::TooMany },
            r#"{"refused":{"req":7,"app":"org.example.Chat","refusal":"too-many"}}"#.into(),
        ),
        (
            ToDevice::Refused { req: 7, app: chat(), refusal: Refusal::NoWebPush },
            r#"{"refused":{"req":7,"app":"org.example.Chat","refusal":"no-web-push"}}"#.into(),
        ),
        (
            ToDevice::Deregistered { req: 8, app: chat() },
            r#"{"deregistered":{"req":8,"app":"org.example.Chat"}}"#.into(),
        ),
        (ToDevice::Unregistered { app: chat() }, r#"{"unregistered":{"app":"org.example.Chat"}}"#.into()),
        (ToDevice::Noted { ids: vec![id(ID)] }, format!(r#"{{"noted":{{"ids":["{ID}"]}}}}"#)),
        (ToDevice::Pong { seq: 3 }, r#"{"pong":{"seq":3}}"#.into()),
        (
            ToDevice::Redirect { gateway: "wss://eu.example.org:5223".into() },
            r#"{"redirect":{"gateway":"wss://eu.example.org:5223"}}"#.into(),
        ),
        (ToDevice::Bye(Bye::until(Reason::Busy, 30)), r#"{"bye":{"reason":"busy","retry_after_s":30}}"#.into()),
        (
            ToDevice::Bye(Bye { window_s: Some(60), ..Bye::until(Reason::Shutdown, 1) }),
            r#"{"bye":{"reason":"shutdown","retry_after_s":1,"window_s":60}}"#.into(),
        ),
    ]);
}

#[test]
fn the_names_of_doors_urgencies_and_reasons_are_frozen() {
    fn name(value: impl Serialize) -> Value {
        serde_json::to_value(value).unwrap()
    }
    let doors = [Door::Tizen, Door::WebPush, Door::Matrix, Door::CodenameOne, Door::Iizi, Door::Gcm].map(name);
    assert_eq!(doors, ["tizen", "web-push", "matrix", "codename-one", "iizi", "gcm"]);
    let urgencies = [Urgency::VeryLow, Urgency::Low, Urgency::Normal, Urgency::High].map(name);
    assert_eq!(urgencies, ["very-low", "low", "normal", "high"]);
    assert_eq!([Reliability::Transport, Reliability::NoReliable].map(name), ["transport", "no-reliable"]);
    let reasons = [Reason::Shutdown, Reason::Replaced, Reason::BadSecret, Reason::EnrolmentRefused].map(name);
    assert_eq!(reasons, ["shutdown", "replaced", "bad-secret", "enrolment-refused"]);
    let reasons = [Reason::Protocol, Reason::Version, Reason::Silent, Reason::Unacknowledged, Reason::Busy].map(name);
    assert_eq!(reasons, ["protocol", "version", "silent", "unacknowledged", "busy"]);
}

// What a reader takes and what it refuses.

/// The same value with an unknown member in every object inside the frame's own.
fn with_strangers(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let known = members.into_iter().map(|(key, value)| (key, with_strangers(value)));
            Value::Object(std::iter::once(("news".to_owned(), json!({"deep": [1, {}]}))).chain(known).collect())
        }
        Value::Array(items) => items.into_iter().map(with_strangers).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

fn assert_ignores_strangers<F: Frame + PartialEq + Debug>(frame: F) {
    let Value::Object(outer) = serde_json::to_value(&frame).unwrap() else { panic!("a frame is an object") };
    let outer: Value = outer.into_iter().map(|(name, inner)| (name, with_strangers(inner))).collect();
    assert_eq!(F::decode(&outer.to_string()).unwrap(), frame, "{outer}");
}

proptest! {
    #[test]
    fn unknown_members_are_ignored(up in to_server(), down in to_device()) {
        assert_ignores_strangers(up);
        assert_ignores_strangers(down);
    }
}

#[test]
fn a_frame_of_unknown_name_is_refused() {
    for text in [r#"{"sing":{}}"#, r#"{"Bye":{"reason":"busy"}}"#, r#""pong""#, "{}", "", "null"] {
        assert!(matches!(ToServer::decode(text), Err(FrameError::Malformed(_))), "{text}");
        assert!(matches!(ToDevice::decode(text), Err(FrameError::Malformed(_))), "{text}");
    }
}

#[test]
fn a_text_holds_one_frame_of_one_name_and_nothing_behind_it() {
    for text in [r#"{"pong":{"seq":1},"bye":{"reason":"busy"}}"#, r#"{"pong":{"seq":1}}{"pong":{"seq":2}}"#] {
        assert!(ToDevice::decode(text).is_err(), "{text}");
    }
    assert!(ToDevice::decode("{\"pong\":{\"seq\":1}}\n").is_ok());
}

#[test]
fn the_directions_do_not_mix() {
    assert!(ToServer::decode(&ToDevice::Pong { seq: 1 }.encode()).is_err());
    assert!(ToDevice::decode(&ToServer::Ping { seq: 1, next_s: 1, taking: Taking::default() }.encode()).is_err());
}

#[test]
fn a_name_that_is_wrong_makes_the_frame_wrong() {
    for text in [
        r#"{"register":{"req":1,"app":"a b"}}"#,
        r#"{"register":{"req":-1,"app":"a"}}"#,
        r#"{"register":{"app":"a"}}"#,
        r#"{"ack":{"ids":["12"]}}"#,
        r#"{"outcomes":{"list":[{"id":"0190a0000000700080000000000000ff","fate":"lost","at_ms":1}]}}"#,
    ] {
        assert!(matches!(ToServer::decode(text), Err(FrameError::Malformed(_))), "{text}");
    }
}

fn assert_limited<F: Frame + Debug>(frame: &F) {
    let text = frame.encode();
    let padded = format!("{text}{}", " ".repeat(F::MAX - text.len()));
    assert!(F::decode(&padded).is_ok(), "the limit itself is allowed");
    let refused = F::decode(&format!("{padded} "));
    assert!(matches!(refused, Err(FrameError::TooLong { length, limit }) if length == F::MAX + 1 && limit == F::MAX));
}

#[test]
fn a_text_over_the_limit_of_its_direction_is_refused() {
    assert_limited(&ToServer::Ping { seq: 1, next_s: 1, taking: Taking::default() });
    assert_limited(&ToDevice::Pong { seq: 1 });
}

#[test]
fn deep_nesting_is_refused_or_ignored_but_never_followed() {
    let deep = "[".repeat(16_000);
    assert!(ToDevice::decode(&deep).is_err());
    assert!(ToDevice::decode(&format!(r#"{{"pong":{{"seq":1,"x":{deep}"#)).is_err());
}

// The largest that the server's limits allow must fit.

/// Every way in which text or bytes can grow on the wire.
fn worst(length: usize) -> Vec<Vec<u8>> {
    [b"\"" as &[u8], b"\\", b"\n", b"\x01", b"\x7f", "\u{2028}".as_bytes(), b"\xff"]
        .map(|unit| unit.iter().copied().cycle().take(length / unit.len() * unit.len()).collect())
        .to_vec()
}

#[test]
fn the_largest_push_fits_its_frame() {
    let control = || "\u{1}".repeat(1024);
    for bytes in worst(16 * 1024) {
        let payload = Payload {
            bytes: Bytes(bytes),
            content_type: Some("\u{1}".repeat(256)),
            content_encoding: Some("\u{1}".repeat(64)),
            encryption: Some("\"".repeat(256)),
            crypto_key: Some("\"".repeat(512)),
        };
        let push = Push {
            app: "x".repeat(128).parse().unwrap(),
            door: Door::CodenameOne,
            payload: Some(payload),
            message: Some(MessageField::from("\u{1}".repeat(2048))),
            sender: Some(control()),
            request_id: Some(control()),
            session_info: Some(control()),
            kind: Some(i64::MIN),
            time_stamp: Some(i64::MIN),
            accepted_ms: UnixMillis(i64::MIN),
            expires_ms: UnixMillis(i64::MIN),
            collapse_key: Some(CollapseKey::try_from("\"".repeat(64)).unwrap()),
            ..full_push()
        };
        let text = ToDevice::Push(Box::new(Delivery {
            n: u64::MAX,
            dropped: u32::MAX,
            replaces: vec![id(ID); LIST_MAX],
            push,
        }))
        .encode();
        assert!(text.len() <= TO_DEVICE_MAX, "{} bytes", text.len());
    }
}

#[test]
fn every_fate_has_the_place_of_its_number_and_the_word_of_the_wire() {
    for (place, fate) in Fate::ALL.into_iter().enumerate() {
        assert_eq!((fate as usize, serde_json::to_value(fate).unwrap()), (place, fate.name().into()));
    }
}

#[test]
fn the_fullest_lists_fit_their_frames() {
    let ids = vec![id(ID); LIST_MAX];
    let outcome = Outcome { id: id(ID), fate: Fate::Delivered, at_ms: UnixMillis(i64::MIN) };
    let hello = Hello {
        version: u16::MAX,
        device: DEVICE.parse().unwrap(),
        secret: Secret::from_bytes([0; 32]),
        agent: "\u{1}".repeat(256),
        enrolment_key: Some("\u{1}".repeat(1024)),
        resume: vec![id(ID); WINDOW],
        next_s: u32::MAX,
        taking: Taking { least: Urgency::VeryLow, idle: true },
    };
    let largest = [
        ToServer::Hello(hello),
        ToServer::Ack { ids: ids.clone() },
        ToServer::NotKept { ids: ids.clone(), why: NotKept::Unwanted },
        ToServer::Outcomes { list: vec![outcome; LIST_MAX] },
        ToServer::Register { req: u32::MAX, app: "x".repeat(128).parse().unwrap() },
    ];
    for frame in largest {
        let length = frame.encode().len();
        assert!(length <= TO_SERVER_MAX, "{length} bytes: {frame:?}");
    }
    assert!(ToDevice::Noted { ids }.encode().len() <= TO_DEVICE_MAX);
}

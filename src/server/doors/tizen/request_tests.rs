//! Tests of the request parser.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::proto::Region;

const APP_DATA: usize = 16 * 1024;

/// The guide's example of a single request, with its comments.
const SINGLE: &str = r#"
{
    "encoding": "base64" /* Optional */
    "regID": "ab123456",
    "requestID": "0000001",
    "sender": "oscal", /* Optional */
    "type": 0 /* Optional */
    "message": "badgeOption=INCREASE&badgeNumber=1&action=ALERT&alertMessage=Hi", /* Optional */
    "appData": "{id:asdf&passwd:1234}", /* Optional, (Opaque) */
    "sessionInfo": "002002", /* Optional */
    "timeStamp": 1234567890, /* Optional */
}
"#;

/// Its example of a multiple request.
const MULTIPLE: &str = r#"
{
    "messages":
    [{
        "encoding": "base64" /* Optional */
        "regID": "ab123456",
        "requestID": "0000001",
        "sender": "oscal", /* Optional */
        "type": 0 /* Optional */
        "message": "example", /* Optional */
        "appData": "{id:asdf&passwd:1234}", /* Optional, (Opaque) */
        "reliableOption": "Transport", /* Optional */
        "sessionInfo": "192.168.0.1-8080-12345567", /* Optional */
        "timeStamp": 1234567890, /* Optional */
    }
    {
        "encoding": "base64" /* Optional */
        "regID": "ab234567",
        "requestID": "0000002",
        "sender": "oscal", /* Optional */
        "type": 0 /* Optional */
        "message": "example", /* Optional */
        "appData": "{id:asdf&passwd:1234}", /* Optional, (Opaque) */
        "reliableOption": "Transport", /* Optional */
        "sessionInfo": "192.168.0.1-8080-12345567", /* Optional */
        "timeStamp": 1234567890, /* Optional */
    ]}
}
"#;

/// Its example of a multicast.
const MULTICAST: &str = r#"
{
    "messages":
    [{
        "encoding": "base64" /* Optional */
        "regID": ["ab123456", "ab234567", "ab345678"]
        "requestID": "0000001",
        "sender": "oscal", /* Optional */
        "type": 0 /* Optional */
        "message": "example", /* Optional */
        "appData": "{id:asdf&passwd:1234}", /* Optional */
        "sessionInfo": "192.168.0.1-8080-12345567", /* Optional */
        "timeStamp": 1234567890, /* Optional */
    ]}
}
"#;

fn without_comments(example: &str) -> String {
    let mut text = example.to_owned();
    while let Some((before, rest)) = text.split_once("/*") {
        let (_, after) = rest.split_once("*/").unwrap();
        text = format!("{before}{after}");
    }
    text
}

/// The example as it was meant: one member a line with a comma between them, braces closed.
fn repaired(example: &str) -> String {
    let mut repaired = String::new();
    for line in without_comments(example).lines().map(str::trim).filter(|line| !line.is_empty()) {
        let line = match line {
            // The second message of the list lacks its comma, the last its brace.
            "{" if repaired.ends_with('}') => ",{".to_owned(),
            "]}" => "}]}".to_owned(),
            // The list's brace above has closed the whole.
            "}" if repaired.ends_with("]}") => continue,
            _ => line.trim_end_matches(',').to_owned(),
        };
        if line.starts_with('"') && !repaired.ends_with('{') {
            repaired.push(',');
        }
        repaired.push_str(&line);
    }
    repaired
}

fn parse_text(text: &str) -> Result<Vec<Entry>, Malformed> {
    entries(text, APP_DATA)
}

/// What is to be sent.
fn entries(text: &str, app_data_bytes: usize) -> Result<Vec<Entry>, Malformed> {
    match parse(text.as_bytes(), app_data_bytes)? {
        Request::Send(entries) => Ok(entries),
        Request::Cancel(cancel) => panic!("{cancel:?}"),
    }
}

fn parse_json(request: &Value) -> Result<Vec<Entry>, Malformed> {
    parse_text(&request.to_string())
}

/// A request that is complete, with these members set or, where null, removed.
fn request(changes: Value) -> Value {
    let mut request = json!({ "regID": reg_id_text(), "requestID": "1", "message": "action=ALERT" });
    for (name, value) in changes.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

fn reg_id() -> RegId {
    RegId::new(Region(3), 0xa7, &[0x5c; 48])
}

fn reg_id_text() -> String {
    reg_id().to_string()
}

/// The only message of a request with these changes.
fn one(changes: Value) -> Entry {
    let mut entries = parse_json(&request(changes)).unwrap();
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

fn content(changes: Value) -> Content {
    one(changes).content.unwrap()
}

/// Why the message with these changes is refused.
fn refused(changes: Value) -> Code {
    one(changes).content.unwrap_err()
}

/// Why the whole request with these changes is refused.
fn malformed(changes: Value) -> (Code, String) {
    let Malformed { code, detail } = parse_json(&request(changes)).unwrap_err();
    (code, detail)
}

fn shown(entry: &Entry) -> Vec<&str> {
    entry.recipients.iter().map(|recipient| recipient.shown.as_str()).collect()
}

#[test]
fn the_guide_s_single_request_is_understood() {
    let entries = parse_text(&repaired(SINGLE)).unwrap();
    let [entry] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!((shown(entry), entry.request_id.as_str()), (vec!["ab123456"], "0000001"));
    // Well encoded, but never issued.
    assert_eq!(entry.recipients[0].reg_id, Err(Code::NotRegisteredRegId));
    let expected = Content {
        message: Some("badgeOption=INCREASE&badgeNumber=1&action=ALERT&alertMessage=Hi".into()),
        app_data: Some("{id:asdf&passwd:1234}".into()),
        sender: Some("oscal".into()),
        session_info: Some("002002".into()),
        kind: Some(0),
        time_stamp: Some(1_234_567_890),
        reliability: Reliability::Transport,
        expiry_minutes: 1440,
        delay_minutes: 0,
        background_launch: false,
    };
    assert_eq!(entry.content, Ok(expected));
}

#[test]
fn the_guide_s_multiple_request_is_understood() {
    let entries = parse_text(&repaired(MULTIPLE)).unwrap();
    let named: Vec<_> = entries.iter().map(|entry| (shown(entry), entry.request_id.as_str())).collect();
    assert_eq!(named, [(vec!["ab123456"], "0000001"), (vec!["ab234567"], "0000002")]);
    for entry in &entries {
        let content = entry.content.as_ref().unwrap();
        assert_eq!(content.message.as_deref(), Some("example"));
        assert_eq!(content.session_info.as_deref(), Some("192.168.0.1-8080-12345567"));
        assert_eq!(content.reliability, Reliability::Transport);
    }
}

#[test]
fn the_guide_s_multicast_is_understood() {
    let entries = parse_text(&repaired(MULTICAST)).unwrap();
    let [entry] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!(shown(entry), ["ab123456", "ab234567", "ab345678"]);
    assert_eq!(entry.request_id, "0000001");
    assert!(entry.content.is_ok());
}

#[test]
fn the_guide_s_examples_as_printed_are_malformed() {
    for example in [SINGLE, MULTIPLE, MULTICAST] {
        for text in [example.to_owned(), without_comments(example)] {
            let Malformed { code, detail } = parse_text(&text).unwrap_err();
            assert_eq!(code.number(), 3023);
            assert!(detail.starts_with("the body is not JSON: ") && detail.contains("line"), "{detail}");
        }
    }
}

#[test]
fn a_body_without_text_is_not_parsed() {
    for body in [&b""[..], b" \r\n\t", b"\xff\xfe{}", b"{\"requestID\": \"\x80\"}"] {
        assert_eq!(parse(body, APP_DATA).unwrap_err().code.number(), 3022, "{body:?}");
    }
}

#[test]
fn a_body_that_is_no_object_is_malformed() {
    let deep = "[".repeat(100_000);
    for body in ["[]", "1", "\"text\"", "null", "{", "{} {}", "{'a': 1}", "\u{feff}{}", "{\"a\": \"\\ud800\"}", &deep] {
        let code = parse_text(body).unwrap_err().code;
        assert_eq!(code.number(), 3023, "{}", &body[..body.len().min(20)]);
    }
}

#[test]
fn members_of_a_wrong_type_are_named() {
    let wrong = [json!(1), json!(1.5), json!(true), json!(["a"]), json!({})];
    for name in ["requestID", "encoding", "message", "appData", "sender", "sessionInfo", "reliableOption"] {
        for value in &wrong {
            let (code, detail) = malformed(json!({ name: value }));
            assert_eq!((code.number(), detail), (3023, format!("{name} is not a string")));
        }
    }
    for value in [json!(1), json!(true), json!({}), json!([1]), json!(["ab", null]), json!([["ab"]])] {
        let (code, detail) = malformed(json!({ "regID": value }));
        assert_eq!((code.number(), detail.as_str()), (3023, "regID is neither a string nor a list of strings"));
    }
}

#[test]
fn in_a_list_the_message_is_named_as_well() {
    let good = request(json!({}));
    let refused = |messages: Value| parse_json(&json!({ "messages": messages })).unwrap_err();
    let malformed = refused(json!([good, request(json!({ "sender": 1 }))]));
    assert_eq!((malformed.code.number(), malformed.detail.as_str()), (3023, "messages[1].sender is not a string"));
    let malformed = refused(json!([good, good, 5]));
    assert_eq!((malformed.code.number(), malformed.detail.as_str()), (3023, "messages[2] is not an object"));
    for value in [json!({}), json!("x"), json!(1), json!(null)] {
        let malformed = refused(value);
        assert_eq!((malformed.code.number(), malformed.detail.as_str()), (3023, "messages is not a list"));
    }
}

#[test]
fn an_empty_list_of_messages_is_refused() {
    let malformed = parse_text(r#"{"messages": []}"#).unwrap_err();
    assert_eq!((malformed.code.number(), malformed.detail.as_str()), (3036, "messages is empty"));
}

#[test]
fn a_mistake_in_one_message_leaves_its_neighbours_alone() {
    let messages = [
        request(json!({})),
        request(json!({ "type": "x" })),
        request(json!({ "regID": "?" })),
        request(json!({ "requestID": "4" })),
    ];
    let entries = parse_json(&json!({ "messages": messages })).unwrap();
    let codes: Vec<_> = entries
        .iter()
        .map(|entry| (entry.recipients[0].reg_id, entry.content.as_ref().map(drop).map_err(|code| code.number())))
        .collect();
    assert_eq!(
        codes,
        [(Ok(reg_id()), Ok(())), (Ok(reg_id()), Err(3043)), (Err(Code::RegIdEncoding), Ok(())), (Ok(reg_id()), Ok(()))]
    );
}

#[test]
fn unknown_members_are_ignored() {
    let entry = one(json!({ "delayDate": "0", "connectionTerm": 1, "": null, "regId": "x" }));
    assert_eq!(entry.recipients[0].reg_id, Ok(reg_id()));
    assert!(entry.content.is_ok());
}

#[test]
fn a_message_without_recipient_has_one_place_in_the_answer() {
    for value in [json!(null), json!([]), json!("")] {
        let entry = one(json!({ "regID": value }));
        assert_eq!(shown(&entry), [""]);
        assert_eq!(entry.recipients[0].reg_id, Err(Code::NoRegId));
        assert_eq!(entry.request_id, "1");
    }
    let entries = parse_json(&json!({ "requestID": "1", "message": "m" })).unwrap();
    assert_eq!(entries[0].recipients[0].reg_id.unwrap_err().number(), 3005);
}

#[test]
fn each_recipient_of_a_multicast_is_judged_alone() {
    let entry = one(json!({ "regID": ["", reg_id_text(), "xy", "ab123456"] }));
    let codes: Vec<_> = entry.recipients.iter().map(|one| one.reg_id.map_err(Code::number)).collect();
    assert_eq!(codes, [Err(3005), Ok(reg_id()), Err(3025), Err(3008)]);
}

#[test]
fn reg_ids_are_hex_unless_said_otherwise() {
    let bytes = hex::decode(reg_id_text()).unwrap();
    let base64 = STANDARD.encode(&bytes);
    let judged = |text: &str, encoding: Value| one(json!({ "regID": text, "encoding": encoding })).recipients[0].reg_id;
    for encoding in [json!(null), json!(""), json!("hex")] {
        assert_eq!(judged(&reg_id_text(), encoding.clone()), Ok(reg_id()));
        assert_eq!(judged(&reg_id_text().to_uppercase(), encoding.clone()), Ok(reg_id()));
        assert_eq!(judged(&base64, encoding).unwrap_err().number(), 3025);
    }
    assert_eq!(judged(&base64, json!("base64")), Ok(reg_id()));
    assert_eq!(judged("not base64!", json!("base64")).unwrap_err().number(), 3025);
    // The hex digits of a regId are base64 as well, of other bytes.
    assert_eq!(judged(&reg_id_text(), json!("base64")).unwrap_err().number(), 3008);
    for other in ["utf-8", "Base64", "rot13", " "] {
        assert_eq!(judged(&reg_id_text(), json!(other)).unwrap_err().number(), 3028, "{other:?}");
    }
}

#[test]
fn a_reg_id_of_another_length_was_never_issued() {
    for text in [&reg_id_text()[2..], &format!("{}00", reg_id_text()), "00"] {
        let entry = one(json!({ "regID": text }));
        assert_eq!(entry.recipients[0].reg_id.unwrap_err().number(), 3008);
        assert_eq!(shown(&entry), [text]);
    }
    assert_eq!(one(json!({ "regID": "abc" })).recipients[0].reg_id.unwrap_err().number(), 3025);
    assert_eq!(one(json!({ "regID": "a\u{0}" })).recipients[0].reg_id.unwrap_err().number(), 3025);
}

#[test]
fn a_request_id_is_required() {
    for value in [json!(null), json!("")] {
        assert_eq!(refused(json!({ "requestID": value })).number(), 3006);
    }
}

#[test]
fn something_must_be_said() {
    for empty in [json!(null), json!("")] {
        assert_eq!(refused(json!({ "message": empty })).number(), 3007);
        assert_eq!(refused(json!({ "message": empty, "appData": empty })).number(), 3007);
        assert!(one(json!({ "message": empty, "appData": "x" })).content.is_ok());
        assert!(one(json!({ "message": "x", "appData": empty })).content.is_ok());
    }
}

#[test]
fn a_message_is_shorter_than_two_kilobytes() {
    assert!(one(json!({ "message": "x".repeat(2047) })).content.is_ok());
    assert_eq!(refused(json!({ "message": "x".repeat(2048) })).number(), 3030);
    // It is bytes that count.
    assert!(one(json!({ "message": "ä".repeat(1023) })).content.is_ok());
    assert_eq!(refused(json!({ "message": "ä".repeat(1024) })).number(), 3030);
}

#[test]
fn a_delay_is_so_many_minutes_and_only_of_what_is_stored() {
    let delay = |value: Value| one(json!({ "delayDate": value })).content.map(|content| content.delay_minutes);
    for (value, minutes) in [(json!(0), 0), (json!(2880), 2880), (json!(" 30 "), 30), (Value::Null, 0)] {
        assert_eq!(delay(value), Ok(minutes));
    }
    for wrong in [json!(-1), json!(2881), json!("soon"), json!(1.5), json!(true)] {
        assert_eq!(delay(wrong), Err(Code::DelayDate));
    }
    let unstored = |members: Value| {
        let mut all = json!({ "reliableOption": "NoReliable" });
        all.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        one(all).content
    };
    assert_eq!(unstored(json!({ "delayDate": 1 })), Err(Code::DelayDate));
    assert!(unstored(json!({ "delayDate": 0, "expiryDate": "never" })).is_ok(), "its expiry means nothing");
}

#[test]
fn what_is_to_be_taken_back_is_named_by_its_request_id() {
    let cancel = |text: &str| match parse(text.as_bytes(), APP_DATA) {
        Ok(Request::Cancel(cancel)) => Ok((cancel.request_id, cancel.recipients.len())),
        Ok(Request::Send(entries)) => panic!("{entries:?}"),
        Err(Malformed { code, .. }) => Err(code),
    };
    assert_eq!(cancel(r#"{"cancel": "1"}"#), Ok(("1".to_owned(), 0)));
    assert_eq!(cancel(r#"{"cancel": "1", "regID": null}"#), Ok(("1".to_owned(), 0)));
    assert_eq!(cancel(r#"{"cancel": "1", "regID": "00"}"#), Ok(("1".to_owned(), 1)));
    assert_eq!(cancel(r#"{"cancel": "1", "regID": ["00", "01"]}"#), Ok(("1".to_owned(), 2)));
    for empty in [r#"{"cancel": ""}"#, r#"{"cancel": null}"#] {
        assert_eq!(cancel(empty), Err(Code::NoRequestId));
    }
    assert_eq!(cancel(r#"{"cancel": 1}"#), Err(Code::JsonMapping));
}

#[test]
fn app_data_is_no_longer_than_configured() {
    assert!(one(json!({ "appData": "x".repeat(APP_DATA) })).content.is_ok());
    assert_eq!(refused(json!({ "appData": "x".repeat(APP_DATA + 1) })).number(), 3035);
    let small = request(json!({ "appData": "12345" })).to_string();
    assert_eq!(entries(&small, 4).unwrap()[0].content, Err(Code::TooLong));
    assert!(entries(&small, 5).unwrap()[0].content.is_ok());
}

#[test]
fn other_texts_have_a_length_too() {
    for name in ["requestID", "sender", "sessionInfo"] {
        assert!(one(json!({ name: "x".repeat(1024) })).content.is_ok(), "{name}");
        assert_eq!(refused(json!({ name: "x".repeat(1025) })).number(), 3019, "{name}");
    }
}

#[test]
fn texts_that_an_app_could_not_take_are_refused() {
    for name in ["requestID", "message", "sender", "sessionInfo"] {
        assert_eq!(refused(json!({ name: "a\u{0}b" })).number(), 3018, "{name}");
        assert!(one(json!({ name: "a\u{1}\r\nb" })).content.is_ok(), "{name}");
    }
    assert_eq!(content(json!({ "appData": "a\u{0}b" })).app_data.as_deref(), Some("a\u{0}b"));
}

#[test]
fn expiry_dates_are_minutes_with_a_default_and_bounds() {
    let minutes = |value: Value| content(json!({ "expiryDate": value })).expiry_minutes;
    assert_eq!(content(json!({})).expiry_minutes, 1440);
    for (value, expected) in [
        (json!(null), 1440),
        (json!(0), 1440),
        (json!("0"), 1440),
        (json!(1), 1),
        (json!("60"), 60),
        (json!(2800), 2800),
        (json!(2880), 2880),
        (json!(2881), 2880),
        (json!(i64::MAX), 2880),
    ] {
        assert_eq!(minutes(value.clone()), expected, "{value}");
    }
    for value in [json!(-1), json!("-1"), json!(1.5), json!("1.5"), json!("soon"), json!(""), json!(true), json!([1])] {
        assert_eq!(refused(json!({ "expiryDate": value })).number(), 3033, "{value}");
    }
    assert_eq!(refused(json!({ "expiryDate": u64::MAX })).number(), 3033);
}

#[test]
fn numbers_may_be_written_as_text() {
    let both = content(json!({ "type": "0", "timeStamp": " 1234567890123 " }));
    assert_eq!((both.kind, both.time_stamp), (Some(0), Some(1_234_567_890_123)));
    let both = content(json!({ "type": -5, "timeStamp": i64::MAX }));
    assert_eq!((both.kind, both.time_stamp), (Some(-5), Some(i64::MAX)));
    let neither = content(json!({ "type": null, "timeStamp": null }));
    assert_eq!((neither.kind, neither.time_stamp), (None, None));
    for value in [json!("x"), json!(""), json!(1.5), json!(false), json!({}), json!([]), json!(u64::MAX)] {
        assert_eq!(refused(json!({ "type": value })).number(), 3043, "{value}");
        assert_eq!(refused(json!({ "timeStamp": value })).number(), 3042, "{value}");
    }
}

#[test]
fn reliability_is_one_of_two_in_any_case() {
    let reliability = |value: Value| content(json!({ "reliableOption": value })).reliability;
    for value in [json!(null), json!(""), json!("Transport"), json!("transport")] {
        assert_eq!(reliability(value), Reliability::Transport);
    }
    for value in ["NoReliable", "noreliable", "NORELIABLE"] {
        assert_eq!(reliability(json!(value)), Reliability::NoReliable);
    }
    for value in ["Application", "none", " Transport"] {
        assert_eq!(refused(json!({ "reliableOption": value })).number(), 3020);
    }
}

#[test]
fn an_action_beside_the_message_or_above_it_launches_in_the_background() {
    assert!(content(json!({ "action": "backgroundLaunch" })).background_launch);
    assert!(content(json!({ "action": "BACKGROUNDLAUNCH" })).background_launch);
    for other in [json!("ALERT"), json!(""), json!(null), json!(1), json!(["backgroundLaunch"])] {
        assert!(!content(json!({ "action": other })).background_launch);
    }
    let launches = |request: Value| -> Vec<bool> {
        let entries = parse_json(&request).unwrap();
        entries.into_iter().map(|entry| entry.content.unwrap().background_launch).collect()
    };
    let (plain, own) = (request(json!({})), request(json!({ "action": "backgroundLaunch" })));
    assert_eq!(launches(json!({ "action": "backgroundLaunch", "messages": [plain, plain] })), [true, true]);
    assert_eq!(launches(json!({ "action": "other", "messages": [plain, own] })), [false, true]);
    // The `message` text has an action of its own, which is the device's to read.
    assert!(!content(json!({ "message": "action=BACKGROUNDLAUNCH" })).background_launch);
}

#[test]
fn a_message_is_kept_as_sent_for_another_region() {
    let sent = request(json!({ "delayDate": 5, "timeStamp": "7", "regID": [reg_id_text()] }));
    let entries = parse_json(&json!({ "messages": [sent] })).unwrap();
    assert_eq!(Value::Object(entries[0].raw.clone()), sent);
}

/// Any JSON, with the members of a request more often than others.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        "[0-9a-f]{0,6}".prop_map(Value::from),
        Just(Value::from(reg_id_text())),
    ];
    let name = prop_oneof![
        proptest::sample::select(vec![
            "messages",
            "regID",
            "requestID",
            "encoding",
            "sender",
            "type",
            "message",
            "appData",
            "sessionInfo",
            "timeStamp",
            "reliableOption",
            "expiryDate",
            "action",
        ])
        .prop_map(str::to_owned),
        ".{0,8}",
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((name.clone(), inner), 0..10)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&body, APP_DATA);
    }

    #[test]
    fn no_text_makes_the_parser_panic(body in ".{0,200}") {
        let _ = parse_text(&body);
    }

    /// And whatever is accepted keeps to the limits.
    #[test]
    fn no_json_makes_the_parser_panic(request in any_json()) {
        let Ok(Request::Send(entries)) = parse(request.to_string().as_bytes(), 10) else { return Ok(()) };
        prop_assert!(!entries.is_empty());
        for entry in entries {
            prop_assert!(!entry.recipients.is_empty());
            let Ok(content) = entry.content else { continue };
            prop_assert!(!entry.request_id.is_empty() && entry.request_id.len() <= TEXT_BYTES);
            prop_assert!(content.app_data.is_none_or(|text| text.len() <= 10));
            prop_assert!(content.message.is_none_or(|text| text.len() < MESSAGE_BYTES && !text.contains('\0')));
            prop_assert!((1..=EXPIRY_MAX).contains(&content.expiry_minutes));
            prop_assert!((0..=DELAY_MAX).contains(&i64::from(content.delay_minutes)));
        }
    }
}

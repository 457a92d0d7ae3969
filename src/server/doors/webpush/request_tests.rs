//! Headers as senders write them, one test for each row of the checklist.

use super::*;

fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in all {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    map
}

fn described(all: &[(&'static str, &str)]) -> Result<Described, Kind> {
    let all = [&[("ttl", "60")], all].concat();
    Described::of(&headers(&all), &WebPush::default()).map_err(|refused| refused.kind())
}

fn ttl_of(text: &str) -> Result<u32, Kind> {
    let described = Described::of(&headers(&[("ttl", text)]), &WebPush::default());
    described.map(|described| described.ttl_s).map_err(|refused| refused.kind())
}

#[test]
fn s2_a_missing_ttl_is_refused_unless_the_operator_says_what_it_means() {
    let none = HeaderMap::new();
    let refused = Described::of(&none, &WebPush::default()).unwrap_err();
    assert_eq!((refused.kind(), refused.kind().numbers().0.as_u16()), (Kind::Ttl, 400));
    let lenient = WebPush { default_ttl: Some(300), ..WebPush::default() };
    assert_eq!(Described::of(&none, &lenient).unwrap().ttl_s, 300);
}

#[test]
fn s3_a_ttl_is_digits_and_too_many_of_them_are_the_most() {
    for (text, seconds) in [("0", 0), ("60", 60), ("000060", 60), ("2147483648", TTL_MAX), ("4294967295", TTL_MAX)] {
        assert_eq!(ttl_of(text), Ok(seconds), "{text}");
    }
    assert_eq!(ttl_of(&"9".repeat(30)), Ok(TTL_MAX));
    for text in ["", "-1", "+1", "1.5", "abc", "1 2", "0x10", "1,2"] {
        assert_eq!(ttl_of(text), Err(Kind::Ttl), "{text}");
    }
    // A gateway in between has added its own.
    assert_eq!(described(&[("ttl", "86400")]).unwrap().ttl_s, 60);
}

#[test]
fn s7_urgency_is_one_of_four_and_normal_if_nothing_is_said() {
    assert_eq!(described(&[]).unwrap().urgency, Urgency::Normal);
    for urgency in Urgency::ALL {
        assert_eq!(described(&[("urgency", urgency.name())]).unwrap().urgency, urgency);
    }
    assert_eq!(described(&[("urgency", "Very-Low")]).unwrap().urgency, Urgency::VeryLow);
    for bad in ["", "urgent", "low,high", "3"] {
        assert_eq!(described(&[("urgency", bad)]), Err(Kind::Header), "{bad}");
    }
    assert_eq!(described(&[("urgency", "low"), ("urgency", "low")]), Err(Kind::Header));
}

#[test]
fn s9_a_topic_has_up_to_32_characters_of_base64url() {
    let longest = "aZ09-_".repeat(6)[..32].to_owned();
    let topic = described(&[("topic", &longest)]).unwrap().topic.unwrap();
    assert_eq!(topic.as_str(), longest);
    assert_eq!(described(&[]).unwrap().topic, None);
    for bad in ["", "!", "a b", "a=", &format!("{longest}a")] {
        assert_eq!(described(&[("topic", bad)]), Err(Kind::Topic), "{bad}");
    }
}

#[test]
fn s14_what_is_said_of_the_body_goes_with_it() {
    let all = [("content-encoding", "aes128gcm"), ("content-encoding", "aes128gcm"), ("content-type", "a/b")];
    let payload = described(&all).unwrap().payload(vec![0, 0xff]);
    assert_eq!(payload.bytes.0, [0, 0xff]);
    assert_eq!(payload.content_encoding.as_deref(), Some("aes128gcm"));
    assert_eq!(payload.content_type.as_deref(), Some("a/b"));
    assert_eq!(described(&[]).unwrap().payload(vec![]), Payload::opaque(vec![]));
}

#[test]
fn s15_other_encodings_are_refused_and_that_of_drafts_is_a_matter_of_the_operator() {
    let draft =
        [("content-encoding", "aesgcm"), ("encryption", "salt=c2FsdA"), ("crypto-key", "dh=BNoR;p256ecdsa=BCVx")];
    let payload = described(&draft).unwrap().payload(vec![1]);
    assert_eq!(payload.encryption.as_deref(), Some("salt=c2FsdA"));
    // V9: the sender's key is not for the device.
    assert_eq!(payload.crypto_key.as_deref(), Some("dh=BNoR"));
    assert_eq!(described(&draft[..2]), Err(Kind::Crypto));
    for bad in ["gzip", "", "aes128gcm, gzip"] {
        assert_eq!(described(&[("content-encoding", bad)]), Err(Kind::Crypto), "{bad}");
    }
    let strict = WebPush { aesgcm: false, default_ttl: Some(0), ..WebPush::default() };
    assert_eq!(Described::of(&headers(&draft), &strict).unwrap_err().kind(), Kind::Crypto);
}

#[test]
fn v9_the_sender_s_key_is_taken_out_of_what_the_device_gets() {
    for (text, left) in [
        ("dh=A", "dh=A"),
        ("p256ecdsa=B", ""),
        ("dh=A; P256ECDSA=B", "dh=A"),
        ("p256ecdsa=B;dh=A", "dh=A"),
        ("keyid=p256dh;dh=A,p256ecdsa=B", "keyid=p256dh;dh=A"),
        ("p256ecdsa=B,keyid=p256dh;dh=A", "keyid=p256dh;dh=A"),
    ] {
        assert_eq!(without_vapid(text), left, "{text}");
    }
}

//! Signatures by keys of their own, good and bad, one test for each row of the checklist.

use axum::http::{HeaderName, HeaderValue};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::json;

use super::*;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const NOW_S: i64 = NOW.0 / 1000;

/// A sender with a key of its own.
struct Sender(EcdsaKeyPair);

impl Sender {
    fn new() -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap())
    }

    fn key(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0.public_key().as_ref())
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"typ": "JWT", "alg": "ES256"}), claims)
    }
}

fn origin() -> Origin {
    "https://push.example.org".parse().unwrap()
}

fn good() -> Value {
    json!({"aud": "https://push.example.org", "exp": NOW_S + 3600})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = good();
    claims[name] = value;
    claims
}

fn verified(sender: &Sender, claims: &Value) -> Result<SenderKey, Invalid> {
    let (token, key) = (sender.token(claims), sender.key());
    verify(Shown { token: &token, key: &key }, &origin(), NOW).map(|verified| verified.key)
}

fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
    all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
}

#[test]
fn v1_the_parameters_are_found_however_they_are_written() {
    let shown = Shown { token: "a.b.c", key: "BK_-" };
    for text in [
        "vapid t=a.b.c,k=BK_-",
        "vapid t=a.b.c, k=BK_-",
        "VAPID  k=BK_- , t=a.b.c",
        "Vapid t=\"a.b.c\", x=y, k=\"BK_-\", z",
    ] {
        let headers = headers(&[("authorization", text)]);
        assert_eq!(Shown::of(&headers, false), Some(Ok(shown)), "{text}");
    }
    for text in ["vapid", "vapid t=a.b.c", "vapid k=B", "Basic YTpi", "WebPush a.b.c", ""] {
        let headers = headers(&[("authorization", text)]);
        assert_eq!(Shown::of(&headers, false), Some(Err(Invalid::Form)), "{text}");
    }
    assert_eq!(Shown::of(&HeaderMap::new(), true), None);
}

#[test]
fn v1_the_form_of_drafts_goes_with_their_encoding() {
    let headers = headers(&[("authorization", "WebPush a.b.c"), ("crypto-key", "dh=BNoR;p256ecdsa=BK_-")]);
    assert_eq!(Shown::of(&headers, true), Some(Ok(Shown { token: "a.b.c", key: "BK_-" })));
    assert_eq!(Shown::of(&headers, false), Some(Err(Invalid::Form)));
}

#[test]
fn v2_es256_alone_is_a_signature() {
    let sender = Sender::new();
    assert_eq!(verified(&sender, &good()), Ok(sender.key().parse().unwrap()));
    let key = sender.key();
    for alg in [json!("none"), json!("HS256"), json!("es256"), json!(1), Value::Null] {
        let token = sender.sign(&json!({ "alg": alg }), &good());
        assert_eq!(verify(Shown { token: &token, key: &key }, &origin(), NOW), Err(Invalid::Algorithm), "{alg}");
    }
    let (token, other) = (sender.token(&good()), Sender::new().key());
    assert_eq!(verify(Shown { token: &token, key: &other }, &origin(), NOW), Err(Invalid::Signature));
    let unsigned = &token[..=token.rfind('.').unwrap()];
    assert_eq!(verify(Shown { token: unsigned, key: &key }, &origin(), NOW), Err(Invalid::Signature));
    for no_token in ["", "a", "a.b", "a.b.c", "e30.e30.", "....", "\u{e4}.b.c"] {
        let refused = verify(Shown { token: no_token, key: &key }, &origin(), NOW).unwrap_err();
        assert!(matches!(refused, Invalid::Token(_)), "{no_token}: {refused}");
    }
}

#[test]
fn v2_a_key_off_the_curve_verifies_nothing() {
    let mut point = [1; SenderKey::LEN];
    point[0] = 4;
    let key = URL_SAFE_NO_PAD.encode(point);
    let token = Sender::new().token(&good());
    assert_eq!(verify(Shown { token: &token, key: &key }, &origin(), NOW), Err(Invalid::Signature));
    assert_eq!(verify(Shown { token: &token, key: "BK" }, &origin(), NOW), Err(Invalid::Key(NoSenderKey)));
}

#[test]
fn v3_the_audience_has_our_origin() {
    let sender = Sender::new();
    for aud in [
        json!("https://push.example.org"),
        json!("https://Push.Example.org:443/"),
        json!(["https://other.example", "https://push.example.org"]),
    ] {
        assert!(verified(&sender, &with("aud", aud.clone())).is_ok(), "{aud}");
    }
    for aud in [
        json!("https://other.example"),
        json!("http://push.example.org"),
        json!("https://push.example.org:8443"),
        json!("push.example.org"),
        json!([]),
        Value::Null,
        json!(1),
        json!(""),
    ] {
        let refused = verified(&sender, &with("aud", aud.clone()));
        assert_eq!(refused, Err(Invalid::Audience("https://push.example.org".into())), "{aud}");
    }
}

#[test]
fn v4_a_signature_ends_within_a_day() {
    let sender = Sender::new();
    let fraction = json!(NOW_S as f64 + 3600.5);
    assert!(verified(&sender, &with("exp", fraction)).is_ok());
    for exp in [NOW_S - 60, NOW_S, NOW_S + 24 * 3600 + 300] {
        assert!(verified(&sender, &with("exp", json!(exp))).is_ok(), "{exp}");
    }
    for exp in [
        json!(NOW_S - 61),
        json!(NOW_S + 24 * 3600 + 301),
        json!(0),
        json!(-1),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(i64::MIN),
        json!((NOW_S + 3600).to_string()),
        json!(1e300),
        json!(-1e300),
        Value::Null,
        json!(true),
        json!([]),
    ] {
        let refused = verified(&sender, &with("exp", exp.clone())).unwrap_err();
        assert!(matches!(refused, Invalid::Expiry(_)), "{exp}: {refused}");
    }
    let text = verified(&sender, &with("exp", json!("1700003600"))).unwrap_err().to_string();
    assert!(text.contains("is a string"), "{text}");
}

#[test]
fn v5_a_contact_is_neither_needed_nor_looked_at() {
    let sender = Sender::new();
    for sub in [json!("mailto:admin@example.org"), json!("nobody"), json!(7)] {
        assert!(verified(&sender, &with("sub", sub)).is_ok());
    }
}

#[test]
fn v10_what_was_verified_is_remembered_until_it_ends() {
    let (verifier, sender) = (Verifier::default(), Sender::new());
    let (token, key) = (sender.token(&with("exp", json!(NOW_S + 10))), sender.key());
    let shown = Shown { token: &token, key: &key };
    let at = |seconds: i64| verifier.verify(shown, &origin(), UnixMillis((NOW_S + seconds) * 1000));
    assert!(at(0).is_ok());
    // It is not looked at again: for another origin it would not be good.
    let elsewhere: Origin = "https://other.example".parse().unwrap();
    assert!(verifier.verify(shown, &elsewhere, NOW).is_ok());
    assert!(at(70).is_ok());
    assert_eq!(at(71), Err(Invalid::Expiry("has passed")));
    // A token is not remembered with another's key.
    let other = Sender::new().key();
    assert_eq!(verifier.verify(Shown { key: &other, ..shown }, &origin(), NOW), Err(Invalid::Signature));
}

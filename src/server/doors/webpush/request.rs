//! What the headers of a Web Push request ask for. Pure: RFC 8030 section 5, RFC 8291 section 4.

use std::fmt;

use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::error::{Kind, Refused};
use crate::proto::message::{Bytes, CollapseKey, Payload};
use crate::proto::urgency::Urgency;
use crate::server::config::WebPush;

/// Longer lives are taken for this long (RFC 8030, section 5.2).
pub const TTL_MAX: u32 = 1 << 31;
/// The longest topic.
const TOPIC_MAX: usize = 32;
/// The longest `X-Request-ID`.
const REQUEST_ID_MAX: usize = 128;

/// Seconds to live (RFC 8030, section 5.2).
pub const TTL: HeaderName = HeaderName::from_static("ttl");
const URGENCY: HeaderName = HeaderName::from_static("urgency");
const TOPIC: HeaderName = HeaderName::from_static("topic");
/// What the encoding of drafts needs beside the body.
pub const ENCRYPTION: HeaderName = HeaderName::from_static("encryption");
/// Likewise; also where drafts have the sender's key.
pub const CRYPTO_KEY: HeaderName = HeaderName::from_static("crypto-key");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A message as its headers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Seconds to live; 0: now or never.
    pub ttl_s: u32,
    /// How much it is worth waking a device for.
    pub urgency: Urgency,
    /// What it takes the place of.
    pub topic: Option<CollapseKey>,
    /// The sender's own name for the message: the same one is taken once.
    pub request_id: Option<String>,
    about: About,
}

/// What goes with the body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct About {
    content_type: Option<String>,
    encoding: Option<Encoding>,
}

/// How the body is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Encoding {
    /// RFC 8188.
    Aes128Gcm,
    /// That of drafts, with what does not stand in the body.
    AesGcm { encryption: String, crypto_key: String },
}

impl Described {
    /// Reads the headers.
    pub fn of(headers: &HeaderMap, config: &WebPush) -> Result<Self, Refused> {
        Ok(Self {
            ttl_s: ttl(headers, config.default_ttl)?,
            urgency: urgency(headers)?,
            topic: topic(headers)?,
            request_id: request_id(headers)?,
            about: About {
                content_type: short(headers, &CONTENT_TYPE, 256)?,
                encoding: encoding(headers, config.aesgcm)?,
            },
        })
    }

    /// Whether the body says itself how it is encrypted.
    pub fn is_aes128gcm(&self) -> bool {
        self.about.encoding == Some(Encoding::Aes128Gcm)
    }

    /// The body with what was said of it.
    pub fn payload(&self, body: Vec<u8>) -> Payload {
        let About { content_type, encoding } = self.about.clone();
        let (content_encoding, encryption, crypto_key) = match encoding {
            None => (None, None, None),
            Some(Encoding::Aes128Gcm) => (Some("aes128gcm"), None, None),
            Some(Encoding::AesGcm { encryption, crypto_key }) => (Some("aesgcm"), Some(encryption), Some(crypto_key)),
        };
        let content_encoding = content_encoding.map(str::to_owned);
        Payload { bytes: Bytes(body), content_type, content_encoding, encryption, crypto_key }
    }
}

/// The first value: gateways in between add a second one to what is there.
fn first<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refused> {
    let text = headers.get(name).map(|value| value.to_str());
    text.transpose().map_err(|_| bad(Kind::Header, name, "is not plain text"))
}

fn short(headers: &HeaderMap, name: &HeaderName, longest: usize) -> Result<Option<String>, Refused> {
    match first(headers, name)? {
        Some(text) if text.len() > longest => Err(bad(Kind::Header, name, format_args!("is over {longest} bytes"))),
        text => Ok(text.map(str::to_owned)),
    }
}

fn bad(kind: Kind, name: &HeaderName, why: impl fmt::Display) -> Refused {
    Refused::new(kind, format!("the header {name} {why}"))
}

fn ttl(headers: &HeaderMap, default: Option<u32>) -> Result<u32, Refused> {
    let text = match (first(headers, &TTL)?, default) {
        (Some(text), _) => text,
        (None, Some(default)) => return Ok(default),
        (None, None) => {
            return Err(Refused::new(Kind::Ttl, "the header TTL is missing: seconds to live, as in TTL: 60"));
        }
    };
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad(Kind::Ttl, &TTL, "is no number of seconds, as in TTL: 60"));
    }
    // What does not fit is more than the most.
    Ok(text.parse::<u32>().unwrap_or(TTL_MAX).min(TTL_MAX))
}

fn urgency(headers: &HeaderMap) -> Result<Urgency, Refused> {
    let mut values = headers.get_all(&URGENCY).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return match headers.contains_key(&URGENCY) {
            true => Err(bad(Kind::Header, &URGENCY, "stands there twice")),
            false => Ok(Urgency::default()),
        };
    };
    let named = |urgency: &Urgency| value.as_bytes().eq_ignore_ascii_case(urgency.name().as_bytes());
    Urgency::ALL
        .into_iter()
        .find(named)
        .ok_or_else(|| bad(Kind::Header, &URGENCY, "is not one of very-low, low, normal, high"))
}

fn topic(headers: &HeaderMap) -> Result<Option<CollapseKey>, Refused> {
    let Some(text) = first(headers, &TOPIC)? else { return Ok(None) };
    let in_alphabet = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let good = !text.is_empty() && text.len() <= TOPIC_MAX && text.bytes().all(in_alphabet);
    let topic = good.then(|| CollapseKey::try_from(text.to_owned()).ok()).flatten();
    topic.map(Some).ok_or_else(|| bad(Kind::Topic, &TOPIC, "is not 1 to 32 characters of base64url"))
}

fn request_id(headers: &HeaderMap) -> Result<Option<String>, Refused> {
    let id = short(headers, &REQUEST_ID, REQUEST_ID_MAX)?;
    Ok(id.filter(|id| !id.is_empty()))
}

fn encoding(headers: &HeaderMap, aesgcm: bool) -> Result<Option<Encoding>, Refused> {
    let Some(text) = first(headers, &CONTENT_ENCODING)? else { return Ok(None) };
    if text.eq_ignore_ascii_case("aes128gcm") {
        return Ok(Some(Encoding::Aes128Gcm));
    }
    if aesgcm && text.eq_ignore_ascii_case("aesgcm") {
        return Ok(Some(Encoding::AesGcm {
            encryption: all_lines(headers, &ENCRYPTION, 256)?,
            crypto_key: without_vapid(&all_lines(headers, &CRYPTO_KEY, 512)?),
        }));
    }
    Err(bad(Kind::Crypto, &CONTENT_ENCODING, "is not aes128gcm (RFC 8291)"))
}

/// The lines of a header that is a list, as one.
fn all_lines(headers: &HeaderMap, name: &HeaderName, longest: usize) -> Result<String, Refused> {
    let lines: Result<Vec<&str>, _> = headers.get_all(name).into_iter().map(HeaderValue::to_str).collect();
    let text = lines.map_err(|_| bad(Kind::Header, name, "is not plain text"))?.join(",");
    match text.len() {
        0 => Err(bad(Kind::Crypto, name, "is missing, which aesgcm needs")),
        length if length > longest => Err(bad(Kind::Header, name, format_args!("is over {longest} bytes"))),
        _ => Ok(text),
    }
}

/// `Crypto-Key` without the sender's VAPID key, which is not for the device (RFC 8292, section 4.2).
fn without_vapid(text: &str) -> String {
    let is_vapid = |part: &&str| part.trim_start().to_ascii_lowercase().starts_with("p256ecdsa=");
    let parts = |group: &str| group.split(';').filter(|part| !is_vapid(part)).collect::<Vec<_>>().join(";");
    text.split(',').map(parts).filter(|group| !group.trim().is_empty()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;

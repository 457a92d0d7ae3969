//! Who sends: VAPID, RFC 8292. A sender signs for whom its messages are and until when, and shows its key.
//!
//! What was verified is remembered until it expires: senders use a signature for many messages. Nothing of it
//! is stored or goes to a device.

use std::num::NonZeroUsize;
use std::sync::Mutex;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lru::LruCache;
use ring::{digest, signature};
use serde::Deserialize;
use serde_json::Value;

use super::request::CRYPTO_KEY;
use crate::daemon::lock;
use crate::proto::UnixMillis;
use crate::proto::channel::{NoSenderKey, SenderKey};
use crate::server::origin::Origin;

/// Seconds by which a sender's clock may be behind ours.
const BEHIND_S: i64 = 60;
/// Seconds by which it may be ahead.
const AHEAD_S: i64 = 300;
/// The longest life of a signature, in seconds (RFC 8292, section 2).
const LIFE_S: i64 = 24 * 3600;
/// The longest `Authorization` that is looked at.
const LONGEST: usize = 4096;
/// Signatures that are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Why a signature is not good. The text is for the sender.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Another scheme, or nothing that has its form.
    #[error("Authorization is not of the form `vapid t=TOKEN, k=KEY`")]
    Form,
    /// No key.
    #[error("k: {0}")]
    Key(#[from] NoSenderKey),
    /// The token is none.
    #[error("t is no JSON Web Token: {0}")]
    Token(&'static str),
    /// The token is signed in another way.
    #[error("the token's `alg` is not ES256")]
    Algorithm,
    /// The signature is not of this key.
    #[error("the token's signature is not of the key in k, or k is no point on P-256")]
    Signature,
    /// It is for somebody else.
    #[error("the token's `aud` does not have {0}")]
    Audience(String),
    /// There is no good end of its life.
    #[error("the token's `exp` {0}")]
    Expiry(&'static str),
}

/// What a request shows for its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown<'a> {
    token: &'a str,
    key: &'a str,
}

impl<'a> Shown<'a> {
    /// What the headers show, if anything. `legacy`: also in the form of drafts.
    pub fn of(headers: &'a HeaderMap, legacy: bool) -> Option<Result<Self, Invalid>> {
        let value = headers.get(AUTHORIZATION)?;
        let shown = value.to_str().ok().filter(|text| text.len() <= LONGEST).and_then(|text| {
            let (scheme, rest) = text.trim().split_once(char::is_whitespace)?;
            if scheme.eq_ignore_ascii_case("vapid") {
                return Some(Self { token: parameter(rest, ',', "t")?, key: parameter(rest, ',', "k")? });
            }
            let old = legacy && (scheme.eq_ignore_ascii_case("webpush") || scheme.eq_ignore_ascii_case("bearer"));
            let lines =
                headers.get_all(&CRYPTO_KEY).into_iter().filter(|_| old).filter_map(|value| value.to_str().ok());
            let key = lines.flat_map(|line| line.split(',')).find_map(|group| parameter(group, ';', "p256ecdsa"))?;
            Some(Self { token: rest.trim(), key })
        });
        Some(shown.ok_or(Invalid::Form))
    }

    fn fingerprint(&self) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        [self.token, "\0", self.key].iter().for_each(|part| context.update(part.as_bytes()));
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(context.finish().as_ref());
        fingerprint
    }
}

/// The value of a parameter in `name=value` separated so.
fn parameter<'a>(text: &'a str, separator: char, name: &str) -> Option<&'a str> {
    text.split(separator).find_map(|part| {
        let (found, value) = part.split_once('=')?;
        found.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

/// A sender that has signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its key.
    pub key: SenderKey,
    /// Until when the signature is good, leaving out what clocks may differ.
    until_s: i64,
}

/// Verifies signatures, and remembers them.
#[derive(Debug)]
pub struct Verifier {
    known: Mutex<LruCache<[u8; 32], Verified>>,
}

impl Default for Verifier {
    fn default() -> Self {
        Self { known: Mutex::new(LruCache::new(REMEMBERED)) }
    }
}

impl Verifier {
    /// Who has signed for this server, if the signature is good at `now`.
    pub fn verify(&self, shown: Shown<'_>, origin: &Origin, now: UnixMillis) -> Result<Verified, Invalid> {
        let fingerprint = shown.fingerprint();
        let known = lock(&self.known).get(&fingerprint).copied();
        if let Some(verified) = known.filter(|verified| now.0 / 1000 <= verified.until_s + BEHIND_S) {
            return Ok(verified);
        }
        let verified = verify(shown, origin, now)?;
        lock(&self.known).put(fingerprint, verified);
        Ok(verified)
    }
}

#[derive(Deserialize)]
struct Header {
    alg: Value,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Value,
    #[serde(default)]
    exp: Value,
}

fn verify(shown: Shown<'_>, origin: &Origin, now: UnixMillis) -> Result<Verified, Invalid> {
    let key: SenderKey = shown.key.parse()?;
    let (signed, signature) = shown.token.rsplit_once('.').ok_or(Invalid::Token("it does not have three parts"))?;
    let (header, claims) = signed.split_once('.').ok_or(Invalid::Token("it does not have three parts"))?;
    let header: Header = json(header)?;
    if header.alg != "ES256" {
        return Err(Invalid::Algorithm);
    }
    let signature = decoded(signature)?;
    signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, key.point())
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| Invalid::Signature)?;
    let claims: Claims = json(claims)?;
    check_audience(&claims.aud, origin)?;
    Ok(Verified { key, until_s: expiry(&claims.exp, now)? })
}

fn json<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, Invalid> {
    serde_json::from_slice(&decoded(part)?).map_err(|_| Invalid::Token("its header or claims are no JSON object"))
}

fn decoded(part: &str) -> Result<Vec<u8>, Invalid> {
    URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).map_err(|_| Invalid::Token("it is not base64url"))
}

/// The audience is one or several, of which one has to be us.
fn check_audience(aud: &Value, origin: &Origin) -> Result<(), Invalid> {
    let is_us = |one: &Value| one.as_str().and_then(Origin::of_url).is_some_and(|one| one == *origin);
    let good = aud.as_array().map_or_else(|| is_us(aud), |all| all.iter().any(is_us));
    if good { Ok(()) } else { Err(Invalid::Audience(origin.to_string())) }
}

fn expiry(exp: &Value, now: UnixMillis) -> Result<i64, Invalid> {
    let seconds = match exp {
        // RFC 7519 allows fractions of a second.
        Value::Number(number) => number
            .as_i64()
            .or_else(|| number.as_f64().filter(|seconds| seconds.abs() < 1e15).map(|seconds| seconds.floor() as i64))
            .ok_or(Invalid::Expiry("is no number of seconds since 1970")),
        Value::String(_) => Err(Invalid::Expiry("is a string: it has to be a number, of seconds since 1970")),
        Value::Null => Err(Invalid::Expiry("is missing: seconds since 1970, at most 24 hours ahead")),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => Err(Invalid::Expiry("is no number")),
    }?;
    let now = now.0 / 1000;
    if seconds.saturating_add(BEHIND_S) < now {
        return Err(Invalid::Expiry("has passed"));
    }
    if seconds > now + LIFE_S + AHEAD_S {
        return Err(Invalid::Expiry("is more than 24 hours ahead"));
    }
    Ok(seconds)
}

#[cfg(test)]
#[path = "vapid_tests.rs"]
mod tests;

//! Web Push channels: registrations that no operator has to know.
//!
//! A device names each of them itself, by random bytes that say nothing of the app. One that only a
//! certain application server may send to (RFC 8292, section 4) carries the hash of that server's key
//! in its name: another key makes another channel. The name is an [`AppId`] like any other, so that
//! a channel is registered, queued, delivered and ended as an app is.

use std::str::FromStr;

use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ring::digest;
use serde::{Deserialize, Serialize};

use super::ids::AppId;

/// What the names of all channels begin with; no app's id does.
const PREFIX: &str = "webpush:";

/// A Web Push channel of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Channel {
    /// Random bytes.
    pub id: [u8; 16],
    /// The only one who may send to it, if it is so restricted.
    pub sender: Option<SenderHash>,
}

impl Channel {
    /// The channel that goes by this name, if it is a channel's.
    pub fn of(app: &AppId) -> Option<Self> {
        let rest = app.as_str().strip_prefix(PREFIX)?;
        let (id, sender) = rest.split_once(':').map_or((rest, None), |(id, sender)| (id, Some(sender)));
        let sender = match sender {
            Some(text) => Some(SenderHash(bytes(text)?)),
            None => None,
        };
        Some(Self { id: bytes(id)?, sender })
    }

    /// Whether this is reserved for channels, although it may be the name of none.
    pub fn is_reserved(app: &AppId) -> bool {
        is_reserved(app.as_str())
    }

    /// Its bytes, as addresses hold them sealed: 16 of its id, and 32 of its only sender's hash if it has one.
    pub fn to_bytes(&self) -> Vec<u8> {
        let sender = self.sender.as_ref().map_or(&[][..], |sender| &sender.0);
        [&self.id, sender].concat()
    }

    /// The channel of these bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (id, sender) = bytes.split_at_checked(16)?;
        let sender = match sender {
            [] => None,
            hash => Some(SenderHash(hash.try_into().ok()?)),
        };
        Some(Self { id: id.try_into().ok()?, sender })
    }

    /// Its name: `webpush:ID` or `webpush:ID:SENDER`, both base64url without padding, of 16 and 32
    /// bytes.
    pub fn app(&self) -> AppId {
        let id = URL_SAFE_NO_PAD.encode(self.id);
        let text = match &self.sender {
            Some(sender) => format!("{PREFIX}{id}:{}", String::from(*sender)),
            None => format!("{PREFIX}{id}"),
        };
        // Invariant: 74 characters, each of which an id may have.
        text.parse().expect("the name of a channel is an id")
    }
}

/// Whether a name is reserved for channels, although it may be the name of none.
pub fn is_reserved(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The server of an endpoint: scheme, host and port. The rest of it is the right to send, and nobody's to see.
pub fn server_of(endpoint: &str) -> Option<&str> {
    let host = endpoint.find("://")? + 3;
    let end = endpoint[host..].find(['/', '?', '#']).map_or(endpoint.len(), |length| host + length);
    Some(&endpoint[..end])
}

/// The SHA-256 of an application server's public key. Its text is base64url without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SenderHash(pub [u8; 32]);

impl TryFrom<String> for SenderHash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        bytes(&text).map(Self).ok_or("32 bytes in base64url")
    }
}

impl From<SenderHash> for String {
    fn from(hash: SenderHash) -> Self {
        URL_SAFE_NO_PAD.encode(hash.0)
    }
}

impl SenderHash {
    /// What the sender goes by where senders are told apart by the names of apps; no app and no channel has
    /// this name.
    pub fn name(&self) -> AppId {
        // Invariant: 52 characters, each of which an id may have.
        format!("{PREFIX}:{}", String::from(*self)).parse().expect("the name of a sender is an id")
    }
}

/// An application server's public key for VAPID: a point on P-256, uncompressed (RFC 8292, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SenderKey([u8; SenderKey::LEN]);

/// A text that is no such key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a VAPID key is the 65 bytes of an uncompressed P-256 point, in base64url")]
pub struct NoSenderKey;

impl SenderKey {
    /// Bytes of the point.
    pub const LEN: usize = 65;

    /// The point: 4, then its two coordinates.
    pub fn point(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// What stands for it in names and endpoints.
    pub fn hash(&self) -> SenderHash {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, &self.0).as_ref());
        SenderHash(hash)
    }
}

impl FromStr for SenderKey {
    type Err = NoSenderKey;

    /// Takes padding and the alphabet of plain base64 too, as senders use both. Whether the point is on
    /// the curve is found out where a signature is checked.
    fn from_str(text: &str) -> Result<Self, NoSenderKey> {
        let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let alphabet = if text.contains(['+', '/']) { &STANDARD } else { &URL_SAFE };
        let bytes = GeneralPurpose::new(alphabet, config).decode(text).map_err(|_| NoSenderKey)?;
        let point: [u8; Self::LEN] = bytes.try_into().map_err(|_| NoSenderKey)?;
        if point[0] == 4 { Ok(Self(point)) } else { Err(NoSenderKey) }
    }
}

/// So many bytes in base64url without padding.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose;

    #[test]
    fn a_channel_is_an_app_of_its_own_name() {
        for sender in [None, Some(SenderHash([0xfb; 32]))] {
            let channel = Channel { id: [0xff; 16], sender };
            assert_eq!(Channel::of(&channel.app()), Some(channel));
            let bytes = channel.to_bytes();
            assert_eq!(Channel::from_bytes(&bytes), Some(channel));
            assert_eq!(Channel::from_bytes(&bytes[1..]), None);
        }
        let names: Vec<_> = [[1; 16], [2; 16]].map(|id| Channel { id, sender: None }.app()).into();
        assert_ne!(names[0], names[1]);
    }

    #[test]
    fn another_name_is_no_channel() {
        let good = Channel { id: [7; 16], sender: Some(SenderHash([8; 32])) }.app();
        let app = |text: &str| -> AppId { text.parse().unwrap() };
        let cut = &good.as_str()[..good.as_str().len() - 1];
        for name in ["chat", "webpush:", "webpush:chat", &format!("{good}:"), &format!("{good}A"), cut] {
            assert_eq!(Channel::of(&app(name)), None, "{name}");
        }
        let sender = SenderHash([8; 32]).name();
        assert!(Channel::of(&sender).is_none() && Channel::is_reserved(&sender));
        assert!(Channel::is_reserved(&app("webpush:chat")) && !Channel::is_reserved(&app("webpush")));
    }

    #[test]
    fn of_an_endpoint_only_its_server_is_shown() {
        assert_eq!(server_of("https://push.example.org:8443/wp/secret?x"), Some("https://push.example.org:8443"));
        assert_eq!(server_of("https://push.example.org"), Some("https://push.example.org"));
        assert_eq!(server_of("secret"), None);
    }

    #[test]
    fn a_key_is_taken_as_senders_write_it() {
        let mut point = [0xfb; SenderKey::LEN];
        point[0] = 4;
        let key = SenderKey(point);
        for engine in [
            &general_purpose::URL_SAFE_NO_PAD,
            &general_purpose::URL_SAFE,
            &general_purpose::STANDARD,
            &general_purpose::STANDARD_NO_PAD,
        ] {
            assert_eq!(engine.encode(point).parse(), Ok(key));
        }
        let compressed = URL_SAFE_NO_PAD.encode([2; 33]);
        let hybrid = URL_SAFE_NO_PAD.encode([6; 65]);
        for bad in ["", "chat", &compressed, &hybrid, &URL_SAFE_NO_PAD.encode([4; 66])] {
            assert_eq!(bad.parse::<SenderKey>(), Err(NoSenderKey), "{bad}");
        }
    }
}

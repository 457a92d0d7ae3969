//! One notification to one registration, whichever sender API it came through.
//!
//! A door parses its request into a [`Push`] once; from there on nothing interprets the payload.
//! The same text form is stored on the server, sent to the device and stored there, but for what is the
//! server's alone: [`Push::for_device`] takes that away.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::channel::SenderHash;
use super::field::{self, Fields};
use super::ids::{AppId, MessageId, ReceiptsId, RegId, UnixMillis};
use super::urgency::Urgency;

/// A validated notification. Optional members are absent from the text form when `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Push {
    /// Its id; a device stores each id once.
    pub id: MessageId,
    /// The registration it is for.
    pub reg_id: RegId,
    /// The app of that registration.
    pub app: AppId,
    /// The sender API it came through.
    pub door: Door,
    /// The app's own data (`appData`, or a Web Push body).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
    /// The `message` string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageField>,
    /// Who sent it, in the sender's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// The sender's `requestID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The sender's `sessionInfo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_info: Option<String>,
    /// The sender's `type`; only the app gives it a meaning.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<i64>,
    /// The sender's `timeStamp`, as sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_stamp: Option<i64>,
    /// When the server took it.
    pub accepted_ms: UnixMillis,
    /// From when on nobody may deliver it.
    pub expires_ms: UnixMillis,
    /// Whether it waits for a device that is away.
    #[serde(default, skip_serializing_if = "is_default")]
    pub reliability: Reliability,
    /// How much it is worth waking a device for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub urgency: Urgency,
    /// A newer message with the same key and registration replaces it while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapse_key: Option<CollapseKey>,
    /// Whether the sender is to be told when a device has stored it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub receipt: bool,
    /// Whom the server tells what becomes of it, by Web Push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipts_to: Option<ReceiptsTo>,
    /// The request's top-level `action: backgroundLaunch`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub background_launch: bool,
}

impl Push {
    /// Whether it may no longer be delivered at `now`.
    pub fn expired(&self, now: UnixMillis) -> bool {
        self.expires_ms <= now
    }

    /// As its device is sent it: without the topic, which is not forwarded (RFC 8030, section 5.4), without
    /// whom the server tells of it, and without who sends by Web Push.
    pub fn for_device(self) -> Self {
        let request_id = if self.taken_once_by().is_some() { None } else { self.request_id };
        Self { collapse_key: None, receipts_to: None, request_id, ..self }
    }

    /// What a waiting message of the same registration has in common with the one that takes its place.
    pub fn takes_place_by(&self) -> Option<&str> {
        match self.door {
            Door::WebPush | Door::Matrix => self.collapse_key.as_ref().map(CollapseKey::as_str),
            Door::Tizen | Door::CodenameOne | Door::Iizi | Door::Gcm => self.request_id.as_deref(),
        }
    }

    /// The request id of a message that is to be taken once: what its sender calls it, told apart from what
    /// others call theirs. `by` has no `/`.
    pub fn named(by: &str, id: &str) -> String {
        format!("{by}/{id}")
    }

    /// The name by which the same message is taken once, if its sender has given it one.
    pub fn taken_once_by(&self) -> Option<&str> {
        match self.door {
            Door::WebPush | Door::Matrix => self.request_id.as_deref(),
            Door::Tizen | Door::CodenameOne | Door::Iizi | Door::Gcm => None,
        }
    }
}

/// Whom the server tells what became of a message (RFC 8030, section 5.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptsTo {
    /// The subscription of receipts.
    pub link: ReceiptsId,
    /// Who has signed the message: the callback of the app that goes by this key is told too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<SenderHash>,
    /// The message's URL, as its sender was told it.
    pub message: String,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The sender APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Door {
    /// Tizen RQM (`/spp/pns/api/push`).
    Tizen,
    /// Web Push (RFC 8030).
    WebPush,
    /// The Matrix push gateway.
    Matrix,
    /// Codename One.
    CodenameOne,
    /// IIZI.
    Iizi,
    /// GCM, as Sinch uses it.
    Gcm,
}

/// Whether a notification is kept for a device that is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reliability {
    /// Stored until the device has it or it expires.
    #[default]
    Transport,
    /// Delivered now or dropped; never stored on the server.
    NoReliable,
}

/// A topic (RFC 8030, section 5.4) or collapse key: 1 to 64 printable ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CollapseKey(String);

impl CollapseKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for CollapseKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() || text.len() > 64 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a collapse key has 1 to 64 printable ASCII characters");
        }
        Ok(Self(text))
    }
}

impl From<CollapseKey> for String {
    fn from(key: CollapseKey) -> Self {
        key.0
    }
}

/// The `message` string: raw, as the app gets it, with its parsed fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct MessageField {
    raw: String,
    fields: Fields,
}

impl MessageField {
    /// The string as the sender wrote it.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// What it asks for.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }
}

impl From<String> for MessageField {
    fn from(raw: String) -> Self {
        Self { fields: field::parse(&raw), raw }
    }
}

impl From<MessageField> for String {
    fn from(field: MessageField) -> Self {
        field.raw
    }
}

/// Opaque bytes for the app, with what the sender said about them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// The bytes.
    #[serde(flatten)]
    pub bytes: Bytes,
    /// Media type, where the sender API has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Content encoding (`aes128gcm`), where the sender API has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    /// The header `Encryption`, which the old encoding `aesgcm` needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// The header `Crypto-Key`, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crypto_key: Option<String>,
}

impl Payload {
    /// A payload of plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::opaque(text.into().into_bytes())
    }

    /// A payload of which nothing is said.
    pub fn opaque(bytes: Vec<u8>) -> Self {
        Self { bytes: Bytes(bytes), content_type: None, content_encoding: None, encryption: None, crypto_key: None }
    }

    /// The bytes as text, if they are UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes.0).ok()
    }
}

/// Bytes whose text form is `{"text": ...}` where that is exact and short, else `{"base64": ...}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TextForm", into = "TextForm")]
pub struct Bytes(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TextForm {
    Text(String),
    Base64(String),
}

impl From<Bytes> for TextForm {
    fn from(bytes: Bytes) -> Self {
        // JSON writes other control characters as six, which would break the frame's size limit.
        let short = |byte: &u8| *byte >= 0x20 || b"\t\n\r".contains(byte);
        match String::from_utf8(bytes.0) {
            Ok(text) if text.bytes().all(|byte| short(&byte)) => TextForm::Text(text),
            Ok(text) => TextForm::Base64(STANDARD.encode(text)),
            Err(not_text) => TextForm::Base64(STANDARD.encode(not_text.into_bytes())),
        }
    }
}

impl TryFrom<TextForm> for Bytes {
    type Error = base64::DecodeError;

    fn try_from(form: TextForm) -> Result<Self, Self::Error> {
        Ok(match form {
            TextForm::Text(text) => Self(text.into_bytes()),
            TextForm::Base64(text) => Self(STANDARD.decode(text)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::samples;
    use proptest::prelude::*;

    #[test]
    fn text_stays_readable_and_other_bytes_become_base64() {
        let form = |bytes: &[u8]| serde_json::to_string(&Payload::opaque(bytes.to_vec())).unwrap();
        assert_eq!(form("{id:asdf}ä".as_bytes()), r#"{"text":"{id:asdf}ä"}"#);
        assert_eq!(form(&[0xff, 0]), r#"{"base64":"/wA="}"#);
        assert_eq!(form(b"\x01"), r#"{"base64":"AQ=="}"#);
    }

    #[test]
    fn a_device_is_told_neither_the_topic_nor_who_hears_of_the_message() {
        let stored = Push {
            collapse_key: Some(CollapseKey::try_from("score".to_owned()).unwrap()),
            receipts_to: Some(ReceiptsTo {
                link: ReceiptsId::from_slice(&[7; 16]).unwrap(),
                sender: Some(SenderHash([7; 32])),
                message: "https://push.example.org/wp/m/x".into(),
            }),
            receipt: true,
            ..samples::push(samples::message_id(1))
        };
        let text = serde_json::to_string(&stored).unwrap();
        assert_eq!(serde_json::from_str::<Push>(&text).unwrap(), stored);
        let sent = stored.for_device();
        assert_eq!(sent, Push { receipt: true, ..samples::push(samples::message_id(1)) });
    }

    proptest! {
        #[test]
        fn any_payload_survives_its_text_form(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let payload = Payload { content_encoding: Some("aes128gcm".into()), ..Payload::opaque(bytes) };
            let text = serde_json::to_string(&payload).unwrap();
            prop_assert_eq!(serde_json::from_str::<Payload>(&text).unwrap(), payload);
        }
    }
}

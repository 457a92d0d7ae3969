//! A Tizen push request, from JSON to validated contents. Pure; knows no store.
//!
//! One object, or `{"messages": [...]}`; `regID` is a string or, for multicast, a list. A mistake
//! in the shape refuses the whole request, naming the member. A mistake in a message's contents
//! refuses that message for all its recipients, and no other.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::proto::RegId;
use crate::proto::message::Reliability;

use super::code::Code;

/// `message` is shorter than this, in bytes.
pub(super) const MESSAGE_BYTES: usize = 2048;
/// `sender`, `sessionInfo` and `requestID` are at most this long, in bytes.
pub(super) const TEXT_BYTES: usize = 1024;
/// Minutes for which a message is kept when its sender says nothing, or 0.
pub(super) const EXPIRY_DEFAULT: u32 = 1440;
/// Minutes that count as this many when the sender asks for more.
pub(super) const EXPIRY_MAX: u32 = 2880;
/// Most minutes for which a message may be delayed.
pub(super) const DELAY_MAX: i64 = 2880;

/// A refusal of the whole request.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed {
    /// What the sender is told.
    pub code: Code,
    /// Which member is wrong and how, for the person who wrote the sender.
    pub detail: String,
}

/// One message of a request.
#[derive(Debug)]
pub struct Entry {
    /// Its recipients.
    pub recipients: Vec<Recipient>,
    /// `requestID` as sent, or empty.
    pub request_id: String,
    /// What is sent to them, or why nothing is.
    pub content: Result<Content, Code>,
    /// The message as sent, for another region.
    pub raw: Map<String, Value>,
}

/// A recipient as named by the sender.
#[derive(Debug)]
pub struct Recipient {
    /// `regID` as sent.
    pub shown: String,
    /// The regId in it.
    pub reg_id: Result<RegId, Code>,
}

/// The validated contents of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// `message`.
    pub message: Option<String>,
    /// `appData`.
    pub app_data: Option<String>,
    /// `sender`.
    pub sender: Option<String>,
    /// `sessionInfo`.
    pub session_info: Option<String>,
    /// `type`.
    pub kind: Option<i64>,
    /// `timeStamp`, in milliseconds.
    pub time_stamp: Option<i64>,
    /// `reliableOption`.
    pub reliability: Reliability,
    /// `expiryDate`, with its default and bounds applied. Counts from the end of the delay.
    pub expiry_minutes: u32,
    /// `delayDate`: minutes until it is released, 0 if it is not delayed.
    pub delay_minutes: u32,
    /// `action: backgroundLaunch`, in the request or the message.
    pub background_launch: bool,
}

/// What a sender wants.
#[derive(Debug)]
pub enum Request {
    /// These are to be sent.
    Send(Vec<Entry>),
    /// These are to be taken back.
    Cancel(Cancel),
}

/// Messages that are to be taken back.
#[derive(Debug)]
pub struct Cancel {
    /// Their `requestID`.
    pub request_id: String,
    /// The recipients for whom; for all if there are none.
    pub recipients: Vec<Recipient>,
    /// The request as sent, for other regions.
    pub raw: Map<String, Value>,
}

/// Parses a request's body. `app_data_bytes` is the longest `appData`.
pub fn parse(body: &[u8], app_data_bytes: usize) -> Result<Request, Malformed> {
    let unreadable = |detail: &str| Malformed { code: Code::JsonParse, detail: detail.to_owned() };
    let text = std::str::from_utf8(body).map_err(|_| unreadable("the body is not UTF-8"))?;
    if text.trim().is_empty() {
        return Err(unreadable("the body is empty"));
    }
    let request: Value =
        serde_json::from_str(text).map_err(|error| mapping(format!("the body is not JSON: {error}")))?;
    let Value::Object(mut request) = request else {
        return Err(mapping("the body is not a JSON object"));
    };
    if request.contains_key("cancel") {
        return Ok(Request::Cancel(cancel(request)?));
    }
    let launch = is_background_launch(&request);
    let entries = match request.remove("messages") {
        None => Ok(vec![entry("", request, launch, app_data_bytes)?]),
        Some(Value::Array(messages)) if messages.is_empty() => {
            Err(Malformed { code: Code::EmptyMultiple, detail: "messages is empty".into() })
        }
        Some(Value::Array(messages)) => messages
            .into_iter()
            .enumerate()
            .map(|(number, message)| match message {
                Value::Object(message) => entry(&format!("messages[{number}]."), message, launch, app_data_bytes),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                    Err(mapping(format!("messages[{number}] is not an object")))
                }
            })
            .collect(),
        Some(_) => Err(mapping("messages is not a list")),
    };
    entries.map(Request::Send)
}

fn cancel(raw: Map<String, Value>) -> Result<Cancel, Malformed> {
    let fields = Fields { at: "", raw: &raw };
    let request_id = fields.text("cancel")?.unwrap_or_default();
    if request_id.is_empty() {
        return Err(Malformed { code: Code::NoRequestId, detail: "cancel names no requestID".into() });
    }
    let named = raw.get("regID").is_some_and(|reg_id| !reg_id.is_null());
    let recipients = if named { fields.recipients()? } else { Vec::new() };
    Ok(Cancel { request_id, recipients, raw })
}

fn entry(at: &str, raw: Map<String, Value>, launch: bool, app_data_bytes: usize) -> Result<Entry, Malformed> {
    let fields = Fields { at, raw: &raw };
    let recipients = fields.recipients()?;
    let request_id = fields.text("requestID")?.unwrap_or_default();
    let content = fields
        .content(&request_id, app_data_bytes)?
        .map(|content| Content { background_launch: content.background_launch || launch, ..content });
    Ok(Entry { recipients, request_id, content, raw })
}

/// The members of a message. The outer error refuses the request, the inner one the message.
struct Fields<'a> {
    at: &'a str,
    raw: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn text(&self, name: &str) -> Result<Option<String>, Malformed> {
        match self.raw.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(mapping(format!("{}{name} is not a string", self.at))),
        }
    }

    fn recipients(&self) -> Result<Vec<Recipient>, Malformed> {
        let (shown, encoding) = (self.reg_ids()?, self.text("encoding")?);
        Ok(shown.into_iter().map(|shown| Recipient { reg_id: decode(&shown, encoding.as_deref()), shown }).collect())
    }

    /// The recipients as sent; one empty one if there is none, so that the answer has a place for
    /// the refusal.
    fn reg_ids(&self) -> Result<Vec<String>, Malformed> {
        let not_text = || mapping(format!("{}regID is neither a string nor a list of strings", self.at));
        let list = match self.raw.get("regID") {
            None | Some(Value::Null) => vec![],
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(many)) => {
                many.iter().map(|one| one.as_str().map(str::to_owned).ok_or_else(not_text)).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(not_text()),
        };
        Ok(if list.is_empty() { vec![String::new()] } else { list })
    }

    fn content(&self, request_id: &str, app_data_bytes: usize) -> Result<Result<Content, Code>, Malformed> {
        let content = Content {
            message: self.text("message")?,
            app_data: self.text("appData")?,
            sender: self.text("sender")?,
            session_info: self.text("sessionInfo")?,
            kind: None,
            time_stamp: None,
            reliability: Reliability::Transport,
            expiry_minutes: EXPIRY_DEFAULT,
            delay_minutes: 0,
            background_launch: is_background_launch(self.raw),
        };
        let reliability = self.text("reliableOption")?;
        Ok(self.numbers(content).and_then(|content| {
            check_texts(&content, request_id, app_data_bytes)?;
            self.times(Content { reliability: parse_reliability(reliability.as_deref())?, ..content })
        }))
    }

    fn numbers(&self, content: Content) -> Result<Content, Code> {
        Ok(Content {
            kind: self.number("type", Code::Type)?,
            time_stamp: self.number("timeStamp", Code::TimeStamp)?,
            ..content
        })
    }

    /// What is not stored neither waits nor is delayed: its `expiryDate` means nothing.
    fn times(&self, content: Content) -> Result<Content, Code> {
        match content.reliability {
            Reliability::Transport => {
                Ok(Content { expiry_minutes: self.expiry()?, delay_minutes: self.delay(DELAY_MAX)?, ..content })
            }
            Reliability::NoReliable => self.delay(0).map(|_| content),
        }
    }

    /// A whole number, or a string that holds one, as real senders write it.
    fn number(&self, name: &str, code: Code) -> Result<Option<i64>, Code> {
        match self.raw.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Number(number)) => number.as_i64().map(Some).ok_or(code),
            Some(Value::String(text)) => text.trim().parse().map(Some).map_err(|_| code),
            Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)) => Err(code),
        }
    }

    fn expiry(&self) -> Result<u32, Code> {
        match self.number("expiryDate", Code::ExpiryDate)? {
            None | Some(0) => Ok(EXPIRY_DEFAULT),
            Some(minutes) if minutes < 0 => Err(Code::ExpiryDate),
            Some(minutes) => Ok(u32::try_from(minutes).unwrap_or(u32::MAX).min(EXPIRY_MAX)),
        }
    }

    fn delay(&self, most: i64) -> Result<u32, Code> {
        match self.number("delayDate", Code::DelayDate)? {
            None => Ok(0),
            Some(minutes) if (0..=most).contains(&minutes) => u32::try_from(minutes).map_err(|_| Code::DelayDate),
            Some(_) => Err(Code::DelayDate),
        }
    }
}

fn check_texts(content: &Content, request_id: &str, app_data_bytes: usize) -> Result<(), Code> {
    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    if request_id.is_empty() {
        return Err(Code::NoRequestId);
    }
    if length(&content.message) == 0 && length(&content.app_data) == 0 {
        return Err(Code::NoContent);
    }
    if length(&content.message) >= MESSAGE_BYTES {
        return Err(Code::MessageLength);
    }
    if length(&content.app_data) > app_data_bytes {
        return Err(Code::TooLong);
    }
    // D-Bus strings cannot hold NUL; appData may, as it is opaque.
    let plain =
        [Some(request_id), content.message.as_deref(), content.sender.as_deref(), content.session_info.as_deref()];
    if plain.iter().flatten().any(|text| text.contains('\0')) {
        return Err(Code::Unreadable);
    }
    if request_id.len().max(length(&content.sender)).max(length(&content.session_info)) > TEXT_BYTES {
        return Err(Code::Abnormal);
    }
    Ok(())
}

fn parse_reliability(text: Option<&str>) -> Result<Reliability, Code> {
    match text {
        None | Some("") => Ok(Reliability::Transport),
        Some(text) if text.eq_ignore_ascii_case("transport") => Ok(Reliability::Transport),
        Some(text) if text.eq_ignore_ascii_case("noreliable") => Ok(Reliability::NoReliable),
        Some(_) => Err(Code::Reliability),
    }
}

/// The regId in `shown`. What is well encoded but no regId is "not registered", as any other that
/// was never issued.
fn decode(shown: &str, encoding: Option<&str>) -> Result<RegId, Code> {
    if shown.is_empty() {
        return Err(Code::NoRegId);
    }
    let bytes = match encoding {
        None | Some("" | "hex") => hex::decode(shown).map_err(|_| Code::RegIdEncoding)?,
        Some("base64") => STANDARD.decode(shown).map_err(|_| Code::RegIdEncoding)?,
        Some(_) => return Err(Code::Encoding),
    };
    RegId::from_slice(&bytes).map_err(|_| Code::NotRegisteredRegId)
}

fn is_background_launch(object: &Map<String, Value>) -> bool {
    object.get("action").and_then(Value::as_str).is_some_and(|action| action.eq_ignore_ascii_case("backgroundLaunch"))
}

fn mapping(detail: impl Into<String>) -> Malformed {
    Malformed { code: Code::JsonMapping, detail: detail.into() }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;

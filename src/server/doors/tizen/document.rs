//! The door's request as the OpenAPI document shows it, and the answers to what is refused whole.
//! For readers only: the room `request` parses, and the tests hold the limits here to its own.
//!
//! Lengths count characters here and bytes there, so that what is too long here is so there too.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{self, Content, HeaderBuilder, Ref, RefOr};
use utoipa::{IntoResponses, ToSchema};

/// One message, or several.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = TizenRequest)]
pub enum Request {
    /// One.
    One(Box<Message>),
    /// Several.
    Many(Messages),
}

/// Several messages in one request.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TizenMessages)]
pub struct Messages {
    /// The messages; the answer has a result for each of their recipients, in this order.
    #[schema(min_items = 1)]
    pub messages: Vec<Message>,
    /// `backgroundLaunch`, for all of them.
    pub action: Option<String>,
}

/// One message, for one recipient or many. It needs `message` or `appData`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TizenMessage)]
pub struct Message {
    /// A regId, or a list of them; they may be of different regions.
    #[serde(rename = "regID")]
    pub reg_id: Recipients,
    /// The sender's own name for it, returned with each result. At most 1024 bytes.
    #[serde(rename = "requestID")]
    #[schema(min_length = 1, max_length = 1024)]
    pub request_id: String,
    /// Key=value pairs for the device, form-encoded. Less than 2048 bytes.
    #[schema(max_length = 2047, example = "action=ALERT&alertMessage=Hi")]
    pub message: Option<String>,
    /// Text for the app alone. At most 16384 bytes, or what the operator has set.
    #[serde(rename = "appData")]
    #[schema(max_length = 16384)]
    pub app_data: Option<String>,
    /// Text for the app. At most 1024 bytes.
    #[schema(max_length = 1024)]
    pub sender: Option<String>,
    /// Text for the app. At most 1024 bytes.
    #[serde(rename = "sessionInfo")]
    #[schema(max_length = 1024)]
    pub session_info: Option<String>,
    /// A whole number for the app.
    #[serde(rename = "type")]
    pub kind: Option<Number>,
    /// Milliseconds since 1970, for the app.
    #[serde(rename = "timeStamp")]
    pub time_stamp: Option<Number>,
    /// Minutes for which it is kept: 1440 if absent or 0, at most 2880.
    #[serde(rename = "expiryDate")]
    pub expiry_date: Option<Number>,
    /// `Transport`, the default: stored until the device has it or it expires. `NoReliable`: handed
    /// over now if the device is connected, and never stored. In any case of letters.
    #[serde(rename = "reliableOption")]
    #[schema(pattern = "^([Tt][Rr][Aa][Nn][Ss][Pp][Oo][Rr][Tt]|[Nn][Oo][Rr][Ee][Ll][Ii][Aa][Bb][Ll][Ee])?$")]
    pub reliable_option: Option<String>,
    /// How the regIds are written: `hex`, the default, or `base64`.
    #[schema(pattern = "^(hex|base64)?$")]
    pub encoding: Option<String>,
    /// `backgroundLaunch`.
    pub action: Option<String>,
}

/// One recipient, or many.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = TizenRecipients)]
pub enum Recipients {
    /// One.
    One(String),
    /// Many.
    Many(Vec<String>),
}

/// A whole number, or a text that holds one, as real senders write it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = TizenNumber)]
pub enum Number {
    /// As it should be.
    Number(i64),
    /// As some write it.
    Text(String),
}

/// Why a request is refused as a whole.
pub struct Refusals;

/// The status and what it means.
const REFUSALS: [(&str, &str); 8] = [
    ("400", "Not a request: malformed JSON, or a member of the wrong type (3018 to 3043)"),
    ("401", "`appID` or `appSecret` is missing or wrong (3045, 3009)"),
    ("404", "There is nothing at this path (3016); never at this one"),
    ("405", "Only POST is served here (3017)"),
    ("411", "The body comes in chunks, without a length (3032)"),
    ("413", "The body is too long (3035)"),
    ("429", "Too many requests; send it again after `Retry-After` seconds"),
    ("503", "Nothing of it could be done now (3002, 3013, 3015); send all of it again after `Retry-After` seconds"),
];

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        REFUSALS.iter().map(|(status, what)| ((*status).to_owned(), RefOr::T(refusal(status, what)))).collect()
    }
}

fn refusal(status: &str, what: &str) -> openapi::Response {
    let header = |what: &str, kind: Type| {
        let schema = ObjectBuilder::new().schema_type(kind).build();
        HeaderBuilder::new().schema(Some(schema)).description(Some(what)).build()
    };
    let body = Content::new(Some(Ref::from_schema_name("TizenAnswer")));
    let base = ResponseBuilder::new().description(what).content("application/json", body);
    match status {
        // Its recipients may each have their own code, and then no detail.
        "503" => base.header("Retry-After", header("Seconds", Type::Integer)),
        "429" => base.header("Retry-After", header("Seconds", Type::Integer)),
        "405" => base
            .header("bellwire-detail", header("What is wrong", Type::String))
            .header("Allow", header("The methods of this path", Type::String)),
        _ => base.header("bellwire-detail", header("Which member is wrong, and how", Type::String)),
    }
    .build()
}

#[cfg(test)]
mod tests {
    use super::super::request::{EXPIRY_DEFAULT, EXPIRY_MAX, MESSAGE_BYTES, TEXT_BYTES};
    use super::*;
    use serde_json::{Value, json};
    use utoipa::PartialSchema;

    #[test]
    fn its_limits_are_those_of_the_parser() {
        let schema = serde_json::to_value(Message::schema()).unwrap();
        let longest = |name: &str| schema["properties"][name]["maxLength"].clone();
        assert_eq!(longest("message"), json!(MESSAGE_BYTES - 1));
        for name in ["requestID", "sender", "sessionInfo"] {
            assert_eq!(longest(name), json!(TEXT_BYTES), "{name}");
        }
        assert_eq!(longest("appData"), json!(crate::server::config::Limits::default().app_data_bytes));
        let told = |name: &str| schema["properties"][name].to_string();
        assert!(told("expiryDate").contains(&EXPIRY_DEFAULT.to_string()));
        assert!(told("expiryDate").contains(&EXPIRY_MAX.to_string()));
        assert_eq!(schema["required"], json!(["regID", "requestID"]));
        assert_eq!(schema["properties"].as_object().map(serde_json::Map::len), Some(12));
        assert_ne!(schema["properties"]["action"], Value::Null);
    }
}

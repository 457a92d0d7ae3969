//! How the Web Push door refuses: the JSON that senders know from Mozilla's service, whose numbers their
//! log parsers read.

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::proto::Region;
use crate::server::rates::TooFast;

/// Which region the endpoint is of, if it is of another one.
pub const REGION: HeaderName = HeaderName::from_static("bellwire-region");
/// Seconds after which a sender may try again what could not be done now.
const RETRY_S: u64 = 30;

/// Why a request is refused: what kind it is, and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    kind: Kind,
    message: String,
    retry_s: Option<u64>,
    region: Option<Region>,
}

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The encoding of the body, or what belongs to it.
    Crypto,
    /// No endpoint or other address of this server.
    NotFound,
    /// An endpoint whose subscription has ended.
    Gone,
    /// The same, in the words of RFC 8030.
    GoneStrictly,
    /// The body is too long.
    TooLong,
    /// The body could not be read.
    Body,
    /// The body took too long to come; try again.
    Late,
    /// No signature where one is needed.
    Unsigned,
    /// A signature that is not good.
    Forbidden,
    /// A header is missing or makes no sense.
    Header,
    /// `TTL` is missing or makes no sense.
    Ttl,
    /// `Topic` makes no sense.
    Topic,
    /// Too much in too short a time.
    TooFast,
    /// Not now; try again later.
    Unavailable,
}

impl Kind {
    /// Every kind.
    #[cfg(test)]
    pub const ALL: [Self; 14] = [
        Self::Crypto,
        Self::NotFound,
        Self::Gone,
        Self::GoneStrictly,
        Self::TooLong,
        Self::Body,
        Self::Late,
        Self::Unsigned,
        Self::Forbidden,
        Self::Header,
        Self::Ttl,
        Self::Topic,
        Self::TooFast,
        Self::Unavailable,
    ];

    /// Whether a sender is to forget the address.
    pub fn ends(self) -> bool {
        [StatusCode::NOT_FOUND, StatusCode::GONE].contains(&self.numbers().0)
    }

    /// Its status, and its number among Mozilla's.
    pub fn numbers(self) -> (StatusCode, u16) {
        match self {
            Self::Crypto => (StatusCode::BAD_REQUEST, 101),
            Self::NotFound => (StatusCode::NOT_FOUND, 102),
            Self::Gone => (StatusCode::GONE, 103),
            Self::GoneStrictly => (StatusCode::NOT_FOUND, 103),
            Self::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, 104),
            Self::Body => (StatusCode::BAD_REQUEST, 999),
            Self::Late => (StatusCode::REQUEST_TIMEOUT, 202),
            Self::Unsigned => (StatusCode::UNAUTHORIZED, 109),
            Self::Forbidden => (StatusCode::FORBIDDEN, 109),
            Self::Header => (StatusCode::BAD_REQUEST, 111),
            Self::Ttl => (StatusCode::BAD_REQUEST, 112),
            Self::Topic => (StatusCode::BAD_REQUEST, 113),
            Self::TooFast => (StatusCode::TOO_MANY_REQUESTS, 201),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, 202),
        }
    }
}

impl Refused {
    /// A refusal of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let retry_s = [Kind::Unavailable, Kind::TooFast, Kind::Late].contains(&kind).then_some(RETRY_S);
        Self { kind, message: message.into(), retry_s, region: None }
    }

    /// The address is another region's.
    pub fn of_region(region: Region) -> Self {
        let message = format!("this endpoint is of region {region}, which is not served here");
        Self { region: Some(region), ..Self::new(Kind::NotFound, message) }
    }

    /// Of what kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What people are told.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Seconds after which the same may be tried again.
    pub fn retry_s(&self) -> Option<u64> {
        self.retry_s
    }
}

impl From<TooFast> for Refused {
    fn from(over: TooFast) -> Self {
        Self { retry_s: Some(over.retry_s()), ..Self::new(Kind::TooFast, over.to_string()) }
    }
}

/// The body of a refusal.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebPushError)]
pub struct Document {
    /// The status.
    code: u16,
    /// What kind of refusal it is, by Mozilla's numbers.
    errno: u16,
    /// The status in words.
    error: &'static str,
    /// A sentence for people.
    message: String,
    /// Where to read on.
    more_info: &'static str,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, errno) = self.kind.numbers();
        let document = Document {
            code: status.as_u16(),
            errno,
            error: status.canonical_reason().unwrap_or_default(),
            message: self.message,
            more_info: "bellwire-webpush(7)",
        };
        let mut response = (status, Json(document)).into_response();
        let headers = response.headers_mut();
        if self.kind == Kind::Unsigned {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("vapid"));
        }
        if let Some(seconds) = self.retry_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(region) = self.region.and_then(|region| HeaderValue::from_str(&region.to_string()).ok()) {
            headers.insert(REGION, region);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Libraries take every 2xx but 204 for a success, and senders forget an endpoint on 404 and 410.
    #[test]
    fn only_an_endpoint_that_is_no_more_is_answered_so_that_senders_forget_it() {
        for kind in Kind::ALL {
            let (status, _) = kind.numbers();
            assert!(status.is_client_error() || status.is_server_error(), "{kind:?}");
            let ends = [StatusCode::NOT_FOUND, StatusCode::GONE].contains(&status);
            assert_eq!(ends, matches!(kind, Kind::NotFound | Kind::Gone | Kind::GoneStrictly), "{kind:?}");
        }
    }
}

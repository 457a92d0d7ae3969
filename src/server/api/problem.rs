//! How everything but the sender APIs refuses: a JSON object with a word for programs and a
//! sentence for people.

use axum::Json;
use axum::http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::server::manage::Refused;
use crate::server::rates::TooFast;

/// Seconds after which what could not be done now may be tried again.
const RETRY_S: u64 = 30;

/// What kind of refusal it is, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The request makes no sense.
    BadRequest,
    /// No token, or one that is not good.
    Unauthorized,
    /// The app id or secret is missing or wrong.
    UnknownSender,
    /// There is nothing here.
    NotFound,
    /// The path has other methods.
    MethodNotAllowed,
    /// The name is taken.
    Conflict,
    /// The body is too long.
    TooLarge,
    /// The body is no JSON by its own account.
    UnsupportedMediaType,
    /// Too much in too short a time.
    TooFast,
    /// Not now; try again later.
    Unavailable,
}

impl Kind {
    fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized | Self::UnknownSender => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooFast => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// A refusal.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Its kind.
    pub error: Kind,
    /// What is wrong, and what to do.
    pub detail: String,
    /// Seconds after which the same may be tried again.
    #[serde(skip)]
    retry_s: Option<u64>,
}

impl Problem {
    /// A refusal of this kind.
    pub fn new(error: Kind, detail: impl Into<String>) -> Self {
        let retry_s = (error == Kind::Unavailable).then_some(RETRY_S);
        Self { error, detail: detail.into(), retry_s }
    }
}

impl From<TooFast> for Problem {
    fn from(over: TooFast) -> Self {
        Self { retry_s: Some(over.retry_s()), ..Self::new(Kind::TooFast, over.to_string()) }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let detail = refused.to_string();
        match refused {
            Refused::Missing(_) => Self::new(Kind::NotFound, detail),
            Refused::Conflict(_) => Self::new(Kind::Conflict, detail),
            Refused::Unwise(_) => Self::new(Kind::BadRequest, detail),
            Refused::Store(_) => Self::new(Kind::Unavailable, detail),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (kind, retry_s) = (self.error, self.retry_s);
        let mut response = (kind.status(), Json(self)).into_response();
        let challenge = match kind {
            Kind::Unauthorized => Some("Bearer realm=\"bellwire\""),
            Kind::UnknownSender => Some("AppSecret realm=\"bellwire\""),
            Kind::BadRequest
            | Kind::NotFound
            | Kind::MethodNotAllowed
            | Kind::Conflict
            | Kind::TooLarge
            | Kind::UnsupportedMediaType
            | Kind::TooFast
            | Kind::Unavailable => None,
        };
        if let Some(challenge) = challenge {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(retry_s) = retry_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_s));
        }
        response
    }
}

/// The answer to a path below `/v1` that nobody serves.
pub fn nothing_here() -> Response {
    Problem::new(Kind::NotFound, "there is nothing at this path; /openapi.json lists what there is").into_response()
}

/// The answer to a method that the path does not have; the router adds `Allow`.
pub async fn other_method(method: Method, uri: Uri) -> Problem {
    Problem::new(Kind::MethodNotAllowed, format!("{} does not take {method}; see the header Allow", uri.path()))
}

//! Messages as their senders find them again (RFC 8030, sections 6.2 and 8.3): `GET` and `DELETE` on the URL of
//! a message.
//!
//! The URL is all that it takes: it reads and takes back this one message and names nobody. Only what still waits
//! is there; what its device has, or may have, is not.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LAST_MODIFIED,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::{self, Kind, Refused};
use super::request::{CRYPTO_KEY, ENCRYPTION, TTL};
use super::tokens::{self, Named};
use super::{TAG, secret_in_path, unavailable};
use crate::proto::{AppId, Push, UnixMillis};
use crate::server::Server;
use crate::server::api::Always;
use crate::server::store::delayed::Selection;
use crate::server::withdraw::withdraw;
use crate::world;

/// The routes.
pub fn router() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(show, take_back))
}

/// The secret part of a message's URL in a path.
struct MessagePath;

impl IntoParams for MessagePath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        secret_in_path("message")
    }
}

/// Read a message that waits
///
/// Its body is as it was sent, and so are its Content-Type, Content-Encoding, Encryption and Crypto-Key, if it has
/// them.
#[utoipa::path(get, path = "/wp/m/{message}", tag = TAG, operation_id = "webpush_message",
    params(MessagePath),
    responses(
        (status = 200, description = "It waits for its device", body = [u8], content_type = "*/*",
            headers(
                ("Last-Modified" = String, description = "When it was taken"),
                ("TTL" = i64, description = "Seconds for which it is kept from now on"),
            )),
        (status = 404, description = "No such message waits", body = error::Document),
        (status = 503, description = "The store fails", body = error::Document,
            headers(("Retry-After" = i64, description = "Seconds"))),
        Always,
    ))]
async fn show(
    State(server): State<Arc<Server>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Refused> {
    let Named { channel, id } = open(&server, path)?;
    let found = server.store.pending(channel.app(), id).await.map_err(unavailable)?;
    Ok(shown(found.ok_or_else(none)?, world::now()))
}

/// Take a message back
///
/// Nothing is told of it then. 404 as well if it may have been sent already.
#[utoipa::path(delete, path = "/wp/m/{message}", tag = TAG, operation_id = "webpush_take_back",
    params(MessagePath),
    responses(
        (status = 204, description = "It is not delivered"),
        (status = 404, description = "No such message waits, or it may have been sent", body = error::Document),
        (status = 429, description = "Over a limit", body = error::Document,
            headers(("Retry-After" = i64, description = "Seconds"))),
        (status = 503, description = "The store fails", body = error::Document,
            headers(("Retry-After" = i64, description = "Seconds"))),
        Always,
    ))]
async fn take_back(
    State(server): State<Arc<Server>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Refused> {
    let Named { channel, id } = open(&server, path)?;
    let app = channel.app();
    // The only one who may send has one place in line for all its endpoints.
    let name: AppId = channel.sender.map_or_else(|| app.clone(), |sender| sender.name());
    server.rates.app(&name, 1)?;
    let turn = server.turns.line_up(&name)?.turn().await?;
    // In a task of its own: a sender that hangs up must not leave the message held.
    let withdrawn = tokio::spawn(async move { withdraw(&server, app, Selection::Message(id), turn).await });
    let withdrawn = withdrawn.await.map_err(|_| Refused::new(Kind::Unavailable, "it could not be found out"))?;
    match withdrawn.map_err(unavailable)?.first() {
        Some(message) if message.cancelled => Ok(StatusCode::NO_CONTENT),
        Some(_) | None => Err(none()),
    }
}

/// The message in the path; what is not ours costs no look into the database.
fn open(server: &Server, path: Result<Path<String>, PathRejection>) -> Result<Named, Refused> {
    let Path(secret) = path.map_err(|_| none())?;
    tokens::open_message(&server.keys(), &secret).ok_or_else(none)
}

fn none() -> Refused {
    Refused::new(Kind::NotFound, "no such message waits here")
}

/// The message as it was sent, with the time it has left.
fn shown(push: Push, now: UnixMillis) -> Response {
    let left_s = (push.expires_ms.0 - now.0).max(0).unsigned_abs().div_ceil(1000);
    let own = [
        (TTL, left_s.to_string()),
        (LAST_MODIFIED, http_date(push.accepted_ms)),
        (CACHE_CONTROL, "no-store".to_owned()),
        // Whatever the sender says it is, no browser is to take it for a page of this server.
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox".to_owned()),
        (CONTENT_DISPOSITION, "attachment".to_owned()),
    ];
    let Some(payload) = push.payload else {
        return (own, ()).into_response();
    };
    let as_sent = [
        (CONTENT_TYPE, payload.content_type),
        (CONTENT_ENCODING, payload.content_encoding),
        (ENCRYPTION, payload.encryption),
        (CRYPTO_KEY, payload.crypto_key),
    ];
    let mut response = (own, payload.bytes.0).into_response();
    // Nothing is said of the body that its sender has not said.
    response.headers_mut().remove(CONTENT_TYPE);
    for (name, value) in as_sent {
        if let Some(Ok(value)) = value.as_deref().map(HeaderValue::from_str) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// In the form of RFC 9110, section 5.6.7.
fn http_date(at: UnixMillis) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(at.0.max(0).unsigned_abs()))
}

//! What became of a sender's messages: `GET /v1/messages/{id}`, `GET /v1/messages?requestID=...`, and
//! `DELETE /v1/messages/{id}` to take one back.
//!
//! For whoever has the app's secret, and of this region only: a message is asked for where its regId
//! belongs. The text of a message is never told.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::sender::{Sender, Stranger};
use crate::db::DbError;
use crate::proto::{AppId, MessageId, RegId, UnixMillis};
use crate::server::Server;
use crate::server::store::History;
use crate::server::store::delayed::Selection;
use crate::server::withdraw::withdraw;

/// The routes.
pub fn router() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/messages", get(search).fallback(wrong_method))
        .route("/v1/messages/{id}", get(show).delete(cancel).fallback(wrong_method))
}

/// A message and what became of it. Times are milliseconds since 1970-01-01 UTC.
#[derive(Debug, Serialize)]
struct Message {
    #[serde(rename = "messageID")]
    id: MessageId,
    #[serde(rename = "appID")]
    app: AppId,
    #[serde(rename = "regID")]
    reg_id: RegId,
    #[serde(rename = "requestID", skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    /// The last of its steps.
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    release_ms: Option<UnixMillis>,
    expires_ms: UnixMillis,
    steps: Vec<Step>,
}

/// A step of a message's life.
#[derive(Debug, Serialize)]
struct Step {
    step: String,
    at_ms: UnixMillis,
}

impl From<History> for Message {
    fn from(history: History) -> Self {
        let steps: Vec<Step> =
            history.steps.into_iter().map(|step| Step { step: step.step, at_ms: step.at_ms }).collect();
        Self {
            id: history.id,
            app: history.app,
            reg_id: history.reg_id,
            request_id: history.request_id,
            state: steps.last().map(|step| step.step.clone()).unwrap_or_default(),
            release_ms: history.release_ms,
            expires_ms: history.expires_ms,
            steps,
        }
    }
}

/// The app's messages of one request id, newest first.
#[derive(Debug, Serialize)]
struct Messages {
    messages: Vec<Message>,
}

/// What is searched for.
#[derive(Debug, Deserialize)]
struct Wanted {
    #[serde(rename = "requestID")]
    request_id: String,
}

/// Why there is no other answer.
#[derive(Debug)]
enum Refusal {
    Stranger,
    NotFound,
    NotCancelled,
    BadQuery(QueryRejection),
    Method,
    Store,
}

impl From<DbError> for Refusal {
    fn from(_: DbError) -> Self {
        Self::Store
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, error, detail) = match self {
            Self::Stranger => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "the headers appID and appSecret do not name a registered application".to_owned(),
            ),
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "the app has no such message here".to_owned()),
            Self::NotCancelled => {
                (StatusCode::CONFLICT, "not-in-queue", "it was sent to its device already, or has ended".to_owned())
            }
            Self::BadQuery(error) => (StatusCode::BAD_REQUEST, "bad-request", error.body_text()),
            Self::Method => {
                (StatusCode::METHOD_NOT_ALLOWED, "method", "the manual says what this path takes".to_owned())
            }
            Self::Store => {
                (StatusCode::SERVICE_UNAVAILABLE, "store", "the store cannot be used; try again later".to_owned())
            }
        };
        (status, Json(serde_json::json!({ "error": error, "detail": detail }))).into_response()
    }
}

async fn wrong_method() -> Refusal {
    Refusal::Method
}

async fn authenticate(server: &Server, headers: &HeaderMap) -> Result<Sender, Refusal> {
    Sender::of(server, headers).await.map_err(|stranger| match stranger {
        Stranger::Unproven | Stranger::Unknown => Refusal::Stranger,
        Stranger::Store(_) => Refusal::Store,
    })
}

async fn show(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Message>, Refusal> {
    let sender = authenticate(&server, &headers).await?;
    let id: MessageId = id.parse().map_err(|_| Refusal::NotFound)?;
    let history = server.store.message(sender.app, id).await?;
    history.map(|history| Json(history.into())).ok_or(Refusal::NotFound)
}

async fn search(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Messages>, Refusal> {
    let sender = authenticate(&server, &headers).await?;
    let Query(wanted) = wanted.map_err(Refusal::BadQuery)?;
    let found = server.store.messages(sender.app, wanted.request_id).await?;
    Ok(Json(Messages { messages: found.into_iter().map(Message::from).collect() }))
}

async fn cancel(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let sender = authenticate(&server, &headers).await?;
    let id: MessageId = id.parse().map_err(|_| Refusal::NotFound)?;
    // In a task of its own: a sender that hangs up must not leave the message held.
    let withdrawn = tokio::spawn(async move { withdraw(&server, sender.app, Selection::Message(id), |_| true).await });
    match withdrawn.await.map_err(|_| Refusal::Store)??.first() {
        None => Err(Refusal::NotFound),
        Some(message) if message.cancelled => Ok(StatusCode::NO_CONTENT),
        Some(_) => Err(Refusal::NotCancelled),
    }
}

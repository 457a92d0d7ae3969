//! What became of a sender's messages: `GET /v1/messages/{id}`, `GET /v1/messages?requestID=...`, and
//! `DELETE /v1/messages/{id}` to take one back.
//!
//! For whoever has the app's secret, and of this region only: a message is asked for where its regId
//! belongs. The text of a message is never told.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::{self, RefOr};
use utoipa::{IntoParams, IntoResponses, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::sender::{Sender, Stranger};
use crate::db::DbError;
use crate::proto::urgency::Taking;
use crate::proto::{AppId, MessageId, RegId, UnixMillis};
use crate::server::Server;
use crate::server::api::problem::{Kind, Problem};
use crate::server::api::{Always, path_name, refusals};
use crate::server::store::delayed::Selection;
use crate::server::store::{History, Waits};
use crate::server::withdraw::withdraw;
use crate::world;

/// The tag of the document.
const TAG: &str = "messages";

/// The routes.
pub fn router() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(search)).routes(routes!(show, cancel))
}

/// Answers to whoever is not the app's server, or comes at the wrong time.
struct OfSender;

/// Answers of what is about one message.
struct OfMessage;

/// The id of a message in a path.
struct MessagePath;

impl IntoResponses for OfSender {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        refusals(&[
            ("401", "appID or appSecret is missing or wrong", &[("WWW-Authenticate", "AppSecret")]),
            ("503", "The store fails; try again later", &[("Retry-After", "Seconds")]),
        ])
    }
}

impl IntoResponses for OfMessage {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        refusals(&[("404", "The app has no such message here", &[])])
    }
}

impl IntoParams for MessagePath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_name("id", "The message's id", 32, "^[0-9a-f]{32}$")]
    }
}

/// A message and what became of it. Times are milliseconds since 1970-01-01 UTC.
#[derive(Debug, Serialize, ToSchema)]
struct Message {
    #[serde(rename = "messageID")]
    #[schema(value_type = String)]
    id: MessageId,
    #[serde(rename = "appID")]
    #[schema(value_type = String)]
    app: AppId,
    #[serde(rename = "regID")]
    #[schema(value_type = String)]
    reg_id: RegId,
    #[serde(rename = "requestID", skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    /// The last of its steps; or `held: ` and why, if its device is there and does not take it now.
    state: String,
    /// Before this time it is not sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = i64)]
    release_ms: Option<UnixMillis>,
    /// From when on it is not delivered.
    #[schema(value_type = i64)]
    expires_ms: UnixMillis,
    steps: Vec<Step>,
}

/// A step of a message's life.
#[derive(Debug, Serialize, ToSchema)]
struct Step {
    step: String,
    #[schema(value_type = i64)]
    at_ms: UnixMillis,
}

impl Message {
    fn of(server: &Server, history: History) -> Self {
        let held = history.waits.and_then(|waits| held(waits, server.registry.taking(history.device)?));
        let steps: Vec<Step> =
            history.steps.into_iter().map(|step| Step { step: step.step, at_ms: step.at_ms }).collect();
        Self {
            id: history.id,
            app: history.app,
            reg_id: history.reg_id,
            request_id: history.request_id,
            state: held.or_else(|| steps.last().map(|step| step.step.clone())).unwrap_or_default(),
            release_ms: history.release_ms,
            expires_ms: history.expires_ms,
            steps,
        }
    }
}

/// Why a device that takes this is not sent what waits.
fn held(waits: Waits, taking: Taking) -> Option<String> {
    let Waits { urgency, until_ms } = waits;
    if urgency < taking.least {
        return Some(format!("held: it is {urgency}, and the device takes nothing below {}", taking.least));
    }
    let waits = taking.idle && world::now() < until_ms;
    waits.then(|| format!("held: it is {urgency}, and the device is idle"))
}

/// The app's messages of one request id, newest first.
#[derive(Debug, Serialize, ToSchema)]
struct Messages {
    messages: Vec<Message>,
}

/// What is searched for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// The sender's own name for its messages.
    #[serde(rename = "requestID")]
    request_id: String,
}

async fn authenticate(server: &Server, headers: &HeaderMap) -> Result<Sender, Problem> {
    Sender::of(server, headers).await.map_err(|stranger| match stranger {
        Stranger::Unproven | Stranger::Unknown => {
            Problem::new(Kind::UnknownSender, "the headers appID and appSecret do not name a registered application")
        }
        Stranger::Store(error) => unavailable(error),
    })
}

fn unavailable(error: DbError) -> Problem {
    Problem::new(Kind::Unavailable, error.to_string())
}

fn none() -> Problem {
    Problem::new(Kind::NotFound, "the app has no such message here")
}

/// What became of a message
#[utoipa::path(get, path = "/v1/messages/{id}", tag = TAG, security(("appID" = [], "appSecret" = [])),
    params(MessagePath),
    responses((status = 200, description = "The message", body = Message), OfMessage, OfSender, Always))]
async fn show(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Message>, Problem> {
    let sender = authenticate(&server, &headers).await?;
    let id: MessageId = id.parse().map_err(|_| none())?;
    let history = server.store.message(sender.app, id).await.map_err(unavailable)?;
    history.map(|history| Json(Message::of(&server, history))).ok_or_else(none)
}

/// What became of a request
///
/// Its messages of this region, newest first, at most 1000.
#[utoipa::path(get, path = "/v1/messages", tag = TAG, security(("appID" = [], "appSecret" = [])),
    params(Wanted),
    responses(
        (status = 200, description = "The messages; there may be none", body = Messages),
        (status = 400, description = "requestID is missing", body = Problem),
        OfSender, Always,
    ))]
async fn search(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Messages>, Problem> {
    let sender = authenticate(&server, &headers).await?;
    let Query(wanted) = wanted.map_err(|error| Problem::new(Kind::BadRequest, error.body_text()))?;
    let found = server.store.messages(sender.app, wanted.request_id).await.map_err(unavailable)?;
    Ok(Json(Messages { messages: found.into_iter().map(|history| Message::of(&server, history)).collect() }))
}

/// Take a message back
#[utoipa::path(delete, path = "/v1/messages/{id}", tag = TAG, security(("appID" = [], "appSecret" = [])),
    params(MessagePath),
    responses(
        (status = 204, description = "It is not delivered"),
        (status = 409, description = "It was sent to its device already, or has ended", body = Problem),
        (status = 429, description = "The app is over its limits", body = Problem,
            headers(("Retry-After" = i64, description = "Seconds"))),
        OfMessage, OfSender, Always,
    ))]
async fn cancel(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let sender = authenticate(&server, &headers).await?;
    let id: MessageId = id.parse().map_err(|_| none())?;
    server.rates.app(&sender.app, 1)?;
    let turn = server.turns.line_up(&sender.app)?.turn().await?;
    // In a task of its own: a sender that hangs up must not leave the message held.
    let withdrawn = tokio::spawn(async move { withdraw(&server, sender.app, Selection::Message(id), turn).await });
    let withdrawn = withdrawn.await.map_err(|_| Problem::new(Kind::Unavailable, "it could not be found out"))?;
    match withdrawn.map_err(unavailable)?.first() {
        None => Err(none()),
        Some(message) if message.cancelled => Ok(StatusCode::NO_CONTENT),
        Some(_) => Err(Problem::new(Kind::Conflict, "it was sent to its device already, or has ended")),
    }
}

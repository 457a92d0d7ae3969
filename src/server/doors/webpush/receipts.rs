//! Receipts, for the sender that has asked for them (RFC 8030, section 6.3): `GET` and `DELETE` on the URL of a
//! subscription of receipts.
//!
//! RFC 8030 has them pushed over HTTP/2, which clients do not take any more. Here they are a list, for which a
//! sender may wait (RFC 7240, section 4.3), or a stream of server-sent events. Both are told again until the
//! sender says up to which place it has them. A sender that has gone, or does not read, holds nothing up but
//! its own place.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::{self, Kind, Refused};
use super::wishes::{PREFERENCE_APPLIED, wait_s};
use super::{TAG, secret_in_path, tokens, unavailable};
use crate::proto::ReceiptsId;
use crate::server::Server;
use crate::server::api::Always;
use crate::server::store::confirmations::Confirmation;
use crate::server::waiters::Waiter;

/// The longest that a sender may wait, in seconds.
const WAIT_MAX_S: u32 = 60;
/// How often a stream that has nothing to tell says so.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long the reader of a stream may take for one event.
const PATIENCE: Duration = Duration::from_secs(30);
/// After how long a reader whose stream has ended is to come back.
const RETRY: Duration = Duration::from_secs(3);
/// The last event that a stream's reader has had.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The routes.
pub fn router() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(tell, end))
}

/// The secret part of a subscription in a path.
struct ReceiptsPath;

impl IntoParams for ReceiptsPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        secret_in_path("receipts")
    }
}

/// What became of a message.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebPushReceipt)]
struct Receipt {
    /// Its URL, as the answer to its POST had it in Location.
    message: String,
    /// 204: its device has it. 410: it will not get there.
    status: u16,
    /// When, in Unix milliseconds.
    time: i64,
}

impl From<Confirmation> for Receipt {
    fn from(found: Confirmation) -> Self {
        Self { message: found.message, status: found.status, time: found.made_ms.0 }
    }
}

/// Receipts, oldest first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebPushReceipts)]
struct Receipts {
    /// At most 100; none if there is nothing to tell.
    #[schema(max_items = 100)]
    receipts: Vec<Receipt>,
    /// For `after`, when these have been taken.
    #[schema(pattern = "^[0-9]+$")]
    next: String,
}

/// What is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// The `next` of what was taken: all up to there is forgotten.
    #[serde(default)]
    #[param(minimum = 0)]
    after: u64,
}

/// Be told what became of messages
///
/// A list, or a stream of server-sent events where `Accept` names text/event-stream. What was told is told again
/// until `after`, or the header `Last-Event-ID`, says that it was taken.
#[utoipa::path(get, path = "/wp/r/{receipts}", tag = TAG, operation_id = "webpush_receipts",
    params(
        ReceiptsPath, Wanted,
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait for N seconds, at most 60, until there is one"),
        ("Last-Event-ID" = Option<String>, Header, description = "As `after`, for a stream; another text is passed over"),
    ),
    responses(
        (status = 200, description = "What there is to tell",
            content((Receipts = "application/json"), (String = "text/event-stream")),
            headers(("Preference-Applied" = String, description = "`wait=N` where it was"))),
        (status = 400, description = "`after` is no number", body = error::Document),
        (status = 404, description = "There is no such subscription, or not any more", body = error::Document),
        (status = 503, description = "The store fails", body = error::Document,
            headers(("Retry-After" = i64, description = "Seconds"))),
        Always,
    ))]
async fn tell(
    State(server): State<Arc<Server>>,
    path: Result<Path<String>, PathRejection>,
    wanted: Result<Query<Wanted>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let link = open(&server, path)?;
    let Query(wanted) = wanted.map_err(|error| Refused::new(Kind::Header, error.body_text()))?;
    let streams = takes_events(&headers);
    let had = if streams { last_event(&headers).unwrap_or(wanted.after) } else { wanted.after };
    let after = i64::try_from(had).unwrap_or(i64::MAX);
    if after > 0 {
        server.store.confirmed(link, after).await.map_err(unavailable)?;
    }
    let mut response = match (streams, wait_s(&headers)) {
        (true, _) => open_stream(&server, link, after).await?.into_response(),
        (false, Some(wait_s)) => {
            let wait_s = wait_s.min(WAIT_MAX_S);
            let list = Json(wait(&server, link, after, wait_s).await?);
            ([(PREFERENCE_APPLIED, format!("wait={wait_s}"))], list).into_response()
        }
        (false, None) => Json(listed(read(&server, link, after).await?, after)).into_response(),
    };
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// End a subscription of receipts
///
/// What waits for it is forgotten, and of messages that name it nothing more is told.
#[utoipa::path(delete, path = "/wp/r/{receipts}", tag = TAG, operation_id = "webpush_end_receipts",
    params(ReceiptsPath),
    responses(
        (status = 204, description = "It has ended"),
        (status = 404, description = "There is none, or not any more", body = error::Document),
        (status = 503, description = "The store fails", body = error::Document,
            headers(("Retry-After" = i64, description = "Seconds"))),
        Always,
    ))]
async fn end(
    State(server): State<Arc<Server>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Refused> {
    let link = open(&server, path)?;
    let ended = server.store.end_link(link).await.map_err(unavailable)?;
    // Whoever waits finds that it has ended.
    server.waiters.wake_one(link);
    if ended { Ok(StatusCode::NO_CONTENT) } else { Err(none()) }
}

/// The subscription in the path; what is not ours costs no look into the database.
fn open(server: &Server, path: Result<Path<String>, PathRejection>) -> Result<ReceiptsId, Refused> {
    let Path(secret) = path.map_err(|_| none())?;
    tokens::open_receipts(&server.keys(), &secret).ok_or_else(none)
}

fn none() -> Refused {
    Refused::new(Kind::NotFound, "there is no such subscription of receipts here")
}

/// Whether events are among what the sender takes; `*/*` does not mean them.
fn takes_events(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    let mut kinds = lines.flat_map(|line| line.split(',')).filter_map(|range| range.split(';').next());
    kinds.any(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
}

fn last_event(headers: &HeaderMap) -> Option<u64> {
    headers.get(LAST_EVENT_ID)?.to_str().ok()?.parse().ok()
}

fn listed(found: Vec<Confirmation>, after: i64) -> Receipts {
    let next = found.last().map_or(after, |last| last.place).to_string();
    Receipts { receipts: found.into_iter().map(Receipt::from).collect(), next }
}

/// What there is to tell after this place.
async fn read(server: &Server, link: ReceiptsId, after: i64) -> Result<Vec<Confirmation>, Refused> {
    server.store.confirmations(link, after).await.map_err(unavailable)?.ok_or_else(none)
}

/// The same as soon as there is something, or nothing after so many seconds.
async fn wait(server: &Server, link: ReceiptsId, after: i64, wait_s: u32) -> Result<Receipts, Refused> {
    let until = Instant::now() + Duration::from_secs(wait_s.into());
    let mut waiter = server.waiters.enter(link);
    loop {
        let found = read(server, link, after).await?;
        let goes_on = found.is_empty() && timeout_at(until, waiter.news()).await.unwrap_or(false);
        if !goes_on {
            return Ok(listed(found, after));
        }
    }
}

/// A stream, which a task of its own feeds: its reader takes up its place only as long as it reads.
async fn open_stream(server: &Arc<Server>, link: ReceiptsId, after: i64) -> Result<impl IntoResponse + use<>, Refused> {
    let waiter = server.waiters.enter(link);
    let first = read(server, link, after).await?;
    let (out, mut events) = mpsc::channel(1);
    tokio::spawn(feed(Arc::clone(server), link, after, first, waiter, out));
    Ok(Sse::new(stream::poll_fn(move |context| events.poll_recv(context))))
}

/// Feeds a stream until its reader has gone or does not read, or the subscription or the server ends.
async fn feed(
    server: Arc<Server>,
    link: ReceiptsId,
    mut after: i64,
    mut found: Vec<Confirmation>,
    mut waiter: Waiter,
    out: mpsc::Sender<Result<Event, Infallible>>,
) {
    if !put(&out, Event::default().retry(RETRY)).await {
        return;
    }
    loop {
        // There may be more than are read together.
        let may_wait = found.is_empty();
        for one in found {
            after = one.place;
            if !put(&out, event(one)).await {
                return;
            }
        }
        if may_wait && !wait_for_news(&mut waiter, &out).await {
            return;
        }
        let Ok(more) = read(&server, link, after).await else { return };
        found = more;
    }
}

/// Waits until there may be something, keeping the connection alive; `false` if the stream is to end.
async fn wait_for_news(waiter: &mut Waiter, out: &mpsc::Sender<Result<Event, Infallible>>) -> bool {
    let news = tokio::select! {
        news = timeout(KEEP_ALIVE, waiter.news()) => news,
        () = out.closed() => return false,
    };
    match news {
        Ok(goes_on) => goes_on,
        Err(_) => put(out, Event::default().comment("")).await,
    }
}

/// Whether the reader takes the event in time.
async fn put(out: &mpsc::Sender<Result<Event, Infallible>>, event: Event) -> bool {
    matches!(timeout(PATIENCE, out.send(Ok(event))).await, Ok(Ok(())))
}

fn event(found: Confirmation) -> Event {
    let id = found.place.to_string();
    // Invariant: a receipt is an object of texts and numbers, and its JSON is one line.
    Event::default().id(id).json_data(Receipt::from(found)).expect("a receipt is JSON")
}

//! The Web Push door: `POST /wp/...`, RFC 8030, 8291 and 8292.
//!
//! An endpoint is a capability: its secret part opens with the server's key alone, and says which channel of
//! which device it is for and who may send to it. A forged one costs no database read. The body is opaque:
//! it is stored and delivered as it came. 201 means that it is on disk (or, with `TTL: 0`, that it was handed
//! over if the device is connected).
//!
//! * [`request`]: headers; [`vapid`]: who sends; [`error`]: how it refuses; [`subscribe`]: endpoints for
//!   devices that ask over HTTP.
//! * [`confirm`]: who asks to be told; [`receipts`]: telling it; [`resource`]: messages that wait;
//!   [`tokens`]: the URLs of both; [`wishes`]: the headers that these take.

pub mod confirm;
pub mod error;
pub mod receipts;
pub mod request;
pub mod resource;
pub mod subscribe;
pub mod tokens;
pub mod vapid;
pub mod wishes;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{LINK, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{self, RefOr};
use utoipa::{IntoParams, IntoResponses, PartialSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::db::DbError;
use crate::proto::channel::{SenderHash, SenderKey};
use crate::proto::message::{Door, Payload, ReceiptsTo, Reliability};
use crate::proto::urgency::Urgency;
use crate::proto::{AppId, MessageId, Push, UnixMillis};
use crate::server::Server;
use crate::server::api::{Always, Refusal, path_name, refusals_as};
use crate::server::doors::body::{Unread, read};
use crate::server::origin::Origin;
use crate::server::regid::{Endpoint, region_of};
use crate::server::store::{Accepted, Earlier, Incoming};
use crate::server::turns::InLine;
use crate::world;

use error::{Kind, Refused};
use request::Described;
use tokens::Named;
use vapid::{Shown, Verified};

/// The path of all endpoints; the secret part follows.
pub const ENDPOINTS: &str = "/wp/";
/// The tag of the document.
const TAG: &str = "web push";
/// Where the key stands in a body (RFC 8188, section 2.1): behind salt, record size and length.
const KEY_IN_BODY: std::ops::Range<usize> = 21..21 + SenderKey::LEN;

/// The door's routes.
pub fn router() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new()
        .routes(routes!(send, discover))
        .merge(subscribe::router())
        .merge(receipts::router())
        .merge(resource::router())
}

/// The answer to a path that nobody serves.
pub fn unknown_path() -> Response {
    no_endpoint().into_response()
}

/// The secret part of an endpoint in a path.
struct EndpointPath;

impl IntoParams for EndpointPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        secret_in_path("endpoint")
    }
}

/// A secret part in a path, for the document.
fn secret_in_path(of: &str) -> Vec<Parameter> {
    vec![path_name(of, &format!("The secret part of the URL of this {of}"), 256, "^[A-Za-z0-9_-]+$")]
}

/// The headers of a message.
struct MessageHeaders;

impl IntoParams for MessageHeaders {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let header = |name: &str, what: &str, pattern: &str| {
            let schema = ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)).build();
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Header)
                .description(Some(what))
                .schema(Some(schema))
                .build()
        };
        vec![
            header("TTL", "Seconds to live; needed unless the operator has set `default-ttl`", "^[0-9]+$"),
            header("Urgency", "How much it is worth waking a device for", "^(very-low|low|normal|high)$"),
            header("Topic", "A waiting message of the same topic is replaced", "^[A-Za-z0-9_-]{1,32}$"),
            header("X-Request-ID", "A message of the same id is taken once", "^[!-~]{1,128}$"),
            header("Prefer", "`respond-async`: tell what becomes of it", "^[ -~]*$"),
            header("Link", "The subscription of receipts that it is told to; a new one if absent", "^<[!-~]+>;[ -~]+$"),
        ]
    }
}

/// The refusals of this door.
struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let rows: [Refusal; 9] = [
            ("400", "A header is missing or makes no sense", &[]),
            ("401", "Only a certain sender may send to this endpoint", &[("WWW-Authenticate", "vapid")]),
            ("403", "The signature is not good, or not of the sender that may", &[]),
            ("404", "No endpoint of this server", &[("Bellwire-Region", "The region that it is of, if it is another")]),
            ("408", "The body did not arrive in time", &[("Retry-After", "Seconds")]),
            ("410", "The endpoint has ended; forget it", &[]),
            ("413", "The body is too long", &[]),
            ("429", "Over a limit", &[("Retry-After", "Seconds")]),
            ("503", "The store fails or is full", &[("Retry-After", "Seconds")]),
        ];
        refusals_as("WebPushError", &rows)
    }
}

/// The schema of the refusals' body, for the document.
pub fn error_schema() -> (String, RefOr<openapi::Schema>) {
    ("WebPushError".into(), error::Document::schema())
}

/// Send a message
///
/// Web Push: RFC 8030, 8291 and 8292; bellwire-webpush(7) says more. The body is for the app alone and is
/// delivered as it came.
#[utoipa::path(post, path = "/wp/{endpoint}", tag = TAG, operation_id = "web_push", params(EndpointPath, MessageHeaders),
    request_body(content = Vec<u8>, content_type = "application/octet-stream",
        description = "Encrypted by the rules of RFC 8291, or empty; at most 4096 bytes or what the operator has set"),
    responses(
        (status = 201, description = "On disk, or with TTL 0 handed over", headers(
            ("Location" = String, description = "The message"),
            ("TTL" = i64, description = "For how many seconds it is kept, which may be less than was asked for"),
        )),
        (status = 202, description = "The same, and it will be told what becomes of it", headers(
            ("Location" = String, description = "The message"),
            ("Link" = String, description = "The subscription of receipts, rel=\"urn:ietf:params:push:receipt\""),
            ("TTL" = i64, description = "For how many seconds it is kept, which may be less than was asked for"),
        )),
        Refusals, Always,
    ))]
async fn send(
    State(server): State<Arc<Server>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let (endpoint, origin) = open(&server, path)?;
    let sender = authenticate(&server, &endpoint, &origin, &headers)?;
    let described = Described::of(&headers, &server.config.web_push)?;
    let limit = server.config.web_push.body_bytes;
    let body = read(body, limit).await.map_err(|why| unread(why, limit))?;
    if let Some(Verified { key, .. }) = sender
        && described.is_aes128gcm()
        && body.get(KEY_IN_BODY) == Some(key.point())
    {
        let why = "the key in `k` is also that of the encryption; use one for each (RFC 8292, section 3.2)";
        return Err(Refused::new(Kind::Crypto, why));
    }
    let sender = sender.map(|sender| sender.key.hash());
    let push = make_push(&server, &endpoint, sender, &described, described.payload(body));
    // In a task of its own: a sender that hangs up must not keep what it had stored from waking the device.
    let taken = tokio::spawn(async move { take(&server, &endpoint, &origin, &headers, sender, push).await });
    let taken = taken.await.map_err(|_| Refused::new(Kind::Unavailable, "it could not be processed"))??;
    let status = if taken.link.is_some() { StatusCode::ACCEPTED } else { StatusCode::CREATED };
    let mut response = status.into_response();
    response.headers_mut().insert(request::TTL, HeaderValue::from(taken.ttl_s));
    response.headers_mut().extend(taken.link.map(|link| (LINK, link)));
    if let Ok(location) = HeaderValue::from_str(&taken.message) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// A message that was taken, for its sender.
struct Taken {
    /// Its URL.
    message: String,
    /// For how many seconds it is kept.
    ttl_s: i64,
    /// Where it is told what becomes of it, if that was asked for.
    link: Option<HeaderValue>,
}

async fn take(
    server: &Server,
    endpoint: &Endpoint,
    origin: &Origin,
    headers: &HeaderMap,
    sender: Option<SenderHash>,
    push: Push,
) -> Result<Taken, Refused> {
    let in_line = admit(server, endpoint, sender).await?;
    let waits = push.reliability == Reliability::Transport;
    // What does not wait ends before anybody could be told.
    let link = if waits { confirm::ask(server, headers).await? } else { None };
    let message = message_url(server, origin, endpoint, push.id);
    let receipts_to = link.map(|link| ReceiptsTo { link, sender, message });
    let taken = accept(server, endpoint, in_line, Push { receipts_to, ..push }).await?;
    Ok(Taken {
        message: message_url(server, origin, endpoint, taken.id),
        ttl_s: if waits { (taken.expires_ms.0 - taken.accepted_ms.0) / 1000 } else { 0 },
        link: taken.link.and_then(|link| confirm::header(origin, &server.keys(), link)),
    })
}

/// What an endpoint is
///
/// How apps find out that this is a push server (UnifiedPush).
#[utoipa::path(get, path = "/wp/{endpoint}", tag = TAG, operation_id = "web_push_discovery", params(EndpointPath),
    responses(
        (status = 200, description = "An endpoint of this server", body = Value),
        (status = 404, description = "No endpoint of this server", body = error::Document),
        Always,
    ))]
async fn discover(
    State(server): State<Arc<Server>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Refused> {
    open(&server, path)?;
    Ok(Json(json!({ "unifiedpush": { "version": 1 } })))
}

fn no_endpoint() -> Refused {
    Refused::new(Kind::NotFound, "this is no endpoint of this server")
}

fn gone(server: &Server) -> Refused {
    let kind = if server.config.web_push.strict_rfc8030 { Kind::GoneStrictly } else { Kind::Gone };
    Refused::new(kind, "the subscription of this endpoint has ended; forget the endpoint")
}

/// What the endpoint in the path says, and our own origin.
fn open(server: &Server, path: Result<Path<String>, PathRejection>) -> Result<(Endpoint, Origin), Refused> {
    let Path(text) = path.map_err(|_| no_endpoint())?;
    let origin = server.config.web_push.origin.clone();
    let endpoint = server.keys().open_endpoint(&text).zip(origin);
    endpoint.ok_or_else(|| match region_of(&text) {
        Some(region) if region != server.config.region && server.regions.knows(region) => Refused::of_region(region),
        Some(_) | None => no_endpoint(),
    })
}

/// Who sends, if the request says it; only the one who may, if there is but one.
fn authenticate(
    server: &Server,
    endpoint: &Endpoint,
    origin: &Origin,
    headers: &HeaderMap,
) -> Result<Option<Verified>, Refused> {
    let config = &server.config.web_push;
    let verify = |shown| server.verifier.verify(shown, origin, world::now());
    let verified = Shown::of(headers, config.aesgcm).map(|shown| shown.and_then(verify));
    match (endpoint.channel.sender, verified) {
        (None, None) => Ok(None),
        (None, Some(Err(_))) if config.ignore_bad_vapid => Ok(None),
        (_, Some(Err(why))) => Err(Refused::new(Kind::Forbidden, why.to_string())),
        (Some(_), None) => {
            Err(Refused::new(Kind::Unsigned, "only a certain sender may send to this endpoint: sign with VAPID"))
        }
        (Some(only), Some(Ok(verified))) if verified.key.hash() != only => {
            Err(Refused::new(Kind::Forbidden, "another sender than this may send to this endpoint"))
        }
        (Some(_) | None, Some(Ok(verified))) => Ok(Some(verified)),
    }
}

fn unread(why: Unread, limit: usize) -> Refused {
    match why {
        Unread::TooLong => Refused::new(Kind::TooLong, format!("the body is over the limit of {limit} bytes")),
        Unread::Broken => Refused::new(Kind::Body, why.to_string()),
        Unread::Late => Refused::new(Kind::Late, why.to_string()),
    }
}

fn make_push(
    server: &Server,
    endpoint: &Endpoint,
    sender: Option<SenderHash>,
    described: &Described,
    payload: Payload,
) -> Push {
    let push = channel_push(server, endpoint, Door::WebPush, described.ttl_s, payload);
    let by = sender.map_or_else(|| "-".to_owned(), String::from);
    Push {
        request_id: described.request_id.as_ref().map(|id| Push::named(&by, id)),
        urgency: described.urgency,
        collapse_key: described.topic.clone(),
        ..push
    }
}

/// A message for a channel that lives so many seconds, or as long as the operator lets it; with none it is
/// delivered now or never.
pub fn channel_push(server: &Server, endpoint: &Endpoint, door: Door, ttl_s: u32, payload: Payload) -> Push {
    let now = world::now();
    let life_s = if ttl_s == 0 { NOW_S } else { life_s(server, ttl_s) };
    Push {
        id: world::message_id(),
        reg_id: endpoint.reg_id,
        app: endpoint.channel.app(),
        door,
        payload: Some(payload),
        message: None,
        sender: None,
        request_id: None,
        session_info: None,
        kind: None,
        time_stamp: None,
        accepted_ms: now,
        expires_ms: UnixMillis(now.0 + life_s * 1000),
        reliability: if ttl_s == 0 { Reliability::NoReliable } else { Reliability::Transport },
        urgency: Urgency::default(),
        collapse_key: None,
        receipt: false,
        receipts_to: None,
        background_launch: false,
    }
}

/// Seconds for which a message that is delivered now or never may be on its way.
const NOW_S: i64 = 30;

/// The seconds that are asked for, or as many as the operator lets a message live.
fn life_s(server: &Server, ttl_s: u32) -> i64 {
    i64::from(ttl_s).min(i64::from(server.config.limits.expiry_minutes) * 60)
}

/// Stores a message that nobody has signed, once for each request id; says that it waits.
pub async fn pass_on(server: &Server, endpoint: &Endpoint, push: Push) -> Result<(), Refused> {
    let in_line = admit(server, endpoint, None).await?;
    accept(server, endpoint, in_line, push).await.map(drop)
}

/// A place in line, if the endpoint stands and its sender and its device are within their rates.
async fn admit(server: &Server, endpoint: &Endpoint, sender: Option<SenderHash>) -> Result<InLine, Refused> {
    let app = endpoint.channel.app();
    // Whoever signs has one place in line for all its endpoints.
    let name: AppId = sender.map_or_else(|| app.clone(), |sender| sender.name());
    let in_line = server.turns.line_up(&name)?;
    server.rates.app(&name, 1)?;
    // An endpoint that has ended does not use up what its device may be sent.
    if !server.store.is_registered(endpoint.to, app).await.map_err(unavailable)? {
        return Err(gone(server));
    }
    server.rates.device(endpoint.to.device)?;
    Ok(in_line)
}

/// Returns the message that was taken, which is an earlier one if it was sent before.
async fn accept(server: &Server, endpoint: &Endpoint, in_line: InLine, push: Push) -> Result<Earlier, Refused> {
    let device = endpoint.to.device;
    let taken = Earlier {
        id: push.id,
        link: push.receipts_to.as_ref().map(|to| to.link),
        accepted_ms: push.accepted_ms,
        expires_ms: push.expires_ms,
    };
    if push.reliability == Reliability::NoReliable {
        // It does not wait, and what waits of its topic is not to come after it.
        if push.collapse_key.is_some() {
            let _turn = in_line.turn().await?;
            if !server.store.make_way(endpoint.to, push.clone()).await.map_err(unavailable)? {
                return Err(gone(server));
            }
        }
        server.registry.offer(device, push);
        return Ok(taken);
    }
    let _turn = in_line.turn().await?;
    let incoming = Incoming { to: endpoint.to, release_ms: None, push };
    let fates = server.store.accept(vec![incoming]).await.map_err(unavailable)?;
    match fates.first() {
        Some(Accepted::Stored) => {
            server.registry.wake(device);
            server.accepted.notify_one();
            Ok(taken)
        }
        Some(Accepted::Repeated(earlier)) => Ok(*earlier),
        Some(Accepted::NotRegistered) => Err(gone(server)),
        Some(Accepted::TooMany | Accepted::OverQuota) | None => {
            Err(Refused::new(Kind::Unavailable, "as much waits here as may; try again later"))
        }
    }
}

/// The URL of a message for its sender.
fn message_url(server: &Server, origin: &Origin, endpoint: &Endpoint, id: MessageId) -> String {
    let message = Named { channel: endpoint.channel, id };
    tokens::message_url(origin, &server.keys(), endpoint.to.device, &message)
}

fn unavailable(error: DbError) -> Refused {
    Refused::new(Kind::Unavailable, error.to_string())
}

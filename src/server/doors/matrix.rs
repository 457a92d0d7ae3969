//! The Matrix push gateway: `POST /_matrix/push/v1/notify`, for apps whose push key is an endpoint of ours.
//!
//! Every app on Matrix looks for it at the origin of its endpoint (UnifiedPush). A push key is rejected, on
//! which the homeserver forgets it, only if it is one of ours and can never work: where something fails for
//! now the homeserver is told to come again, and what it sends twice is delivered once. Source: Matrix push
//! gateway API v1.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::{Unread, read};
use super::webpush::error::{Kind, Refused};
use super::webpush::{ENDPOINTS, channel_push, pass_on};
use crate::proto::Push;
use crate::proto::message::{Door, Payload};
use crate::proto::urgency::Urgency;
use crate::server::Server;
use crate::server::api::Always;
use crate::server::origin::Origin;
use crate::server::regid::{Endpoint, region_of};

/// Bytes of a request: an event has at most 65,536, and is sent with what is known of its room.
const BODY_MAX: usize = 128 * 1024;
/// Most devices of a request.
const DEVICES_MAX: usize = 100;
/// Seconds for which a notification is worth delivering.
const TTL_S: u32 = 24 * 3600;
/// What is left of a notification that is too long: the app asks the homeserver for the rest, as with the
/// format `event_id_only`.
const SHORT: [&str; 6] = ["event_id", "room_id", "counts", "prio", "type", "sender"];

/// The gateway's routes.
pub fn router() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(discover, notify))
}

/// What a homeserver sends.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MatrixNotify)]
struct Request {
    /// The notification: its devices, and whatever else is for the app.
    notification: Notification,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MatrixNotification)]
struct Notification {
    /// Whom it is for.
    devices: Vec<Device>,
    /// What it is about, in the words of the homeserver.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MatrixDevice)]
struct Device {
    /// The endpoint.
    pushkey: String,
}

/// What a homeserver is told.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MatrixAnswer)]
struct Answer {
    /// Push keys that it is to forget.
    rejected: Vec<String>,
}

/// A refusal in the words of Matrix.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MatrixError)]
struct Problem {
    /// A word for programs.
    errcode: &'static str,
    /// A sentence for people.
    error: String,
}

fn refuse(status: StatusCode, errcode: &'static str, error: impl Into<String>) -> Response {
    (status, Json(Problem { errcode, error: error.into() })).into_response()
}

/// Whether there is a Matrix push gateway
///
/// How apps find it (UnifiedPush).
#[utoipa::path(get, path = "/_matrix/push/v1/notify", tag = "matrix", operation_id = "matrix_discovery", responses(
    (status = 200, description = "There is", body = Value),
    Always,
))]
async fn discover() -> Json<Value> {
    Json(json!({ "unifiedpush": { "gateway": "matrix" } }))
}

/// Notify Matrix apps
///
/// The push keys are endpoints of this server.
#[utoipa::path(post, path = "/_matrix/push/v1/notify", tag = "matrix", operation_id = "matrix_notify",
    request_body(content = Request, content_type = "application/json",
        description = "As homeservers send it, at most 131072 bytes and 100 devices"),
    responses(
        (status = 200, description = "Stored for each device but those of rejected push keys", body = Answer),
        (status = 400, description = "The body makes no sense", body = Problem),
        (status = 408, description = "The body did not arrive in time", body = Problem),
        (status = 413, description = "The body is too long", body = Problem),
        (status = 429, description = "Over a limit; all of it may be sent again", body = Problem,
            headers(("Retry-After" = i64, description = "Seconds"))),
        (status = 503, description = "The store fails; all of it may be sent again", body = Problem,
            headers(("Retry-After" = i64, description = "Seconds"))),
        Always,
    ))]
async fn notify(State(server): State<Arc<Server>>, body: Body) -> Response {
    let body = match read(body, BODY_MAX).await {
        Ok(body) => body,
        Err(why @ Unread::TooLong) => return refuse(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", why.to_string()),
        Err(why @ Unread::Broken) => return refuse(StatusCode::BAD_REQUEST, "M_NOT_JSON", why.to_string()),
        Err(why @ Unread::Late) => return refuse(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", why.to_string()),
    };
    let notification = match serde_json::from_slice::<Request>(&body) {
        Ok(request) => request.notification,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, "M_BAD_JSON", error.to_string()),
    };
    if notification.devices.len() > DEVICES_MAX {
        return refuse(StatusCode::BAD_REQUEST, "M_BAD_JSON", format!("over {DEVICES_MAX} devices"));
    }
    // In a task of its own: a homeserver that hangs up must not keep what is stored from waking devices.
    match tokio::spawn(async move { pass_all_on(&server, notification).await }).await {
        Ok(Ok(rejected)) => Json(Answer { rejected }).into_response(),
        Ok(Err(refused)) => come_again(refused),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN", "it could not be processed"),
    }
}

/// Returns the push keys that are to be forgotten, or why all of it is to be sent again.
async fn pass_all_on(server: &Server, notification: Notification) -> Result<Vec<String>, Refused> {
    let Notification { devices, rest } = notification;
    let body = body(&rest, server.config.web_push.body_bytes);
    let (mut rejected, mut again) = (Vec::new(), None);
    for device in devices {
        match judge(server, &device.pushkey) {
            Key::Foreign => {}
            Key::Dead => rejected.push(device.pushkey),
            Key::Endpoint(endpoint) => match send(server, &endpoint, &rest, &body).await {
                Ok(()) => {}
                Err(refused) if refused.kind().ends() => rejected.push(device.pushkey),
                Err(refused) => again = Some(refused),
            },
        }
    }
    again.map_or(Ok(rejected), Err)
}

/// What a push key is to us.
enum Key {
    /// Not ours to judge.
    Foreign,
    /// One of ours that can never work.
    Dead,
    /// An endpoint.
    Endpoint(Box<Endpoint>),
}

fn judge(server: &Server, push_key: &str) -> Key {
    let Some(origin) = &server.config.web_push.origin else { return Key::Foreign };
    let Some(secret) = secret_of(push_key, origin) else { return Key::Foreign };
    match server.keys().open_endpoint(secret) {
        // No homeserver can sign for it.
        Some(endpoint) if endpoint.channel.sender.is_some() => Key::Dead,
        Some(endpoint) => Key::Endpoint(Box::new(endpoint)),
        None if region_of(secret).is_some_and(|region| server.regions.knows(region)) => Key::Foreign,
        None => Key::Dead,
    }
}

/// The secret part of a URL of ours.
fn secret_of<'a>(url: &'a str, ours: &Origin) -> Option<&'a str> {
    let (scheme, rest) = url.split_once("://")?;
    let (authority, path) = rest.split_at(rest.find('/')?);
    let secret = path.strip_prefix(ENDPOINTS)?;
    let origin: Origin = format!("{scheme}://{authority}").parse().ok()?;
    // Apps may keep a query of their own.
    (origin == *ours).then(|| secret.split(['?', '#']).next()).flatten()
}

/// What the app is given: all but the devices, or what has room of it.
fn body(rest: &Map<String, Value>, limit: usize) -> Vec<u8> {
    let whole = json!({ "notification": rest }).to_string();
    if whole.len() <= limit {
        return whole.into_bytes();
    }
    let short: Map<String, Value> =
        SHORT.iter().filter_map(|name| Some(((*name).to_owned(), rest.get(*name)?.clone()))).collect();
    let short = json!({ "notification": short }).to_string();
    // A homeserver whose ids alone are too long gets what every app takes for a call to look.
    if short.len() <= limit { short.into_bytes() } else { json!({ "notification": {} }).to_string().into_bytes() }
}

async fn send(server: &Server, endpoint: &Endpoint, rest: &Map<String, Value>, body: &[u8]) -> Result<(), Refused> {
    let payload = Payload { content_type: Some("application/json".into()), ..Payload::opaque(body.to_vec()) };
    let mut push = channel_push(server, endpoint, Door::Matrix, TTL_S, payload);
    // Absent means high.
    push.urgency = if rest.get("prio").and_then(Value::as_str) == Some("low") { Urgency::Low } else { Urgency::High };
    push.request_id =
        rest.get("event_id").and_then(Value::as_str).filter(|id| id.len() <= 255).map(|id| Push::named("matrix", id));
    pass_on(server, endpoint, push).await
}

/// The homeserver tries all of it again.
fn come_again(refused: Refused) -> Response {
    let (status, errcode) = match refused.kind() == Kind::TooFast {
        true => (StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN"),
    };
    let retry = refused.retry_s();
    let mut response = refuse(status, errcode, refused.message());
    if let Some(seconds) = retry {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_key_is_ours_by_its_origin_and_path() {
        let ours: Origin = "https://push.example.org".parse().unwrap();
        for url in [
            "https://push.example.org/wp/abc",
            "https://PUSH.example.org:443/wp/abc?up=1",
            "https://push.example.org/wp/abc#x",
        ] {
            assert_eq!(secret_of(url, &ours), Some("abc"), "{url}");
        }
        for url in [
            "",
            "abc",
            "https://push.example.org",
            "https://push.example.org/abc",
            "http://push.example.org/wp/abc",
            "https://push.example.org.evil.example/wp/abc",
            "https://push.example.org@evil.example/wp/abc",
            "https://matrix.gateway.unifiedpush.org/wp/abc",
        ] {
            assert_eq!(secret_of(url, &ours), None, "{url}");
        }
    }

    #[test]
    fn an_event_that_is_too_long_is_named_only() {
        let rest = json!({ "event_id": "$a", "room_id": "!b", "counts": { "unread": 2 }, "content": "x".repeat(5000) });
        let Value::Object(rest) = rest else { unreachable!() };
        assert!(body(&rest, 16 * 1024).len() > 5000);
        let short: Value = serde_json::from_slice(&body(&rest, 4096)).unwrap();
        assert_eq!(short, json!({"notification": {"event_id": "$a", "room_id": "!b", "counts": {"unread": 2}}}));
        let Value::Object(long) = json!({ "event_id": "$".repeat(5000) }) else { unreachable!() };
        assert_eq!(body(&long, 4096), br#"{"notification":{}}"#);
    }
}

//! Subscriptions for devices that ask for them over HTTP (RFC 8030, section 4; RFC 8292, section 4.1).
//!
//! A device that speaks bellwire-protocol(7) asks over its link. What is sent to a subscription of this kind
//! comes over the device's link too: there is no other way from here to a device (bellwire-webpush(7) says
//! how that departs from RFC 8030, section 6).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, LINK, LOCATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::{self, Kind, Refused};
use super::{TAG, secret_in_path, tokens, unavailable, unread};
use crate::proto::channel::SenderKey;
use crate::proto::frame::Refusal;
use crate::proto::{Channel, DeviceId, Secret};
use crate::server::Server;
use crate::server::api::Always;
use crate::server::api::admin::user_and_password;
use crate::server::doors::body::read;
use crate::server::store::Over;
use crate::world;

/// The media type of a body that restricts a subscription.
const OPTIONS: &str = "application/webpush-options+json";
/// Bytes of such a body.
const BODY_MAX: usize = 4096;

/// The routes.
pub fn router() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(subscribe)).routes(routes!(unsubscribe))
}

/// What restricts a subscription. Other members are ignored.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = WebPushOptions)]
struct Options {
    /// The public key of the only application server that may send: 65 bytes in base64url.
    #[serde(default, deserialize_with = "key")]
    vapid: Option<String>,
}

/// A key that is named is one: `null` would leave the subscription open.
fn key<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    String::deserialize(from).map(Some)
}

/// The secret part of a subscription in a path.
struct SubscriptionPath;

impl IntoParams for SubscriptionPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        secret_in_path("subscription")
    }
}

/// Subscribe
///
/// For a device, with its id and secret. What is sent to the endpoint comes over the device's link, for the
/// app whose name begins with `webpush:`.
#[utoipa::path(post, path = "/wp/subscribe", tag = TAG, operation_id = "web_push_subscribe", security(("device" = [])),
    request_body(content = Options, content_type = "application/webpush-options+json",
        description = "Optional; a body of another media type is ignored"),
    responses(
        (status = 201, description = "Subscribed", headers(
            ("Location" = String, description = "The subscription, which DELETE ends"),
            ("Link" = String, description = "The endpoint, rel=\"urn:ietf:params:push\""),
        )),
        (status = 400, description = "The body makes no sense", body = error::Document),
        (status = 401, description = "Not the id and secret of a device", body = error::Document,
            headers(("WWW-Authenticate" = String, description = "Basic"))),
        (status = 413, description = "The body is too long", body = error::Document),
        (status = 429, description = "The device has as many subscriptions as it may have", body = error::Document),
        (status = 503, description = "The store fails, or no endpoints are given out here", body = error::Document,
            headers(("Retry-After" = i64, description = "Seconds"))),
        Always,
    ))]
async fn subscribe(State(server): State<Arc<Server>>, headers: HeaderMap, body: Body) -> Result<Response, Response> {
    let device = device(&server, &headers).await?;
    subscribed(&server, device, &headers, body).await.map_err(IntoResponse::into_response)
}

async fn subscribed(server: &Server, device: DeviceId, headers: &HeaderMap, body: Body) -> Result<Response, Refused> {
    let body = read(body, BODY_MAX).await.map_err(|why| unread(why, BODY_MAX))?;
    let channel = channel(headers, &body)?;
    let issued = server.register(device, &channel.app(), Over::Http).await.map_err(unavailable)?;
    let issued = issued.map_err(|why| {
        let kind = if why == Refusal::TooMany { Kind::TooFast } else { Kind::Unavailable };
        Refused::new(kind, why.to_string())
    })?;
    // Who has an endpoint has an origin.
    let (origin, endpoint) = server
        .config
        .web_push
        .origin
        .as_ref()
        .zip(issued.endpoint)
        .ok_or_else(|| Refused::new(Kind::Unavailable, Refusal::NoWebPush.to_string()))?;
    let subscription = tokens::subscription_url(origin, &server.keys(), device, &channel);
    let link = format!("<{endpoint}>; rel=\"urn:ietf:params:push\"");
    let mut response = StatusCode::CREATED.into_response();
    for (name, value) in [(LOCATION, subscription), (LINK, link)] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

/// End a subscription
///
/// What waits for it goes, and its endpoint is answered 410 from now on.
#[utoipa::path(delete, path = "/wp/s/{subscription}", tag = TAG, operation_id = "web_push_unsubscribe",
    params(SubscriptionPath),
    responses(
        (status = 204, description = "It has ended"),
        (status = 404, description = "No subscription of this server", body = error::Document),
        (status = 503, description = "The store fails; try again later", body = error::Document,
            headers(("Retry-After" = i64, description = "Seconds"))),
        Always,
    ))]
async fn unsubscribe(
    State(server): State<Arc<Server>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Refused> {
    let named = path.ok().and_then(|Path(text)| tokens::open_subscription(&server.keys(), &text));
    let (device, channel) =
        named.ok_or_else(|| Refused::new(Kind::NotFound, "this is no subscription of this server"))?;
    server.store.deregister(device, channel.app()).await.map_err(unavailable)?;
    Ok(StatusCode::NO_CONTENT)
}

/// The device that asks.
async fn device(server: &Server, headers: &HeaderMap) -> Result<DeviceId, Response> {
    let named = user_and_password(headers)
        .and_then(|(device, secret)| Some((device.parse::<DeviceId>().ok()?, secret.parse::<Secret>().ok()?)));
    let Some((device, secret)) = named else { return Err(stranger()) };
    let known = server.store.knows(device, &secret).await.map_err(|error| unavailable(error).into_response())?;
    if !known {
        return Err(stranger());
    }
    server.rates.device(device).map_err(|over| Refused::from(over).into_response())?;
    Ok(device)
}

fn stranger() -> Response {
    let refused = Refused::new(Kind::Unsigned, "send the device's id and secret by Authorization: Basic");
    let mut response = refused.into_response();
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"bellwire\""));
    response
}

/// A new channel, as the body restricts it.
fn channel(headers: &HeaderMap, body: &[u8]) -> Result<Channel, Refused> {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_options = media_type.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case(OPTIONS));
    let options: Options = match is_options {
        // An object: a list is not to pass for one without members.
        true => serde_json::from_slice::<Map<String, Value>>(body)
            .and_then(|members| Options::deserialize(Value::Object(members)))
            .map_err(|error| Refused::new(Kind::Body, error.to_string()))?,
        false => Options::default(),
    };
    let key = options.vapid.map(|text| text.parse::<SenderKey>()).transpose();
    let key = key.map_err(|error| Refused::new(Kind::Crypto, error.to_string()))?;
    Ok(Channel { id: world::random_bytes(), sender: key.map(|key| key.hash()) })
}

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
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::{self, Kind, Refused};
use super::{TAG, unavailable, unread};
use crate::proto::channel::{SenderHash, SenderKey};
use crate::proto::frame::Refusal;
use crate::proto::{AppId, Channel, DeviceId, Secret};
use crate::server::Server;
use crate::server::api::admin::authorization;
use crate::server::api::{Always, path_name};
use crate::server::doors::body::read;
use crate::server::regid::Purpose;
use crate::server::store::DeviceCheck;
use crate::world;

/// The path of all subscriptions; the secret part follows.
const SUBSCRIPTIONS: &str = "/wp/s/";
/// The media type of a body that restricts a subscription.
const OPTIONS: &str = "application/webpush-options+json";
/// Bytes of such a body.
const BODY_MAX: usize = 4096;
/// What a device says of itself when it comes this way.
const AGENT: &str = "http";

/// The routes.
pub fn router() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(subscribe)).routes(routes!(unsubscribe))
}

/// What restricts a subscription. Other members are ignored.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = WebPushOptions)]
struct Options {
    /// The public key of the only application server that may send: 65 bytes in base64url.
    vapid: Option<String>,
}

/// The secret part of a subscription in a path.
struct SubscriptionPath;

impl utoipa::IntoParams for SubscriptionPath {
    fn into_params(
        _: impl Fn() -> Option<utoipa::openapi::path::ParameterIn>,
    ) -> Vec<utoipa::openapi::path::Parameter> {
        vec![path_name("subscription", "The secret part of the subscription", 256, "^[A-Za-z0-9_-]+$")]
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
    let body = read(body, BODY_MAX).await.map_err(|why| unread(&server, why).into_response())?;
    let channel = channel(&headers, &body).map_err(IntoResponse::into_response)?;
    let done = async {
        match server.register(device, &channel.app()).await.map_err(unavailable)? {
            Ok(issued) => Ok((issued, subscription_url(&server, device, &channel))),
            Err(why @ Refusal::TooMany) => Err(Refused::new(Kind::TooFast, why.to_string())),
            Err(why @ (Refusal::NoWebPush | Refusal::UnknownApp)) => {
                Err(Refused::new(Kind::Unavailable, why.to_string()))
            }
        }
    };
    let (issued, subscription) = done.await.map_err(IntoResponse::into_response)?;
    let link = format!("<{}>; rel=\"urn:ietf:params:push\"", issued.endpoint.unwrap_or_default());
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
    let text = path.ok().map(|Path(text)| text);
    let (device, app) = text
        .and_then(|text| opened(&server, &text))
        .ok_or_else(|| Refused::new(Kind::NotFound, "this is no subscription of this server"))?;
    server.store.deregister(device, app).await.map_err(unavailable)?;
    Ok(StatusCode::NO_CONTENT)
}

/// The device that asks.
async fn device(server: &Server, headers: &HeaderMap) -> Result<DeviceId, Response> {
    let shown = authorization(headers, "basic").and_then(|encoded| STANDARD.decode(encoded).ok());
    let text = shown.and_then(|bytes| String::from_utf8(bytes).ok());
    let named = text
        .as_deref()
        .and_then(|text| text.split_once(':'))
        .and_then(|(device, secret)| Some((device.parse::<DeviceId>().ok()?, secret.parse::<Secret>().ok()?)));
    let Some((device, secret)) = named else { return Err(stranger()) };
    let check = server.store.check_device(device, &secret, AGENT.to_owned(), false).await;
    match check.map_err(|error| unavailable(error).into_response())? {
        DeviceCheck::Known | DeviceCheck::Enrolled => Ok(device),
        DeviceCheck::WrongSecret | DeviceCheck::Refused => Err(stranger()),
    }
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
        true => serde_json::from_slice(body).map_err(|error| Refused::new(Kind::Body, error.to_string()))?,
        false => Options::default(),
    };
    let key = options.vapid.map(|text| text.parse::<SenderKey>()).transpose();
    let key = key.map_err(|error| Refused::new(Kind::Crypto, error.to_string()))?;
    Ok(Channel { id: world::random_bytes(), sender: key.map(|key| key.hash()) })
}

/// A subscription's secret part says the device and the channel.
fn subscription_url(server: &Server, device: DeviceId, channel: &Channel) -> String {
    let sender = channel.sender.map(|sender| sender.0);
    let plain = [device.as_bytes().as_slice(), &channel.id, sender.as_ref().map_or(&[], <[u8; 32]>::as_slice)];
    let keys = server.keys();
    let origin = server.config.web_push.origin.as_ref().map(ToString::to_string).unwrap_or_default();
    format!("{origin}{SUBSCRIPTIONS}{}", keys.seal(Purpose::Subscription, keys.shard(device), &plain.concat()))
}

fn opened(server: &Server, text: &str) -> Option<(DeviceId, AppId)> {
    let plain = server.keys().open_sealed(Purpose::Subscription, text)?;
    let (device, rest) = plain.split_at_checked(16)?;
    let (id, sender) = rest.split_at_checked(16)?;
    let sender = match sender {
        [] => None,
        hash => Some(SenderHash(hash.try_into().ok()?)),
    };
    Some((DeviceId::from_slice(device).ok()?, Channel { id: id.try_into().ok()?, sender }.app()))
}

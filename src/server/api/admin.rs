//! The admin API: what the command line does, for programs. Each handler parses, calls
//! [`manage`], and shows the result; none decides anything.
//!
//! Whoever has a token may do all of it, so no request passes without one.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::proto::AppId;
use crate::proto::channel::NoSenderKey;
use crate::server::Server;
use crate::server::manage::{
    self, App, Apps, Credentials, Keys, NewCallback, NewKey, NewVapidKey, Removed, Rotated, SharedSecret, Status,
    TokenName, Tokens,
};

use super::problem::{Kind, Problem};
use super::{ADMIN, Admin, Always};

/// Bytes of a request's body.
pub const BODY_MAX: usize = 16 * 1024;
/// How long a client may take to send its body.
const BODY: Duration = Duration::from_secs(10);

type Shared = State<Arc<Server>>;
type Answer<T> = Result<Json<T>, Problem>;

/// The routes.
pub fn router() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new()
        .routes(routes!(status))
        .routes(routes!(list_apps, add_app))
        .routes(routes!(show_app, remove_app))
        .routes(routes!(rotate_app))
        .routes(routes!(set_callback, remove_callback))
        .routes(routes!(set_vapid_key, remove_vapid_key))
        .routes(routes!(list_keys))
        .routes(routes!(rotate_key))
        .routes(routes!(list_tokens))
        .routes(routes!(remove_token))
}

/// Lets pass who has a token.
pub async fn authorize(State(server): Shared, request: Request, next: Next) -> Response {
    match has_token(&server, request.headers()).await {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn has_token(server: &Server, headers: &HeaderMap) -> Result<(), Problem> {
    let refuse = |detail: &str| Err(Problem::new(Kind::Unauthorized, detail));
    let Some(token) = authorization(headers, "bearer") else {
        return refuse("send Authorization: Bearer TOKEN, with a token of `bellwire-server token add`");
    };
    match server.store.check_token(token).await {
        Ok(true) => Ok(()),
        Ok(false) => refuse("the token is not good; see `bellwire-server token list`"),
        Err(error) => Err(Problem::new(Kind::Unavailable, error.to_string())),
    }
}

/// What the request shows by this scheme of HTTP authentication (RFC 9110, section 11.4).
pub fn authorization<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let given = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ');
    given.filter(|(named, _)| named.eq_ignore_ascii_case(scheme)).map(|(_, shown)| shown.trim())
}

/// The user and the password that the request shows (RFC 7617).
pub fn user_and_password(headers: &HeaderMap) -> Option<(String, String)> {
    let bytes = STANDARD.decode(authorization(headers, "basic")?).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

/// An app to be added.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewApp {
    /// Its id; 16 random hexadecimal digits if absent.
    #[serde(rename = "appID")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:@-]+$")]
    app_id: Option<AppId>,
    /// Its secret, without spaces; 160 random bits if absent.
    #[serde(rename = "appSecret")]
    #[schema(value_type = Option<String>, min_length = 16, max_length = 512, pattern = "^[!-~]+$")]
    app_secret: Option<SharedSecret>,
}

/// An app's new secret.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewSecret {
    /// Without spaces; 160 random bits if absent.
    #[serde(rename = "appSecret")]
    #[schema(value_type = Option<String>, min_length = 16, max_length = 512, pattern = "^[!-~]+$")]
    app_secret: Option<SharedSecret>,
    /// Hours for which the old one works on; `secret-grace-hours` if absent.
    #[schema(maximum = 4294967295_u64)]
    grace_hours: Option<u32>,
}

/// Where an app's receipts are to go.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WantedCallback {
    /// https://, or http:// on the server's own machine.
    url: String,
    /// What signs them, without spaces; 160 random bits if absent.
    #[schema(value_type = Option<String>, min_length = 16, max_length = 512, pattern = "^[!-~]+$")]
    key: Option<SharedSecret>,
}

/// By which VAPID key an app sends.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WantedVapidKey {
    /// The public key: the 65 bytes of an uncompressed P-256 point, in base64url.
    #[schema(min_length = 87, max_length = 87, pattern = "^B[A-P][A-Za-z0-9_-]{84}[AEIMQUYcgkosw048]$")]
    key: String,
}

/// How the server is
#[utoipa::path(get, path = "/v1/admin/status", tag = ADMIN, security(("token" = [])), responses(
    (status = 200, description = "How it is", body = Status),
    Admin, Always,
))]
async fn status(State(server): Shared) -> Answer<Status> {
    Ok(Json(manage::status(&server).await?))
}

/// The apps
#[utoipa::path(get, path = "/v1/admin/apps", tag = ADMIN, security(("token" = [])), responses(
    (status = 200, description = "All apps, by id", body = Apps),
    Admin, Always,
))]
async fn list_apps(State(server): Shared) -> Answer<Apps> {
    Ok(Json(manage::apps(&server.store).await?))
}

/// Add an app
///
/// The secret is in the answer and is not shown again.
#[utoipa::path(post, path = "/v1/admin/apps", tag = ADMIN, security(("token" = [])),
    request_body(content = Option<NewApp>, description = "At most 16384 bytes; may be absent"),
    responses(
        (status = 201, description = "It was added", body = Credentials,
            headers(("Location" = String, description = "The path of the app"))),
        (status = 409, description = "There is an app of that id", body = Problem),
        super::WithBody, Admin, Always,
    ))]
async fn add_app(State(server): Shared, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let wanted: NewApp = read(&headers, body).await?;
    let made = manage::add_app(&server.store, wanted.app_id, wanted.app_secret).await?;
    // Invariant of an app id: nothing in it has to be escaped in a path.
    let location = [(LOCATION, format!("/v1/admin/apps/{}", made.app_id))];
    Ok((StatusCode::CREATED, location, Json(made)).into_response())
}

/// One app
#[utoipa::path(get, path = "/v1/admin/apps/{id}", tag = ADMIN, security(("token" = [])), params(super::AppPath),
    responses(
        (status = 200, description = "The app", body = App),
        super::OfOne, Admin, Always,
    ))]
async fn show_app(State(server): Shared, id: Result<Path<String>, PathRejection>) -> Answer<App> {
    Ok(Json(manage::app(&server.store, parse(id)?).await?))
}

/// Remove an app
///
/// Ends its registrations and drops what waits for it. Its devices are told, those that are
/// connected at once.
#[utoipa::path(delete, path = "/v1/admin/apps/{id}", tag = ADMIN, security(("token" = [])), params(super::AppPath),
    responses(
        (status = 200, description = "It was removed", body = Removed),
        super::OfOne, Admin, Always,
    ))]
async fn remove_app(State(server): Shared, id: Result<Path<String>, PathRejection>) -> Answer<Removed> {
    let (removed, devices) = manage::remove_app(&server.store, parse(id)?).await?;
    devices.into_iter().for_each(|device| server.registry.revoke(device));
    Ok(Json(removed))
}

/// Give an app another secret
///
/// The old one works on for a grace; the new one is in the answer and is not shown again.
#[utoipa::path(post, path = "/v1/admin/apps/{id}/rotate", tag = ADMIN, security(("token" = [])),
    params(super::AppPath),
    request_body(content = Option<NewSecret>, description = "At most 16384 bytes; may be absent"),
    responses(
        (status = 200, description = "It has another secret", body = Rotated),
        super::OfOne, super::WithBody, Admin, Always,
    ))]
async fn rotate_app(
    State(server): Shared,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Rotated> {
    let id = parse(id)?;
    let wanted: NewSecret = read(&headers, body).await?;
    let grace = wanted.grace_hours.unwrap_or(server.config.limits.secret_grace_hours);
    Ok(Json(manage::rotate_app(&server.store, id, wanted.app_secret, grace).await?))
}

/// Say where an app's receipts go
///
/// The key that signs them is in the answer and is not shown again.
#[utoipa::path(put, path = "/v1/admin/apps/{id}/callback", tag = ADMIN, security(("token" = [])),
    params(super::AppPath),
    request_body(content = WantedCallback, description = "At most 16384 bytes"),
    responses(
        (status = 200, description = "They go there from now on", body = NewCallback),
        super::OfOne, super::WithBody, Admin, Always,
    ))]
async fn set_callback(
    State(server): Shared,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Answer<NewCallback> {
    let id = parse(id)?;
    let wanted: WantedCallback = read_some(&headers, body).await?;
    Ok(Json(manage::set_callback(&server.config, &server.store, id, wanted.url, wanted.key).await?))
}

/// Let an app's receipts go nowhere
///
/// Those that wait are dropped.
#[utoipa::path(delete, path = "/v1/admin/apps/{id}/callback", tag = ADMIN, security(("token" = [])),
    params(super::AppPath),
    responses(
        (status = 200, description = "It was removed", body = Removed),
        super::OfOne, Admin, Always,
    ))]
async fn remove_callback(State(server): Shared, id: Result<Path<String>, PathRejection>) -> Answer<Removed> {
    Ok(Json(manage::remove_callback(&server.store, parse(id)?).await?))
}

/// Say by which VAPID key an app sends Web Push messages
///
/// Its callback is told of those too, if the sender asks to be told.
#[utoipa::path(put, path = "/v1/admin/apps/{id}/vapid-key", tag = ADMIN, security(("token" = [])),
    params(super::AppPath),
    request_body(content = WantedVapidKey, description = "At most 16384 bytes"),
    responses(
        (status = 200, description = "It goes by this key from now on", body = NewVapidKey),
        (status = 409, description = "Another app goes by it", body = Problem),
        super::OfOne, super::WithBody, Admin, Always,
    ))]
async fn set_vapid_key(
    State(server): Shared,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Answer<NewVapidKey> {
    let id = parse(id)?;
    let wanted: WantedVapidKey = read_some(&headers, body).await?;
    let key = wanted.key.parse().map_err(|error: NoSenderKey| Problem::new(Kind::BadRequest, error.to_string()))?;
    Ok(Json(manage::set_vapid_key(&server.store, id, key).await?))
}

/// Let an app go by no VAPID key
#[utoipa::path(delete, path = "/v1/admin/apps/{id}/vapid-key", tag = ADMIN, security(("token" = [])),
    params(super::AppPath),
    responses(
        (status = 200, description = "It was removed", body = Removed),
        super::OfOne, Admin, Always,
    ))]
async fn remove_vapid_key(State(server): Shared, id: Result<Path<String>, PathRejection>) -> Answer<Removed> {
    Ok(Json(manage::remove_vapid_key(&server.store, parse(id)?).await?))
}

/// The keys that seal regIds
#[utoipa::path(get, path = "/v1/admin/keys", tag = ADMIN, security(("token" = [])), responses(
    (status = 200, description = "All keys, newest first", body = Keys),
    Admin, Always,
))]
async fn list_keys(State(server): Shared) -> Answer<Keys> {
    Ok(Json(manage::keys(&server.store).await?))
}

/// Make a new key
///
/// It seals regIds issued from now on; those issued before stay good.
#[utoipa::path(post, path = "/v1/admin/keys/rotate", tag = ADMIN, security(("token" = [])), responses(
    (status = 200, description = "The number of the new key", body = NewKey),
    Admin, Always,
))]
async fn rotate_key(State(server): Shared) -> Answer<NewKey> {
    Ok(Json(manage::rotate_key(&server.store).await?))
}

/// The tokens of this API
///
/// Their names; what they are is not kept. `bellwire-server token add` makes one.
#[utoipa::path(get, path = "/v1/admin/tokens", tag = ADMIN, security(("token" = [])), responses(
    (status = 200, description = "All tokens, by name", body = Tokens),
    Admin, Always,
))]
async fn list_tokens(State(server): Shared) -> Answer<Tokens> {
    Ok(Json(manage::tokens(&server.store).await?))
}

/// Remove a token
///
/// It is refused from then on, also if it is the one of this request.
#[utoipa::path(delete, path = "/v1/admin/tokens/{name}", tag = ADMIN, security(("token" = [])),
    params(super::TokenPath),
    responses(
        (status = 200, description = "It was removed", body = Removed),
        super::OfOne, Admin, Always,
    ))]
async fn remove_token(State(server): Shared, name: Result<Path<String>, PathRejection>) -> Answer<Removed> {
    let name: TokenName = parse(name)?;
    Ok(Json(manage::remove_token(&server.store, name).await?))
}

/// The name in a path.
fn parse<T>(given: Result<Path<String>, PathRejection>) -> Result<T, Problem>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let bad = |detail: String| Problem::new(Kind::BadRequest, detail);
    let Path(text) = given.map_err(|error| bad(error.body_text()))?;
    text.parse().map_err(|error: T::Err| bad(error.to_string()))
}

/// What a body asks for; nothing, if there is none.
async fn read<T: DeserializeOwned + Default>(headers: &HeaderMap, body: Body) -> Result<T, Problem> {
    read_object(headers, body).await?.map_or_else(|| Ok(T::default()), understand)
}

/// What a body asks for that has to be there.
pub async fn read_some<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, Problem> {
    read_object(headers, body).await.and_then(|object| understand(object.unwrap_or_default()))
}

fn understand<T: DeserializeOwned>(object: Map<String, Value>) -> Result<T, Problem> {
    serde_json::from_value(Value::Object(object)).map_err(wrong)
}

fn wrong(error: serde_json::Error) -> Problem {
    Problem::new(Kind::BadRequest, format!("the body is not what is expected: {error}"))
}

/// By way of an object: of itself serde would take a list of the members as well.
async fn read_object(headers: &HeaderMap, body: Body) -> Result<Option<Map<String, Value>>, Problem> {
    let body = match tokio::time::timeout(BODY, to_bytes(body, BODY_MAX)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return Err(unread(&error)),
        Err(_) => return Err(Problem::new(Kind::BadRequest, "the body did not arrive in time")),
    };
    if body.is_empty() {
        return Ok(None);
    }
    if !is_json(headers) {
        return Err(Problem::new(Kind::UnsupportedMediaType, "the body has to be application/json"));
    }
    serde_json::from_slice(&body).map_err(wrong)
}

fn unread(error: &axum::Error) -> Problem {
    let too_long = std::error::Error::source(error).is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>());
    match too_long {
        true => Problem::new(Kind::TooLarge, format!("the body is over the limit of {BODY_MAX} bytes")),
        false => Problem::new(Kind::BadRequest, "the body broke off or is badly chunked"),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let named = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    named.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

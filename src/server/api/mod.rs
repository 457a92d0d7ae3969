//! Everything that is served over HTTP: the sender APIs, health, metrics, the admin API, and the
//! OpenAPI document that the handlers write of themselves.
//!
//! To add a path, put `#[utoipa::path(...)]` on its handler and name it in the `routes!` of a room:
//! it is served, counted and documented then. Nothing is served that the document does not have but
//! the answers to paths that nobody serves.

pub mod admin;
#[cfg(feature = "mqtt")]
pub mod broker;
pub mod health;
pub mod problem;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{self, Content, Header, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Required};
use utoipa::{IntoParams, IntoResponses, PartialSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Server;
use super::config::Access;
use super::doors::{matrix, messages, tizen, webpush};
use super::metrics::{self, Verdicts};
use problem::{Kind, Problem};

/// The tags of the document.
const HEALTH: &str = "health";
const ADMIN: &str = "admin";
#[cfg(feature = "mqtt")]
const BROKER: &str = "broker";

type Api = OpenApiRouter<Arc<Server>>;

/// The services of the listeners: that of application servers, and that of operators if it is
/// another one.
pub fn routers(server: &Arc<Server>) -> (Router, Option<Router>) {
    match server.config.admin.listen {
        None => (serve(public().merge(operators(server)).merge(common()), server), None),
        Some(_) => (serve(public().merge(common()), server), Some(serve(operators(server).merge(common()), server))),
    }
}

/// What application servers need.
fn public() -> Api {
    tizen::router().merge(messages::router()).merge(webpush::router()).merge(matrix::router())
}

/// What operators and their programs need, behind a token.
fn operators(server: &Arc<Server>) -> Api {
    let guard = || from_fn_with_state(Arc::clone(server), admin::authorize);
    let metrics = match server.config.admin.metrics {
        Access::Token => scraping().route_layer(guard()),
        Access::Open => scraping(),
    };
    admin::router().route_layer(guard()).merge(metrics).merge(brokers(server))
}

/// What brokers ask, behind the password that they share with the server.
#[cfg(feature = "mqtt")]
fn brokers(server: &Arc<Server>) -> Api {
    broker::router().route_layer(from_fn_with_state(Arc::clone(server), broker::authorize))
}

#[cfg(not(feature = "mqtt"))]
fn brokers(_: &Arc<Server>) -> Api {
    OpenApiRouter::new()
}

/// What is on every listener.
fn common() -> Api {
    OpenApiRouter::new().routes(routes!(health::healthz)).routes(routes!(health::readyz)).routes(routes!(openapi_json))
}

fn scraping() -> Api {
    OpenApiRouter::new().routes(routes!(scrape))
}

fn serve(api: Api, server: &Arc<Server>) -> Router {
    let (router, _) = api.split_for_parts();
    router
        .method_not_allowed_fallback(problem::other_method)
        .fallback(unknown_path)
        .layer(from_fn_with_state(Arc::clone(server), count))
        .with_state(Arc::clone(server))
}

/// Senders that got the path wrong are answered in the words of the Tizen guide, which they expect.
async fn unknown_path(uri: Uri) -> Response {
    match uri.path() {
        path if path.starts_with("/v1/") => problem::nothing_here(),
        path if path.starts_with(webpush::ENDPOINTS) => webpush::unknown_path(),
        _ => tizen::unknown_path().await,
    }
}

/// Counts the request and what its door answered.
async fn count(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let (begun, path) = (Instant::now(), request.extensions().get::<MatchedPath>().cloned());
    let response = next.run(request).await;
    // A route with a slash at its end is the same as without.
    let path = path.as_ref().map(|path| path.as_str().trim_end_matches('/'));
    server.metrics.request(path, response.status().as_u16(), begun.elapsed());
    if let Some(verdicts) = response.extensions().get::<Verdicts>() {
        server.metrics.verdicts(verdicts);
    }
    response
}

/// Metrics
///
/// In the OpenMetrics text format; bellwire-server-api(7) lists them. Needs a token unless
/// `[admin] metrics = "open"` is set.
#[utoipa::path(get, path = "/metrics", tag = HEALTH, security(("token" = [])), responses(
    (status = 200, description = "All metrics", body = String,
        content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    Admin, Always,
))]
async fn scrape(State(server): State<Arc<Server>>) -> Result<Response, Problem> {
    let text = metrics::scrape(&server).await.map_err(|error| Problem::new(Kind::Unavailable, error.to_string()))?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = HEALTH, responses(
    (status = 200, description = "OpenAPI 3.1", body = serde_json::Value, content_type = "application/json"),
    Always,
))]
async fn openapi_json() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(document_text);
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], TEXT.as_str()).into_response()
}

/// The OpenAPI document as JSON.
pub fn document_text() -> String {
    // Invariant: its maps have strings as keys and its values are plain, which JSON can hold.
    document().to_pretty_json().expect("an OpenAPI document is JSON")
}

/// The OpenAPI document of everything that is served, wherever it is.
pub fn document() -> OpenApi {
    let info = InfoBuilder::new()
        .title("bellwire-server")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Push for devices: sender APIs, health, metrics and administration."))
        .license(Some(openapi::License::new("MIT OR Apache-2.0")));
    let base = OpenApiBuilder::new().info(info).build();
    let all =
        OpenApiRouter::with_openapi(base).merge(public()).merge(common()).merge(scraping()).merge(admin::router());
    #[cfg(feature = "mqtt")]
    let all = all.merge(broker::router());
    let mut document = all.into_openapi();
    let components = document.components.get_or_insert_default();
    components.schemas.insert("Problem".into(), Problem::schema());
    components.schemas.insert("Kind".into(), Kind::schema());
    components.schemas.extend([webpush::error_schema()]);
    let header =
        |name: &str, what: &str| SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(name, what)));
    components.add_security_scheme("appID", header("appID", "The app's id"));
    components.add_security_scheme("appSecret", header("appSecret", "The app's secret"));
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
    let token = token.description(Some("A token of `bellwire-server token add`")).build();
    components.add_security_scheme("token", SecurityScheme::Http(token));
    let basic = HttpBuilder::new().scheme(HttpAuthScheme::Basic);
    let basic = basic.description(Some("`[mqtt] user` and `password`")).build();
    components.add_security_scheme("broker", SecurityScheme::Http(basic));
    let basic = HttpBuilder::new().scheme(HttpAuthScheme::Basic);
    let basic = basic.description(Some("A device's id and secret")).build();
    components.add_security_scheme("device", SecurityScheme::Http(basic));
    document
}

/// The paths of the document.
pub fn paths() -> Vec<String> {
    document().paths.paths.into_keys().collect()
}

/// Answers that every path gives.
pub struct Always;

/// Answers of what needs a token.
struct Admin;

/// Answers of what a broker asks.
#[cfg(feature = "mqtt")]
struct Broker;

#[cfg(feature = "mqtt")]
impl IntoResponses for Broker {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        refusals(&[("401", "Not the user and password of the broker", &[("WWW-Authenticate", "Basic")])])
    }
}

/// Answers of what is about one thing of a name.
struct OfOne;

/// Answers of what takes a body.
struct WithBody;

impl IntoResponses for Always {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        refusals(&[("405", "Another method than those of this path", &[("Allow", "The methods of this path")])])
    }
}

impl IntoResponses for Admin {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        refusals(&[
            ("401", "No token, or one that is not good", &[("WWW-Authenticate", "Bearer")]),
            ("503", "The store fails; try again later", &[("Retry-After", "Seconds")]),
        ])
    }
}

impl IntoResponses for OfOne {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        refusals(&[
            ("400", "What the path or body says makes no sense", &[]),
            ("404", "There is none of that name", &[]),
        ])
    }
}

impl IntoResponses for WithBody {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        refusals(&[
            ("400", "What the path or body says makes no sense", &[]),
            ("413", "The body is too long", &[]),
            ("415", "The body is not said to be application/json", &[]),
        ])
    }
}

/// A status, what it means, and the headers that come with it.
pub type Refusal = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// The refusals of a document, each with a problem for a body.
pub fn refusals(all: &[Refusal]) -> BTreeMap<String, RefOr<openapi::Response>> {
    refusals_as("Problem", all)
}

/// The refusals of a document, each with a body of this schema.
pub fn refusals_as(schema: &str, all: &[Refusal]) -> BTreeMap<String, RefOr<openapi::Response>> {
    let response = |(_, what, headers): &Refusal| {
        let body = Content::new(Some(Ref::from_schema_name(schema)));
        let base = ResponseBuilder::new().description(*what).content("application/json", body);
        let all = headers.iter().fold(base, |response, (name, what)| response.header(*name, text_header(what)));
        RefOr::T(all.build())
    };
    all.iter().map(|refusal| (refusal.0.to_owned(), response(refusal))).collect()
}

fn text_header(what: &str) -> Header {
    let schema = ObjectBuilder::new().schema_type(Type::String).build();
    openapi::HeaderBuilder::new().schema(Some(schema)).description(Some(what)).build()
}

/// The id of an app in a path.
struct AppPath;

/// The name of a token in a path.
struct TokenPath;

impl IntoParams for AppPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_name("id", "The app's id", 128, "^[A-Za-z0-9._:@-]+$")]
    }
}

impl IntoParams for TokenPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_name("name", "The token's name", 64, "^[A-Za-z0-9._-]+$")]
    }
}

/// A name in a path.
pub fn path_name(name: &str, what: &str, longest: usize, pattern: &str) -> Parameter {
    let schema = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(longest));
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(what))
        .schema(Some(schema.pattern(Some(pattern))))
        .build()
}

//! What brokers ask: who may connect, and who may use a topic. Each asks in its own form; the answer is the same
//! for all. An answer that is no `allow` has to be a refusal in the broker's own words: some let in whom an error
//! is about.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::link::mqtt::topics::Access;
use crate::server::broker::rights;
use crate::server::{Server, same_secret};

use super::admin::{read_some, user_and_password};
use super::problem::{Kind, Problem};
use super::{Always, BROKER, WithBody};

type Shared = State<Arc<Server>>;

/// The routes.
pub fn router() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new()
        .routes(routes!(emqx_authenticate))
        .routes(routes!(emqx_authorize))
        .routes(routes!(rmqtt_authenticate))
        .routes(routes!(rmqtt_authorize))
        .routes(routes!(vernemq))
}

/// Lets pass the broker, which knows `[mqtt] user` and `password`.
pub async fn authorize(State(server): Shared, request: Request, next: Next) -> Response {
    if is_broker(&server, request.headers()) {
        return next.run(request).await;
    }
    let refusal = Problem::new(Kind::Unauthorized, "send `[mqtt] user` and `password` by Authorization: Basic");
    let mut response = refusal.into_response();
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"bellwire\""));
    response
}

fn is_broker(server: &Server, headers: &HeaderMap) -> bool {
    let config = &server.config.mqtt;
    let own = config.password.as_deref();
    user_and_password(headers)
        .is_some_and(|(user, given)| user == config.user && own.is_some_and(|own| same_secret(own, &given)))
}

/// Who wants to connect.
#[derive(Debug, Deserialize, ToSchema)]
struct Visitor {
    /// The client id.
    #[serde(default)]
    clientid: Option<String>,
    /// The user name.
    username: String,
    /// The password.
    password: String,
}

/// What a client wants of a topic.
#[derive(Debug, Deserialize, ToSchema)]
struct Wanted {
    /// The user name.
    username: String,
    /// The topic, or the filter of a subscription.
    topic: String,
    /// What it wants to do there.
    action: Action,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Action {
    /// To write; RMQTT's `2`.
    #[serde(alias = "2")]
    Publish,
    /// To read; RMQTT's `1`.
    #[serde(alias = "1")]
    Subscribe,
}

impl Action {
    fn access(self) -> Access {
        match self {
            Self::Publish => Access::Write,
            Self::Subscribe => Access::Read,
        }
    }
}

/// Yes or no, as EMQX reads it.
#[derive(Debug, Serialize, ToSchema)]
struct Verdict {
    /// `allow` or `deny`.
    result: &'static str,
}

impl Verdict {
    fn of(yes: bool) -> Self {
        Self { result: word(yes) }
    }
}

fn word(yes: bool) -> &'static str {
    if yes { "allow" } else { "deny" }
}

/// EMQX: may this client connect?
///
/// For an authenticator of the mechanism Password-Based with the backend HTTP Server.
#[utoipa::path(post, path = "/v1/mqtt/emqx/authenticate", tag = BROKER, security(("broker" = [])),
    request_body(content = Visitor, description = "At most 16384 bytes"),
    responses((status = 200, description = "Yes or no", body = Verdict), WithBody, super::Broker, Always))]
async fn emqx_authenticate(State(server): Shared, headers: HeaderMap, body: Body) -> Result<Json<Verdict>, Problem> {
    let visitor: Visitor = read_some(&headers, body).await?;
    Ok(Json(Verdict::of(admits(&server, &visitor).await)))
}

/// EMQX: may this client use that topic?
///
/// For an authorizer of the type HTTP Server.
#[utoipa::path(post, path = "/v1/mqtt/emqx/authorize", tag = BROKER, security(("broker" = [])),
    request_body(content = Wanted, description = "At most 16384 bytes"),
    responses((status = 200, description = "Yes or no", body = Verdict), WithBody, super::Broker, Always))]
async fn emqx_authorize(State(server): Shared, headers: HeaderMap, body: Body) -> Result<Json<Verdict>, Problem> {
    let wanted: Wanted = read_some(&headers, body).await?;
    Ok(Json(Verdict::of(allows(&server, &wanted))))
}

/// RMQTT: may this client connect?
///
/// For `http_auth_req` of rmqtt-auth-http.
#[utoipa::path(post, path = "/v1/mqtt/rmqtt/authenticate", tag = BROKER, security(("broker" = [])),
    request_body(content = Visitor, description = "At most 16384 bytes"),
    responses((status = 200, description = "`allow` or `deny`", body = String, content_type = "text/plain"),
        WithBody, super::Broker, Always))]
async fn rmqtt_authenticate(State(server): Shared, headers: HeaderMap, body: Body) -> Result<&'static str, Problem> {
    let visitor: Visitor = read_some(&headers, body).await?;
    Ok(word(admits(&server, &visitor).await))
}

/// RMQTT: may this client use that topic?
///
/// For `http_acl_req` of rmqtt-auth-http.
#[utoipa::path(post, path = "/v1/mqtt/rmqtt/authorize", tag = BROKER, security(("broker" = [])),
    request_body(content = Wanted, description = "At most 16384 bytes"),
    responses((status = 200, description = "`allow` or `deny`", body = String, content_type = "text/plain"),
        WithBody, super::Broker, Always))]
async fn rmqtt_authorize(State(server): Shared, headers: HeaderMap, body: Body) -> Result<&'static str, Problem> {
    let wanted: Wanted = read_some(&headers, body).await?;
    Ok(word(allows(&server, &wanted)))
}

/// What VerneMQ tells of a client; which of it, is a matter of the hook.
#[derive(Debug, Deserialize, ToSchema)]
struct Hooked {
    /// The client id.
    client_id: String,
    /// The user name.
    #[serde(default)]
    username: Option<String>,
    /// The password, of who connects.
    #[serde(default)]
    password: Option<String>,
    /// The topic, of what is published.
    #[serde(default)]
    topic: Option<String>,
    /// The filters, of who subscribes.
    #[serde(default)]
    topics: Vec<Filter>,
}

/// A filter of a subscription.
#[derive(Debug, Deserialize, ToSchema)]
struct Filter {
    /// The filter itself.
    topic: String,
}

/// Yes or no, as VerneMQ reads it.
#[derive(Debug, Serialize, ToSchema)]
struct HookVerdict {
    /// `ok`, or an object with the error `not_allowed`.
    #[schema(value_type = Value)]
    result: Value,
}

/// VerneMQ: a webhook
///
/// For the hooks auth_on_register, auth_on_publish and auth_on_subscribe, and those of the same names with _m5.
#[utoipa::path(post, path = "/v1/mqtt/vernemq", tag = BROKER, security(("broker" = [])),
    params(("vernemq-hook" = Option<String>, Header, description = "The name of the hook")),
    request_body(content = Hooked, description = "At most 16384 bytes; set `no_payload` for what is published"),
    responses((status = 200, description = "Yes or no", body = HookVerdict), WithBody, super::Broker, Always))]
async fn vernemq(State(server): Shared, headers: HeaderMap, body: Body) -> Result<Json<HookVerdict>, Problem> {
    let hooked: Hooked = read_some(&headers, body).await?;
    let hook = headers.get("vernemq-hook").and_then(|hook| hook.to_str().ok()).unwrap_or_default();
    let user = hooked.username.as_deref().unwrap_or_default();
    let yes = match hook.trim_end_matches("_m5") {
        "auth_on_register" => {
            let password = hooked.password.as_deref().unwrap_or_default();
            rights::admits(&server, Some(&hooked.client_id), user, password).await
        }
        "auth_on_publish" => {
            hooked.topic.as_deref().is_some_and(|topic| rights::allows(&server, user, topic, Access::Write))
        }
        "auth_on_subscribe" => {
            let may = |filter: &Filter| rights::allows(&server, user, &filter.topic, Access::Read);
            !hooked.topics.is_empty() && hooked.topics.iter().all(may)
        }
        _ => return Err(Problem::new(Kind::BadRequest, "vernemq-hook names none of the hooks that are answered here")),
    };
    let result = if yes { json!("ok") } else { json!({ "error": "not_allowed" }) };
    Ok(Json(HookVerdict { result }))
}

async fn admits(server: &Server, visitor: &Visitor) -> bool {
    rights::admits(server, visitor.clientid.as_deref(), &visitor.username, &visitor.password).await
}

fn allows(server: &Server, wanted: &Wanted) -> bool {
    rights::allows(server, &wanted.username, &wanted.topic, wanted.action.access())
}

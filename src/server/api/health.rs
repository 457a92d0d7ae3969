//! What load balancers and supervisors ask: does the process answer, and is it worth sending it
//! anything. Neither answer may be a constant, and asking must cost next to nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::server::Server;
use crate::server::store::vitals::{LastWrite, STUCK};

/// How long a write may take that is made to see whether any can be.
const TRIAL: Duration = Duration::from_secs(2);

/// That the process answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// Always true: a process that is not alive says nothing.
    alive: bool,
}

/// Whether the server is worth sending to.
#[derive(Debug, Serialize, ToSchema)]
pub struct Readiness {
    /// Whether it is.
    ready: bool,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// Whether the process answers
///
/// For a supervisor that starts what does not. Says nothing about the store.
#[utoipa::path(get, path = "/healthz", tag = super::HEALTH, responses(
    (status = 200, description = "The process answers", body = Health),
    super::Always,
))]
pub async fn healthz() -> Json<Health> {
    Json(Health { alive: true })
}

/// Whether the server can take messages
///
/// For a load balancer. Ready means that the last write reached the disk and that the server is not
/// stopping. After a failure, and before the first write, a small row is written to see.
#[utoipa::path(get, path = "/readyz", tag = super::HEALTH, responses(
    (status = 200, description = "Ready", body = Readiness),
    (status = 503, description = "Not ready, with the reason", body = Readiness),
    super::Always,
))]
pub async fn readyz(State(server): State<Arc<Server>>) -> Response {
    let reason = why_not(&server).await;
    let status = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready: reason.is_none(), reason })).into_response()
}

async fn why_not(server: &Server) -> Option<String> {
    if server.is_stopping() {
        return Some("the server is stopping".into());
    }
    match server.store.vitals().last_write() {
        LastWrite::Good => None,
        LastWrite::Stuck => Some(format!("the store has been writing for more than {} s", STUCK.as_secs())),
        LastWrite::None | LastWrite::Failed => match tokio::time::timeout(TRIAL, server.store.try_write()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("the store has not written anything within {} s", TRIAL.as_secs())),
        },
    }
}

//! The Web Push door: RFC 8030, 8291 and 8292.

pub mod confirm;
mod headers;
mod receipts;
mod resource;
pub mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::{self, RefOr};
use utoipa::{IntoParams, IntoResponses};
use utoipa_axum::router::OpenApiRouter;

use crate::db::DbError;
use crate::server::Server;
use crate::server::api::problem::{Kind, Problem};
use crate::server::api::{path_name, refusals};

/// The path of all endpoints; the secret part follows.
pub const ENDPOINTS: &str = "/wp/";
/// The tag of the document.
const TAG: &str = "webpush";

/// The routes.
pub fn router() -> OpenApiRouter<Arc<Server>> {
    receipts::router().merge(resource::router())
}

/// The secret part of a URL.
struct SecretPath;

/// Answers of what only a URL of this server's names.
struct OfSecret;

/// Answers of what needs the store.
struct Failing;

impl IntoParams for SecretPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_name("secret", "What this server has sealed", 256, "^[A-Za-z0-9_-]+$")]
    }
}

impl IntoResponses for OfSecret {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        refusals(&[("404", "There is nothing of that name here, or not any more", &[])])
    }
}

impl IntoResponses for Failing {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        refusals(&[("503", "The store fails; try again later", &[("Retry-After", "Seconds")])])
    }
}

fn unavailable(error: DbError) -> Problem {
    Problem::new(Kind::Unavailable, error.to_string())
}

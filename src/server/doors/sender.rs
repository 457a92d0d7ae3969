//! Who is sending: the headers `appID` and `appSecret`, as every part of the API that application
//! servers use takes them.

use axum::http::HeaderMap;

use crate::db::DbError;
use crate::proto::AppId;
use crate::server::Server;
use crate::server::store::AppCheck;

/// Marks a request that another region passed on, which is not passed on again.
pub const FORWARDED: &str = "bellwire-forwarded";

/// An authenticated application server.
pub struct Sender {
    /// Its app.
    pub app: AppId,
    /// What proved it.
    pub secret: String,
    /// Another region passed this on.
    pub forwarded: bool,
}

/// Why a sender is refused.
#[derive(Debug)]
pub enum Stranger {
    /// No id or no secret, or the secret is wrong.
    Unproven,
    /// The operator has not added the app.
    Unknown,
    /// The store failed.
    Store(DbError),
}

impl Sender {
    /// Checks the headers.
    pub async fn of(server: &Server, headers: &HeaderMap) -> Result<Self, Stranger> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty());
        let (Some(app), Some(secret)) = (text("appid"), text("appsecret")) else { return Err(Stranger::Unproven) };
        let app: AppId = app.parse().map_err(|_| Stranger::Unknown)?;
        match server.store.check_app(app.clone(), secret).await.map_err(Stranger::Store)? {
            AppCheck::Known => Ok(Self { app, secret: secret.to_owned(), forwarded: headers.contains_key(FORWARDED) }),
            AppCheck::Unknown => Err(Stranger::Unknown),
            AppCheck::WrongSecret => Err(Stranger::Unproven),
        }
    }

    /// The headers with which another region is asked on its behalf.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        vec![("appID", self.app.to_string()), ("appSecret", self.secret.clone()), (FORWARDED, "1".to_owned())]
    }
}

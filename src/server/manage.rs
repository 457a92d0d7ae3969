//! What an operator may do: one implementation of each action, for the command line and for the
//! admin API. Both only parse what they are given and show what comes back.
//!
//! An action works on the store, so that it works beside a running server as well as in it. A
//! secret or token leaves here once, when it is made; the store keeps a hash.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::DbError;
use crate::proto::channel::SenderKey;
use crate::proto::{AppId, Channel, DeviceId, Region, UnixMillis};
use crate::world;

use super::Server;
use super::config::ServerConfig;
use super::store::receipts::Callback;
use super::store::senders::KeySet;
use super::store::tokens::{TOKENS_MAX, TokenAdded};
use super::store::{AppRow, Store};

/// The shortest secret that an operator may choose, in characters.
const SECRET_MIN: usize = 16;
/// The longest: it travels in a header.
const SECRET_MAX: usize = 512;

/// Why an action was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Tell the operator: there is nothing of that name.
    #[error("there is no {0}")]
    Missing(String),
    /// Tell the operator: the name is taken, or there are too many.
    #[error("{0}")]
    Conflict(String),
    /// Tell the operator: what is asked for is not safe.
    #[error("{0}")]
    Unwise(String),
    /// Try again later.
    #[error(transparent)]
    Store(#[from] DbError),
}

impl Refused {
    fn no_app(id: &AppId) -> Self {
        Self::Missing(format!("app {id}; see `app list`"))
    }
}

/// A secret that the server shares with an application's server or an operator's program, chosen or
/// made. An answer tells it; nothing else shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct SharedSecret(String);

/// Why a text is no secret. The text itself is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret has {SECRET_MIN} to {SECRET_MAX} printable ASCII characters without spaces")]
pub struct SharedSecretError;

impl SharedSecret {
    /// 160 random bits in the form that Tizen's have.
    pub fn random() -> Self {
        Self(STANDARD.encode(world::random_bytes::<20>()))
    }

    /// Its text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SharedSecret {
    type Error = SharedSecretError;

    fn try_from(text: String) -> Result<Self, SharedSecretError> {
        let length = SECRET_MIN..=SECRET_MAX;
        match length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Self(text)),
            false => Err(SharedSecretError),
        }
    }
}

/// Shows nothing of it.
impl fmt::Debug for SharedSecret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("SharedSecret(..)")
    }
}

/// The name of a token: 1 to 64 of the characters `A-Z a-z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenName(String);

/// Why a text is no [`TokenName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token's name has 1 to 64 of the characters A-Z a-z 0-9 . _ -")]
pub struct TokenNameError;

impl TokenName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn random() -> Self {
        Self(hex::encode(world::random_bytes::<4>()))
    }
}

impl FromStr for TokenName {
    type Err = TokenNameError;

    fn from_str(text: &str) -> Result<Self, TokenNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        match (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            true => Ok(Self(text.to_owned())),
            false => Err(TokenNameError),
        }
    }
}

/// What an application server needs. The secret is not shown again.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Credentials {
    /// The app's id.
    #[serde(rename = "appID")]
    #[schema(value_type = String)]
    pub app_id: AppId,
    /// Its secret.
    #[serde(rename = "appSecret")]
    #[schema(value_type = String)]
    pub app_secret: SharedSecret,
}

/// An app's new secret. It is not shown again.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Rotated {
    /// The app's id.
    #[serde(rename = "appID")]
    #[schema(value_type = String)]
    pub app_id: AppId,
    /// Its secret.
    #[serde(rename = "appSecret")]
    #[schema(value_type = String)]
    pub app_secret: SharedSecret,
    /// Until when the old secret works, in Unix milliseconds; null if it does not.
    #[schema(value_type = Option<i64>)]
    pub old_secret_until_ms: Option<UnixMillis>,
}

/// Where an app's receipts go. The key is not shown again.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NewCallback {
    /// The app's id.
    #[serde(rename = "appID")]
    #[schema(value_type = String)]
    pub app_id: AppId,
    /// The URL.
    pub callback: String,
    /// What signs the receipts.
    #[schema(value_type = String)]
    pub key: SharedSecret,
}

/// Whose Web Push messages are told in an app's callback.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NewVapidKey {
    /// The app's id.
    #[serde(rename = "appID")]
    #[schema(value_type = String)]
    pub app_id: AppId,
    /// The key, in base64url.
    pub vapid_key: String,
}

/// An app that may be sent to.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct App {
    /// Its id.
    #[serde(rename = "appID")]
    #[schema(value_type = String)]
    pub app_id: AppId,
    /// The devices on which it is registered.
    #[schema(minimum = 0)]
    pub registrations: i64,
    /// When it was added, in Unix milliseconds.
    #[schema(value_type = i64)]
    pub created_ms: UnixMillis,
    /// Until when the secret before the present one works, in Unix milliseconds; null if it does not.
    #[schema(value_type = Option<i64>)]
    pub old_secret_until_ms: Option<UnixMillis>,
    /// Where its receipts go; null if nowhere.
    pub callback: Option<String>,
    /// The VAPID key by which it sends Web Push messages, in base64url; null if none is known.
    pub vapid_key: Option<String>,
}

impl From<AppRow> for App {
    fn from(row: AppRow) -> Self {
        Self {
            app_id: row.app,
            registrations: row.registrations,
            created_ms: row.created_ms,
            old_secret_until_ms: row.old_secret_until,
            callback: row.callback,
            vapid_key: row.vapid_key.map(|point| URL_SAFE_NO_PAD.encode(point)),
        }
    }
}

/// All apps, by id.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Apps {
    /// The apps.
    pub apps: Vec<App>,
}

/// A key that seals regIds.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Key {
    /// Higher is newer.
    pub number: i64,
    /// When it was made, in Unix milliseconds.
    #[schema(value_type = i64)]
    pub created_ms: UnixMillis,
    /// Whether it seals; the others only open what they have sealed.
    pub in_use: bool,
}

/// All keys, newest first.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Keys {
    /// The keys.
    pub keys: Vec<Key>,
}

/// A key that was made.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct NewKey {
    /// Its number.
    pub number: i64,
}

/// A token of an operator's program.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Token {
    /// Its name.
    #[schema(value_type = String)]
    pub name: TokenName,
    /// When it was made, in Unix milliseconds.
    #[schema(value_type = i64)]
    pub created_ms: UnixMillis,
}

/// All tokens, by name.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Tokens {
    /// The tokens.
    pub tokens: Vec<Token>,
}

/// A token that was made. It is not shown again.
#[derive(Clone, Debug, Serialize)]
pub struct NewToken {
    /// Its name.
    pub name: TokenName,
    /// The token.
    pub token: SharedSecret,
}

/// What was removed.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Removed {
    /// Its id or name.
    pub removed: String,
}

/// How a running server is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Status {
    /// Of the program.
    #[schema(value_type = String)]
    pub version: &'static str,
    /// Of the regIds issued here: two hexadecimal digits.
    #[schema(value_type = String)]
    pub region: Region,
    /// Devices with a session at this process.
    #[schema(minimum = 0)]
    pub devices_connected: usize,
    /// Messages that wait in the store.
    #[schema(minimum = 0)]
    pub messages_waiting: i64,
    /// Seconds since the start.
    #[schema(minimum = 0)]
    pub uptime_s: u64,
}

/// Adds an app, with an id and a secret of the operator's or with random ones.
pub async fn add_app(store: &Store, id: Option<AppId>, secret: Option<SharedSecret>) -> Result<Credentials, Refused> {
    let (id, secret) = (id.unwrap_or_else(random_app_id), secret.unwrap_or_else(SharedSecret::random));
    if Channel::is_reserved(&id) {
        return Err(Refused::Conflict(format!("{id} would be the name of a Web Push channel: choose another")));
    }
    match store.add_app(id.clone(), &secret.0).await? {
        true => Ok(Credentials { app_id: id, app_secret: secret }),
        false => Err(Refused::Conflict(format!("there is an app {id} already; see `app list`"))),
    }
}

/// Gives an app another secret; the old one works on for so many hours.
pub async fn rotate_app(
    store: &Store,
    id: AppId,
    secret: Option<SharedSecret>,
    grace_hours: u32,
) -> Result<Rotated, Refused> {
    let secret = secret.unwrap_or_else(SharedSecret::random);
    let until = world::now().plus_minutes(grace_hours.saturating_mul(60));
    let old_secret_until_ms = (grace_hours > 0).then_some(until);
    match store.set_app_secret(id.clone(), &secret.0, until).await? {
        true => Ok(Rotated { app_id: id, app_secret: secret, old_secret_until_ms }),
        false => Err(Refused::no_app(&id)),
    }
}

/// Says where an app's receipts go, and what signs them.
pub async fn set_callback(
    config: &ServerConfig,
    store: &Store,
    id: AppId,
    url: String,
    key: Option<SharedSecret>,
) -> Result<NewCallback, Refused> {
    config
        .check_url("the callback", "regIds and request ids", &url)
        .map_err(|error| Refused::Unwise(error.to_string()))?;
    let key = key.unwrap_or_else(SharedSecret::random);
    let callback = Callback { url: url.clone(), key: key.0.clone().into_bytes() };
    match store.set_callback(id.clone(), Some(callback)).await? {
        true => Ok(NewCallback { app_id: id, callback: url, key }),
        false => Err(Refused::no_app(&id)),
    }
}

/// An app's receipts go nowhere any more; those that wait are dropped.
pub async fn remove_callback(store: &Store, id: AppId) -> Result<Removed, Refused> {
    match store.set_callback(id.clone(), None).await? {
        true => Ok(Removed { removed: format!("callback of {id}") }),
        false => Err(Refused::no_app(&id)),
    }
}

/// Says by which VAPID key an app sends Web Push messages.
pub async fn set_vapid_key(store: &Store, id: AppId, key: SenderKey) -> Result<NewVapidKey, Refused> {
    change_vapid_key(store, &id, Some(key)).await?;
    Ok(NewVapidKey { app_id: id, vapid_key: URL_SAFE_NO_PAD.encode(key.point()) })
}

/// An app goes by no VAPID key any more.
pub async fn remove_vapid_key(store: &Store, id: AppId) -> Result<Removed, Refused> {
    change_vapid_key(store, &id, None).await?;
    Ok(Removed { removed: format!("VAPID key of {id}") })
}

async fn change_vapid_key(store: &Store, id: &AppId, key: Option<SenderKey>) -> Result<(), Refused> {
    match store.set_vapid_key(id.clone(), key).await? {
        KeySet::Done => Ok(()),
        KeySet::NoApp => Err(Refused::no_app(id)),
        KeySet::Taken(other) => {
            Err(Refused::Conflict(format!("this is the VAPID key of {other}; remove it there first")))
        }
    }
}

/// Removes an app, ends its registrations and drops what waits for it. Returns the devices whose
/// sessions are to be told.
pub async fn remove_app(store: &Store, id: AppId) -> Result<(Removed, Vec<DeviceId>), Refused> {
    match store.remove_app(id.clone()).await? {
        Some(devices) => Ok((Removed { removed: id.to_string() }, devices)),
        None => Err(Refused::no_app(&id)),
    }
}

/// All apps.
pub async fn apps(store: &Store) -> Result<Apps, Refused> {
    Ok(Apps { apps: store.list_apps().await?.into_iter().map(App::from).collect() })
}

/// One app.
pub async fn app(store: &Store, id: AppId) -> Result<App, Refused> {
    store.app(id.clone()).await?.map(App::from).ok_or_else(|| Refused::no_app(&id))
}

/// Makes a new key for regIds issued from now on.
pub async fn rotate_key(store: &Store) -> Result<NewKey, Refused> {
    Ok(NewKey { number: store.rotate_key().await? })
}

/// All keys.
pub async fn keys(store: &Store) -> Result<Keys, Refused> {
    let rows = store.list_keys().await?.into_iter().enumerate();
    let key = |(place, row): (usize, super::store::KeyRow)| Key {
        number: row.number,
        created_ms: row.created_ms,
        in_use: place == 0,
    };
    Ok(Keys { keys: rows.map(key).collect() })
}

/// Makes a token of 256 random bits.
pub async fn add_token(store: &Store, name: Option<TokenName>) -> Result<NewToken, Refused> {
    let name = name.unwrap_or_else(TokenName::random);
    let token = SharedSecret(hex::encode(world::random_bytes::<32>()));
    match store.add_token(name.clone(), &token.0).await? {
        TokenAdded::Added => Ok(NewToken { name, token }),
        TokenAdded::Taken => {
            Err(Refused::Conflict(format!("there is a token {} already; see `token list`", name.as_str())))
        }
        TokenAdded::TooMany => {
            Err(Refused::Conflict(format!("there are {TOKENS_MAX} tokens, which is the most; remove one first")))
        }
    }
}

/// All tokens, without what they are.
pub async fn tokens(store: &Store) -> Result<Tokens, Refused> {
    let rows = store.list_tokens().await?.into_iter();
    Ok(Tokens { tokens: rows.map(|row| Token { name: row.name, created_ms: row.created_ms }).collect() })
}

/// Removes a token; it is refused from then on.
pub async fn remove_token(store: &Store, name: TokenName) -> Result<Removed, Refused> {
    match store.remove_token(name.clone()).await? {
        true => Ok(Removed { removed: name.0 }),
        false => Err(Refused::Missing(format!("token {}; see `token list`", name.0))),
    }
}

/// How the server is.
pub async fn status(server: &Server) -> Result<Status, Refused> {
    Ok(Status {
        version: env!("CARGO_PKG_VERSION"),
        region: server.config.region,
        devices_connected: server.registry.count(),
        messages_waiting: server.store.waiting().await?,
        uptime_s: server.clock.now().0 / 1000,
    })
}

fn random_app_id() -> AppId {
    // Invariant: hexadecimal digits are what an id may have.
    hex::encode(world::random_bytes::<8>()).parse().expect("hexadecimal digits are an app id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_long_printable_and_not_shown() {
        let secret = |text: &str| SharedSecret::try_from(text.to_owned());
        assert!(secret("0123456789abcdef").is_ok() && secret(&"x".repeat(SECRET_MAX)).is_ok());
        for wrong in ["", "0123456789abcde", "0123456789 abcdef", "0123456789äbcdef", &"x".repeat(SECRET_MAX + 1)] {
            assert_eq!(secret(wrong), Err(SharedSecretError), "{wrong}");
        }
        assert!(!format!("{:?}", secret("0123456789abcdef")).contains("0123"));
    }

    #[test]
    fn a_token_s_name_is_short_and_plain() {
        let name = |text: &str| text.parse::<TokenName>();
        assert!(name("ci-1.prod_A").is_ok() && name(&"x".repeat(64)).is_ok());
        for wrong in ["", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert_eq!(name(wrong), Err(TokenNameError), "{wrong}");
        }
    }
}

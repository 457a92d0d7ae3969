//! What can go wrong for a caller on D-Bus: `org.bellwire.Error.*`, each with a sentence.

use zbus::DBusError;

use crate::db::DbError;

/// An error answer. The text says what to do.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.bellwire.Error")]
pub enum Error {
    /// The bus failed.
    #[zbus(error)]
    Bus(zbus::Error),
    /// The app id is none.
    InvalidAppId(String),
    /// The caller has not connected the app.
    NotConnected(String),
    /// The app belongs to somebody else.
    PermissionDenied(String),
    /// The user has switched it off for this app.
    Disabled(String),
    /// There is no such app on this device.
    UnknownApp(String),
    /// No alert of that message is shown.
    NoAlert(String),
    /// A setting has another name or type.
    InvalidSetting(String),
    /// The app has no regId.
    NotRegistered(String),
    /// The server refused the registration.
    Refused(String),
    /// The server has not answered yet; the request stands.
    Timeout(String),
    /// There are too many apps.
    TooMany(String),
    /// The device cannot store.
    StoreFailed(String),
}

impl From<DbError> for Error {
    fn from(error: DbError) -> Self {
        Self::StoreFailed(error.to_string())
    }
}

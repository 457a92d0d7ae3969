//! The agent's D-Bus interfaces as the tool calls them.

use std::collections::HashMap;

use zbus::connection::Builder;
use zbus::object_server::Interface;
use zbus::{Connection, ObjectPath, OwnedVariant, Variant, proxy};

use crate::daemon::{Exit, Fatal};

/// What apps call.
#[proxy(interface = "org.bellwire.Push1", default_service = "org.bellwire.Push", default_path = "/org/bellwire/Push")]
pub trait Push {
    /// Connects an app.
    fn connect(
        &self,
        app: &str,
        path: &ObjectPath<'_>,
        options: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<(String, String)>;
    /// Registers it.
    fn register(&self, app: &str) -> zbus::Result<String>;
    /// Ends its registration.
    fn deregister(&self, app: &str) -> zbus::Result<()>;
    /// The app's badge.
    fn get_badge(&self, app: &str) -> zbus::Result<u32>;
    /// Sets it.
    fn set_badge(&self, app: &str, count: u32) -> zbus::Result<()>;
    /// Tells the connected app about its registration.
    #[zbus(signal)]
    fn registration_changed(&self, app: &str, state: &str, reg_id: &str, reason: &str) -> zbus::Result<()>;
}

/// What status programs call.
#[proxy(
    interface = "org.bellwire.Manager1",
    default_service = "org.bellwire.Push",
    default_path = "/org/bellwire/Push"
)]
pub trait Manager {
    /// Where the connection stands.
    #[zbus(allow_interactive_auth)]
    fn get_status(&self) -> zbus::Result<HashMap<String, OwnedVariant>>;
    /// The apps.
    #[zbus(allow_interactive_auth)]
    fn list_apps(&self) -> zbus::Result<Vec<HashMap<String, OwnedVariant>>>;
    /// Changes what the user allows an app.
    #[zbus(allow_interactive_auth)]
    fn set_app(&self, app: &str, settings: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;
    /// Forgets an app.
    #[zbus(allow_interactive_auth)]
    fn forget_app(&self, app: &str) -> zbus::Result<()>;
    /// Whether the user wants to be left alone.
    #[zbus(allow_interactive_auth)]
    fn set_do_not_disturb(&self, on: bool) -> zbus::Result<()>;
    /// The newest messages.
    #[zbus(allow_interactive_auth)]
    fn list_messages(&self, most: u32) -> zbus::Result<Vec<HashMap<String, OwnedVariant>>>;
    /// Skips the wait.
    #[zbus(allow_interactive_auth)]
    fn try_now(&self) -> zbus::Result<()>;
}

/// A bus by its name or address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusName {
    /// The session's.
    Session,
    /// The machine's.
    System,
    /// Any other.
    Address(String),
}

impl std::str::FromStr for BusName {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "session" => Self::Session,
            "system" => Self::System,
            address => Self::Address(address.to_owned()),
        })
    }
}

/// Connects to a bus.
pub async fn open(bus: &BusName) -> Result<Connection, Fatal> {
    connect(builder(bus)).await
}

/// Connects to a bus with an object on it, which is there before anybody can call it.
pub async fn open_with(bus: &BusName, path: ObjectPath<'static>, object: impl Interface) -> Result<Connection, Fatal> {
    connect(builder(bus).serve_at(path, object)).await
}

fn builder(bus: &BusName) -> Builder<'_> {
    match bus {
        BusName::Session => Builder::session(),
        BusName::System => Builder::system(),
        BusName::Address(address) => Builder::address(address.as_str()),
    }
}

async fn connect(builder: Builder<'_>) -> Result<Connection, Fatal> {
    builder.build().await.map_err(|error| {
        Fatal::new(
            Exit::Unavailable,
            format!(
                "no D-Bus connection ({error}); name a bus with --bus, or start the session's with `dbus-run-session`"
            ),
        )
    })
}

/// A bus error as the tool ends with it.
pub fn fatal(error: zbus::Error) -> Fatal {
    use zbus::fdo::Error as Standard;
    if let zbus::Error::FDO(standard) = &error {
        if matches!(**standard, Standard::ServiceUnknown(_) | Standard::NameHasNoOwner(_)) {
            return Fatal::new(
                Exit::Unavailable,
                "bellwired does not run on this bus; start it, or name another bus with --bus",
            );
        }
        if let Standard::AccessDenied(why) = &**standard {
            return Fatal::new(Exit::NoPerm, format!("the bus does not allow it: {why}"));
        }
    }
    let zbus::Error::MethodError(name, text, _) = &error else {
        return Fatal::new(Exit::Unavailable, format!("the agent cannot be reached: {error}"));
    };
    let text = text.as_deref().unwrap_or("no reason was given");
    match name.as_str() {
        "org.bellwire.Error.PermissionDenied" => Fatal::new(Exit::NoPerm, text),
        "org.bellwire.Error.InvalidAppId" | "org.bellwire.Error.InvalidSetting" => Fatal::new(Exit::DataErr, text),
        "org.bellwire.Error.Timeout" => Fatal::new(Exit::Unavailable, text),
        name if name.starts_with("org.bellwire.Error.") => Fatal::new(Exit::Failure, text),
        name => Fatal::new(Exit::Unavailable, format!("{name}: {text}")),
    }
}

/// A dictionary of the agent's as JSON. What JSON has no form for becomes text.
pub fn to_json(members: &HashMap<String, OwnedVariant>) -> serde_json::Map<String, serde_json::Value> {
    members.iter().map(|(name, value)| (name.clone(), value_to_json(value))).collect()
}

fn value_to_json(value: &Variant<'_>) -> serde_json::Value {
    use base64::Engine as _;
    match value {
        Variant::Str(text) => text.as_str().into(),
        Variant::Bool(flag) => (*flag).into(),
        Variant::U32(number) => (*number).into(),
        Variant::I64(number) => (*number).into(),
        Variant::U64(number) => (*number).into(),
        Variant::Array(array) if array.element_signature() == &zbus::Signature::U8 => {
            let bytes: Vec<u8> = array.iter().filter_map(|item| u8::try_from(item).ok()).collect();
            serde_json::json!({ "base64": base64::engine::general_purpose::STANDARD.encode(bytes) })
        }
        Variant::Array(array) => array.iter().map(value_to_json).collect(),
        Variant::Variant(inner) => value_to_json(inner),
        Variant::Dict(members) => members
            .iter()
            .filter_map(|(name, value)| Some((String::try_from(name).ok()?, value_to_json(value))))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other @ (Variant::U8(_)
        | Variant::I16(_)
        | Variant::U16(_)
        | Variant::I32(_)
        | Variant::F64(_)
        | Variant::Signature(_)
        | Variant::ObjectPath(_)
        | Variant::Structure(_)
        | Variant::Fd(_)) => other.to_string().into(),
    }
}

//! Calls to connectors: `org.unifiedpush.Connector1` and `Connector2` of an app.
//!
//! Each call says how the app answered; how long it may take is the caller's to say. An app that does
//! not run is started before it is called, and then called by the unique name that it has by then: no
//! call waits at the bus beyond the expiry of what is in it, and none starts the app by itself.

use std::collections::HashMap;

use serde::Serialize;
use zbus::fdo::DBusProxy;
use zbus::names::{BusName, OwnedUniqueName};
use zbus::{DynamicType, Variant};

use super::owner::owner;
use super::patience::Answer;
use crate::agent::effects::START;
use crate::agent::store::Unread;
use crate::agent::store::channels::{Farewell, Registration, Version};

/// Where connectors export their object.
pub const CONNECTOR_PATH: &str = "/org/unifiedpush/Connector";
/// Where a connector of Flutter did.
const ROOT: &str = "/";

/// An app that speaks UnifiedPush.
pub struct Connector<'a> {
    /// The bus.
    pub bus: &'a zbus::Connection,
    /// The registration that it is to be called about.
    pub registration: &'a Registration,
}

impl Connector<'_> {
    /// Sees to it that the app runs.
    pub async fn reach(&self) -> Result<Reached, Answer> {
        if let Some(owner) = self.owner().await? {
            return Ok(self.reached(owner));
        }
        if !self.registration.launch {
            return Err(Answer::Kept);
        }
        let BusName::WellKnown(name) = self.registration.service.inner() else { return Err(Answer::Absent) };
        let dbus = DBusProxy::new(self.bus).await.map_err(not_started)?;
        match tokio::time::timeout(START, dbus.start_service_by_name(name.clone(), 0)).await {
            Ok(Ok(_)) => self.owner().await?.map(|owner| self.reached(owner)).ok_or(Answer::Died),
            Ok(Err(error)) => Err(not_started(error.into())),
            Err(_) => Err(Answer::NotStarted("the bus does not say whether it started it".into())),
        }
    }

    async fn owner(&self) -> Result<Option<OwnedUniqueName>, Answer> {
        owner(self.bus, &self.registration.service).await.map_err(not_started)
    }

    fn reached(&self, owner: OwnedUniqueName) -> Reached {
        Reached { bus: self.bus.clone(), owner, registration: self.registration.clone() }
    }
}

/// An app that runs.
#[derive(Clone)]
pub struct Reached {
    bus: zbus::Connection,
    /// Its unique name.
    pub owner: OwnedUniqueName,
    registration: Registration,
}

impl Reached {
    /// Hands it a message, whatever its bytes are.
    pub async fn message(self, unread: Unread) -> Answer {
        let (token, id) = (self.registration.token.as_str(), unread.push.id.to_string());
        let message = unread.push.payload.as_ref().map(|payload| payload.bytes.0.as_slice()).unwrap_or_default();
        match self.registration.version {
            Version::V1 => self.call("Message", &(token, message, id)).await,
            Version::V2 => {
                let arguments = HashMap::from([
                    ("token", Variant::from(token)),
                    ("message", Variant::from(message)),
                    ("id", Variant::from(id)),
                ]);
                self.call("Message", &arguments).await
            }
        }
    }

    /// Tells it where application servers send to it.
    pub async fn new_endpoint(self, endpoint: String) -> Answer {
        let endpoint = endpoint.as_str();
        let token = self.registration.token.as_str();
        match self.registration.version {
            Version::V1 => self.call("NewEndpoint", &(token, endpoint)).await,
            Version::V2 => {
                let arguments = HashMap::from([("token", Variant::from(token)), ("endpoint", Variant::from(endpoint))]);
                self.call("NewEndpoint", &arguments).await
            }
        }
    }

    /// Tells it that its registration has ended. The older interface tells what the app asked for
    /// itself by an empty token.
    pub async fn unregistered(self, farewell: Farewell) -> Answer {
        let token = self.registration.token.as_str();
        match self.registration.version {
            Version::V1 => {
                let token = if farewell == Farewell::Asked { "" } else { token };
                self.call("Unregistered", &token).await
            }
            Version::V2 => self.call("Unregistered", &HashMap::from([("token", Variant::from(token))])).await,
        }
    }

    async fn call(&self, method: &str, arguments: &(impl Serialize + DynamicType)) -> Answer {
        let answered = self.call_at(CONNECTOR_PATH, method, arguments).await;
        if !matches!(answered, Answer::NotReady(_)) {
            return answered;
        }
        let at_root = self.call_at(ROOT, method, arguments).await;
        if matches!(at_root, Answer::NotReady(_)) { answered } else { at_root }
    }

    async fn call_at(&self, path: &str, method: &str, arguments: &(impl Serialize + DynamicType)) -> Answer {
        let interface = match self.registration.version {
            Version::V1 => "org.unifiedpush.Connector1",
            Version::V2 => "org.unifiedpush.Connector2",
        };
        let app = self.owner.inner();
        let answered = self.bus.call_method(Some(app), path, Some(interface), method, arguments).await;
        answered.map_or_else(|error| judge(error, Answer::of_error), |_| Answer::Taken)
    }
}

fn not_started(error: zbus::Error) -> Answer {
    judge(error, Answer::of_start)
}

// The enum is another crate's: all but one of its variants are one case to us.
#[allow(clippy::wildcard_enum_match_arm)]
fn judge(error: zbus::Error, meaning: impl Fn(&str, &str) -> Answer) -> Answer {
    match error {
        zbus::Error::MethodError(name, text, _) => meaning(name.as_str(), text.as_deref().unwrap_or("")),
        zbus::Error::FDO(error) => {
            let name = zbus::DBusError::name(&*error);
            meaning(name.as_str(), zbus::DBusError::description(&*error).unwrap_or(""))
        }
        // The bus is lost, and the daemon is ending.
        _ => Answer::Died,
    }
}

//! Calls to connectors: `org.unifiedpush.Connector1` and `Connector2` of an app.
//!
//! Each call is bounded, and says how the app answered. An app that does not run is started before it
//! is called, so that no call waits at the bus beyond the expiry of what is in it.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use zbus::fdo::DBusProxy;
use zbus::names::BusName;
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
    pub bus: zbus::Connection,
    /// The registration that the calls are about.
    pub registration: &'a Registration,
    /// How long it may take to answer.
    pub answer: Duration,
}

impl Connector<'_> {
    /// Sees to it that the app runs; returns its unique name.
    pub async fn reach(&self) -> Result<String, Answer> {
        if let Some(owner) = self.owner().await? {
            return Ok(owner);
        }
        if !self.registration.launch {
            return Err(Answer::Kept);
        }
        let BusName::WellKnown(name) = self.registration.service.inner() else { return Err(Answer::Absent) };
        let dbus = DBusProxy::new(&self.bus).await.map_err(|error| answer(Err(error)))?;
        match tokio::time::timeout(START, dbus.start_service_by_name(name.clone(), 0)).await {
            Ok(Ok(_)) => self.owner().await?.ok_or(Answer::Died),
            Ok(Err(error)) => Err(answer(Err(error.into()))),
            Err(_) => Err(Answer::NotStarted("the bus does not say whether it started it".into())),
        }
    }

    async fn owner(&self) -> Result<Option<String>, Answer> {
        owner(&self.bus, &self.registration.service).await.map_err(|error| answer(Err(error)))
    }

    /// Hands it a message, whatever its bytes are.
    pub async fn message(&self, unread: &Unread) -> Answer {
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
    pub async fn new_endpoint(&self, endpoint: &str) -> Answer {
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
    pub async fn unregistered(&self, farewell: Farewell) -> Answer {
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
        let service = self.registration.service.inner();
        let call = self.bus.call_method(Some(service), path, Some(interface), method, arguments);
        match tokio::time::timeout(self.answer, call).await {
            Ok(answered) => answer(answered.map(drop)),
            Err(_) => Answer::Silent,
        }
    }
}

// The enum is another crate's: all but one of its variants are one case to us.
#[allow(clippy::wildcard_enum_match_arm)]
fn answer(answered: zbus::Result<()>) -> Answer {
    match answered {
        Ok(()) => Answer::Taken,
        Err(zbus::Error::MethodError(name, text, _)) => Answer::of_error(name.as_str(), text.as_deref().unwrap_or("")),
        Err(zbus::Error::FDO(error)) => {
            let name = zbus::DBusError::name(&*error);
            Answer::of_error(name.as_str(), zbus::DBusError::description(&*error).unwrap_or(""))
        }
        // The bus is lost, and the daemon is ending.
        Err(_) => Answer::Died,
    }
}

//! What others ask of the connection, and what it tells them.

use crate::agent::routes::Routes;
use crate::link::Gateway;
use crate::link::dial::Dialling;
use crate::proto::frame::Refusal;
use crate::proto::wishes::Wish;
use crate::proto::{AppId, RegId};

/// What others ask of the connection.
#[derive(Clone, Debug)]
pub enum Command {
    /// Ask the server for this. The wish is in the store already.
    Wish(AppId, Wish),
    /// There are new outcomes in the store.
    Report,
    /// Skip the wait before the next attempt.
    TryNow,
    /// Connect anew, by these.
    Reach(Box<Reach>),
}

/// How the server is reached, as the configuration has it.
#[derive(Clone, Debug)]
pub struct Reach {
    /// The gateway of the configuration.
    pub configured: Gateway,
    /// The links to dial.
    pub routes: Routes,
    /// How to dial them.
    pub dialling: Dialling,
    /// What the server wants to hear from a new device.
    pub enrolment_key: Option<String>,
}

/// What became of an app's registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has this regId.
    Registered(AppId, RegId),
    /// It was refused.
    Refused(AppId, Refusal),
    /// It is not registered.
    Unregistered(AppId),
}

impl Change {
    /// The app whose registration it is.
    pub fn app(&self) -> &AppId {
        match self {
            Self::Registered(app, _) | Self::Refused(app, _) | Self::Unregistered(app) => app,
        }
    }
}

//! What a device's state machine is told of itself, what it asks for, and where it stands.

use super::super::frame::{Delivery, Refusal, ToServer};
use super::super::ids::{AppId, DeviceId, MessageId, RegId, Region, Secret};
use super::super::keepalive::Learned;
use super::super::pulse::NetworkKey;
use super::super::timers::Moment;

/// Who the device is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub device: DeviceId,
    /// Its proof.
    pub secret: Secret,
    /// Program and version.
    pub agent: String,
    /// The operator's enrolment key, if one was configured.
    pub enrolment_key: Option<String>,
}

/// What the caller is to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum DeviceAction {
    /// Open a link. Answer with `handle_link_up` or `handle_link_down`.
    Dial,
    /// Send this frame on the link.
    Send(ToServer),
    /// Put this push on disk, then call `handle_stored` with its id. Keep the order.
    Store(Box<Delivery>),
    /// Close the link. Nothing further is expected from it.
    Hangup,
    /// Remember the gateway to dial from now on.
    UseGateway(String),
    /// The session is open. Report the outcomes that the server has not noted yet.
    Online(Online),
    /// The app has this regId and, if it is a Web Push channel, this endpoint; its wish is fulfilled.
    Registered(AppId, RegId, Option<String>),
    /// The app was refused; its wish is dropped.
    Refused(AppId, Refusal),
    /// The app's registration has ended; its wish is fulfilled.
    Deregistered(AppId),
    /// The server ended the app's registration; confirm with `deregister`.
    Unregistered(AppId),
    /// The server has noted the outcomes of these pushes.
    Noted(Vec<MessageId>),
    /// Remember this of the network.
    Learned(NetworkKey, Learned),
}

/// What the server said when it opened the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Online {
    /// The region of the regIds it issues.
    pub region: Region,
    /// It knows none of this device's registrations: ask for each of them again.
    pub enrolled: bool,
    /// The URLs of the links that the device may use.
    pub links: Vec<String>,
}

/// Where the connection stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Not started, or stopped.
    Stopped,
    /// Waiting to try again.
    Waiting {
        /// When.
        until: Moment,
        /// What ended the last attempt or session.
        why: String,
    },
    /// Opening a link.
    Dialling,
    /// Waiting for the server's answer to the greeting.
    Greeting,
    /// Open.
    Online {
        /// Since when.
        since: Moment,
        /// The server's region.
        region: Region,
    },
}

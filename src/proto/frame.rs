//! Everything that crosses the wire between device and server.
//!
//! A frame is one JSON text: an object with one member, named after the frame. Members that a
//! reader does not know are ignored, so that fields can be added; a frame whose name it does not
//! know ends the session. A new frame, or a new value of an enum, is therefore for peers of a higher
//! [`VERSION`] only. Nothing outside this file writes or reads a frame's text.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ids::{AppId, DeviceId, MessageId, RegId, Region, Secret, UnixMillis};
use super::message::Push;
use super::urgency::Taking;

/// The version of the protocol that this code speaks.
pub const VERSION: u16 = 1;
/// Most pushes that may be on their way to a device without an acknowledgement.
pub const WINDOW: usize = 32;
/// Most entries in a list that a frame carries.
pub const LIST_MAX: usize = 64;
/// The longest frame a device may send, in bytes.
pub const TO_SERVER_MAX: usize = 16 * 1024;
/// The longest frame a server may send, in bytes.
pub const TO_DEVICE_MAX: usize = 96 * 1024;
/// The WebSocket subprotocol name of these frames.
pub const SUBPROTOCOL: &str = "bellwire.1";

/// What a device says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToServer {
    /// The first frame of every session.
    Hello(Hello),
    /// These pushes are on the device's disk.
    Ack {
        /// Their ids, at most [`LIST_MAX`].
        ids: Vec<MessageId>,
    },
    /// These pushes came and are not on the device's disk; it is not to be sent them again.
    NotKept {
        /// Their ids, at most [`LIST_MAX`].
        ids: Vec<MessageId>,
        /// Why not.
        why: NotKept,
    },
    /// Give this app a regId; answered by `Registered` or `Refused` with the same `req`.
    Register {
        /// Chosen by the device.
        req: u32,
        /// The app.
        app: AppId,
    },
    /// End this app's registration; answered by `Deregistered` with the same `req`.
    Deregister {
        /// Chosen by the device.
        req: u32,
        /// The app.
        app: AppId,
    },
    /// What became of pushes; answered by `Noted`.
    Outcomes {
        /// At most [`LIST_MAX`].
        list: Vec<Outcome>,
    },
    /// I am alive, and you will hear from me again within `next_s` seconds.
    Ping {
        /// Returned in the pong.
        seq: u32,
        /// Seconds.
        next_s: u32,
        /// What it takes from now on.
        #[serde(flatten)]
        taking: Taking,
    },
    /// The session ends.
    Bye(Bye),
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToDevice {
    /// The answer to a good `Hello`.
    Welcome(Welcome),
    /// A notification.
    Push(Box<Delivery>),
    /// The app has this regId.
    Registered {
        /// That of the request.
        req: u32,
        /// The app.
        app: AppId,
        /// Its regId.
        reg_id: RegId,
        /// Where application servers send to it, if it is a Web Push channel: a URL of at most 1000 bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
    },
    /// The app was not registered.
    Refused {
        /// That of the request.
        req: u32,
        /// The app.
        app: AppId,
        /// Why not.
        refusal: Refusal,
    },
    /// The app's registration has ended.
    Deregistered {
        /// That of the request.
        req: u32,
        /// The app.
        app: AppId,
    },
    /// The server ended this app's registration; the device confirms with `Deregister`.
    Unregistered {
        /// The app.
        app: AppId,
    },
    /// These outcomes need not be told again.
    Noted {
        /// The ids of their pushes.
        ids: Vec<MessageId>,
    },
    /// The answer to a ping.
    Pong {
        /// That of the ping.
        seq: u32,
    },
    /// Use this gateway from now on.
    Redirect {
        /// Its URL.
        gateway: String,
    },
    /// The session ends.
    Bye(Bye),
}

/// Who is calling, and what it has already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The highest version the device speaks.
    pub version: u16,
    /// Who it says it is.
    pub device: DeviceId,
    /// What proves it.
    pub secret: Secret,
    /// Program and version, for the operator's eyes.
    pub agent: String,
    /// The operator's enrolment key, where the device was given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolment_key: Option<String>,
    /// The resume point: the ids of the last [`WINDOW`] pushes that the device stored. An
    /// acknowledgement that was lost with the last session is made good by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resume: Vec<MessageId>,
    /// The server hears from the device at least this often, in seconds.
    pub next_s: u32,
    /// What it takes.
    #[serde(flatten)]
    pub taking: Taking,
}

/// The server's side of the greeting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version both will speak.
    pub version: u16,
    /// The region of the regIds issued here.
    pub region: Region,
    /// The device is new to the server, or forgotten: it knows none of the device's registrations.
    #[serde(default)]
    pub enrolled: bool,
    /// The longest silence that the path to this server survives, in seconds.
    pub ka_max_s: u32,
    /// URLs of all links that the device may use from its next session on, at most [`LIST_MAX`]; none if
    /// there is only the gateway that it knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
}

/// A push on its way to a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Counts the pushes of this session from 1; a gap means that one was lost.
    pub n: u64,
    /// Older messages of the same registration that were dropped because too many waited.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u32,
    /// Pushes of the same registration whose place it takes, at most [`LIST_MAX`]. The app is given
    /// one of them all: this one, or the one that it has already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaces: Vec<MessageId>,
    /// The notification.
    pub push: Push,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// What became of a push on the device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which one.
    pub id: MessageId,
    /// What.
    pub fate: Fate,
    /// When.
    pub at_ms: UnixMillis,
}

/// What can become of a push on a device. All but `Alerted` and `Launched` are ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// The user was shown its alert.
    Alerted,
    /// The app was started for it.
    Launched,
    /// The app has taken it.
    Delivered,
    /// A later push took its place.
    Replaced,
    /// It was to take the place of one that the app had been given already.
    TooLate,
    /// It expired unread.
    Expired,
    /// Too many were unread; it was the oldest.
    Dropped,
    /// It asked to be thrown away unless the app was connected, which it was not.
    Discarded,
    /// The app is not registered on this device.
    Unwanted,
}

impl Fate {
    /// All of them, each in the place of its number.
    pub const ALL: [Self; 9] = [
        Self::Alerted,
        Self::Launched,
        Self::Delivered,
        Self::Replaced,
        Self::TooLate,
        Self::Expired,
        Self::Dropped,
        Self::Discarded,
        Self::Unwanted,
    ];

    /// Its word, on the wire and wherever it is stored or shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alerted => "alerted",
            Self::Launched => "launched",
            Self::Delivered => "delivered",
            Self::Replaced => "replaced",
            Self::TooLate => "too-late",
            Self::Expired => "expired",
            Self::Dropped => "dropped",
            Self::Discarded => "discarded",
            Self::Unwanted => "unwanted",
        }
    }
}

/// Why a device does not keep a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotKept {
    /// It had expired when it came.
    Expired,
    /// Its app is not registered on this device, or not with this regId.
    Unwanted,
}

impl NotKept {
    /// All reasons.
    pub const ALL: [Self; 2] = [Self::Expired, Self::Unwanted];

    /// What became of the push.
    pub fn fate(self) -> Fate {
        match self {
            Self::Expired => Fate::Expired,
            Self::Unwanted => Fate::Unwanted,
        }
    }
}

/// Why an app gets no regId.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The operator has not added the app.
    #[error("the push server does not know this app id; its operator adds it with `bellwire-server app add`")]
    UnknownApp,
    /// The device has as many registrations as it may have.
    #[error("this device has as many registrations as the push server allows")]
    TooMany,
    /// The operator has not said how the server is reached from outside.
    #[error("the push server offers no Web Push; its operator sets `[web-push] origin`")]
    NoWebPush,
}

/// How a session ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bye {
    /// Why.
    pub reason: Reason,
    /// Do not come back for this many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
    /// Then come back at a moment drawn from so many seconds, so that not all devices come at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_s: Option<u32>,
}

impl Bye {
    /// An end with no wish about the next attempt.
    pub fn because(reason: Reason) -> Self {
        Self { reason, retry_after_s: None, window_s: None }
    }

    /// An end after which the device is to come back in this many seconds.
    pub fn until(reason: Reason, retry_after_s: u32) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::because(reason) }
    }

    /// The wish about the next attempt, if there is one.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after_s.map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// Over what time devices are to spread.
    pub fn window(&self) -> Option<Duration> {
        self.window_s.map(|seconds| Duration::from_secs(seconds.into()))
    }
}

/// The reasons for which a session ends. The text is shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The peer is shutting down.
    #[error("shutting down")]
    Shutdown,
    /// The device opened a newer session.
    #[error("replaced by a newer connection of the same device")]
    Replaced,
    /// The secret does not belong to the device.
    #[error("the server knows this device by another secret")]
    BadSecret,
    /// The server takes no new devices, or not with this key.
    #[error("the server does not enrol this device: the enrolment key is missing or wrong")]
    EnrolmentRefused,
    /// A frame made no sense.
    #[error("a frame did not follow the protocol")]
    Protocol,
    /// The versions do not meet.
    #[error("the protocol versions of device and server do not meet")]
    Version,
    /// Nothing was heard for too long.
    #[error("nothing was heard for too long")]
    Silent,
    /// A push was not acknowledged in time.
    #[error("a push was not acknowledged in time")]
    Unacknowledged,
    /// The peer cannot serve now.
    #[error("overloaded or unable to store")]
    Busy,
}

/// A text that is not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than its direction allows.
    #[error("a frame of {length} bytes is over the limit of {limit}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Not the JSON of a frame.
    #[error("not a frame: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// One direction of the wire.
pub trait Frame: Serialize + DeserializeOwned {
    /// The longest text, in bytes.
    const MAX: usize;

    /// From when on it must not be delivered, if there is such a time.
    fn expires(&self) -> Option<UnixMillis>;

    /// Whether its sender repeats it where it is lost: a ping or its answer.
    fn is_pulse(&self) -> bool;

    /// The frame as text.
    fn encode(&self) -> String {
        // Invariant: these types hold no map with non-text keys and no failing Serialize.
        serde_json::to_string(self).expect("frames have a text form")
    }

    /// The frame in a text.
    fn decode(text: &str) -> Result<Self, FrameError> {
        if text.len() > Self::MAX {
            return Err(FrameError::TooLong { length: text.len(), limit: Self::MAX });
        }
        Ok(serde_json::from_str(text)?)
    }
}

impl Frame for ToServer {
    const MAX: usize = TO_SERVER_MAX;

    fn expires(&self) -> Option<UnixMillis> {
        None
    }

    fn is_pulse(&self) -> bool {
        matches!(self, Self::Ping { .. })
    }
}

impl Frame for ToDevice {
    const MAX: usize = TO_DEVICE_MAX;

    fn expires(&self) -> Option<UnixMillis> {
        match self {
            Self::Push(delivery) => Some(delivery.push.expires_ms),
            Self::Welcome(_)
            | Self::Registered { .. }
            | Self::Refused { .. }
            | Self::Deregistered { .. }
            | Self::Unregistered { .. }
            | Self::Noted { .. }
            | Self::Pong { .. }
            | Self::Redirect { .. }
            | Self::Bye(_) => None,
        }
    }

    fn is_pulse(&self) -> bool {
        matches!(self, Self::Pong { .. })
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;

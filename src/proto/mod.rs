//! The pure half of Bellwire: what is said between device and server, and when.
//!
//! Nothing here asks a clock, touches a socket or a file, starts a task or rolls dice: time
//! ([`Moment`], [`UnixMillis`]) and luck ([`Luck`]) come in as arguments, decisions go out as
//! values. That is what lets both halves be tested against each other in simulated time.
//! `.clippy.toml` and the attribute below enforce it.
//!
//! * [`ids`]: the names of things, parsed once; [`channel`]: names of Web Push registrations.
//! * [`message`]: one notification, whichever sender API it came through.
//! * [`field`]: the `message` string of the Tizen API, parsed.
//! * [`frame`]: everything that crosses the wire, and nothing else does.
//! * [`device`], [`gateway`]: the two state machines of a session; [`wishes`]: what a device still
//!   wants; [`flight`]: what is on its way to it.
//! * [`keepalive`], [`pulse`]: how long a session may be silent, and how that is found out.
//! * [`surroundings`]: power and price; [`urgency`]: what may wake the device in them; [`backlog`]: what
//!   may be sent of what waits, and what is held back.
//! * [`backoff`], [`timers`]: when to try again, and one table of deadlines.
#![deny(clippy::disallowed_methods)]

pub mod backlog;
pub mod backoff;
pub mod channel;
pub mod device;
pub mod field;
pub mod flight;
pub mod frame;
pub mod gateway;
pub mod ids;
pub mod keepalive;
pub mod message;
pub mod pulse;
pub mod surroundings;
pub mod timers;
pub mod urgency;
pub mod wishes;

#[cfg(test)]
mod idle;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod simulation;

pub use backoff::Luck;
pub use channel::Channel;
pub use ids::{AppId, DeviceId, MessageId, ReceiptsId, RegId, Region, Secret, UnixMillis};
pub use message::Push;
pub use timers::Moment;

//! Links carry frames between device and server. Nothing here looks into a frame.
//!
//! * [`ws`]: a WebSocket, over TLS or plain, from either end.
//! * [`mod@dial`]: how a device opens one.

pub mod dial;
pub mod ws;

pub use dial::{Gateway, dial};
pub use ws::{LinkError, Socket};

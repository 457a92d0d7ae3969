//! Links carry frames between device and server. Nothing here looks into a frame.
//!
//! * [`ws`]: a WebSocket, over TLS or plain, from either end.
//! * [`mqtt`]: publications through a broker, from either end.
//! * [`url`]: where a link leads; [`mod@dial`]: how a device opens one.

pub mod dial;
#[cfg(feature = "mqtt")]
pub mod mqtt;
pub mod url;
pub mod ws;

use std::future::Future;

use crate::proto::frame::{Frame, FrameError};

pub use dial::{DeviceLink, dial};
pub use url::Gateway;
pub use ws::Socket;

/// An open link, from either end.
pub trait Link: Send {
    /// Queues a frame; [`next`](Self::next) or [`close`](Self::close) sends it.
    fn queue(&mut self, frame: &impl Frame) -> Result<(), LinkError>;

    /// Sends what is queued and waits for the next frame. Safe to cancel.
    fn next<F: Frame>(&mut self) -> impl Future<Output = Result<F, LinkError>> + Send;

    /// Sends what is queued and closes the link.
    fn close(self) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// What went over the link so far.
    fn traffic(&self) -> Traffic;
}

/// Why a link ended or could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer closed it in order.
    #[error("the connection was closed")]
    Closed,
    /// The peer sent what is no frame: end the session.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection broke, or could not be made: try again.
    #[error("the connection failed: {0}")]
    Broken(String),
    /// The peer speaks something else: for the operator.
    #[error("no push gateway answers there: {0}")]
    NotAGateway(String),
}

/// Bytes of the frames that went over a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Ours.
    pub sent: u64,
    /// The peer's.
    pub received: u64,
}

fn bytes(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

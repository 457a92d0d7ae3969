//! One attempt to open a link.

use crate::link::dial::{Caller, Dialling};
use crate::link::{DeviceLink, Gateway, LinkError, dial};
use crate::proto::MessageId;

use super::store::Store;

/// A link, and what the device has stored before it was opened.
pub type Opened = (DeviceLink, Vec<MessageId>);

/// Why no link was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// For people.
    pub why: String,
    /// Nobody was reached: another port may help.
    pub unreachable: bool,
}

/// Opens a link to this gateway.
pub async fn attempt(gateway: Gateway, how: Dialling, caller: Caller, store: Store) -> Result<Opened, Failed> {
    let link = dial(&gateway, &how, &caller).await.map_err(|error| {
        let unreachable = matches!(error, LinkError::Unreachable(_));
        Failed { why: error.to_string(), unreachable }
    })?;
    let resume = store.resume_point().await;
    Ok((link, resume.map_err(|error| Failed { why: error.to_string(), unreachable: false })?))
}

//! Who may connect to the broker, and which topics are whose. A device comes by its id and its secret, and by no
//! other client id than its own, so that nobody can throw another one out.

use tracing::debug;

use crate::link::mqtt::topics::{self, Access};
use crate::proto::{DeviceId, Secret};
use crate::server::{Server, same_secret};

/// Whether who says this may connect.
pub async fn admits(server: &Server, client_id: Option<&str>, user: &str, password: &str) -> bool {
    let config = &server.config.mqtt;
    if user == config.user {
        let ours = client_id.is_none_or(|id| id.strip_prefix(user).is_some_and(|rest| rest.starts_with('-')));
        return ours && config.password.as_deref().is_some_and(|own| same_secret(own, password));
    }
    let own_id = client_id.is_none_or(|id| id == user);
    let (true, Ok(device), Ok(secret)) = (own_id, user.parse::<DeviceId>(), password.parse::<Secret>()) else {
        return false;
    };
    server.store.knows(device, &secret).await.unwrap_or_else(|error| {
        debug!(%device, "a broker is told that the device is unknown: {error}");
        false
    })
}

/// Whether this user may do that with the topic, or with the filter.
pub fn allows(server: &Server, user: &str, topic: &str, access: Access) -> bool {
    let root = server.config.mqtt.root();
    if user == server.config.mqtt.user {
        return topics::of_servers(&root, topic);
    }
    user.parse().is_ok_and(|device: DeviceId| topics::may(&root, device, topic, access))
}

//! `org.bellwire.Manager1`: what status and settings programs call.
//! `dbus/org.bellwire.Manager1.xml` is the contract.

use std::collections::HashMap;
use std::sync::Arc;

use zbus::message::Header;
use zbus::{Connection, Variant, interface};

use super::error::Error;
use super::push::{link_state, registration};
use super::{Shared, caller};
use crate::agent::connection::Command;
use crate::proto::device::LinkState;

type Dictionary = HashMap<&'static str, Variant<'static>>;

/// The object.
pub struct Manager {
    shared: Arc<Shared>,
}

impl Manager {
    /// The object over what all objects share.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Only the daemon's own user and root may look at all apps.
    async fn check(&self, bus: &Connection, header: &Header<'_>) -> Result<(), Error> {
        let uid = caller(bus, header).await?.uid;
        if uid == 0 || uid == nix::unistd::geteuid().as_raw() {
            return Ok(());
        }
        Err(Error::PermissionDenied("only the daemon's user and root may do this".into()))
    }
}

#[interface(name = "org.bellwire.Manager1", introspection_docs = false)]
impl Manager {
    #[zbus(out_args("status"))]
    async fn get_status(
        &self,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<Dictionary, Error> {
        self.check(bus, &header).await?;
        let status = self.shared.status.borrow().clone();
        let now = self.shared.clock.now();
        let mut members: Dictionary = HashMap::from([
            ("state", Variant::from(link_state(&status))),
            ("gateway", Variant::from(status.gateway.clone())),
            ("encrypted", Variant::from(status.gateway.starts_with("wss://"))),
            ("device", Variant::from(self.shared.device.to_string())),
            ("version", Variant::from(env!("CARGO_PKG_VERSION"))),
            ("failures", Variant::from(status.failures)),
        ]);
        match status.state {
            LinkState::Waiting { until, why } => {
                members.insert("why", Variant::from(why));
                members.insert("retry_in_s", Variant::from(until.since(now).as_secs()));
            }
            LinkState::Online { since, region } => {
                members.insert("region", Variant::from(region.to_string()));
                members.insert("online_s", Variant::from(now.since(since).as_secs()));
            }
            LinkState::Stopped | LinkState::Dialling | LinkState::Greeting => {}
        }
        Ok(members)
    }

    #[zbus(out_args("apps"))]
    async fn list_apps(
        &self,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<Vec<Dictionary>, Error> {
        self.check(bus, &header).await?;
        let rows = self.shared.store.apps().await?;
        Ok(rows
            .iter()
            .map(|row| {
                let (state, _) = registration(row);
                HashMap::from([
                    ("app", Variant::from(row.app.to_string())),
                    ("state", Variant::from(state)),
                    ("uid", Variant::from(row.uid)),
                    ("unread", Variant::from(row.unread)),
                    ("connected", Variant::from(self.shared.apps.line(&row.app).is_some())),
                ])
            })
            .collect())
    }

    async fn try_now(
        &self,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        self.check(bus, &header).await?;
        // A full queue of commands keeps the connection busy anyway.
        let _ = self.shared.commands.try_send(Command::TryNow);
        Ok(())
    }
}

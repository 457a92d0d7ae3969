//! The life of registrations: who may have one, what the app is answered, and how it ends.
//!
//! Nothing here waits for the network. A registration is on disk before the app is told that it has
//! one; its endpoint follows as soon as the server has given it.

use std::sync::Arc;

use tracing::{debug, error, warn};
use zbus::Connection;
use zbus::fdo::DBusProxy;
use zbus::names::{BusName, OwnedBusName, OwnedUniqueName};

use super::bell::Bell;
use super::owner::owner;
use crate::agent::bus::{End, Shared, identity};
use crate::agent::connection::Command;
use crate::agent::store::channels::{Enter, Entered, Token, Version};
use crate::db::DbError;
use crate::proto::AppId;
use crate::proto::channel::SenderKey;
use crate::proto::wishes::Wish;

/// Most bytes of a description; what is longer is cut.
pub const DESCRIPTION_MAX: usize = 100;

/// Why an app is not registered, in the words of UnifiedPush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The request cannot be fulfilled as it is, or the device cannot store.
    #[error("INTERNAL_ERROR")]
    Internal,
    /// The user has switched the app off, or there are too many registrations.
    #[error("ACTION_REQUIRED")]
    ActionRequired,
    /// The caller is not the app.
    #[error("UNAUTHORIZED")]
    Unauthorized,
}

/// What an app asks for, as it came.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The app's name on the bus.
    pub service: &'a str,
    /// What it calls the registration.
    pub token: &'a str,
    /// What it is for.
    pub description: &'a str,
    /// The key of the only application server that may send to it.
    pub vapid: Option<&'a str>,
    /// The version that the app speaks.
    pub version: Version,
}

/// What is still to be done once the app has its answer.
#[derive(Debug, Default)]
pub struct Afterwards {
    wishes: Vec<(AppId, Wish)>,
    /// The app has called about this registration.
    pub token: Option<Token>,
}

/// What both versions of the interface are over.
pub struct Registrar {
    shared: Arc<Shared>,
    bell: Arc<Bell>,
}

impl Registrar {
    /// A registrar over what all objects share.
    pub fn new(shared: Arc<Shared>, bell: Arc<Bell>) -> Self {
        Self { shared, bell }
    }

    /// Registers the caller, or does so again.
    pub async fn register(
        &self,
        bus: &Connection,
        caller: &OwnedUniqueName,
        request: Request<'_>,
    ) -> Result<Afterwards, Reason> {
        let enter = self.enter(bus, caller, request).await?;
        let (apps, token) = (Arc::clone(&self.shared.apps), enter.token.clone());
        let guest = enter.bus.is_some();
        let entered = self.shared.store.enter(enter, move |app| apps.is_in_use(app)).await;
        match entered.map_err(|error| internal(&error))? {
            Entered::Accepted { app, register, replaced } => {
                if guest {
                    self.bell.guest();
                }
                let asks = register.then_some((app, Wish::Register));
                let wishes = asks.into_iter().chain(replaced.map(|old| (old, Wish::Deregister))).collect();
                Ok(Afterwards { wishes, token: Some(token) })
            }
            Entered::OfAnother => Err(Reason::Internal),
            Entered::Disabled | Entered::TooMany => Err(Reason::ActionRequired),
        }
    }

    async fn enter(&self, bus: &Connection, caller: &OwnedUniqueName, request: Request<'_>) -> Result<Enter, Reason> {
        let token = request.token.parse().map_err(|_| Reason::Internal)?;
        let sender = request.vapid.map(str::parse::<SenderKey>).transpose().map_err(|_| Reason::Internal)?;
        let service = OwnedBusName::try_from(request.service).map_err(|_| Reason::Internal)?;
        let owner = identity(bus, caller).await.map_err(|_| Reason::Unauthorized)?.owner();
        match holder(bus, caller, &service).await {
            Holder::Caller => {}
            // An app may register before it has its name, which any program outside a sandbox could take.
            Holder::Nobody if owner.flatpak.is_none() && matches!(service.inner(), BusName::WellKnown(_)) => {}
            Holder::Another | Holder::Nobody => return Err(Reason::Unauthorized),
        }
        let unique = matches!(service.inner(), BusName::Unique(_));
        Ok(Enter {
            token,
            version: request.version,
            description: description(request.description),
            sender: sender.map(|key| key.hash()),
            installed: self.shared.profile_of_service(bus, &service, &owner).await.and_then(|profile| profile.file),
            owner,
            bus: unique.then(|| bus.server_guid().to_string()),
            service,
        })
    }

    /// Ends the registration of this token, if it is the caller's to end.
    pub async fn unregister(&self, bus: &Connection, caller: &OwnedUniqueName, token: &str) -> Afterwards {
        match self.end(bus, caller, token).await {
            Ok(afterwards) => afterwards,
            Err(error) => {
                error!("the store failed: {error}");
                Afterwards::default()
            }
        }
    }

    async fn end(&self, bus: &Connection, caller: &OwnedUniqueName, token: &str) -> Result<Afterwards, DbError> {
        let Ok(token) = token.parse::<Token>() else { return Ok(Afterwards::default()) };
        let Some(known) = self.shared.store.registration(token.clone()).await? else {
            return Ok(Afterwards::default());
        };
        if !self.may_end(bus, caller, &known.service, &known.app).await? {
            debug!(service = %known.service, caller = caller.as_str(), "somebody else's registration is not ended");
            return Ok(Afterwards::default());
        }
        self.shared.store.leave(known.app.clone()).await?;
        Ok(Afterwards { wishes: vec![(known.app, Wish::Deregister)], token: Some(token) })
    }

    /// The app itself may; and while nobody has its name, whoever is the user and in the sandbox that
    /// registered: an app may go before it has its name, or after it has lost it.
    async fn may_end(
        &self,
        bus: &Connection,
        caller: &OwnedUniqueName,
        service: &OwnedBusName,
        app: &AppId,
    ) -> Result<bool, DbError> {
        match holder(bus, caller, service).await {
            Holder::Caller => Ok(true),
            Holder::Another => Ok(false),
            Holder::Nobody => {
                let Ok(identity) = identity(bus, caller).await else { return Ok(false) };
                let row = self.shared.store.app(app.clone()).await?;
                Ok(row.is_some_and(|row| row.owner == identity.owner()))
            }
        }
    }

    /// Sees to what follows from an answer that the app has by now.
    pub async fn finish(&self, afterwards: Afterwards) {
        for (app, wish) in afterwards.wishes {
            if wish == Wish::Deregister {
                self.shared.forgotten(app, End::AtServer).await;
            } else {
                // The wish is on disk: if the daemon is stopping, the next start has it.
                let _ = self.shared.commands.send(Command::Wish(app, wish)).await;
            }
        }
        if let Some(token) = afterwards.token {
            self.bell.ring(token);
            self.shared.hints.channels.notify_one();
        }
    }
}

/// Who has a name on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Caller,
    Another,
    Nobody,
}

/// Whether the caller is this service: the same connection, or one of the same process.
async fn holder(bus: &Connection, caller: &OwnedUniqueName, service: &OwnedBusName) -> Holder {
    let Ok(dbus) = DBusProxy::new(bus).await else { return Holder::Another };
    match owner(bus, service).await {
        // Who the bus says nothing of may be anybody.
        Err(_) => Holder::Another,
        Ok(None) => Holder::Nobody,
        Ok(Some(owner)) if owner == *caller => Holder::Caller,
        Ok(Some(owner)) => {
            let process = async |name: &OwnedUniqueName| {
                dbus.get_connection_unix_process_id(BusName::from(name.inner().to_owned())).await.ok()
            };
            match (process(&owner).await, process(caller).await) {
                (Some(owner), Some(caller)) if owner == caller => Holder::Caller,
                _ => Holder::Another,
            }
        }
    }
}

/// A description as people are shown it: its beginning, on one line.
fn description(text: &str) -> String {
    let end = (0..=DESCRIPTION_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

fn internal(error: &DbError) -> Reason {
    warn!("an app is not registered: {error}");
    Reason::Internal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_one_line_of_at_most_a_hundred_bytes() {
        assert_eq!(description("new\nmail\u{1b}[2J"), "new mail [2J");
        let long = format!("{}äbc", "x".repeat(DESCRIPTION_MAX - 1));
        assert_eq!(description(&long), "x".repeat(DESCRIPTION_MAX - 1));
        assert_eq!(description(&"y".repeat(DESCRIPTION_MAX + 1)).len(), DESCRIPTION_MAX);
    }
}

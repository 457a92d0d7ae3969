//! Who has a name on the bus, and when it comes anew or goes.

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zbus::fdo::DBusProxy;
use zbus::names::{OwnedBusName, OwnedUniqueName};
use zbus::{Connection, MatchRule, MessageStream};

use super::patience::Sign;

/// What is known of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    /// The unique name of who has it.
    owner: Option<OwnedUniqueName>,
    /// How often it was given up since it is watched.
    losses: u64,
}

impl Known {
    fn shows(&self, sign: Sign, called: &Called) -> bool {
        match sign {
            Sign::None => false,
            Sign::Arrival => self.has_come(called),
            Sign::Change => self.has_come(called) || (self.owner.is_none() && called.owner.is_some()),
        }
    }

    /// Somebody has the name who was not called, or has it anew. Who was started by the call itself is
    /// nobody new.
    fn has_come(&self, called: &Called) -> bool {
        self.owner.is_some() && (self.owner != called.owner || self.losses > called.losses)
    }
}

/// How things were when an app was called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Called {
    /// Who was called, if anybody was there.
    pub owner: Option<OwnedUniqueName>,
    /// How often the name had been given up before.
    pub losses: u64,
}

/// Watches a name as long as it lives.
pub struct Watch {
    known: watch::Receiver<Known>,
    reader: JoinHandle<()>,
}

impl Watch {
    /// From now on.
    pub async fn begin(bus: &Connection, name: &OwnedBusName) -> zbus::Result<Self> {
        let changes = changes(bus, name).await?;
        let (sender, known) = watch::channel(Known { owner: owner(bus, name).await?, losses: 0 });
        Ok(Self { known, reader: tokio::spawn(read(changes, sender)) })
    }

    /// How often the name has been given up.
    pub fn losses(&self) -> u64 {
        self.known.borrow().losses
    }

    /// Waits for this sign of who has the name, since it was called.
    pub async fn shows(&self, sign: Sign, called: &Called) {
        if self.known.clone().wait_for(|known| known.shows(sign, called)).await.is_err() {
            // The bus is lost, and the daemon is ending.
            std::future::pending().await
        }
    }

    /// Waits until nobody has the name.
    pub async fn goes(&self) {
        let _ = self.known.clone().wait_for(|known| known.owner.is_none()).await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The unique name of who has this name now.
pub async fn owner(bus: &Connection, name: &OwnedBusName) -> zbus::Result<Option<OwnedUniqueName>> {
    match DBusProxy::new(bus).await?.get_name_owner(name.inner().clone()).await {
        Ok(owner) => Ok(Some(owner)),
        Err(zbus::fdo::Error::NameHasNoOwner(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn changes(bus: &Connection, name: &OwnedBusName) -> zbus::Result<MessageStream> {
    let rule = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender("org.freedesktop.DBus")
        .interface("org.freedesktop.DBus")
        .member("NameOwnerChanged")
        .arg(0, name.as_str())
        .build()?;
    MessageStream::for_match_rule(rule, bus, None).await
}

/// It only reads: a stream that is not read holds up everything on the bus.
async fn read(mut changes: MessageStream, known: watch::Sender<Known>) {
    while let Some(Ok(change)) = changes.next().await {
        let Ok((_, old, new)) = change.body().deserialize::<(String, String, String)>() else { continue };
        known.send_modify(|known| {
            known.losses += u64::from(!old.is_empty());
            // Nobody has it where the text is empty.
            known.owner = OwnedUniqueName::try_from(new).ok();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(of: &str) -> Option<OwnedUniqueName> {
        Some(of).filter(|of| !of.is_empty()).map(|of| OwnedUniqueName::try_from(of).unwrap())
    }

    #[test]
    fn what_an_app_does_is_a_sign_if_it_has_done_it_since_it_was_called() {
        for (called, now, losses, arrival, change) in [
            (":1.1", ":1.1", 0, false, false),
            (":1.1", ":1.1", 1, true, true),
            (":1.1", ":1.2", 1, true, true),
            (":1.1", "", 1, false, true),
            ("", "", 1, false, false),
            ("", ":1.1", 0, true, true),
        ] {
            let called = Called { owner: name(called), losses: 0 };
            let known = Known { owner: name(now), losses };
            let shown = [Sign::None, Sign::Arrival, Sign::Change].map(|sign| known.shows(sign, &called));
            assert_eq!(shown, [false, arrival, change], "{called:?} {known:?}");
        }
    }
}

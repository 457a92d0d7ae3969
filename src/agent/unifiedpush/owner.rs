//! Who has a name on the bus, and when it comes anew.

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zbus::fdo::DBusProxy;
use zbus::names::OwnedBusName;
use zbus::{Connection, MatchRule, MessageStream};

/// What is known of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    /// The unique name of who has it.
    owner: Option<String>,
    /// How often it was given up since it is watched.
    losses: u64,
}

/// How things were when an app was called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Called {
    /// Who was called, if anybody was there.
    pub owner: Option<String>,
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

    /// Waits until somebody has the name who was not called, or has it anew. Who was started by the
    /// call itself is nobody new.
    pub async fn comes(&self, called: &Called) {
        let is_new =
            |known: &Known| known.owner.is_some() && (known.owner != called.owner || known.losses > called.losses);
        if self.known.clone().wait_for(is_new).await.is_err() {
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
pub async fn owner(bus: &Connection, name: &OwnedBusName) -> zbus::Result<Option<String>> {
    match DBusProxy::new(bus).await?.get_name_owner(name.inner().clone()).await {
        Ok(owner) => Ok(Some(owner.to_string())),
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
            known.owner = Some(new).filter(|new| !new.is_empty());
        });
    }
}

//! `bellwire register` and `bellwire listen`: an app at the command line.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use zbus::{ObjectPath, OwnedVariant, Variant, interface};

use super::Output;
use super::bus::{self, BusName, PushProxy, fatal, to_json};
use crate::daemon::{Exit, Fatal, Stop};
use crate::proto::AppId;
use crate::world;

const PATH: &str = "/org/bellwire/Listener";

/// What `listen` is told on the command line.
#[derive(Debug, clap::Args)]
pub struct ListenArgs {
    /// The app id
    app: AppId,
    /// End after this many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after this many seconds; exit status 1 if --count was not reached by then
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// Registers an app and prints its regId.
pub async fn register(bus_name: &BusName, app: &AppId, output: Output) -> Result<(), Fatal> {
    let bus = bus::open(bus_name).await?;
    let push = PushProxy::new(&bus).await.map_err(fatal)?;
    // Unread messages stay unread: nobody is here to take them.
    let hold = HashMap::from([("hold-unread", Variant::from(true))]);
    push.connect(app.as_str(), &path(), hold).await.map_err(fatal)?;
    let reg_id = push.register(app.as_str()).await.map_err(fatal)?;
    output.print(&json!({ "app": app, "reg_id": reg_id }), || reg_id.clone());
    Ok(())
}

/// Ends an app's registration.
pub async fn deregister(bus_name: &BusName, app: &AppId, output: Output) -> Result<(), Fatal> {
    let bus = bus::open(bus_name).await?;
    let push = PushProxy::new(&bus).await.map_err(fatal)?;
    let hold = HashMap::from([("hold-unread", Variant::from(true))]);
    push.connect(app.as_str(), &path(), hold).await.map_err(fatal)?;
    push.deregister(app.as_str()).await.map_err(fatal)?;
    output.print(&json!({ "app": app, "deregistered": true }), || format!("{app} is not registered any longer"));
    Ok(())
}

/// Connects an app, registers it, and prints its messages as they come. An agent that is started
/// anew does not know the app: it is connected again.
pub async fn listen(bus_name: &BusName, args: ListenArgs, output: Output) -> Result<(), Fatal> {
    let mut stop = Stop::on_signals().map_err(Fatal::of(Exit::Software))?;
    // One message at a time: the agent sends the next one after our reply.
    let (messages, mut inbox) = mpsc::channel(1);
    let bus = bus::open_with(bus_name, path(), Listener { messages }).await?;
    let push = PushProxy::new(&bus).await.map_err(fatal)?;
    let mut owners = push.inner().receive_owner_changed().await.map_err(fatal)?;
    begin(&push, &args.app, output).await?;
    let mut taken = 0;
    let deadline = async {
        match args.timeout {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(deadline);
    while args.count.is_none_or(|count| taken < count) {
        tokio::select! {
            message = inbox.recv() => {
                let Some((message, printed)) = message else { break };
                taken += 1;
                output.print(&message, || line(&message));
                // Nobody waits for it if the agent has gone.
                let _ = printed.send(());
            }
            Some(owner) = owners.next() => if owner.is_some() {
                begin(&push, &args.app, output).await?;
            },
            () = &mut deadline => break,
            () = stop.wait() => break,
        }
    }
    // What was not printed is refused, and stays unread.
    drop(inbox);
    // The last reply goes first, and the bus has it once it has answered what goes after it. If the
    // bus is gone, the message stays unread.
    tokio::task::yield_now().await;
    if let Ok(dbus) = zbus::fdo::DBusProxy::new(&bus).await {
        let _ = dbus.get_id().await;
    }
    match args.count {
        Some(count) if taken < count => Err(Fatal::new(Exit::Failure, format!("{taken} of {count} messages came"))),
        _ => Ok(()),
    }
}

/// Connects and registers, and says so.
async fn begin(push: &PushProxy<'_>, app: &AppId, output: Output) -> Result<(), Fatal> {
    push.connect(app.as_str(), &path(), HashMap::new()).await.map_err(fatal)?;
    let reg_id = push.register(app.as_str()).await.map_err(fatal)?;
    output.print(&json!({ "event": "listening", "app": app, "reg_id": reg_id }), || {
        format!("{app} listens; its regId is\n{reg_id}")
    });
    Ok(())
}

/// A message, and whom to tell that it was printed.
type Handed = (Value, oneshot::Sender<()>);

struct Listener {
    messages: mpsc::Sender<Handed>,
}

#[interface(name = "org.bellwire.App1")]
impl Listener {
    async fn message(&self, app: &str, id: &str, message: HashMap<String, OwnedVariant>) -> zbus::fdo::Result<()> {
        let mut members = to_json(&message);
        members.insert("event".into(), "message".into());
        members.insert("app".into(), app.into());
        members.insert("id".into(), id.into());
        members.insert("delivered_ms".into(), world::now().0.into());
        let ended = || zbus::fdo::Error::Failed("the listener is ending".into());
        let (printed, is_printed) = oneshot::channel();
        self.messages.send((Value::Object(members), printed)).await.map_err(|_| ended())?;
        // The reply is the delivery.
        is_printed.await.map_err(|_| ended())
    }
}

fn path() -> ObjectPath<'static> {
    ObjectPath::from_static_str_unchecked(PATH)
}

fn line(message: &Value) -> String {
    let member =
        |name: &str| message.get(name).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let parts: Vec<String> = ["request_id", "sender", "message", "app_data", "payload", "dropped"]
        .iter()
        .filter_map(|name| member(name).map(|value| format!("{name}={value}")))
        .collect();
    format!("{}  {}", member("id").unwrap_or_default(), parts.join("  "))
}

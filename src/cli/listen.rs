//! `bellwire register` and `bellwire listen`: an app at the command line.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
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

/// Connects an app, registers it, and prints its messages as they come.
pub async fn listen(bus_name: &BusName, args: ListenArgs, output: Output) -> Result<(), Fatal> {
    let mut stop = Stop::on_signals().map_err(Fatal::of(Exit::Software))?;
    // One message at a time: the agent sends the next one after our reply.
    let (messages, mut inbox) = mpsc::channel(1);
    let bus = bus::open_with(bus_name, path(), Listener { messages }).await?;
    let push = PushProxy::new(&bus).await.map_err(fatal)?;
    push.connect(args.app.as_str(), &path(), HashMap::new()).await.map_err(fatal)?;
    let reg_id = push.register(args.app.as_str()).await.map_err(fatal)?;
    output.print(&json!({ "event": "listening", "app": args.app, "reg_id": reg_id }), || {
        format!("{} listens; its regId is\n{reg_id}", args.app)
    });
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
                let Some(message) = message else { break };
                taken += 1;
                output.print(&message, || line(&message));
            }
            () = &mut deadline => break,
            () = stop.wait() => break,
        }
    }
    // A last reply is a delivery: the bus has it once it has answered what we sent after it. If it
    // is gone, the message stays unread.
    if let Ok(dbus) = zbus::fdo::DBusProxy::new(&bus).await {
        let _ = dbus.get_id().await;
    }
    match args.count {
        Some(count) if taken < count => Err(Fatal::new(Exit::Failure, format!("{taken} of {count} messages came"))),
        _ => Ok(()),
    }
}

struct Listener {
    messages: mpsc::Sender<Value>,
}

#[interface(name = "org.bellwire.App1")]
impl Listener {
    async fn message(&self, app: &str, id: &str, message: HashMap<String, OwnedVariant>) -> zbus::fdo::Result<()> {
        let mut members = to_json(&message);
        members.insert("event".into(), "message".into());
        members.insert("app".into(), app.into());
        members.insert("id".into(), id.into());
        members.insert("delivered_ms".into(), world::now().0.into());
        let ended = |_| zbus::fdo::Error::Failed("the listener is ending".into());
        self.messages.send(Value::Object(members)).await.map_err(ended)
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

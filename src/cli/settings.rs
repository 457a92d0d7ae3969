//! `bellwire app set` and its like: what the user allows an app.

use std::collections::HashMap;

use clap::ValueEnum;
use serde_json::{Map, Value, json};
use zbus::Variant;

use super::Output;
use super::bus::{self, BusName, PushProxy, fatal, to_json};
use super::status::{describe_client, manager, text};
use crate::daemon::{Exit, Fatal};
use crate::proto::AppId;

/// What `app set` is told on the command line.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true)))]
pub struct SetArgs {
    /// The app id
    app: AppId,
    /// Whether its alerts are shown
    #[arg(long, value_enum, value_name = "STATE", group = "what")]
    alerts: Option<State>,
    /// Whether messages may start it
    #[arg(long, value_enum, value_name = "STATE", group = "what")]
    launch: Option<State>,
    /// Whether it has a badge
    #[arg(long, value_enum, value_name = "STATE", group = "what")]
    badge: Option<State>,
}

/// A switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// It is on.
    On,
    /// It is off.
    Off,
}

impl State {
    fn is_on(self) -> bool {
        self == Self::On
    }
}

/// Prints one app.
pub async fn show(bus_name: &BusName, app: &AppId, output: Output) -> Result<(), Fatal> {
    let rows = manager(bus_name).await?.list_apps().await.map_err(fatal)?;
    let row = rows.iter().map(to_json).find(|row| row.get("app").and_then(Value::as_str) == Some(app.as_str()));
    let row = row.ok_or_else(|| Fatal::new(Exit::Failure, format!("no app {app} has ever connected")))?;
    output.print(&Value::Object(row.clone()), || describe(&row));
    Ok(())
}

/// Changes what an app may do.
pub async fn set(bus_name: &BusName, args: SetArgs, output: Output) -> Result<(), Fatal> {
    let given = [("alerts", args.alerts), ("launch", args.launch), ("badge", args.badge)];
    let settings = given.into_iter().filter_map(|(name, state)| Some((name, Variant::from(state?.is_on())))).collect();
    manager(bus_name).await?.set_app(args.app.as_str(), settings).await.map_err(fatal)?;
    show(bus_name, &args.app, output).await
}

/// Switches an app on or off.
pub async fn enable(bus_name: &BusName, app: &AppId, on: bool, output: Output) -> Result<(), Fatal> {
    let settings = HashMap::from([("enabled", Variant::from(on))]);
    manager(bus_name).await?.set_app(app.as_str(), settings).await.map_err(fatal)?;
    output.print(&json!({ "app": app, "enabled": on }), || match on {
        true => format!("{app} is on; it gets messages again once it has registered"),
        false => format!("{app} is off; its senders are told that it is not registered"),
    });
    Ok(())
}

/// Removes all that the device has of an app.
pub async fn forget(bus_name: &BusName, app: &AppId, output: Output) -> Result<(), Fatal> {
    manager(bus_name).await?.forget_app(app.as_str()).await.map_err(fatal)?;
    output.print(&json!({ "app": app, "forgotten": true }), || {
        format!("{app} is forgotten; whoever connects it next has it")
    });
    Ok(())
}

/// Prints an app's badge, after setting it if there is a number.
pub async fn badge(bus_name: &BusName, app: &AppId, count: Option<u32>, output: Output) -> Result<(), Fatal> {
    let bus = bus::open(bus_name).await?;
    let push = PushProxy::new(&bus).await.map_err(fatal)?;
    if let Some(count) = count {
        push.set_badge(app.as_str(), count).await.map_err(fatal)?;
    }
    let count = push.get_badge(app.as_str()).await.map_err(fatal)?;
    output.print(&json!({ "app": app, "badge": count }), || count.to_string());
    Ok(())
}

/// Holds alerts back, or lets them go.
pub async fn do_not_disturb(bus_name: &BusName, state: State, output: Output) -> Result<(), Fatal> {
    manager(bus_name).await?.set_do_not_disturb(state.is_on()).await.map_err(fatal)?;
    output.print(&json!({ "do_not_disturb": state.is_on() }), || match state {
        State::On => "alerts are held back".to_owned(),
        State::Off => "alerts are shown".to_owned(),
    });
    Ok(())
}

fn describe(row: &Map<String, Value>) -> String {
    let state = |name: &str| if row.get(name) == Some(&Value::Bool(true)) { "on" } else { "off" };
    let owner = match row.get("flatpak") {
        Some(_) => format!("user {}, Flatpak app {}", text(row, "uid"), text(row, "flatpak")),
        None => format!("user {}", text(row, "uid")),
    };
    let by = if row.get("manifest") == Some(&Value::Bool(true)) { "its manifest" } else { "first come" };
    let mut lines = vec![
        ("app", text(row, "app")),
        ("state", text(row, "state")),
        ("owner", format!("{owner}, by {by}")),
        ("unread", text(row, "unread")),
        ("badge", format!("{} ({})", text(row, "badge_count"), state("badge"))),
        ("alerts", state("alerts").to_owned()),
        ("launch", state("launch").to_owned()),
    ];
    if let Some(client) = describe_client(row) {
        lines.insert(1, ("for", client));
    }
    lines.iter().map(|(name, value)| format!("{name:<8} {value}")).collect::<Vec<_>>().join("\n")
}

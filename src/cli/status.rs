//! `bellwire status`, `bellwire app list`, `bellwire device`: how the agent is doing.

use serde_json::{Map, Value, json};

use super::Output;
use super::bus::{self, BusName, ManagerProxy, fatal, to_json};
use crate::daemon::Fatal;

/// Prints the connection and the apps.
pub async fn status(bus_name: &BusName, output: Output) -> Result<(), Fatal> {
    let manager = manager(bus_name).await?;
    let link = to_json(&manager.get_status().await.map_err(fatal)?);
    let apps: Vec<Map<String, Value>> = manager.list_apps().await.map_err(fatal)?.iter().map(to_json).collect();
    output.print(&json!({ "link": link, "apps": apps }), || {
        let lines = [
            describe_link(&link),
            describe_silence(&link),
            describe_machine(&link),
            describe_today(&link),
            describe_alerts(&link),
        ];
        format!("{}\n{}", lines.join("\n"), describe_apps(&apps))
    });
    Ok(())
}

/// Prints the apps.
pub async fn apps(bus_name: &BusName, output: Output) -> Result<(), Fatal> {
    let rows = manager(bus_name).await?.list_apps().await.map_err(fatal)?;
    let apps: Vec<Map<String, Value>> = rows.iter().map(to_json).collect();
    output.print(&json!({ "apps": apps }), || describe_apps(&apps));
    Ok(())
}

/// Prints who the device is and where it connects.
pub async fn device(bus_name: &BusName, output: Output) -> Result<(), Fatal> {
    let link = to_json(&manager(bus_name).await?.get_status().await.map_err(fatal)?);
    let device = json!({ "device": link.get("device"), "gateway": link.get("gateway"), "region": link.get("region"),
                         "encrypted": link.get("encrypted"), "version": link.get("version") });
    output.print(&device, || {
        format!(
            "device  {}\ngateway {}\nagent   bellwired {}",
            text(&link, "device"),
            text(&link, "gateway"),
            text(&link, "version")
        )
    });
    Ok(())
}

/// Lets the agent connect without further waiting.
pub async fn reconnect(bus_name: &BusName, output: Output) -> Result<(), Fatal> {
    let manager = manager(bus_name).await?;
    let online = text(&to_json(&manager.get_status().await.map_err(fatal)?), "state") == "online";
    manager.try_now().await.map_err(fatal)?;
    let said = if online { "the agent is online already" } else { "the agent tries to connect now" };
    output.print(&json!({ "reconnecting": !online }), || said.to_owned());
    Ok(())
}

/// The interface for status and settings.
pub async fn manager(bus_name: &BusName) -> Result<ManagerProxy<'static>, Fatal> {
    let bus = bus::open(bus_name).await?;
    ManagerProxy::new(&bus).await.map_err(fatal)
}

/// A member as text; empty if it is absent.
pub fn text(members: &Map<String, Value>, name: &str) -> String {
    match members.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn describe_link(link: &Map<String, Value>) -> String {
    let (gateway, plain) = (text(link, "gateway"), link.get("encrypted") == Some(&Value::Bool(false)));
    let proxy = link.get("proxy").map(|_| format!(" through the proxy {}", text(link, "proxy")));
    let how = if plain { " (unencrypted)".to_owned() } else { proxy.unwrap_or_default() };
    match text(link, "state").as_str() {
        "online" => {
            format!("online   at {gateway}{how}, region {}, for {} s", text(link, "region"), text(link, "online_s"))
        }
        "waiting" => format!(
            "offline  {}{}\n         next attempt at {gateway} in {} s ({} failed)",
            text(link, "why"),
            describe_reach(link),
            text(link, "retry_in_s"),
            text(link, "failures")
        ),
        state => format!("{state}  {gateway}{how}"),
    }
}

fn describe_silence(link: &Map<String, Value>) -> String {
    let known = |name: &str| link.get(name).map(|value| format!("{value} s"));
    let how = match (text(link, "silence_stage").as_str(), known("silence_proven_s"), known("silence_refuted_s")) {
        ("steady", Some(proven), _) => format!("{proven} are proven"),
        ("floor", ..) => "the network loses even shorter ones".to_owned(),
        (_, Some(proven), Some(refuted)) => format!("searching between {proven} and {refuted}"),
        (_, Some(proven), None) => format!("searching beyond {proven}"),
        (_, None, Some(refuted)) => format!("searching below {refuted}"),
        (_, None, None) => "nothing is known yet".to_owned(),
    };
    let next = known("next_ping_in_s").map(|next| format!(", next ping in {next}")).unwrap_or_default();
    let asleep =
        if link.get("wakes_device") == Some(&Value::Bool(false)) { "; does not wake a device that sleeps" } else { "" };
    format!("silence  {} s over {} ({how}){next}{asleep}", text(link, "silence_s"), text(link, "network"))
}

fn describe_reach(link: &Map<String, Value>) -> String {
    match link.get("out_of_reach") {
        Some(Value::Bool(true)) => format!(", for {} s although there is a network", text(link, "offline_s")),
        _ => String::new(),
    }
}

fn describe_machine(link: &Map<String, Value>) -> String {
    let power = match text(link, "power").as_str() {
        "battery" => "on battery",
        "low-battery" => "on a low battery",
        _ => "on external power",
    };
    let price = if link.get("metered") == Some(&Value::Bool(true)) { ", network paid for by the byte" } else { "" };
    let sources = link.get("sources").and_then(Value::as_array).cloned().unwrap_or_default();
    let sources: Vec<&str> = sources.iter().filter_map(Value::as_str).collect();
    let sources = if sources.is_empty() { "nobody".to_owned() } else { sources.join(", ") };
    format!("machine  {power}{price} (told by {sources})")
}

fn describe_today(link: &Map<String, Value>) -> String {
    let count = |name: &str| text(link, name);
    let lost = match link.get("last_loss_s") {
        Some(ago) => {
            let counts = link.get("last_loss_counts") == Some(&Value::Bool(true));
            let why = if counts { "" } else { ", which does not count" };
            format!("; lost {ago} s ago after {} s of silence{why}", count("last_loss_silence_s"))
        }
        None => String::new(),
    };
    format!(
        "today    {} pings, {} losses, {} connects, {} bytes up, {} down{lost}",
        count("pings_today"),
        count("losses_today"),
        count("connects_today"),
        count("bytes_sent_today"),
        count("bytes_received_today")
    )
}

fn describe_alerts(link: &Map<String, Value>) -> String {
    match link.get("do_not_disturb") {
        Some(Value::Bool(true)) => "alerts   held back: do-not-disturb is on".to_owned(),
        _ => format!("alerts   {}", text(link, "alerts")),
    }
}

/// The app that a Web Push channel is for, and why it is not registered.
pub fn describe_client(app: &Map<String, Value>) -> Option<String> {
    app.get("service")?;
    let what = text(app, "description");
    let what = if what.is_empty() { what } else { format!(" ({what})") };
    let why = app.get("why").map(|_| format!(": {}", text(app, "why"))).unwrap_or_default();
    Some(format!("{}{what}{why}", text(app, "service")))
}

fn describe_apps(apps: &[Map<String, Value>]) -> String {
    if apps.is_empty() {
        return "no app has connected yet".to_owned();
    }
    let line = |app: &Map<String, Value>| {
        let here = if app.get("connected") == Some(&Value::Bool(true)) { "connected" } else { "not connected" };
        let line =
            format!("{:<36} {:<12} {:<13} {} unread", text(app, "app"), text(app, "state"), here, text(app, "unread"));
        match describe_client(app) {
            Some(client) => format!("{line}\n    for {client}"),
            None => line,
        }
    };
    apps.iter().map(line).collect::<Vec<_>>().join("\n")
}

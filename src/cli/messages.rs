//! `bellwire message`: the last messages that came to this device, and what became of them.

use serde_json::{Map, Value, json};

use super::Output;
use super::bus::{BusName, fatal, to_json};
use super::status::{manager, text};
use crate::daemon::{Exit, Fatal};
use crate::proto::AppId;

/// As many as the agent remembers.
const ALL: u32 = 200;

/// Prints the newest messages, newest first.
pub async fn list(bus_name: &BusName, most: u32, app: Option<&AppId>, output: Output) -> Result<(), Fatal> {
    let asked = if app.is_some() { ALL } else { most };
    let rows = manager(bus_name).await?.list_messages(asked).await.map_err(fatal)?;
    let rows = rows.iter().map(to_json).filter(|row| app.is_none_or(|app| text(row, "app") == app.as_str()));
    let rows: Vec<Map<String, Value>> = rows.take(most as usize).collect();
    output.print(&json!({ "messages": rows }), || match rows.is_empty() {
        true => "no message has come".to_owned(),
        false => rows.iter().map(line).collect::<Vec<_>>().join("\n"),
    });
    Ok(())
}

/// Prints the history of the newest message with this id or request id.
pub async fn show(bus_name: &BusName, id: &str, output: Output) -> Result<(), Fatal> {
    let rows = manager(bus_name).await?.list_messages(ALL).await.map_err(fatal)?;
    let found =
        rows.iter().map(to_json).find(|row| [text(row, "id"), text(row, "request_id")].contains(&id.to_owned()));
    let why = || Fatal::new(Exit::Failure, format!("none of the last {ALL} messages is {id}"));
    let message = found.ok_or_else(why)?;
    output.print(&Value::Object(message.clone()), || describe(&message));
    Ok(())
}

fn hops(message: &Map<String, Value>) -> Vec<&Map<String, Value>> {
    message.get("hops").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object).collect()
}

fn line(message: &Map<String, Value>) -> String {
    let names: Vec<String> = hops(message).iter().map(|hop| text(hop, "hop")).collect();
    format!("{}  {:<36} {}", text(message, "id"), text(message, "app"), names.join(", "))
}

fn describe(message: &Map<String, Value>) -> String {
    let accepted = message.get("accepted_ms").and_then(Value::as_i64).unwrap_or_default();
    let mut lines = vec![format!("message  {}", text(message, "id")), format!("app      {}", text(message, "app"))];
    if message.contains_key("request_id") {
        lines.push(format!("request  {}", text(message, "request_id")));
    }
    lines.push("     0 ms accepted by the server".to_owned());
    for hop in hops(message) {
        let after = hop.get("at_ms").and_then(Value::as_i64).unwrap_or_default().saturating_sub(accepted);
        let why = hop.get("why").map(|_| format!(": {}", text(hop, "why"))).unwrap_or_default();
        lines.push(format!("{after:>6} ms {}{why}", text(hop, "hop")));
    }
    lines.join("\n")
}

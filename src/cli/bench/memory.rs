//! Memory of idle connections and of an idle agent, from /proc.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Certificate, Devices};
use crate::cli::bus::{BusName, fatal, to_json};
use crate::cli::lab::{self, Lab, free_port};
use crate::cli::status;
use crate::daemon::{Exit, Fatal};

/// Connections that are made first, so that what the server takes once is not counted.
const WARM_UP: u32 = 250;
/// What the server gets to come to rest.
const REST: Duration = Duration::from_secs(3);

/// Resident memory of the server for each further idle connection.
pub async fn idle(lab: &Lab, connections: u32, tls: Option<&Certificate>) -> Result<Value, Fatal> {
    let region = if tls.is_some() { "11" } else { "10" };
    let files = tls.map(|files| (files.certificate.as_path(), files.key.as_path()));
    let mut server = lab.server(region, free_port()?, free_port()?, files, "handshakes-per-second = 0\n")?;
    server.start().await?;
    let pid = server.pid().ok_or_else(|| Fatal::new(Exit::Software, "the server has ended"))?;
    let ca = tls.map(|files| files.certificate.as_path());
    let (_first, _) = Devices::start(lab, &server, WARM_UP, ca, None).await?;
    tokio::time::sleep(REST).await;
    let before = status_kb(pid, "RssAnon:")?;
    let (_second, ready) = Devices::start(lab, &server, connections, ca, None).await?;
    tokio::time::sleep(REST).await;
    let after = status_kb(pid, "RssAnon:")?;
    Ok(json!({
        "bytes_per_connection": (after - before) * 1024.0 / f64::from(connections),
        "rss_anon_kb": after,
        "connects_per_s": f64::from(connections) / ready.seconds,
    }))
}

/// Memory of an agent that is connected by TLS and idle: `bellwired` beside this tool, or this program.
pub async fn agent(lab: &Lab, program: Option<&Path>, files: &Certificate) -> Result<Value, Fatal> {
    let tls = Some((files.certificate.as_path(), files.key.as_path()));
    let mut server = lab.server("12", free_port()?, free_port()?, tls, "")?;
    server.start().await?;
    let program = program.map_or_else(|| lab::sibling("bellwired"), |program| Ok(program.to_owned()))?;
    let trust = format!("ca = {:?}\n", files.certificate);
    let device = lab.device("bench", program, &server.gateway, &trust).await?;
    tokio::time::sleep(REST).await;
    let status = status::manager(&BusName::Address(device.address.clone())).await?.get_status().await.map_err(fatal)?;
    if status::text(&to_json(&status), "state") != "online" {
        return Err(Fatal::new(Exit::Failure, format!("the agent did not connect:\n{}", lab.said())));
    }
    let pid = device.agent_pid().ok_or_else(|| Fatal::new(Exit::Software, "the agent has ended"))?;
    // Pages of a program that was just built count as dirty until they are on disk.
    nix::unistd::sync();
    let rollup = read(&format!("/proc/{pid}/smaps_rollup"))?;
    Ok(json!({
        "rss_kb": field(&rollup, "Rss:"),
        "pss_kb": field(&rollup, "Pss:"),
        "private_dirty_kb": field(&rollup, "Private_Dirty:"),
        "threads": status_kb(pid, "Threads:")?,
    }))
}

fn status_kb(pid: u32, name: &str) -> Result<f64, Fatal> {
    Ok(field(&read(&format!("/proc/{pid}/status"))?, name))
}

fn read(path: &str) -> Result<String, Fatal> {
    std::fs::read_to_string(path).map_err(|error| Fatal::new(Exit::IoErr, format!("{path}: {error}")))
}

/// The number after a name in one of the kernel's tables.
fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1)).and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

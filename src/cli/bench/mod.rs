//! `bellwire bench`: what the server costs, measured with the real programs on this machine.
//!
//! Everything absolute is printed beside a limit measured in the same run: the same rows committed
//! in batches by SQLite alone, and an HTTP handler that does nothing. Nothing is asserted.

pub mod devices;
mod fairness;
mod load;
mod memory;
mod quantiles;
mod raw;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::Output;
use super::lab::{self, Lab, ServerProcess, free_port};
use crate::daemon::{Exit, Fatal};
use devices::{Ready, Report};

const APP: &str = "benchbenchbench1";
const SECRET: &str = "bench-secret-of-20-bytes";
/// User memory of an idle connection that should not be exceeded, in bytes.
const PLAIN_LIMIT: f64 = 4000.0;
const TLS_LIMIT: f64 = 12_500.0;
/// What an idle agent on a device may take: see `cross/budget` for its size.
const AGENT: [(&str, f64); 3] = [("private_dirty_kb", 2048.0), ("pss_kb", 6144.0), ("threads", 3.0)];
/// What another app's misuse may make of a median latency.
const FAIR: f64 = 2.0;

/// What `bench` is told on the command line.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Idle connections whose memory is measured
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(500..=15_000))]
    connections: u32,
    /// Devices that are sent to
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(100..=5000))]
    devices: u32,
    /// Senders that post at the same time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=512))]
    senders: u32,
    /// Seconds of each load
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Measure the memory of this bellwired alone, and fail if it is over its budget
    #[arg(long, value_name = "FILE", conflicts_with_all = ["connections", "devices", "senders", "seconds"])]
    agent: Option<PathBuf>,
}

/// Runs all measurements and prints the table.
pub async fn bench(args: BenchArgs, output: Output) -> Result<(), Fatal> {
    let lab = Lab::new("info")?;
    let certificate = certificate(&lab).await?;
    if let Some(program) = args.agent {
        return agent(&lab, &program, &certificate, output).await;
    }
    note(output, "memory of idle connections, plain");
    let plain = memory::idle(&lab, args.connections, None).await?;
    note(output, "memory of idle connections, TLS");
    let tls = memory::idle(&lab, args.connections, Some(&certificate)).await?;
    note(output, "memory of an agent");
    let agent = memory::agent(&lab, None, &certificate).await?;
    note(output, "raw limits");
    let raw = raw::measure(&lab, &args).await?;
    note(output, "load");
    let load = load::measure(&lab, &args).await?;
    note(output, "what one app's misuse costs another");
    let fairness = fairness::measure(&lab, &args).await?;
    let table = json!({ "connections": args.connections, "plain": plain, "tls": tls, "agent": agent, "raw": raw,
                        "load": load, "fairness": fairness });
    output.print(&table, || text(&table));
    Ok(())
}

/// Measures an idle agent beside its budget.
async fn agent(lab: &Lab, program: &Path, certificate: &Certificate, output: Output) -> Result<(), Fatal> {
    let measured = memory::agent(lab, Some(program), certificate).await?;
    let over: Vec<&str> =
        AGENT.iter().filter(|(name, most)| number(&measured, name) > *most).map(|row| row.0).collect();
    let budget: serde_json::Map<String, Value> =
        AGENT.iter().map(|(name, most)| ((*name).into(), json!(most))).collect();
    output.print(&json!({ "agent": measured, "budget": budget, "over": over }), || {
        let row = |(name, most): &(&str, f64)| format!("  {name:<20} {:>8.0} of {most:>5}", number(&measured, name));
        let rows: Vec<String> = AGENT.iter().map(row).collect();
        format!("an idle bellwired, of its budget:\n{}", rows.join("\n"))
    });
    match over.is_empty() {
        true => Ok(()),
        false => Err(Fatal::new(Exit::Failure, format!("{} takes too much: {}", program.display(), over.join(", ")))),
    }
}

fn number(table: &Value, name: &str) -> f64 {
    table.get(name).and_then(Value::as_f64).unwrap_or(f64::INFINITY)
}

/// Progress, for people who wait.
fn note(output: Output, what: &str) {
    if !output.json {
        eprintln!("measuring {what} ...");
    }
}

/// A throw-away certificate for this machine's loopback address.
struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
}

async fn certificate(lab: &Lab) -> Result<Certificate, Fatal> {
    let files = Certificate { certificate: lab.path("cert.pem"), key: lab.path("key.pem") };
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "30",
    ]);
    openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.arg("-keyout").arg(&files.key).arg("-out").arg(&files.certificate);
    let made = lab::spawn(openssl.stderr(Stdio::null()).stdout(Stdio::null()))
        .map_err(|fatal| Fatal::new(fatal.exit, format!("{} (`apt-get install openssl` provides it)", fatal.message)))?
        .wait()
        .await;
    match made {
        Ok(status) if status.success() => Ok(files),
        _ => Err(Fatal::new(Exit::Unavailable, "openssl could not make a certificate")),
    }
}

/// The second process.
struct Devices {
    _child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Devices {
    /// Starts it and waits until all devices are connected.
    async fn start(
        lab: &Lab,
        server: &ServerProcess,
        count: u32,
        ca: Option<&Path>,
        app: Option<&str>,
    ) -> Result<(Self, Ready), Fatal> {
        let folder = lab.path(&format!("devices-{}", free_port()?));
        std::fs::create_dir(&folder).map_err(Fatal::of(Exit::IoErr))?;
        let mut command = Command::new(lab::sibling("bellwire")?);
        command.args(["bench-devices", "--gateway", &server.gateway, "--count", &count.to_string()]);
        command.arg("--folder").arg(folder);
        for (name, value) in [("--ca", ca.map(Path::as_os_str)), ("--app", app.map(AsRef::as_ref))] {
            if let Some(value) = value {
                command.arg(name).arg(value);
            }
        }
        let mut child = lab::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Fatal::new(Exit::Software, "the devices have no pipes"));
        };
        let mut devices = Self { _child: child, input, lines: BufReader::new(output).lines() };
        let ready = devices.line().await?;
        Ok((devices, ready))
    }

    /// What came since the last report.
    async fn report(&mut self) -> Result<Report, Fatal> {
        self.input.write_all(b"\n").await.map_err(Fatal::of(Exit::IoErr))?;
        self.line().await
    }

    async fn line<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, Fatal> {
        let line = self.lines.next_line().await.map_err(Fatal::of(Exit::IoErr))?;
        let line = line.ok_or_else(|| Fatal::new(Exit::Software, "the simulated devices have ended"))?;
        serde_json::from_str(&line).map_err(Fatal::of(Exit::Software))
    }
}

fn text(table: &Value) -> String {
    let number = |path: &str| table.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
    let mut lines = vec![format!("{:<46} {:>10} {:>10}", "user memory of an idle connection", "bytes", "limit")];
    for (name, at, limit) in [("plain", "/plain", PLAIN_LIMIT), ("TLS", "/tls", TLS_LIMIT)] {
        let bytes = number(&format!("{at}/bytes_per_connection"));
        let verdict = if bytes <= limit { "" } else { "   over" };
        lines.push(format!("  {name:<44} {bytes:>10.0} {limit:>10.0}{verdict}"));
    }
    lines.push(format!(
        "  connects a second: plain {:.0}, TLS {:.0}",
        number("/plain/connects_per_s"),
        number("/tls/connects_per_s")
    ));
    lines.push(format!(
        "idle agent: RSS {:.0} kB, PSS {:.0} kB, private dirty {:.0} kB, {:.0} threads",
        number("/agent/rss_kb"),
        number("/agent/pss_kb"),
        number("/agent/private_dirty_kb"),
        number("/agent/threads")
    ));
    lines.push(format!(
        "\n{:<46} {:>10} {:>10} {:>10}",
        "messages a second, end to end", "messages", "of inserts", "of lives"
    ));
    for (name, at, batch) in [("single, 64 senders", "single", 64), ("multicast to 100", "multicast", 256)] {
        let rate = number(&format!("/load/{at}/per_s"));
        let of = |raw: &str| rate / number(&format!("/raw/{raw}_{batch}_per_s")).max(1.0);
        lines.push(format!("  {name:<44} {rate:>10.0} {:>10.2} {:>10.2}", of("inserts"), of("lives")));
    }
    for (name, at) in [
        ("raw inserts: SQLite alone, 64 a commit", "inserts_64"),
        ("raw inserts: SQLite alone, 256 a commit", "inserts_256"),
        ("raw lives (+ device, + delete), 64 a commit", "lives_64"),
        ("raw lives (+ device, + delete), 256 a commit", "lives_256"),
        ("raw HTTP: handler that does nothing", "http"),
    ] {
        lines.push(format!("  {name:<44} {:>10.0}", number(&format!("/raw/{at}_per_s"))));
    }
    lines
        .push(format!("\n{:<46} {:>8} {:>8} {:>8} {:>8}", "latency at half that load, ms", "p50", "p90", "p99", "max"));
    for (name, at) in [
        ("posted -> answered (server's disk)", "answered_us"),
        ("posted -> at the device", "arrived_us"),
        ("posted -> on the device's disk", "stored_us"),
    ] {
        let ms = |quantile: &str| number(&format!("/load/half/{at}/{quantile}")) / 1000.0;
        lines.push(format!("  {name:<44} {:>8.2} {:>8.2} {:>8.2} {:>8.2}", ms("p50"), ms("p90"), ms("p99"), ms("max")));
    }
    lines.push(format!(
        "\n{:<46} {:>10} {:>10} {:>8} {:>8}",
        "median while another app misuses the server", "calm, ms", "then, ms", "ratio", "limit"
    ));
    for flood in fairness::FLOODS {
        lines.extend(flood_lines(flood, &number));
    }
    lines.join("\n")
}

/// The lines of one flood; `number` finds a figure of the table.
fn flood_lines(flood: &str, number: &impl Fn(&str) -> f64) -> Vec<String> {
    let mut lines = Vec::new();
    let of_flood = |at: &str| number(&format!("/fairness/{flood}/{at}"));
    for (name, at) in [("posted -> answered", "answered"), ("posted -> on the device's disk", "stored")] {
        let ms = |when: &str| of_flood(&format!("{when}/{at}_us/p50")) / 1000.0;
        let ratio = of_flood(&format!("{at}_ratio"));
        let verdict = if ratio <= FAIR { "" } else { "   over" };
        lines.push(format!(
            "  {:<44} {:>10.2} {:>10.2} {ratio:>8.2} {FAIR:>8.2}{verdict}",
            format!("{name}, {flood} flood"),
            ms("calm"),
            ms("disturbed")
        ));
    }
    lines.push(format!("  requests of that flood a second: {:.0}", of_flood("flood_per_s")));
    lines
}

//! A network that changes under a connection: two network namespaces joined by a pair of virtual cables,
//! the server in one and the agent in the other, the built programs.
//!
//! Namespaces are for root. Where they are not permitted, which is found out by making one, the test says so
//! and passes; nothing else lets it pass.

#![cfg(all(feature = "agent", feature = "server", feature = "fault-points"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::io::Write;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use common::{App, Server};
use device::{Device, DeviceApp, codes, post, request};
use serde_json::{Value, json};

const APP: &str = "org.example.Chat";
/// How many of the connection's seconds pass in one: few, for TCP sends what is lost again in the world's.
const SPEED: &str = "4";
const SERVER: &str = "10.77.0.1";
/// The interface of either side.
const CABLE: &str = "cable0";

/// Two namespaces with a cable between them. Dropping it removes them.
struct Net {
    server: String,
    device: String,
}

impl Net {
    /// `None` if namespaces are not permitted here.
    fn lay() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |of: &str| format!("bellwire-{of}-{}-{number}", std::process::id());
        let net = Self { server: name("server"), device: name("device") };
        let made = run("ip", &["netns", "add", &net.server]);
        if !made.status.success() {
            let why = String::from_utf8_lossy(&made.stderr);
            // Not by a macro: what those print of a test that passes is not shown.
            let _ = writeln!(std::io::stderr(), "SKIPPED: network namespaces are not permitted here: {why}");
            return None;
        }
        must("ip", &["netns", "add", &net.device]);
        let ends = ["link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", &net.device];
        net.in_server("ip", &ends);
        net.in_server("ip", &["address", "add", &format!("{SERVER}/24"), "dev", CABLE]);
        net.in_device("ip", &["address", "add", "10.77.0.2/24", "dev", CABLE]);
        for interface in ["lo", CABLE] {
            net.in_server("ip", &["link", "set", interface, "up"]);
            net.in_device("ip", &["link", "set", interface, "up"]);
        }
        Some(net)
    }

    fn in_server(&self, program: &str, arguments: &[&str]) -> String {
        must("ip", &[&["netns", "exec", &self.server, program], arguments].concat())
    }

    fn in_device(&self, program: &str, arguments: &[&str]) -> String {
        must("ip", &[&["netns", "exec", &self.device, program], arguments].concat())
    }

    /// From now on the cable loses every fifth packet, in both directions, and takes its time. Returns how
    /// to ask what it has done.
    fn spoil(&self) -> &'static [&'static str] {
        let netem = ["qdisc", "add", "dev", CABLE, "root", "netem", "loss", "20%", "delay", "50ms", "10ms"];
        let in_server = run("ip", &[["netns", "exec", &self.server, "tc"].as_slice(), &netem].concat());
        if in_server.status.success() {
            self.in_device("tc", &netem);
            return &["tc", "-statistics", "qdisc", "show", "dev", CABLE];
        }
        // A kernel without netem has another dice, but no delay.
        println!("no netem in this kernel: {}", String::from_utf8_lossy(&in_server.stderr).trim());
        let rules = format!(
            "table inet spoil {{ chain in {{ type filter hook input priority 0;
                iifname \"{CABLE}\" numgen random mod 100 < 20 counter drop ; }}; }}"
        );
        self.in_server("nft", &[&rules]);
        self.in_device("nft", &[&rules]);
        &["nft", "list", "ruleset"]
    }

    /// How many packets the cable has lost on the way to each side.
    fn lost(&self, ask: &[&str]) -> [u64; 2] {
        let (program, arguments) = ask.split_first().expect("a program");
        [self.in_server(program, arguments), self.in_device(program, arguments)].map(|told| {
            let words: Vec<&str> = told.split([' ', ',']).collect();
            let counted = words.windows(3).find_map(|words| match words {
                ["counter", "packets", count] | ["(dropped", count, _] => count.parse().ok(),
                _ => None,
            });
            counted.unwrap_or_else(|| panic!("no count in {told}"))
        })
    }

    /// The words that run a program in a namespace.
    fn inside(namespace: &str) -> Vec<String> {
        ["ip", "netns", "exec", namespace].map(str::to_owned).to_vec()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in [&self.server, &self.device] {
            run("ip", &["netns", "delete", name]);
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}: apt-get install iproute2 nftables"))
}

/// What a program says that must not fail.
fn must(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("it is text")
}

/// A server and a device at the two ends of a cable, and an app.
struct Stage {
    // Stopped before the network goes.
    device: Device,
    server: Server,
    app: App,
    here: DeviceApp,
    net: Net,
}

impl Stage {
    /// On which the silence that is possible has been found; `None` where namespaces are not permitted.
    async fn set() -> Option<Self> {
        let net = Net::lay()?;
        let settings = "[gateway]\nallow-plain-text = true\nka-max-s = 10";
        let speed = vec![("BELLWIRE_SPEED".to_owned(), SPEED.to_owned())];
        let server = Server::start_inside(Net::inside(&net.server), &format!("{SERVER}:0"), "00", settings, speed);
        let app = server.app_add(APP);
        let plain = "allow-plain-text = true";
        let inside = Net::inside(&net.device);
        let device = Device::start_inside(inside, &server.gateway, plain, &[("BELLWIRE_SPEED", SPEED)]);
        device.until_online().await;
        let here = device.app(APP).await;
        device.until_told(|link| link["silence_stage"] == "steady").await;
        Some(Self { device, server, app, here, net })
    }

    fn send(&self, text: &str) {
        let answer = post(&self.server, &self.app, &request(self.here.reg_id.as_str(), text, text));
        assert_eq!(codes(&answer), [1000]);
    }

    async fn receive(&mut self, text: &str) {
        assert_eq!(self.here.next().await.data(), text);
    }

    /// What is known of the silence.
    fn learned(&self) -> Vec<Value> {
        let link = self.device.link();
        let of = ["silence_s", "silence_stage", "silence_proven_s", "silence_refuted_s"];
        of.iter().map(|name| link[name].clone()).collect()
    }

    fn number(&self, name: &str) -> u64 {
        let link = self.device.link();
        link[name].as_u64().unwrap_or_else(|| panic!("no {name} in {link}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_keep_coming_and_nothing_is_unlearned_while_address_and_link_change() {
    let Some(mut stage) = Stage::set().await else { return };
    let learned = stage.learned();
    assert_eq!(learned, [json!(10), json!("steady"), json!(10), Value::Null]);
    assert_eq!(stage.device.link()["network"], "ethernet");

    // Another address: the link is replaced at once, and not because somebody has waited for an answer.
    let (connects, pings) = (stage.number("connects_today"), stage.number("pings_today"));
    stage.net.in_device("ip", &["address", "del", "10.77.0.2/24", "dev", CABLE]);
    stage.net.in_device("ip", &["address", "add", "10.77.0.3/24", "dev", CABLE]);
    stage.send("from another address");
    stage.receive("from another address").await;
    assert_eq!(stage.number("connects_today"), connects + 1, "{}", stage.device.log());
    assert!(stage.number("pings_today") >= pings);

    // The cable is pulled, which is seen at once, and plugged in again, which is as well.
    for round in ["first", "second"] {
        stage.net.in_device("ip", &["link", "set", CABLE, "down"]);
        stage.device.until_told(|link| link["network"] == "none").await;
        stage.send(round);
        stage.net.in_device("ip", &["link", "set", CABLE, "up"]);
        stage.device.until_told(|link| link["network"] == "ethernet").await;
        stage.receive(round).await;
    }
    // The other end of it as well: the route stays, and leads nowhere.
    stage.net.in_server("ip", &["link", "set", CABLE, "down"]);
    stage.device.until_told(|link| link["network"] == "none").await;
    stage.send("other end");
    stage.net.in_server("ip", &["link", "set", CABLE, "up"]);
    stage.receive("other end").await;

    let link = stage.device.link();
    assert_eq!((&link["losses_today"], &link["last_loss_counts"]), (&json!(0), &Value::Null), "{link}");
    assert_eq!(stage.learned(), learned);
    // And it was one network all the time.
    stage.device.stop_agent();
    let database = rusqlite::Connection::open(stage.device.folder.path().join("state/agent.db")).expect("a database");
    let rows =
        database.query_row("SELECT count(*), max(learned) FROM networks", [], |row| Ok((row.get(0)?, row.get(1)?)));
    let (networks, kept): (u32, String) = rows.expect("it has learned");
    assert!(networks == 1 && kept.contains(r#""stage":"steady","good_s":10"#), "{networks}: {kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifth_of_all_packets_may_be_lost() {
    let Some(mut stage) = Stage::set().await else { return };
    let learned = stage.learned();
    let ask = stage.net.spoil();
    for number in 0..20 {
        stage.send(&number.to_string());
        stage.receive(&number.to_string()).await;
    }
    // Silence follows, and pings that prove it.
    let pings = stage.number("pings_today");
    stage.device.until_told(|link| link["pings_today"].as_u64() >= Some(pings + 6)).await;
    assert_eq!(stage.learned(), learned, "{}", stage.device.link());
    stage.send("last");
    stage.receive("last").await;
    let lost = stage.net.lost(ask);
    assert!(lost.iter().all(|count| *count >= 5), "{lost:?}");
}

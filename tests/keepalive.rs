//! A connection over a path that forgets what says nothing, and what it costs while nothing happens: the
//! built programs, whose connection lives faster than the world does.

#![cfg(all(feature = "agent", feature = "server", feature = "fault-points"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Server, so, until_within};
use device::{Device, codes, post, request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

const APP: &str = "org.example.Chat";
/// How many of the connection's seconds pass in one.
const SPEED: u32 = 120;
/// The silence that the path survives, in the connection's seconds.
const FORGETS: u64 = 350;

/// A path to the gateway that forgets connections.
struct Path {
    address: SocketAddr,
}

/// What the path knows of one connection.
struct Known {
    traffic: Instant,
    forgotten: bool,
}

impl Path {
    /// A path that answers a forgotten connection with a reset, or with nothing at all.
    async fn start(gateway: &str, resets: bool) -> Self {
        let gateway = gateway.trim_start_matches("ws://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            while let Ok((device, _)) = listener.accept().await {
                let server = TcpStream::connect(&gateway).await.expect("the server listens");
                if resets {
                    // Whoever is dropped says so at once.
                    device.set_zero_linger().expect("a socket");
                }
                let known = Arc::new(Mutex::new(Known { traffic: Instant::now(), forgotten: false }));
                let ((from_device, to_device), (from_server, to_server)) = (device.into_split(), server.into_split());
                let (up, down) = (Arc::clone(&known), known);
                tokio::spawn(async move {
                    // With a reset, the end of one direction is the end of both.
                    tokio::select! {
                        () = carry(from_device, to_server, up, resets) => {}
                        () = carry(from_server, to_device, down, resets) => {}
                    }
                });
            }
        });
        Self { address }
    }

    fn gateway(&self) -> String {
        format!("ws://{}", self.address)
    }
}

/// Carries one direction for as long as the connection is known; then swallows it, or ends.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, known: Arc<Mutex<Known>>, resets: bool) {
    let limit = Duration::from_secs(FORGETS) / SPEED;
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let forgotten = {
            let mut known = known.lock().expect("nobody panics");
            known.forgotten |= known.traffic.elapsed() > limit;
            known.traffic = Instant::now();
            known.forgotten
        };
        if forgotten && resets {
            return;
        }
        if !forgotten && to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

fn fast(speed: u32) -> (String, String) {
    ("BELLWIRE_SPEED".to_owned(), speed.to_string())
}

/// Starts a server and a device that are both this fast, the device by this gateway or the server's own.
fn start(speed: u32, settings: &str) -> Server {
    Server::start_with("00", settings, vec![fast(speed)])
}

async fn learns(resets: bool) {
    let server = start(SPEED, "");
    let app = server.app_add(APP);
    let path = Path::start(&server.gateway, resets).await;
    let mut device = Device::start(&path.gateway(), "");
    let speed = SPEED.to_string();
    device.restart_agent_with(&[("BELLWIRE_SPEED", &speed)]);
    device.until_online().await;
    let (here, mut inbox) = device.app(APP).await.split();
    let send = |text: &str| {
        let answer = post(&server, &app, &request(here.reg_id.as_str(), text, text));
        assert_eq!(codes(&answer), [1000]);
    };
    send("before");
    assert_eq!(inbox.recv().await.expect("the app is connected").data(), "before");

    let found = until_within(Duration::from_secs(120), async || {
        let link = device.link();
        so(link["silence_stage"] == "steady", || format!("{link}\n{}", device.log())).map(|()| link)
    })
    .await;
    let number = |name: &str| found[name].as_u64().unwrap_or_else(|| panic!("no {name} in {found}"));
    let silence = number("silence_s");
    assert!((FORGETS * 7 / 10..=FORGETS).contains(&silence), "{found}");
    // What refuted a silence were losses of this path, seen as such.
    assert!(number("silence_refuted_s") <= 360 && number("losses_today") >= 2, "{found}");
    assert_eq!(found["last_loss_counts"], true, "{found}");

    // At the silence that was found nothing is lost any more, and a push gets through at once.
    let losses = number("losses_today");
    for number in 0..2 {
        tokio::time::sleep(Duration::from_secs(silence) / SPEED / 2).await;
        send(&number.to_string());
        assert_eq!(inbox.recv().await.expect("the app is connected").data(), number.to_string());
    }
    assert_eq!(device.link()["losses_today"], losses);

    // What was learned outlives the daemon.
    device.restart_agent_with(&[("BELLWIRE_SPEED", &speed)]);
    device.until_online().await;
    let again = device.link();
    assert_eq!((&again["silence_stage"], &again["silence_s"]), (&found["silence_stage"], &found["silence_s"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_forgets_in_silence_is_learned_and_nothing_is_lost() {
    learns(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_resets_what_it_has_forgotten_is_learned_as_well() {
    learns(true).await;
}

/// What a process has done: how often it woke, and what it wrote to disks.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Effort {
    wakes: u64,
    written: u64,
}

impl Effort {
    fn of(pid: u32) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
        let tasks: Vec<PathBuf> = tasks.map(|task| task.expect("it runs").path().join("status")).collect();
        let wakes = tasks.iter().map(|status| field(&read(status), "voluntary_ctxt_switches")).sum();
        Self { wakes, written: field(&read(&PathBuf::from(format!("/proc/{pid}/io"))), "write_bytes") }
    }
}

fn read(path: &PathBuf) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_agent_wakes_for_its_pings_and_for_nothing_else() {
    const FAST: u32 = 20;
    const MINUTES: u64 = 10;
    // A server that wants to hear from its devices every ten seconds: sixty pings in ten minutes.
    let server = start(FAST, "[gateway]\nka-max-s = 10");
    let mut device = Device::start(&server.gateway, "");
    device.restart_agent_with(&[("BELLWIRE_SPEED", &FAST.to_string())]);
    device.until_online().await;
    let pings = || device.link()["pings_today"].as_u64().expect("a number");
    until_within(Duration::from_secs(60), async || so(pings() > 3, || device.link().to_string())).await;
    let (first, log) = (pings(), device.log());
    // The tool has gone when the next ping has passed.
    tokio::time::sleep(Duration::from_secs(10) / FAST).await;
    let before = Effort::of(device.agent.id());
    tokio::time::sleep(Duration::from_secs(MINUTES * 60) / FAST).await;
    let after = Effort::of(device.agent.id());
    assert_eq!(device.log(), log, "a line in the log");
    assert_eq!(after.written, before.written, "something was written");
    let (pings, wakes) = (pings() - first, after.wakes - before.wakes);
    println!("{pings} pings, {wakes} wake-ups in {MINUTES} minutes");
    assert!(pings >= 55, "{pings} pings");
    // One for the alarm and one for the pong.
    let due = pings * 2;
    assert!(wakes <= due + due.div_ceil(20), "{wakes} wake-ups for {pings} pings");
}

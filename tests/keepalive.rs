//! A connection over a path that forgets what says nothing, and what it costs while nothing happens: the
//! built programs, whose connection lives faster than the world does.

#![cfg(all(feature = "agent", feature = "server", feature = "fault-points"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{self, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

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
    async fn start(gateway: &str, resets: bool, forgets: u64) -> Self {
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
                        () = carry(from_device, to_server, up, resets, forgets) => {}
                        () = carry(from_server, to_device, down, resets, forgets) => {}
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
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, known: Arc<Mutex<Known>>, resets: bool, forgets: u64) {
    let limit = Duration::from_secs(forgets) / SPEED;
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
    let path = Path::start(&server.gateway, resets, FORGETS).await;
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

/// How often the threads of a process have woken.
fn wakes(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let tasks = tasks.map(|task| task.expect("it runs").path().join("status"));
    tasks.map(|status| field(&read(&status), "voluntary_ctxt_switches")).sum()
}

/// The files of a folder, how large they are and when they were written. What SQLite has in memory for those
/// who read is none of them: the kernel puts it on disk when it likes.
fn files(folder: &path::Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let files = std::fs::read_dir(folder).expect("it is there").map(|file| file.expect("it can be read").path());
    let files = files.filter(|file| !file.to_string_lossy().ends_with("-shm"));
    let state = |file: &PathBuf| file.metadata().and_then(|found| Ok((found.len(), found.modified()?)));
    files.map(|file| (file.clone(), state(&file).expect("it is there"))).collect()
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
    let state = device.folder.path().join("state");
    let (woken, files_before) = (wakes(device.agent.id()), files(&state));
    tokio::time::sleep(Duration::from_secs(MINUTES * 60) / FAST).await;
    let wakes = wakes(device.agent.id()) - woken;
    assert_eq!(device.log(), log, "a line in the log");
    assert_eq!(files(&state), files_before, "something was written");
    let pings = pings() - first;
    println!("{pings} pings, {wakes} wake-ups in {MINUTES} minutes");
    assert!(pings >= 55, "{pings} pings");
    // One for the alarm and one for the pong.
    let due = pings * 2;
    assert!(wakes <= due + due.div_ceil(20), "{wakes} wake-ups for {pings} pings");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_holding_a_connection_is_dear_the_device_comes_back_now_and_then_if_it_is_told_to() {
    let server = start(SPEED, "");
    let app = server.app_add(APP);
    let path = Path::start(&server.gateway, true, 90).await;
    let mut device = Device::start(&path.gateway(), "interval-mode-minutes = 10");
    device.restart_agent_with(&[("BELLWIRE_SPEED", &SPEED.to_string())]);
    device.until_online().await;
    let (here, mut inbox) = device.app(APP).await.split();
    let away = || {
        let link = device.link();
        let why = link["why"].as_str().unwrap_or_default().to_owned();
        so(why.contains("interval mode"), || format!("{link}\n{}", device.log()))
    };
    until_within(Duration::from_secs(120), async || away()).await;
    for text in ["one", "two"] {
        until_within(Duration::from_secs(60), async || away()).await;
        assert_eq!(codes(&post(&server, &app, &request(here.reg_id.as_str(), text, text))), [1000]);
        assert_eq!(inbox.recv().await.expect("the app is connected").data(), text);
    }
    // A registration does not wait for the next sync.
    until_within(Duration::from_secs(60), async || away()).await;
    server.app_add("org.example.Other");
    device.app("org.example.Other").await;
}

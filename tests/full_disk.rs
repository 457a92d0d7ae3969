//! A disk that is full or read-only, under either half. The server answers 3013 for what it cannot
//! store and nothing that it answered 1000 is lost; the agent leaves at the server what it cannot
//! store, and gives an app nothing twice; both recover by themselves.
//!
//! The disk is a small tmpfs, which takes the right to mount. Where that is missing these tests say
//! so and have shown nothing; `db.rs` tests a full database without it.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::{App, DEADLINE, Server, curl};
use device::{Device, DeviceApp, codes, post, request};
use serde_json::Value;

const APP: &str = "org.example.Chat";
const PATIENT: &str = "[limits]\nwaiting-per-registration = 2000";
/// The largest `appData`.
const BIG: usize = 16 * 1024;

/// A small disk of its own, with a file on it that can be removed to make room.
struct Disk {
    path: PathBuf,
}

impl Disk {
    /// A disk of so many KiB in the folder; `None` if this user may not mount one.
    fn mount(folder: &Path, kib: u32) -> Option<Self> {
        let path = folder.join("disk");
        std::fs::create_dir(&path).expect("the folder is ours");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k,mode=700"), "tmpfs"])
            .arg(&path)
            .output()
            .expect("mount is missing: apt-get install mount");
        if !mounted.status.success() {
            println!("not tested, a disk cannot be mounted: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(Self { path })
    }

    fn fill(&self, kib: usize) {
        std::fs::write(self.path.join("filler"), vec![1; kib * 1024]).expect("there is room");
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path.join("filler")).expect("the filler is there");
    }

    fn remount(&self, how: &str) {
        let done = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.path).status();
        assert!(done.expect("mount runs").success());
    }

    fn state(&self) -> String {
        self.path.join("state").to_string_lossy().into_owned()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever still has a file open keeps it until it ends.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

fn big(number: usize) -> String {
    format!("{number:05}{}", "x".repeat(BIG - 5))
}

fn number(data: &str) -> usize {
    assert_eq!(data.len(), BIG);
    data[..5].parse().expect("a number")
}

fn send(server: &Server, app: &App, to: &DeviceApp, number: usize) -> (u16, Vec<u64>, Option<String>) {
    let answer = post(server, app, &request(to.reg_id.clone(), &number.to_string(), &big(number)));
    (answer.status, codes(&answer), answer.header("retry-after").map(str::to_owned))
}

/// A server whose state is on the disk.
fn server_on(disk: &Disk) -> Server {
    let mut server = Server::start("00", PATIENT);
    server.stop();
    // Its folder names the state folder, which may be a link.
    let state = server.folder.path().join("state");
    std::fs::remove_dir_all(&state).expect("it is ours");
    std::fs::create_dir(disk.path.join("state")).expect("there is room");
    std::os::unix::fs::symlink(disk.state(), &state).expect("it is ours");
    server.restart();
    server
}

#[tokio::test]
async fn a_server_on_a_full_disk_refuses_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(disk) = Disk::mount(folder.path(), 3 * 1024) else { return };
    let mut server = server_on(&disk);
    let credentials = server.app_add(APP);
    let mut device = Device::start(&server.gateway, "[limits]\nunread-messages = 2000\nunread-bytes = 100000000");
    let mut app = device.app(APP).await;
    device.stop_agent();
    disk.fill(1024);

    let (mut answered, mut refused) = (Vec::new(), 0);
    for number in 0..300 {
        let answer = send(&server, &credentials, &app, number);
        match &answer {
            (200, codes, None) if codes == &[1000] => answered.push(number),
            (503, codes, Some(_)) if codes == &[3013] => refused += 1,
            _ => panic!("{answer:?}\n{}", server.log()),
        }
        if refused == 10 {
            break;
        }
    }
    assert!(refused == 10 && answered.len() > 10, "{refused} were refused, {} answered 1000", answered.len());
    assert!(server.child.try_wait().expect("the server is ours").is_none(), "{}", server.log());
    let errors = server.log().lines().filter(|line| line.contains("ERROR")).count();
    assert!((1..5).contains(&errors), "a full disk is said, and not with every post:\n{}", server.log());

    let ready = curl(&[&format!("{}/readyz", server.api)], b"");
    assert_eq!((ready.status, &ready.json()["reason"]), (503, &"the disk is full".into()), "{ready:?}");
    assert_eq!(curl(&[&format!("{}/healthz", server.api)], b"").status, 200);

    // What is stored is delivered from the full disk.
    device.restart_agent();
    device.until_online().await;
    app.connect(&[]).await.expect("the app may connect");
    for expected in &answered {
        assert_eq!(number(&app.next().await.data()), *expected);
    }

    disk.make_room();
    let after = answered.len() + refused;
    assert_eq!(send(&server, &credentials, &app, after).1, [1000], "{}", server.log());
    assert_eq!(number(&app.next().await.data()), after);
    assert_eq!(curl(&[&format!("{}/readyz", server.api)], b"").status, 200);

    // The server could not note what it had delivered, and may send it again. The app sees nothing of it.
    server.kill();
    server.restart();
    device.until_online().await;
    assert_eq!(send(&server, &credentials, &app, after + 1).1, [1000]);
    assert_eq!(number(&app.next().await.data()), after + 1);
}

#[tokio::test]
async fn an_agent_on_a_full_disk_leaves_messages_at_the_server_and_gives_none_twice() {
    const MESSAGES: usize = 100;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(disk) = Disk::mount(folder.path(), 6 * 1024) else { return };
    let server = Server::start("00", PATIENT);
    let credentials = server.app_add(APP);
    let limits = "[limits]\nunread-messages = 2000\nunread-bytes = 100000000";
    let agent = tempfile::tempdir().expect("a temporary folder");
    let device = Device::start_in(agent, &disk.state(), &server.gateway, limits);
    let mut app = device.app(APP).await;
    app.call::<()>("Disconnect", &APP).await.expect("it is connected");
    disk.fill(5 * 1024);
    for number in 0..MESSAGES {
        assert_eq!(send(&server, &credentials, &app, number).1, [1000]);
    }
    device.until_link("waiting").await;
    let status: Value = serde_json::from_slice(&device.tool(&["--json", "status"]).stdout).expect("JSON");
    assert!(status["link"]["why"].as_str().is_some_and(|why| why.contains("unable to store")), "{status}");
    let stored = status["apps"][0]["unread"].as_u64().expect("a number");
    assert!(stored < MESSAGES as u64, "everything was stored: {status}");
    assert!(device.log().contains("full"), "{}", device.log());

    // A delivery that cannot be noted is not repeated while the agent runs.
    app.connect(&[]).await.expect("the app may connect on a full disk");
    if stored > 0 {
        assert_eq!(number(&app.next().await.data()), 0);
        for _ in 0..3 {
            app.call::<u32>("RequestUnread", &APP).await.expect("an answer");
        }
    }
    disk.make_room();
    device.until_online().await;
    for expected in u64::min(stored, 1) as usize..MESSAGES {
        let message = app.next().await;
        assert_eq!((number(&message.data()), message.members.contains_key("again")), (expected, false));
    }
    assert_eq!(send(&server, &credentials, &app, MESSAGES).1, [1000]);
    assert_eq!(number(&app.next().await.data()), MESSAGES);
}

#[test]
fn a_read_only_disk_is_named_at_the_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(disk) = Disk::mount(folder.path(), 1024) else { return };
    let config = folder.path().join("config.toml");
    let ports = "[api]\nlisten = \"127.0.0.1:0\"\n[gateway]\nlisten = \"127.0.0.1:0\"\n";
    for (program, more) in [(env!("CARGO_BIN_EXE_bellwired"), ""), (env!("CARGO_BIN_EXE_bellwire-server"), ports)] {
        std::fs::write(&config, format!("state-folder = {:?}\n{more}", disk.state())).expect("the folder is ours");
        for made_before in [false, true] {
            if made_before {
                // With a database that an earlier start has made, if it gets that far.
                let mut first = Command::new(program).arg("--config").arg(&config).spawn().expect("it runs");
                wait_until(|| disk.path.join("state").read_dir().is_ok_and(|mut folder| folder.next().is_some()));
                common::stop(&mut first);
            }
            disk.remount("ro");
            // One that starts all the same must not hold the test up.
            let output = Command::new("timeout").args(["20", program, "--config"]).arg(&config).output();
            disk.remount("rw");
            let output = output.expect("the built program runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(74), "{program}: {said}");
            assert!(said.contains(&disk.state()), "{program}: {said}");
        }
        std::fs::remove_dir_all(disk.path.join("state")).expect("it is ours");
    }
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "it did not come");
        std::thread::yield_now();
    }
}

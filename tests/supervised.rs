//! What the daemons tell a supervisor, what a SIGHUP changes, and what they are handed: sockets, credentials,
//! and a store that belongs to another user. The supervisor is a socket that hears what systemd would; the
//! sockets are handed over by systemd's own tool.

#![cfg(all(feature = "agent", feature = "server"))]

#[path = "common/certificate.rs"]
mod certificate;
mod common;
#[path = "common/device.rs"]
mod device;

use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use certificate::Certificate;
use common::{DEADLINE, Server, so};
use device::Device;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Hears what systemd would, as fast as it is told.
struct Supervisor {
    folder: TempDir,
    told: Receiver<Vec<String>>,
}

impl Supervisor {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("the folder is ours");
        let (sender, told) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read) = socket.recv(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..read]);
                if sender.send(text.lines().map(str::to_owned).collect()).is_err() {
                    return;
                }
            }
        });
        Self { folder, told }
    }

    fn environment(&self) -> (String, String) {
        ("NOTIFY_SOCKET".into(), self.folder.path().join("notify").to_string_lossy().into_owned())
    }

    /// Waits for a message with a line that begins like this; returns all that were told until then.
    fn until(&self, begin: &str) -> Vec<String> {
        let mut told = Vec::new();
        while !told.iter().any(|line: &String| line.starts_with(begin)) {
            told.extend(self.told.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("no {begin} after {told:?}")));
        }
        told
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).expect("process ids are small")), signal).expect("it is ours");
}

async fn logged(log: impl Fn() -> String, text: &str) {
    common::until(async || so(log().contains(text), &log)).await;
}

#[tokio::test]
async fn the_server_is_ready_when_it_says_so_and_reloads_as_systemd_wants_it() {
    let supervisor = Supervisor::new();
    let server = Server::start_with("00", "", vec![supervisor.environment()]);
    assert_eq!(supervisor.until("READY=1"), ["READY=1"]);
    assert_eq!(common::curl(&[&format!("{}/readyz", server.api)], b"").status, 200);
    assert_eq!(supervisor.until("STATUS="), ["STATUS=0 devices are connected"]);
    signal(&server.child, Signal::SIGHUP);
    let told = supervisor.until("READY=1");
    assert!(told[0] == "RELOADING=1" && told[1].starts_with("MONOTONIC_USEC="), "{told:?}");
    let file = server.folder.path().join("server.toml");
    let good = std::fs::read_to_string(&file).expect("it is there");
    std::fs::write(&file, format!("no-such-key = 1\n{good}")).expect("it is ours");
    signal(&server.child, Signal::SIGHUP);
    supervisor.until("READY=1");
    logged(|| server.log(), "the configuration stays as it was").await;
    logged(|| server.log(), "server.toml:1: unknown field `no-such-key`").await;
    std::fs::write(&file, good.replace("[limits]", "[limits]\nhistory-hours = 1")).expect("it is ours");
    signal(&server.child, Signal::SIGHUP);
    supervisor.until("READY=1");
    logged(|| server.log(), "take effect with the next start: [limits]").await;
    // Without the file the defaults would be another server.
    std::fs::remove_file(&file).expect("it is ours");
    signal(&server.child, Signal::SIGHUP);
    supervisor.until("READY=1");
    logged(|| server.log(), "server.toml: cannot be read").await;
    signal(&server.child, Signal::SIGTERM);
    supervisor.until("STOPPING=1");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_an_end_of_connections() {
    let (old, new) = (Certificate::make(), Certificate::make());
    let server = Server::start("00", &old.settings());
    let both = tempfile::NamedTempFile::new().expect("a temporary file");
    let pem = |of: &Certificate| std::fs::read_to_string(&of.chain).expect("it is there");
    std::fs::write(both.path(), pem(&old) + &pem(&new)).expect("it is ours");
    let device = Device::start(&server.gateway, &format!("ca = {:?}\n", both.path()));
    device.until_online().await;
    let online_s = |device: &Device| device.link()["online_s"].as_u64().expect("it is online");
    common::until(async || so(online_s(&device) > 0, String::new)).await;
    for (from, to) in [(&new.chain, &old.chain), (&new.key, &old.key)] {
        std::fs::copy(from, to).expect("both are ours");
    }
    signal(&server.child, Signal::SIGHUP);
    logged(|| server.log(), "the certificates of its listeners were read again").await;
    // Who trusts the new one alone is served by both listeners, and the device has not noticed.
    let ca = new.chain.to_string_lossy();
    assert_eq!(common::curl(&["--cacert", &ca, &format!("{}/readyz", server.api)], b"").status, 200);
    let other = Device::start(&server.gateway, &format!("ca = {:?}\n", new.chain));
    other.until_online().await;
    assert!(online_s(&device) > 0, "it has connected anew");
    assert_eq!(device.link()["connects_today"], 1, "{}", device.link());
}

#[tokio::test]
async fn the_agent_is_ready_with_its_name_and_goes_to_another_server_while_apps_stay() {
    let (one, two) = (Server::start("00", ""), Server::start("01", ""));
    for server in [&one, &two] {
        server.app_add("org.example.Chat");
    }
    let supervisor = Supervisor::new();
    let (name, path) = supervisor.environment();
    let device = Device::start_inside(Vec::new(), &one.gateway, "", &[(&name, &path)]);
    supervisor.until("READY=1");
    supervisor.until(&format!("STATUS=online at {}, region 00", one.gateway));
    let app = device.app("org.example.Chat").await;
    let file = device.folder.path().join("agent.toml");
    let before = std::fs::read_to_string(&file).expect("it is there");
    std::fs::write(&file, before.replace(&one.gateway, &two.gateway)).expect("it is ours");
    signal(&device.agent, Signal::SIGHUP);
    supervisor.until("RELOADING=1");
    supervisor.until(&format!("STATUS=online at {}, region 01", two.gateway));
    // The app is as connected as it was, and hears of its new regId.
    common::until(async || {
        let reg_id = app.call::<String>("Register", &app.id).await.expect("the app may register");
        so(reg_id.starts_with("01"), || reg_id)
    })
    .await;
    // And back: the first server knows the device, which has a regId of the second.
    std::fs::write(&file, before).expect("it is ours");
    signal(&device.agent, Signal::SIGHUP);
    supervisor.until(&format!("STATUS=online at {}, region 00", one.gateway));
    common::until(async || {
        let reg_id = app.call::<String>("Register", &app.id).await.expect("the app may register");
        so(reg_id.starts_with("00"), || reg_id)
    })
    .await;
    signal(&device.agent, Signal::SIGTERM);
    supervisor.until("STOPPING=1");
}

#[test]
fn a_configuration_that_was_not_there_at_the_start_is_found_by_a_reload() {
    let (server, supervisor) = (Server::start("00", ""), Supervisor::new());
    let mut device = Device::start(&server.gateway, "");
    device.stop_agent();
    let folder = device.folder.path();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_bellwired"));
    agent.env("XDG_CONFIG_HOME", folder).env("XDG_STATE_HOME", folder).env_remove("CREDENTIALS_DIRECTORY");
    agent.env("DBUS_SESSION_BUS_ADDRESS", &device.address).envs([supervisor.environment()]).stderr(Stdio::null());
    let mut agent = agent.spawn().expect("the built program runs");
    supervisor.until("READY=1");
    // The folder is there, as it has the state as well.
    std::fs::copy(folder.join("agent.toml"), folder.join("bellwire/agent.toml")).expect("both are ours");
    signal(&agent, Signal::SIGHUP);
    supervisor.until(&format!("STATUS=online at {}", server.gateway));
    common::stop(&mut agent);
}

#[test]
fn both_daemons_say_again_and_again_that_they_live() {
    let supervisor = Supervisor::new();
    let wanted = |environment| vec![environment, ("WATCHDOG_USEC".to_owned(), "100000".to_owned())];
    let server = Server::start_with("00", "", wanted(supervisor.environment()));
    let device_supervisor = Supervisor::new();
    let (name, path) = device_supervisor.environment();
    let _device = Device::start_inside(Vec::new(), &server.gateway, "", &[(&name, &path), ("WATCHDOG_USEC", "100000")]);
    for supervisor in [&supervisor, &device_supervisor] {
        for _ in 0..3 {
            supervisor.until("WATCHDOG=1");
        }
    }
    // That of another process is none of theirs.
    let supervisor = Supervisor::new();
    let mut environment = wanted(supervisor.environment());
    environment.push(("WATCHDOG_PID".into(), "1".into()));
    let server = Server::start_with("00", "", environment);
    supervisor.until("READY=1");
    // Longer than it would be silent.
    let device = Device::start(&server.gateway, "");
    tokio::runtime::Runtime::new().expect("a runtime").block_on(device.until_online());
    signal(&server.child, Signal::SIGTERM);
    assert!(!supervisor.until("STOPPING=1").contains(&"WATCHDOG=1".to_owned()));
}

#[test]
fn a_supervisor_that_does_not_listen_holds_nobody_up() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("notify");
    let unread = UnixDatagram::bind(&path).expect("the folder is ours");
    let full = UnixDatagram::unbound().expect("a socket");
    full.set_nonblocking(true).expect("it is ours");
    while full.send_to(b"STATUS=full", &path).is_ok() {}
    let environment =
        [("NOTIFY_SOCKET".into(), path.to_string_lossy().into_owned()), ("WATCHDOG_USEC".into(), "2000".into())];
    let mut server = Server::start_with("00", "", environment.to_vec());
    let given: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut device = Device::start_inside(Vec::new(), &server.gateway, "", &given);
    tokio::runtime::Runtime::new().expect("a runtime").block_on(device.until_online());
    assert!(device.stop_agent().success() && server.stop().success(), "{}{}", device.log(), server.log());
    drop(unread);
}

/// Ports that are free now.
fn free_ports() -> [u16; 2] {
    let [one, two] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port is free"));
    [one, two].map(|listener| listener.local_addr().expect("it has one").port())
}

/// The server behind sockets that systemd's tool opens for it.
struct Activated {
    child: Child,
    log: Arc<Mutex<String>>,
    _folder: TempDir,
}

impl Activated {
    fn start(opened: [u16; 2], configured: [u16; 2]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (state, [api, gateway]) = (folder.path().join("state"), configured);
        let settings = format!(
            "state-folder = {state:?}\n[api]\nlisten = \"127.0.0.1:{api}\"\n[gateway]\nlisten = \"127.0.0.1:{gateway}\"\n"
        );
        let file = folder.path().join("server.toml");
        std::fs::write(&file, settings).expect("the folder is ours");
        let mut command = Command::new("systemd-socket-activate");
        for port in opened {
            command.arg(format!("--listen=127.0.0.1:{port}"));
        }
        command.arg(env!("CARGO_BIN_EXE_bellwire-server")).arg("--config").arg(file);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("apt-get install systemd");
        let log = Arc::<Mutex<String>>::default();
        let lines = common::follow(child.stderr.take().expect("it is piped"), Arc::clone(&log));
        while !lines.recv_timeout(DEADLINE).expect("it listens").contains(&format!(":{}", opened[1])) {}
        Self { child, log, _folder: folder }
    }

    fn log(&self) -> String {
        self.log.lock().expect("nobody panics with it").clone()
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        common::stop(&mut self.child);
    }
}

#[test]
fn the_server_takes_the_sockets_that_systemd_has_opened() {
    let ports = free_ports();
    // In whatever order.
    let server = Activated::start([ports[1], ports[0]], ports);
    let answer = common::curl(&[&format!("http://127.0.0.1:{}/readyz", ports[0])], b"");
    assert_eq!(answer.status, 200, "{}", server.log());
    let device = Device::start(&format!("ws://127.0.0.1:{}", ports[1]), "");
    tokio::runtime::Runtime::new().expect("a runtime").block_on(device.until_online());
}

#[tokio::test]
async fn a_socket_for_another_address_is_a_mistake() {
    let (opened, configured) = (free_ports(), free_ports());
    let mut server = Activated::start(opened, configured);
    let _knock = std::net::TcpStream::connect(("127.0.0.1", opened[0]));
    let ended = common::until(async || {
        let ended = server.child.try_wait().expect("it is ours");
        ended.ok_or_else(|| server.log.lock().expect("nobody panics with it").clone())
    });
    assert_eq!(ended.await.code(), Some(78), "{}", server.log());
    let first = opened.iter().min().expect("there are two");
    assert!(server.log().contains(&format!("listens on 127.0.0.1:{first}, which is no `listen`")), "{}", server.log());
}

#[test]
fn the_configuration_and_its_files_may_be_credentials() {
    let (folder, certificate) = (tempfile::tempdir().expect("a temporary folder"), Certificate::make());
    std::fs::copy(&certificate.key, folder.path().join("tls.key")).expect("both are ours");
    let settings = format!(
        "state-folder = {:?}\nregion = \"42\"\n[api]\nlisten = \"127.0.0.1:0\"\ntls = {{ certificate = {:?}, key = \
         \"$CREDENTIALS_DIRECTORY/tls.key\" }}\n",
        folder.path().join("state"),
        certificate.chain
    );
    std::fs::write(folder.path().join("server.toml"), settings).expect("the folder is ours");
    let check = |given: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bellwire-server"));
        command.env_remove("CREDENTIALS_DIRECTORY").arg("check");
        match given {
            true => command.env("CREDENTIALS_DIRECTORY", folder.path()),
            false => command.arg("--config").arg(folder.path().join("server.toml")),
        };
        command.output().expect("the built program runs")
    };
    let good = check(true);
    assert!(good.status.success() && String::from_utf8_lossy(&good.stdout).contains("region 42"), "{good:?}");
    let without = check(false);
    let told = String::from_utf8_lossy(&without.stderr);
    assert!(without.status.code() == Some(78) && told.contains("$CREDENTIALS_DIRECTORY/tls.key"), "{without:?}");
}

/// The user `nobody` of every Linux.
const NOBODY: u32 = 65534;

#[test]
fn what_root_does_to_a_store_is_done_by_its_owner() {
    let server = Server::start("00", "");
    let state = server.folder.path().join("state");
    let mut server = server;
    server.stop();
    if !nix::unistd::geteuid().is_root() {
        // It acts as whoever runs it: there is nothing else to see.
        server.app_add("org.example.Chat");
        return;
    }
    let all = || std::fs::read_dir(&state).expect("it is there").map(|entry| entry.expect("it can be read").path());
    for path in all().chain([state.clone()]) {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
    }
    std::fs::remove_file(state.join("server.db.lock")).expect("it is there");
    // The configuration is read by root; the folder above is to be passed by its owner.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(server.folder.path(), mode).expect("the folder is ours");
    server.app_add("org.example.Chat");
    for path in all() {
        assert_eq!(path.metadata().expect("it is there").uid(), NOBODY, "{}", path.display());
    }
}

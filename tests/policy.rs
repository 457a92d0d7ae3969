//! The system bus's rules for the agent, on a private bus with the file that is shipped: who has the name, who may
//! call, and that nobody speaks in the agent's place. The callers are systemd's busctl, as users of this machine.
//!
//! Other users are for root. Without it the test says so and passes; nothing else lets it pass.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use common::DEADLINE;
use futures_util::StreamExt;
use tempfile::TempDir;
use zbus::{MatchRule, MessageStream};

const NAME: &str = "org.bellwire.Push";
const OBJECT: &str = "/org/bellwire/Push";
const APP: &str = "org.example.Chat";
const APP1: &str = "org.bellwire.App1";

/// A user that every Debian has.
#[derive(Clone, Copy)]
struct User {
    name: &'static str,
    id: u32,
}

const ROOT: User = User { name: "root", id: 0 };
/// In the place of the user `bellwire`, whom only packages make.
const SERVICE: User = User { name: "daemon", id: 1 };
const PERSON: User = User { name: "games", id: 5 };
const STRANGER: User = User { name: "nobody", id: 65534 };

/// What a system bus allows before a service says more, as its own configuration has it.
const DEFAULTS: &str = r#"<policy context="default"><allow user="*"/><deny own="*"/><deny send_type="method_call"/>
<allow send_type="signal"/><allow send_requested_reply="true" send_type="method_return"/>
<allow send_requested_reply="true" send_type="error"/><allow receive_type="method_call"/>
<allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
<allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/></policy>"#;

/// What an app with a name of its own ships, and the bus reads after the agent's rules: whoever wants may call it.
const CAREFREE: &str = r#"<policy context="default"><allow own="org.example.Chat"/>
<allow send_destination="org.example.Chat"/></policy>"#;

/// A private system bus.
struct Bus {
    folder: TempDir,
    address: String,
    daemon: Child,
}

impl Bus {
    /// `None` where this is not root.
    fn start() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            // Not by a macro: what those print of a test that passes is not shown.
            let _ = writeln!(std::io::stderr(), "SKIPPED: only root can call a bus as other users");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        open_to_all(folder.path());
        let address = format!("unix:path={}", folder.path().join("bus").display());
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("dbus/org.bellwire.Push.conf");
        let rules = std::fs::read_to_string(shipped).expect("it is there");
        assert_eq!(rules.matches("user=\"bellwire\"").count(), 1);
        let rules = rules.replace("user=\"bellwire\"", &format!("user={:?}", SERVICE.name));
        std::fs::write(folder.path().join("push.conf"), rules).expect("the folder is ours");
        let mut config = String::from("<busconfig><type>system</type><auth>EXTERNAL</auth>");
        let _ =
            write!(config, "<listen>{address}</listen>{DEFAULTS}<include>push.conf</include>{CAREFREE}</busconfig>");
        std::fs::write(folder.path().join("bus.conf"), config).expect("the folder is ours");
        let mut daemon = Command::new("dbus-daemon");
        daemon.args(["--nofork", "--nopidfile", "--print-address=1", "--config-file"]);
        daemon.arg(folder.path().join("bus.conf")).stdout(Stdio::piped());
        let mut daemon = daemon.spawn().expect("dbus-daemon is missing: apt-get install dbus");
        let told = common::first_line(daemon.stdout.take().expect("it is piped"));
        assert!(told.starts_with("unix:"), "{told}");
        Some(Self { folder, address, daemon })
    }

    fn busctl(&self, user: User, arguments: &[&str]) -> Output {
        let mut busctl = Command::new("busctl");
        busctl.arg(format!("--address={}", self.address)).args(arguments).uid(user.id).gid(user.id).current_dir("/");
        busctl.output().expect("busctl is missing: apt-get install systemd")
    }

    /// What the bus answers this user who wants the name.
    fn own(&self, user: User) -> String {
        let bus = "org.freedesktop.DBus";
        // 4: do not queue.
        let asked = self.busctl(user, &["call", bus, "/org/freedesktop/DBus", bus, "RequestName", "su", NAME, "4"]);
        said(&asked)
    }

    /// What this user's call of a method of the agent is answered.
    fn call(&self, user: User, interface: &str, arguments: &[&str]) -> String {
        said(&self.busctl(user, &[&["call", NAME, OBJECT, interface], arguments].concat()))
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        common::stop(&mut self.daemon);
    }
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("it is ours");
}

/// The agent as the service's user. Dropping it stops it.
struct Agent(Child);

impl Agent {
    fn start(bus: &Bus) -> Self {
        let program = bus.folder.path().join("bellwired");
        std::fs::copy(env!("CARGO_BIN_EXE_bellwired"), &program).expect("there is room");
        open_to_all(&program);
        let state = bus.folder.path().join("state");
        std::fs::create_dir(&state).expect("the folder is ours");
        std::os::unix::fs::chown(&state, Some(SERVICE.id), Some(SERVICE.id)).expect("root may");
        let config = bus.folder.path().join("agent.toml");
        std::fs::write(&config, format!("state-folder = {state:?}\ngateway = \"ws://127.0.0.1:9\"\n"))
            .expect("it is ours");
        open_to_all(&config);
        let manifest: PathBuf = bus.folder.path().join("bellwire/apps.d").join(format!("{APP}.toml"));
        std::fs::create_dir_all(manifest.parent().expect("it is in a folder")).expect("the folder is ours");
        std::fs::write(&manifest, format!("app = {APP:?}\n[allow]\nuser = {:?}\n", PERSON.name)).expect("it is ours");
        let mut agent = Command::new(program);
        agent.args(["--bus", "system", "--config"]).arg(config).uid(SERVICE.id).gid(SERVICE.id).current_dir("/");
        agent.env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address).env("XDG_DATA_DIRS", bus.folder.path());
        let mut agent = agent.stderr(Stdio::piped()).spawn().expect("the built program runs");
        let lines = common::follow(agent.stderr.take().expect("it is piped"), Arc::<Mutex<String>>::default());
        while !lines.recv_timeout(DEADLINE).expect("it becomes ready").contains(" ready ") {}
        Self(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        common::stop(&mut self.0);
    }
}

#[test]
fn root_and_the_service_may_have_the_name_and_nobody_else() {
    let Some(bus) = Bus::start() else { return };
    for user in [PERSON, STRANGER] {
        assert!(bus.own(user).contains("Access denied"), "{}: {}", user.name, bus.own(user));
    }
    // 1: it is theirs, until busctl ends.
    for user in [ROOT, SERVICE] {
        assert_eq!(bus.own(user), "u 1", "{}", user.name);
    }
    let _agent = Agent::start(&bus);
    assert!(bus.own(PERSON).contains("Access denied"));
    // 3: it is another's.
    assert_eq!(bus.own(ROOT), "u 3");
}

#[test]
fn an_app_may_call_the_agent_and_only_the_app_it_is() {
    let Some(bus) = Bus::start() else { return };
    let _agent = Agent::start(&bus);
    let connect = ["Connect", "soa{sv}", APP, "/app", "0"];
    let push = "org.bellwire.Push1";
    assert_eq!(bus.call(PERSON, push, &connect), "ss \"unregistered\" \"\"");
    for user in [STRANGER, ROOT] {
        let told = bus.call(user, push, &connect);
        assert!(told.contains("another user"), "{}: {told}", user.name);
    }
    let manager = "org.bellwire.Manager1";
    for (user, may) in [(ROOT, true), (SERVICE, true), (PERSON, false), (STRANGER, false)] {
        let told = bus.call(user, manager, &["GetStatus"]);
        assert_eq!(told.starts_with("a{sv}"), may, "{}: {told}", user.name);
    }
}

/// Lets a connection answer calls.
struct Nothing;

#[zbus::interface(name = "org.example.Nothing")]
impl Nothing {}

// Many threads: one waits for busctl while another answers it.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_in_the_agents_place() {
    let Some(bus) = Bus::start() else { return };
    let builder = zbus::connection::Builder::address(bus.address.as_str()).serve_at("/other", Nothing);
    let listener = builder.name(APP).build().await.expect("the bus runs");
    let own = listener.unique_name().expect("it has one").to_string();
    // A message for an app, by the name that its own rules let everybody call.
    for (user, name) in [(PERSON, APP), (STRANGER, APP), (SERVICE, APP), (ROOT, APP), (STRANGER, &own)] {
        let told = said(&bus.busctl(user, &["call", name, "/app", APP1, "Message", "ssa{sv}", APP, "id", "0"]));
        assert!(told.contains("Access denied"), "{} to {name}: {told}", user.name);
        let other = said(&bus.busctl(user, &["call", name, "/app", "org.example.Nothing", "Anything"]));
        assert!(other.contains("Unknown object"), "{} may call what else it has: {other}", user.name);
    }
    // A call may leave out its interface: a message does not get there by that, and everything else does.
    let builder = zbus::connection::Builder::address(bus.address.as_str());
    let root = builder.build().await.expect("the bus runs");
    for (member, denied) in [("Message", true), ("Anything", false)] {
        let told = root.call_method(Some(APP), "/app", None::<&str>, member, &()).await.expect_err("there is nothing");
        assert_eq!(told.to_string().contains("AccessDenied"), denied, "{member}: {told}");
    }
    // The agent, with its name.
    let builder = zbus::connection::Builder::address(bus.address.as_str()).name(NAME);
    let agent = builder.build().await.expect("root may have the name");
    for name in [APP, &own] {
        let told = agent
            .call_method(Some(name), "/app", Some(APP1), "Message", &())
            .await
            .expect_err("there is no such object");
        assert!(told.to_string().contains("Unknown object"), "it gets there, where nobody exports it: {told}");
    }
    // A signal: those of others are not heard, so that the first is the agent's.
    let builder = zbus::connection::Builder::address(bus.address.as_str());
    let shell = builder.build().await.expect("the bus runs");
    for (interface, listener) in [("org.bellwire.Push1", &listener), ("org.bellwire.Manager1", &shell)] {
        let rule = MatchRule::builder().msg_type(zbus::message::Type::Signal).interface(interface);
        let mut heard = MessageStream::for_match_rule(rule.build().expect("a rule"), listener, None)
            .await
            .expect("the bus has signals");
        let to = listener.unique_name().expect("it has one").to_string();
        for user in [PERSON, STRANGER] {
            bus.busctl(user, &["emit", OBJECT, interface, "Told", "s", user.name]);
            bus.busctl(user, &["emit", &format!("--destination={to}"), OBJECT, interface, "Told", "s", user.name]);
        }
        agent.emit_signal(None::<&str>, OBJECT, interface, "Told", &"the agent").await.expect("the bus is there");
        let first = tokio::time::timeout(DEADLINE, heard.next()).await.expect("in time").expect("the bus is there");
        let who: String = first.expect("a message").body().deserialize().expect("a text");
        assert_eq!(who, "the agent", "{interface}");
    }
}

/// What `dbus-daemon` says of the file: a mistake in it is a warning that nobody reads.
#[test]
fn the_bus_reads_the_rules_without_a_warning() {
    let Some(mut bus) = Bus::start() else { return };
    common::stop(&mut bus.daemon);
    let mut daemon = Command::new("dbus-daemon");
    daemon.args(["--nofork", "--nopidfile", "--print-address=1", "--config-file"]);
    daemon.arg(bus.folder.path().join("bus.conf")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut daemon = daemon.spawn().expect("dbus-daemon is missing: apt-get install dbus");
    let mut ready = String::new();
    BufReader::new(daemon.stdout.take().expect("it is piped")).read_line(&mut ready).expect("a line");
    common::stop(&mut daemon);
    let told = std::io::read_to_string(daemon.stderr.take().expect("it is piped")).expect("text");
    // How many files it may open is not ours.
    let of_rules: Vec<&str> = told.lines().filter(|line| !line.contains("Failed to set fd limit")).collect();
    assert!(of_rules.is_empty(), "{told}");
}

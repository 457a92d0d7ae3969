//! The examples for app writers, `examples/app.*`: each is a whole app, run as it says that it is run,
//! and curl is its application server. And busctl, by which people look at the bus, shows them the API
//! that `dbus/*.xml` promises.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use common::{App, DEADLINE, Server, follow, python};
use device::{Device, MANAGER, NAME, OBJECT, PUSH, codes, post, request, within};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::{Value, json};

const APP: &str = "org.example.App";
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");

/// An example that runs, in a process group of its own: a shell starts more programs. Dropping it stops
/// all of them.
struct Running {
    child: Child,
    said: Arc<Mutex<String>>,
    lines: Receiver<String>,
    complaints: Receiver<String>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let said = Arc::<Mutex<String>>::default();
        let lines = follow(child.stdout.take().expect("it is piped"), Arc::clone(&said));
        let complaints = follow(child.stderr.take().expect("it is piped"), Arc::clone(&said));
        Self { child, said, lines, complaints }
    }

    /// What follows this word in the next line that begins with it.
    fn line(&self, word: &str) -> String {
        let started = Instant::now();
        loop {
            match self.lines.recv_timeout(DEADLINE.saturating_sub(started.elapsed())) {
                Ok(line) => match after(&line, word) {
                    Some(rest) => return rest.to_owned(),
                    None => continue,
                },
                Err(error) => panic!("no line {word:?}: {error}; it said:\n{}", self.said()),
            }
        }
    }

    /// All that it has said so far.
    fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.child.id()).expect("process ids are small"));
        // It was not waited for, so the group is still its own.
        let _ = killpg(group, Signal::SIGTERM);
        common::stop(&mut self.child);
        // All of its programs have ended when nobody can say anything more.
        for pipe in [&self.lines, &self.complaints] {
            while pipe.recv_timeout(DEADLINE).is_ok() {}
        }
    }
}

/// What follows this word in a line that begins with it.
fn after<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    let rest = line.strip_prefix(word)?;
    (rest.is_empty() || rest.starts_with(' ')).then(|| rest.trim())
}

/// Whether a line shows this member of a message, however it quotes.
fn shows(line: &str, member: &str) -> bool {
    line.replace('\'', "").split(' ').any(|shown| shown == member)
}

/// An example and what it runs with.
struct Stage {
    program: Vec<String>,
    /// It calls everything of Push1 itself, and says all that comes.
    whole: bool,
    server: Server,
    app: App,
    device: Device,
}

impl Stage {
    fn set(program: &[&str], whole: bool) -> Self {
        let server = Server::start("00", "");
        let app = server.app_add(APP);
        let device = Device::start(&server.gateway, "");
        Self { program: program.iter().map(|&word| word.to_owned()).collect(), whole, server, app, device }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let built = Path::new(env!("CARGO_BIN_EXE_bellwire")).parent().expect("a folder");
        let path = format!("{}:{}", built.display(), std::env::var("PATH").expect("there is a PATH"));
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).args(arguments).stdin(Stdio::null());
        command.env("DBUS_SESSION_BUS_ADDRESS", &self.device.address).env("PATH", path).env_remove("BELLWIRE_BUS");
        command
    }

    /// The example to its end.
    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap_or_else(|error| panic!("{:?}: {error}", self.program))
    }

    /// The example with its app connected, and its regId.
    fn start(&self, state: &str, launch: &str, badge: &str) -> (Running, String) {
        let running = Running::start(self.command(&[APP]));
        let reg_id = self.began(&running, state, launch, badge);
        (running, reg_id)
    }

    /// Reads what the example says at its beginning.
    fn began(&self, running: &Running, state: &str, launch: &str, badge: &str) -> String {
        if self.whole {
            let said = running.line("state");
            assert!(said.starts_with(state), "{said}");
        }
        let reg_id = running.line("regId");
        assert!(reg_id.len() == 100 && reg_id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{reg_id}");
        if self.whole {
            let said = running.line("launch");
            assert_eq!(said.split(' ').next(), Some(launch), "{said}");
        }
        assert_eq!([running.line("badge"), running.line("badge")], [badge, "0"]);
        if self.whole {
            assert_eq!(running.line("waiting"), "0");
        }
        reg_id
    }

    /// Sends as an application server does.
    fn send(&self, request: &Value) -> Vec<u64> {
        codes(&post(&self.server, &self.app, request))
    }
}

/// The life of an app: unknown, new, told, away, back, with an agent that is started anew, and gone for
/// good.
async fn live(mut stage: Stage) {
    let unknown = stage.output(&["org.example.Unknown"]);
    let why = String::from_utf8_lossy(&unknown.stderr);
    assert!(unknown.status.code() == Some(1) && why.contains("bellwire-server app add"), "{unknown:?}");

    let (running, reg_id) = stage.start("unregistered", "", "0");
    told(&stage, &running, &reg_id).await;
    drop(running);
    let reg_id = reg_id.as_str();

    // What the daemon starts says nothing and ends: the example is started here, where it can be heard.
    stage
        .device
        .install(&format!("applications/{APP}.desktop"), "[Desktop Entry]\nType=Application\nName=App\nExec=true\n");
    let start = "action=LAUNCH&badgeOption=SET&badgeNumber=7";
    let update = json!({ "regID": reg_id, "requestID": "3", "appData": "meanwhile", "message": start });
    assert_eq!(stage.send(&update), [1000]);
    stage.device.until_hop(&stage.device.connect().await, "3", "launched").await;
    let (running, again) = stage.start("registered", "notification", "7");
    assert_eq!(again, reg_id);
    let unread = match stage.whole {
        true => running.said().lines().find_map(|line| after(line, "unread").map(str::to_owned)),
        false => Some(running.line("message")),
    };
    assert!(unread.is_some_and(|unread| shows(&unread, "app_data=meanwhile")), "{}", running.said());

    stage.device.restart_agent();
    if stage.whole {
        // It is still what it was started for.
        assert_eq!(stage.began(&running, "registered", "notification", "0"), reg_id);
    }
    assert_eq!(stage.send(&request(reg_id, "4", "after the restart")), [1000]);
    let message = running.line("message");
    assert!(message.contains("after the restart"), "{message}");
    drop(running);

    let left = stage.output(&[APP, "--leave"]);
    assert!(left.status.success() && left.stderr.is_empty(), "{left:?}");
    assert_eq!(stage.send(&request(reg_id, "5", "nobody")), [3008]);
}

/// A connected app is told of messages and changes.
async fn told(stage: &Stage, running: &Running, reg_id: &str) {
    if stage.whole {
        assert_eq!(running.line("RegistrationChanged"), format!("{APP} registered {reg_id}"));
    }
    let hello = json!({ "regID": reg_id, "requestID": "1", "appData": "hello", "message": "action=SILENT", "type": 5 });
    assert_eq!(stage.send(&hello), [1000]);
    let message = running.line("message");
    assert!(shows(&message, "app_data=hello"), "{message}");
    if stage.whole {
        assert!(shows(&message, "message=action=SILENT") && shows(&message, "type=5"), "{message}");
        assert_eq!(stage.send(&request(reg_id, "2", "a\0b")), [1000]);
        let bytes = running.line("message");
        assert!(shows(&bytes, "payload=610062") || shows(&bytes, "payload=ba\\x00b"), "{bytes}");
        let bus = stage.device.connect().await;
        let set = bus.call_method(Some(NAME), OBJECT, Some(PUSH), "SetBadge", &(APP, 5u32));
        within("SetBadge", set).await.expect("the app is ours");
        assert_eq!(running.line("BadgeChanged"), format!("{APP} 5"));
    }
}

/// Fails with the command that installs what is missing.
fn need(program: &str, arguments: &[&str], packages: &str) {
    let found = Command::new(program).args(arguments).stdout(Stdio::null()).status();
    assert!(found.is_ok_and(|status| status.success()), "{program} {arguments:?} fails: apt-get install {packages}");
}

#[tokio::test]
async fn the_app_in_python_is_a_whole_app() {
    live(Stage::set(&[&python(), &format!("{EXAMPLES}/app.py")], true)).await;
}

#[tokio::test]
async fn the_app_in_c_is_a_whole_app() {
    need("cc", &["--version"], "gcc libc6-dev");
    need("pkg-config", &["--exists", "libsystemd"], "pkg-config libsystemd-dev");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = std::fs::read_to_string(format!("{EXAMPLES}/app.c")).expect("the example is there");
    std::fs::write(folder.path().join("app.c"), &source).expect("the folder is ours");
    let command = source.lines().find_map(|line| line.strip_prefix(" *     cc ")).expect("it says how it is compiled");
    let compiled = Command::new("sh").args(["-c", &format!("cc {command}")]).current_dir(&folder).output();
    let compiled = compiled.expect("there is a shell");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let program = folder.path().join("app");
    live(Stage::set(&[&program.to_string_lossy()], true)).await;
}

#[tokio::test]
async fn the_app_at_the_shell_is_an_app() {
    need("busctl", &["--version"], "systemd");
    need("jq", &["--version"], "jq");
    let stage = Stage::set(&["sh", &format!("{EXAMPLES}/app.sh")], false);
    let usage = stage.output(&[]);
    assert!(usage.status.code() == Some(64) && usage.stderr.starts_with(b"usage: app.sh APP-ID"), "{usage:?}");
    let api = stage.output(&["--api"]);
    assert_eq!(listed(&api, "org.bellwire.Push1"), promised("org.bellwire.Push1"));
    live(stage).await;
}

/// The members of an interface, as busctl calls them: name, type, and one or two signatures.
fn promised(interface: &str) -> BTreeSet<String> {
    let path = format!("{}/dbus/{interface}.xml", env!("CARGO_MANIFEST_DIR"));
    let xml = std::fs::read_to_string(path).expect("the contract is there");
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(&xml, options).expect("the XML is well formed");
    let members = document.descendants().filter(Node::is_element);
    let members = members.filter(|node| node.parent_element().is_some_and(|of| of.has_tag_name("interface")));
    members.map(|member| member_line(&member)).collect()
}

fn member_line(member: &Node<'_, '_>) -> String {
    let (kind, name) = (member.tag_name().name(), member.attribute("name").expect("a member has a name"));
    let signature = |direction: &str| {
        let arguments = member.children().filter(|arg| arg.attribute("direction").unwrap_or("in") == direction);
        let types: String = arguments.filter_map(|arg| arg.attribute("type")).collect();
        if types.is_empty() { "-".to_owned() } else { types }
    };
    match kind {
        "method" => format!(".{name} method {} {}", signature("in"), signature("out")),
        "property" => format!(".{name} property {}", member.attribute("type").expect("a property has a type")),
        // All arguments of a signal come in, here.
        _ => format!(".{name} {kind} {}", signature("in")),
    }
}

/// The same from what `busctl introspect` printed.
fn listed(busctl: &Output, interface: &str) -> BTreeSet<String> {
    assert!(busctl.status.success() && busctl.stderr.is_empty(), "{busctl:?}");
    let mut of_this = true;
    let mut members = BTreeSet::new();
    for line in String::from_utf8_lossy(&busctl.stdout).lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[1] {
            "interface" => of_this = words[0] == interface,
            _ if !of_this => {}
            "method" => drop(members.insert(words[..4].join(" "))),
            _ => drop(members.insert(words[..3].join(" "))),
        }
    }
    members
}

#[test]
fn busctl_shows_the_whole_api() {
    need("busctl", &["--version"], "systemd");
    let server = Server::start("00", "");
    let device = Device::start(&server.gateway, "");
    let mut command = Command::new("busctl");
    command.arg(format!("--address={}", device.address)).args(["introspect", NAME, OBJECT]).stdin(Stdio::null());
    let shown = command.output().expect("it was there just now");
    for interface in [PUSH, MANAGER] {
        let promised = promised(interface);
        assert!(promised.len() > 10, "{promised:?}");
        assert_eq!(listed(&shown, interface), promised, "{interface}");
    }
}

//! What the tests of the whole way share: a device (a private bus with an agent on it), an app on
//! it, and a sender.
//!
//! Nothing here sleeps for a fixed time: it waits for what a program says or a bus signals, with a
//! deadline.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::collections::HashMap;
use std::future::Future;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use zbus::{Connection, MatchRule, MessageStream, ObjectPath, OwnedVariant, Variant, interface};

use crate::common::{self, Answer, App, DEADLINE, Server, so};

pub const NAME: &str = "org.bellwire.Push";
pub const OBJECT: &str = "/org/bellwire/Push";
pub const PUSH: &str = "org.bellwire.Push1";
pub const MANAGER: &str = "org.bellwire.Manager1";
/// Where the apps of the tests export `org.bellwire.App1`.
pub const APP_PATH: &str = "/app";

/// A private bus with an agent. Dropping it stops both.
pub struct Device {
    /// Configuration and state.
    pub folder: TempDir,
    /// The bus's address.
    pub address: String,
    /// The agent.
    pub agent: Child,
    bus: Child,
    /// The command that runs the agent.
    inside: Vec<String>,
    log: Arc<Mutex<String>>,
}

impl Device {
    /// Starts a bus and an agent for this gateway with these further settings, in TOML.
    pub fn start(gateway: &str, settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let state = folder.path().join("state");
        Self::start_in(folder, &state.to_string_lossy(), gateway, settings)
    }

    /// The same with this state folder.
    pub fn start_in(folder: TempDir, state: &str, gateway: &str, settings: &str) -> Self {
        Self::launch_in(folder, state, gateway, settings, Vec::new(), &[])
    }

    /// The same with an agent that is run by this command and has these variables in its environment.
    pub fn start_inside(inside: Vec<String>, gateway: &str, settings: &str, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let state = folder.path().join("state");
        Self::launch_in(folder, &state.to_string_lossy(), gateway, settings, inside, environment)
    }

    fn launch_in(
        folder: TempDir,
        state: &str,
        gateway: &str,
        settings: &str,
        inside: Vec<String>,
        environment: &[(&str, &str)],
    ) -> Self {
        let config = format!("gateway = {gateway:?}\nstate-folder = {state:?}\n{settings}\n");
        std::fs::write(folder.path().join("agent.toml"), config).expect("the folder is ours");
        let address = format!("unix:path={}", folder.path().join("bus").display());
        let bus_config = write_bus_config(folder.path(), &address);
        let mut command = Command::new("dbus-daemon");
        isolate(&mut command, folder.path());
        command.args(["--nofork", "--nopidfile", "--print-address=1", "--config-file"]).arg(bus_config);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut bus = command.spawn().expect("dbus-daemon is missing: apt-get install dbus");
        wait_for(bus.stdout.take().expect("it is piped"), "unix:", &Arc::default());
        let log = Arc::<Mutex<String>>::default();
        let agent = launch(&inside, &folder, &address, environment, &log);
        Self { folder, address, agent, bus, inside, log }
    }

    /// Ends the agent as a power cut would, as far as it can tell.
    pub fn kill_agent(&mut self) {
        self.agent.kill().expect("the agent is ours");
        self.agent.wait().expect("the agent is ours");
    }

    /// Starts the agent again in the same folder on the same bus.
    pub fn restart_agent(&mut self) {
        self.restart_agent_with(&[]);
    }

    /// The same with these variables in its environment.
    pub fn restart_agent_with(&mut self, environment: &[(&str, &str)]) {
        self.stop_agent();
        self.agent = launch(&self.inside, &self.folder, &self.address, environment, &self.log);
    }

    /// Installs a file below the folder of shared data: `applications/...`, `bellwire/apps.d/...`.
    pub fn install(&self, path: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join("data").join(path);
        std::fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("the folder is ours");
        std::fs::write(&path, text).expect("the folder is ours");
        path
    }

    /// Calls a method of `Manager1`, as the daemon's own user.
    pub async fn manage<R: serde::de::DeserializeOwned + zbus::Type>(
        &self,
        bus: &Connection,
        method: &str,
        arguments: &(impl serde::Serialize + zbus::DynamicType),
    ) -> R {
        let call = bus.call_method(Some(NAME), OBJECT, Some(MANAGER), method, arguments);
        let reply = within(method, call).await.unwrap_or_else(|error| panic!("{method}: {error}"));
        reply.body().deserialize().expect("the answer has the form of the contract")
    }

    /// What became of the message with this request id so far: the names of its hops.
    pub async fn hops(&self, bus: &Connection, request_id: &str) -> Vec<String> {
        let messages: Vec<HashMap<String, OwnedVariant>> = self.manage(bus, "ListMessages", &200_u32).await;
        let is_it = |message: &&HashMap<String, OwnedVariant>| {
            message.get("request_id").is_some_and(|id| **id == Variant::from(request_id))
        };
        let Some(message) = messages.iter().find(is_it) else { return Vec::new() };
        let hops: Vec<HashMap<String, OwnedVariant>> = message["hops"].clone().try_into().expect("hops are aa{sv}");
        hops.into_iter().map(|hop| String::try_from(hop["hop"].clone()).expect("a hop is a word")).collect()
    }

    /// Waits until this has become of the message with this request id.
    pub async fn until_hop(&self, bus: &Connection, request_id: &str, hop: &str) {
        common::until(async || {
            let hops = self.hops(bus, request_id).await;
            let is = hops.iter().any(|name| name == hop);
            so(is, || format!("{request_id} is {hops:?}, not {hop}:\n{}", self.log()))
        })
        .await;
    }

    /// Why that became of the message with this request id.
    pub fn reason(&self, request_id: &str, hop: &str) -> String {
        let shown = self.tool(&["--json", "message", "show", request_id]);
        let message: Value = serde_json::from_slice(&shown.stdout).unwrap_or_else(|_| panic!("{shown:?}"));
        let hops = message["hops"].as_array().expect("hops").clone();
        let found = hops.iter().find(|line| line["hop"] == hop).unwrap_or_else(|| panic!("{hop} is not in {hops:?}"));
        found["why"].as_str().unwrap_or_default().to_owned()
    }

    /// The signals of this interface from now on.
    pub async fn signals(&self, bus: &Connection, interface: &'static str) -> MessageStream {
        let rule = MatchRule::builder().msg_type(zbus::message::Type::Signal).interface(interface).build();
        MessageStream::for_match_rule(rule.expect("a rule"), bus, None).await.expect("the bus has signals")
    }

    /// An app as `ListApps` shows it.
    pub async fn listed(&self, bus: &Connection, app: &str) -> HashMap<String, OwnedVariant> {
        let apps: Vec<HashMap<String, OwnedVariant>> = self.manage(bus, "ListApps", &()).await;
        let found =
            apps.into_iter().find(|row| row["app"] == OwnedVariant::try_from(Variant::from(app)).expect("text"));
        found.unwrap_or_else(|| panic!("{app} is not listed"))
    }

    /// Stops the agent in order, if it runs, and says how it ended.
    pub fn stop_agent(&mut self) -> ExitStatus {
        common::stop(&mut self.agent)
    }

    /// The number of the agent's process.
    pub fn agent_id(&self) -> u32 {
        self.agent.id()
    }

    /// Whether the agent runs.
    pub fn agent_runs(&mut self) -> bool {
        self.agent.try_wait().expect("the agent is ours").is_none()
    }

    /// What the agent has logged.
    pub fn log(&self) -> String {
        lock(&self.log).clone()
    }

    /// A new connection to the bus.
    pub async fn connect(&self) -> Connection {
        let builder = zbus::connection::Builder::address(self.address.as_str());
        within("a connection to the bus", builder.build()).await.expect("the bus runs")
    }

    /// An app that exports `App1` and has not connected.
    pub async fn unconnected_app(&self, id: &str) -> DeviceApp {
        let (messages, inbox) = mpsc::unbounded_channel();
        let manners = Arc::new(Mutex::new(Manners::Take));
        let exported = Exported { messages, manners: Arc::clone(&manners) };
        // Served from the start: an object that is added later may miss the first calls.
        let builder = zbus::connection::Builder::address(self.address.as_str()).serve_at(APP_PATH, exported);
        let bus = within("a connection to the bus", builder.build()).await.expect("the bus runs");
        DeviceApp { id: id.to_owned(), reg_id: String::new(), bus, inbox, manners }
    }

    /// An app that is connected and registered, and takes every message.
    pub async fn app(&self, id: &str) -> DeviceApp {
        let mut app = self.unconnected_app(id).await;
        app.connect(&[]).await.expect("the app may connect");
        app.reg_id = app.call::<String>("Register", &app.id).await.expect("the app may register");
        app
    }

    /// The tool on this device's bus.
    pub fn tool(&self, arguments: &[&str]) -> Output {
        tool(&self.address, arguments)
    }

    /// How the connection is, as the tool tells it.
    pub fn link(&self) -> Value {
        let told = self.tool(&["--json", "status"]);
        let status: Value = serde_json::from_slice(&told.stdout).unwrap_or_else(|error| panic!("{error}: {told:?}"));
        status["link"].clone()
    }

    /// Waits until the tool tells this of the connection; returns all it tells.
    pub async fn until_told(&self, what: impl Fn(&Value) -> bool) -> Value {
        common::until(async || {
            let link = self.link();
            so(what(&link), || format!("{link}\n{}", self.log())).map(|()| link)
        })
        .await
    }

    /// The URL of the link that it uses.
    pub fn gateway(&self) -> String {
        self.link()["gateway"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until it is online over a link of this kind, without its pauses between attempts.
    pub async fn until_over(&self, scheme: &str, logs: impl Fn() -> String) {
        let (bus, started) = (self.connect().await, Instant::now());
        loop {
            let link = self.link();
            if link["state"] == "online" && link["gateway"].as_str().is_some_and(|url| url.starts_with(scheme)) {
                return;
            }
            assert!(started.elapsed() < DEADLINE, "{link}\n{}\n{}", self.log(), logs());
            // A link that is not the preferred one is left as well.
            self.manage::<()>(&bus, "TryNow", &()).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the device is online, without its pauses between attempts.
    pub async fn until_online(&self) {
        self.until_link("online").await;
    }

    /// Waits until the link is in this state; pauses between attempts are skipped.
    pub async fn until_link(&self, wanted: &str) {
        let bus = self.connect().await;
        let rule = MatchRule::builder().msg_type(zbus::message::Type::Signal).path(OBJECT).build().expect("a rule");
        let mut signals = MessageStream::for_match_rule(rule, &bus, None).await.expect("the bus has signals");
        let started = Instant::now();
        loop {
            let state = link_state(&bus).await;
            if state == wanted {
                return;
            }
            if state == "waiting" {
                let _ = bus.call_method(Some(NAME), OBJECT, Some(MANAGER), "TryNow", &()).await;
            }
            assert!(started.elapsed() < DEADLINE, "the link is {state}, not {wanted}:\n{}", self.log());
            // A state that is left and entered again gives no signal: look again after a while.
            let _ = tokio::time::timeout(Duration::from_millis(200), signals.next()).await;
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop_agent();
        let _ = self.bus.kill();
        let _ = self.bus.wait();
    }
}

async fn link_state(bus: &Connection) -> String {
    let properties = "org.freedesktop.DBus.Properties";
    match bus.call_method(Some(NAME), OBJECT, Some(properties), "Get", &(PUSH, "LinkState")).await {
        Ok(reply) => {
            let value: OwnedVariant = reply.body().deserialize().expect("a property");
            String::try_from(value).expect("LinkState is a string")
        }
        Err(error) => format!("unknown ({error})"),
    }
}

/// Lets a program find nothing that is installed on this machine, only what is in the device's
/// folder `data`: desktop files, manifests, activation files.
fn isolate(command: &mut Command, folder: &Path) {
    let (data, nothing) = (folder.join("data"), folder.join("nothing"));
    command.env("XDG_DATA_HOME", data).env("XDG_DATA_DIRS", nothing).env("HOME", folder);
}

/// A session's bus that starts nothing but what is in the device's folder, and lets in every user
/// whom the folder lets in: whose an app is, is the daemon's to say.
fn write_bus_config(folder: &Path, address: &str) -> PathBuf {
    let services = folder.join("data/dbus-1/services");
    // A bus looks at the folders that are there when it starts.
    std::fs::create_dir_all(&services).expect("the folder is ours");
    let config = format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\"
  \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">
<busconfig>
  <type>session</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <servicedir>{}</servicedir>
  <policy context=\"default\">
    <allow user=\"*\"/>
    <allow send_destination=\"*\" eavesdrop=\"true\"/>
    <allow eavesdrop=\"true\"/>
    <allow own=\"*\"/>
  </policy>
</busconfig>
",
        services.display()
    );
    let path = folder.join("bus.conf");
    std::fs::write(&path, config).expect("the folder is ours");
    path
}

fn launch(
    inside: &[String],
    folder: &TempDir,
    address: &str,
    environment: &[(&str, &str)],
    log: &Arc<Mutex<String>>,
) -> Child {
    let mut command = common::run_inside(inside, env!("CARGO_BIN_EXE_bellwired"));
    isolate(&mut command, folder.path());
    command
        .arg("--config")
        .arg(folder.path().join("agent.toml"))
        .env("DBUS_SESSION_BUS_ADDRESS", address)
        .env("DBUS_SYSTEM_BUS_ADDRESS", address);
    command.envs(environment.iter().copied());
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the built program runs");
    wait_for(child.stderr.take().expect("it is piped"), " ready ", log);
    child
}

/// Waits for a line with this text; reads on in the background.
fn wait_for(output: impl Read + Send + 'static, text: &str, log: &Arc<Mutex<String>>) {
    let (sender, lines): (_, Receiver<String>) = channel();
    let kept = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            lock(&kept).push_str(&format!("{line}\n"));
            // Nobody listens any longer once the line has come.
            let _ = sender.send(line);
        }
    });
    let started = Instant::now();
    while let Ok(line) = lines.recv_timeout(DEADLINE.saturating_sub(started.elapsed())) {
        if line.contains(text) {
            return;
        }
    }
    panic!("a program did not say {text:?}:\n{}", lock(log));
}

/// Runs the tool on the bus of this address.
pub fn tool(address: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bellwire"));
    command.args(["--bus", address]).args(arguments).stdin(Stdio::null());
    command.output().expect("the built program runs")
}

/// What an app does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    /// It takes it.
    Take,
    /// It answers with an error.
    Refuse,
    /// It sees it and never answers.
    Ignore,
}

/// An app on a device's bus.
pub struct DeviceApp {
    /// Its id.
    pub id: String,
    /// Its regId once it is registered.
    pub reg_id: String,
    /// Its connection to the bus.
    pub bus: Connection,
    inbox: mpsc::UnboundedReceiver<Message>,
    manners: Arc<Mutex<Manners>>,
}

/// A message as the app was handed it.
#[derive(Debug)]
pub struct Message {
    /// Its id, from the call's arguments.
    pub id: String,
    /// Its members.
    pub members: HashMap<String, OwnedVariant>,
}

impl Message {
    /// A member that is text.
    pub fn text(&self, name: &str) -> Option<String> {
        self.members.get(name).map(|value| String::try_from(value.clone()).expect("the member is text"))
    }

    /// `app_data`.
    pub fn data(&self) -> String {
        self.text("app_data").unwrap_or_else(|| panic!("there is no app_data in {self:?}"))
    }
}

struct Exported {
    messages: mpsc::UnboundedSender<Message>,
    manners: Arc<Mutex<Manners>>,
}

#[interface(name = "org.bellwire.App1")]
impl Exported {
    async fn message(&self, app: &str, id: &str, message: HashMap<String, OwnedVariant>) -> zbus::fdo::Result<()> {
        let same = |name: &str, text: &str| message.get(name).is_some_and(|value| **value == Variant::from(text));
        assert!(same("app", app) && same("id", id), "{message:?}");
        let manners = *lock(&self.manners);
        // The test may have ended.
        let _ = self.messages.send(Message { id: id.to_owned(), members: message });
        match manners {
            Manners::Take => Ok(()),
            Manners::Refuse => Err(zbus::fdo::Error::Failed("not now".into())),
            Manners::Ignore => std::future::pending().await,
        }
    }
}

impl DeviceApp {
    /// Calls `Connect` with these options; returns state and regId.
    pub async fn connect(&self, options: &[(&str, bool)]) -> zbus::Result<(String, String)> {
        let options: HashMap<&str, Variant<'_>> =
            options.iter().map(|(name, on)| (*name, Variant::from(*on))).collect();
        let path = ObjectPath::try_from(APP_PATH).expect("a path");
        self.call("Connect", &(self.id.as_str(), path, options)).await
    }

    /// Calls a method of `Push1`.
    pub async fn call<R: serde::de::DeserializeOwned + zbus::Type>(
        &self,
        method: &str,
        arguments: &(impl serde::Serialize + zbus::DynamicType),
    ) -> zbus::Result<R> {
        let call = self.bus.call_method(Some(NAME), OBJECT, Some(PUSH), method, arguments);
        within(method, call).await?.body().deserialize()
    }

    /// The same, or `None` without an answer in this time.
    pub async fn call_within<R: serde::de::DeserializeOwned + zbus::Type>(
        &self,
        time: Duration,
        method: &str,
        arguments: &(impl serde::Serialize + zbus::DynamicType),
    ) -> Option<zbus::Result<R>> {
        tokio::time::timeout(time, self.call(method, arguments)).await.ok()
    }

    /// The app without its messages, and its messages.
    pub fn split(mut self) -> (Self, mpsc::UnboundedReceiver<Message>) {
        let (_, nothing) = mpsc::unbounded_channel();
        let inbox = std::mem::replace(&mut self.inbox, nothing);
        (self, inbox)
    }

    /// From now on the app does this with messages.
    pub fn behave(&self, manners: Manners) {
        *lock(&self.manners) = manners;
    }

    /// The next message.
    pub async fn next(&mut self) -> Message {
        within("a message for the app", self.inbox.recv()).await.expect("the app runs")
    }

    /// `appData` of the next messages.
    pub async fn next_data(&mut self, count: usize) -> Vec<String> {
        let mut data = Vec::new();
        while data.len() < count {
            data.push(self.next().await.data());
        }
        data
    }

    /// A message that has come already.
    pub fn try_next(&mut self) -> Option<Message> {
        self.inbox.try_recv().ok()
    }
}

/// The next signal of this name; others are passed over.
pub async fn next_signal<T: serde::de::DeserializeOwned + zbus::Type>(signals: &mut MessageStream, name: &str) -> T {
    loop {
        let signal = within(name, signals.next()).await.expect("the bus runs").expect("a signal");
        if signal.header().member().is_some_and(|member| member == name) {
            return signal.body().deserialize().expect("the signal has the form of the contract");
        }
    }
}

/// The name of a D-Bus error, without its prefix.
pub fn error_name<T: std::fmt::Debug>(result: zbus::Result<T>) -> String {
    match result {
        Err(zbus::Error::MethodError(name, text, _)) => {
            assert!(text.is_some_and(|text| text.len() > 10), "{name} says nothing");
            name.strip_prefix("org.bellwire.Error.").unwrap_or(name.as_str()).to_owned()
        }
        other => panic!("no error answer: {other:?}"),
    }
}

/// A deadline for whatever is waited for.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(result) => result,
        Err(_) => panic!("{what} did not come within {} s", DEADLINE.as_secs()),
    }
}

/// A request for one recipient or, with a list, several.
pub fn request(reg_id: impl Into<Value>, request_id: &str, data: &str) -> Value {
    json!({ "regID": reg_id.into(), "requestID": request_id, "appData": data })
}

/// Posts a request with curl.
pub fn post(server: &Server, app: &App, request: &Value) -> Answer {
    let (id, secret) = (format!("appID: {}", app.id), format!("appSecret: {}", app.secret));
    let url = format!("{}/spp/pns/api/push", server.api);
    let arguments = ["--data-binary", "@-", "-H", "Content-Type: application/json", "-H", &id, "-H", &secret, &url];
    common::curl_inside(&server.inside, &arguments, request.to_string().as_bytes())
}

/// The status codes of an answer, in order.
pub fn codes(answer: &Answer) -> Vec<u64> {
    let results = answer.json()["results"].as_array().cloned().unwrap_or_default();
    results.iter().map(|result| result["statusCode"].as_u64().expect("a code")).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! What the tests of whole programs share: a server in a folder of its own, and curl.
//!
//! Ports are chosen by the kernel and kept over a restart. Nothing here sleeps for a fixed time: it
//! waits for what the program says, with a deadline.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// How long a program may take to do what is asked of it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A running `bellwire-server`. Dropping it stops it.
pub struct Server {
    /// The process.
    pub child: Child,
    /// The base URL of its API.
    pub api: String,
    /// The URL of its gateway.
    pub gateway: String,
    /// Its configuration and state.
    pub folder: TempDir,
    /// The command that runs a program where the server runs.
    pub inside: Vec<String>,
    /// Its further settings, from the next start on.
    pub settings: String,
    region: String,
    environment: Vec<(String, String)>,
    log: Arc<Mutex<String>>,
}

/// A wall clock that programs can be given and that can be set while they run; what measures
/// durations goes on as it does.
pub struct WallClock {
    file: tempfile::NamedTempFile,
}

impl WallClock {
    /// One that is right.
    pub fn new() -> Self {
        let clock = Self { file: tempfile::NamedTempFile::new().expect("a temporary file") };
        clock.set(clock.real());
        clock
    }

    /// Sets it, in milliseconds since 1970.
    pub fn set(&self, to_ms: i64) {
        let ahead = (to_ms - self.real()) as f64 / 1000.0;
        // In one step: a program may be reading it.
        let next = self.file.path().with_extension("next");
        std::fs::write(&next, format!("{ahead:+.3}")).expect("the folder is ours");
        std::fs::rename(next, self.file.path()).expect("the folder is ours");
    }

    /// The environment of a program that has this clock.
    pub fn environment(&self) -> Vec<(String, String)> {
        let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
        assert!(std::path::Path::new(&library).exists(), "faketime is missing: apt-get install faketime");
        let file = self.file.path().to_str().expect("a temporary file has a plain name");
        let one = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            one("LD_PRELOAD", &library),
            one("FAKETIME_TIMESTAMP_FILE", file),
            one("FAKETIME_NO_CACHE", "1"),
            one("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }

    /// What it is in truth, in milliseconds since 1970.
    pub fn real(&self) -> i64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is past 1970");
        i64::try_from(since.as_millis()).expect("it is not long past 1970")
    }
}

/// An application's credentials.
pub struct App {
    /// `appID`.
    pub id: String,
    /// `appSecret`.
    pub secret: String,
}

impl Server {
    /// Starts a server of this region with these further settings, in TOML.
    pub fn start(region: &str, settings: &str) -> Self {
        Self::start_with(region, settings, Vec::new())
    }

    /// The same with these variables in its environment.
    pub fn start_with(region: &str, settings: &str, environment: Vec<(String, String)>) -> Self {
        Self::start_inside(Vec::new(), "127.0.0.1:0", region, settings, environment)
    }

    /// The same, run by this command, with its gateway at this address.
    pub fn start_inside(
        inside: Vec<String>,
        gateway: &str,
        region: &str,
        settings: &str,
        environment: Vec<(String, String)>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (region, settings) = (region.to_owned(), settings.to_owned());
        write_config(&folder, &region, &settings, ["127.0.0.1:0", gateway]);
        let (child, log, [api, gateway]) = launch(&inside, &folder, &environment);
        Self { child, api, gateway, folder, inside, region, settings, environment, log }
    }

    /// Ends the process as a power cut would, as far as it can tell.
    pub fn kill(&mut self) {
        self.child.kill().expect("the server is ours");
        self.child.wait().expect("the server is ours");
    }

    /// Starts it again in the same folder, with the same ports.
    pub fn restart(&mut self) {
        self.stop();
        let address = |url: &str| url.split_once("://").expect("a URL").1.to_owned();
        let (api, gateway) = (address(&self.api), address(&self.gateway));
        write_config(&self.folder, &self.region, &self.settings, [&api, &gateway]);
        (self.child, self.log, [self.api, self.gateway]) = launch(&self.inside, &self.folder, &self.environment);
    }

    /// Stops it in order, if it runs, and says how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        stop(&mut self.child)
    }

    /// Runs `bellwire-server` with the same configuration and these arguments.
    pub fn admin(&self, arguments: &[&str]) -> Output {
        let config = config_file(&self.folder);
        let output = program().arg("--config").arg(config).args(arguments).stdin(Stdio::null()).output();
        output.expect("the built program runs")
    }

    /// Adds an app, as an operator does.
    pub fn app_add(&self, id: &str) -> App {
        let output = self.admin(&["--json", "app", "add", id]);
        assert!(output.status.success(), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).expect("--json prints JSON");
        let text = |name: &str| answer[name].as_str().expect("both are texts").to_owned();
        App { id: text("appID"), secret: text("appSecret") }
    }

    /// What it has logged since it was last started.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Stops a process by SIGTERM, or by force after the deadline.
pub fn stop(child: &mut Child) -> ExitStatus {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("process ids are small"));
    if let Ok(Some(status)) = child.try_wait() {
        return status;
    }
    // The process was not waited for, so its id is still its own.
    kill(pid, Signal::SIGTERM).expect("the process is ours");
    let started = Instant::now();
    loop {
        match child.try_wait().expect("the process is ours") {
            Some(status) => return status,
            None if started.elapsed() > DEADLINE => child.kill().expect("the process is ours"),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_bellwire-server"))
}

/// A program that is run by this command.
pub fn run_inside(inside: &[String], program: &str) -> Command {
    let mut words = inside.iter().map(String::as_str).chain([program]);
    let mut command = Command::new(words.next().expect("there is the program at least"));
    command.args(words);
    command
}

fn config_file(folder: &TempDir) -> PathBuf {
    folder.path().join("server.toml")
}

fn write_config(folder: &TempDir, region: &str, settings: &str, [api, gateway]: [&str; 2]) {
    let state = folder.path().join("state");
    let mut text = format!("region = {region:?}\nstate-folder = {state:?}\n{settings}\n");
    for (section, address) in [("[api]", api), ("[gateway]", gateway)] {
        let listen = format!("{section}\nlisten = {address:?}\n");
        match text.contains(section) {
            true => text = text.replace(section, &listen),
            false => text.push_str(&listen),
        }
    }
    std::fs::write(config_file(folder), without_rates(text)).expect("the folder is ours");
}

/// Tests send as fast as they can, but for those of the limits themselves.
fn without_rates(mut text: String) -> String {
    let keys = ["device-messages-per-minute", "device-messages-per-hour", "app-messages-per-second"];
    let unset: String = keys.iter().filter(|key| !text.contains(**key)).map(|key| format!("{key} = 0\n")).collect();
    match text.contains("[limits]\n") {
        true => text = text.replace("[limits]\n", &format!("[limits]\n{unset}")),
        false => text.push_str(&format!("[limits]\n{unset}")),
    }
    text
}

/// Starts the program and waits until it says where it listens: API and gateway.
fn launch(
    inside: &[String],
    folder: &TempDir,
    environment: &[(String, String)],
) -> (Child, Arc<Mutex<String>>, [String; 2]) {
    let mut command = run_inside(inside, env!("CARGO_BIN_EXE_bellwire-server"));
    command.envs(environment.iter().cloned());
    command.arg("--config").arg(config_file(folder)).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the built program runs");
    let stderr = child.stderr.take().expect("it is piped");
    let log = Arc::<Mutex<String>>::default();
    let lines = follow(stderr, Arc::clone(&log));
    let started = Instant::now();
    while let Ok(line) = lines.recv_timeout(DEADLINE.saturating_sub(started.elapsed())) {
        let value = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned);
        if let (true, Some(api), Some(gateway)) = (line.contains(" ready "), value("api="), value("gateway=")) {
            return (child, log, [api, gateway]);
        }
    }
    stop(&mut child);
    panic!("the server did not start:\n{}", log.lock().unwrap_or_else(PoisonError::into_inner));
}

/// Keeps what a program says, and passes each line on for as long as somebody listens.
pub fn follow(output: impl Read + Send + 'static, log: Arc<Mutex<String>>) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&line);
            log.push('\n');
            let _ = sender.send(line);
        }
    });
    lines
}

/// What curl was answered.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers, as sent.
    pub headers: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A header's value, if it is there.
    pub fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &&str| line.split(':').next().is_some_and(|given| given.eq_ignore_ascii_case(name));
        self.headers.lines().find(named).and_then(|line| line.split_once(':')).map(|(_, value)| value.trim())
    }
}

/// Runs the stock curl with these arguments and this body.
pub fn curl(arguments: &[&str], body: &[u8]) -> Answer {
    curl_inside(&[], arguments, body)
}

/// The same where this command runs programs.
pub fn curl_inside(inside: &[String], arguments: &[&str], body: &[u8]) -> Answer {
    let mut child = run_inside(inside, "curl")
        .args(["-q", "--silent", "--show-error", "--noproxy", "*", "--max-time", "30", "--dump-header", "-"])
        .args(["--header", "Expect:"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("curl is missing: apt-get install curl");
    let mut stdin = child.stdin.take().expect("it is piped");
    // A server may answer before it has read everything.
    let _ = stdin.write_all(body);
    drop(stdin);
    let output = child.wait_with_output().expect("curl is ours");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (headers, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {output:?}"));
    let status = headers.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status: {output:?}"));
    Answer { status, headers: headers.to_owned(), body: body.to_owned() }
}

/// The first line of what a program prints.
pub fn first_line(output: impl Read) -> String {
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).expect("it can be read");
    line.trim().to_owned()
}

/// A Python that has the libraries of the foreign judge.
pub fn python() -> String {
    python_for("foreign")
}

/// A Python that has what `requirements.txt` in this folder of the tests names; made under `target`
/// at the first run.
pub fn python_for(judge: &str) -> String {
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    let environment = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(judge);
    let mut setup = Command::new(format!("{tests}/foreign/setup.sh"));
    setup.arg(environment).arg(format!("{tests}/{judge}/requirements.txt"));
    let made = setup.stderr(Stdio::inherit()).output();
    let made = made.expect("a shell runs");
    assert!(made.status.success(), "tests/foreign/setup.sh has said what is missing");
    String::from_utf8(made.stdout).expect("a path").trim().to_owned()
}

/// Looks again and again until there is what is waited for, with the deadline: for what nothing
/// tells. An error says what there is instead.
pub async fn until<T>(look: impl AsyncFnMut() -> Result<T, String>) -> T {
    until_within(DEADLINE, look).await
}

/// The same with another deadline.
pub async fn until_within<T>(time: Duration, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(state) => assert!(started.elapsed() < time, "{state}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// `Ok` if it is so.
pub fn so(is: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if is { Ok(()) } else { Err(otherwise()) }
}

//! A real mosquitto with the files that `bellwire-server mqtt sync` writes and the sample configuration, on free
//! ports. Its devices' listener is plain text, as everything is on this machine.

#![allow(dead_code)]

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{DEADLINE, Server};

/// The password of the server.
pub const PASSWORD: &str = "what the server says to the broker";
/// A device that prefers it.
pub const PREFER: &str = "link = \"mqtt\"";

/// A broker. Dropping it ends it.
pub struct Broker {
    folder: TempDir,
    /// The port for servers.
    pub server_port: u16,
    /// The port for devices.
    pub port: u16,
    child: Option<Child>,
}

impl Broker {
    /// One that does not run yet.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let broker = Self { folder, server_port: free_port(), port: free_port(), child: None };
        std::fs::write(broker.path("conf"), broker.configuration()).expect("the folder is ours");
        broker
    }

    /// What a server has to be told of it.
    pub fn settings(&self) -> String {
        let Self { server_port, port, .. } = self;
        format!(
            "[gateway]\nlinks = [\"mqtt://127.0.0.1:{port}\"]\n\
             [mqtt]\nbroker = \"mqtt://127.0.0.1:{server_port}\"\npassword = {PASSWORD:?}\n"
        )
    }

    /// The sample, with paths and ports of ours and without TLS.
    fn configuration(&self) -> String {
        let sample = include_str!("../../examples/mosquitto.conf");
        let path = |name: &str| self.path(name).display().to_string();
        let changed = sample
            .replace("/etc/mosquitto/bellwire.passwords", &path("passwords"))
            .replace("/etc/mosquitto/bellwire.acl", &path("acl"))
            .replace("/run/mosquitto/mosquitto.pid", &path("pid"))
            .replace("listener 1883 127.0.0.1", &format!("listener {} 127.0.0.1", self.server_port))
            .replace("listener 8883", &format!("listener {} 127.0.0.1", self.port))
            .replace("certfile", "#certfile")
            .replace("keyfile", "#keyfile");
        format!(
            "user {}\n{changed}",
            nix::unistd::User::from_uid(nix::unistd::getuid()).expect("users").expect("us").name
        )
    }

    /// A file of it.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Writes its files, as an operator does, and tells it if it runs. Returns what that printed.
    pub fn sync(&self, server: &Server) -> Value {
        let path = |name: &str| self.path(name).display().to_string();
        let (passwords, acl, pid) = (path("passwords"), path("acl"), path("pid"));
        let arguments = ["--json", "mqtt", "sync", "--passwords", &passwords, "--acl", &acl, "--pid-file", &pid];
        let output = server.admin(&arguments);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("--json prints JSON")
    }

    /// Starts it, or starts it again.
    pub fn start(&mut self) {
        let log = std::fs::File::create(self.path("log")).expect("the folder is ours");
        let mut command = Command::new("/usr/sbin/mosquitto");
        command.arg("-c").arg(self.path("conf")).arg("-v").stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        let mut child = command.spawn().expect("mosquitto is missing: apt-get install mosquitto mosquitto-clients");
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = child.try_wait().expect("it is ours");
            assert!(ended.is_none() && started.elapsed() < DEADLINE, "mosquitto does not listen:\n{}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        self.child = Some(child);
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is ours");
            child.wait().expect("it is ours");
        }
    }

    /// What it has logged since it was last started.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A stock client of it, as this user: `mosquitto_pub` or `mosquitto_sub`.
    pub fn client(&self, program: &str, user: &str, password: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let port = self.port.to_string();
        command.args(["-V", "mqttv5", "-h", "127.0.0.1", "-p", &port, "-u", user, "-P", password]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The same, run to its end.
    pub fn run(&self, program: &str, user: &str, password: &str, arguments: &[&str]) -> Output {
        let output = self.client(program, user, password, arguments).output();
        output.expect("mosquitto-clients is missing: apt-get install mosquitto-clients")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

//! The foreign judges of the Web Push door: pywebpush of PyPI and web-push of npm send over TLS, through the
//! built programs, to an app in Python on D-Bus. `senders/judge.py` is the judge; this only starts things.

#![cfg(all(feature = "agent", feature = "server", feature = "unifiedpush"))]

#[path = "common/certificate.rs"]
mod certificate;
mod common;
#[path = "common/device.rs"]
mod device;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use certificate::Certificate;
use common::{Server, python_for};
use device::Device;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/senders");

/// The modules of npm.
fn modules() -> String {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("senders-npm");
    let made = Command::new(format!("{FOLDER}/setup.sh")).arg(folder).stderr(Stdio::inherit()).output();
    let made = made.expect("a shell runs");
    assert!(made.status.success(), "tests/senders/setup.sh has said what is missing");
    String::from_utf8(made.stdout).expect("a path").trim().to_owned()
}

#[test]
fn the_libraries_that_application_servers_use_reach_an_app_and_report_what_they_should() {
    let certificate = Certificate::make();
    let limit = "[limits]\ndevice-messages-per-minute = 100";
    let server = Server::start("00", &format!("[api]\n{}{limit}", certificate.tls()));
    let mut device = Device::start(&server.gateway, "");
    let mut judge = Command::new(python_for("senders"))
        .arg(format!("{FOLDER}/judge.py"))
        .args([&device.address, &certificate.chain.display().to_string(), &modules()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("the environment has a python");
    let mut answers = judge.stdin.take().expect("it is piped");
    let signal = |device: &Device, signal| {
        let agent = Pid::from_raw(i32::try_from(device.agent_id()).expect("an id"));
        kill(agent, signal).expect("the agent is ours");
    };
    let mut said = Vec::new();
    for line in BufReader::new(judge.stdout.take().expect("it is piped")).lines().map_while(Result::ok) {
        match line.strip_prefix('!') {
            Some("stop") => drop(device.stop_agent()),
            Some("start") => device.restart_agent(),
            Some("freeze") => signal(&device, Signal::SIGSTOP),
            Some("thaw") => signal(&device, Signal::SIGCONT),
            Some(what) => panic!("the judge asks for {what}"),
            None => {
                said.push(line);
                continue;
            }
        }
        writeln!(answers, "done").expect("the judge listens");
    }
    let ended = judge.wait().expect("the judge is ours");
    let said = said.join("\n");
    assert!(ended.success(), "{said}\nthe agent said:\n{}\nthe server said:\n{}", device.log(), server.log());
    assert_eq!(said.lines().count(), 20, "{said}");
}

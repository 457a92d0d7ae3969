//! What an operator does by the manual: every command of `bellwire-server-setup(7)`, in its order, in a
//! shell. Its ports are those of the page, in a network and among processes of its own.

#![cfg(all(feature = "agent", feature = "server"))]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/man/bellwire-server-setup.7");

/// All that the page shows to be typed.
fn commands() -> String {
    let page = std::fs::read_to_string(PAGE).expect("the page is there");
    let shown: String = page.split("\n.EX\n").skip(1).filter_map(|rest| rest.split(".EE\n").next()).collect();
    [("\\-", "-"), ("\\(aq", "'"), ("\\e", "\\")].iter().fold(shown, |text, (from, to)| text.replace(from, to))
}

/// Types it into a shell that ends at the first command that fails, in this folder.
fn typed(commands: &str, folder: &TempDir) -> Output {
    let script = folder.path().join("commands");
    std::fs::write(&script, commands).expect("the folder is ours");
    let built = Path::new(env!("CARGO_BIN_EXE_bellwire-server")).parent().expect("a folder");
    let path = format!("{}:{}", built.display(), std::env::var("PATH").expect("there is a PATH"));
    // Whatever is waited for in vain ends with the deadline, and every program with the shell.
    let mut shell = Command::new("timeout");
    shell.args(["--signal=KILL", "60", "bwrap", "--dev-bind", "/", "/", "--proc", "/proc", "--unshare-net"]);
    shell.args(["--unshare-pid", "--die-with-parent", "dbus-run-session", "--", "bash", "-e"]).arg(script);
    shell.current_dir(folder.path()).env("HOME", folder.path()).env("PATH", path).stdin(Stdio::null());
    for name in ["BELLWIRE_BUS", "DBUS_SESSION_BUS_ADDRESS", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"] {
        shell.env_remove(name);
    }
    shell.output().expect("timeout is missing: apt-get install coreutils")
}

/// The request ids of the receipts that the page's receiver has believed, as they came.
fn told(text: &str) -> Vec<String> {
    let batches = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a batch is JSON"));
    let receipts = batches.flat_map(|batch| batch["receipts"].as_array().cloned().expect("a list"));
    receipts
        .map(|receipt| {
            assert_eq!(receipt["statusCode"], 1000, "{receipt}");
            receipt["requestID"].as_str().expect("a text").to_owned()
        })
        .collect()
}

#[test]
fn who_follows_the_manual_has_two_regions_a_device_and_receipts_over_tls() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = typed(&commands(), &folder);
    let file = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    let said = String::from_utf8_lossy(&output.stdout);
    let logs: String = ["00.log", "03.log", "agent.log", "receiver.log"].map(file).concat();
    let all = format!(
        "(openssl, curl, jq, python3, dbus, bubblewrap are needed)\n{said}\n{}\n{logs}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{} {all}", output.status);

    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.iter().any(|line| line.starts_with("online ") && line.contains("region 03")), "{all}");
    assert!(lines.contains(&"cancelled"), "{all}");
    assert!(!said.contains("\"statusCode\":3"), "a sender was refused: {all}");
    let heard = file("heard");
    let came: Vec<&str> = heard.lines().filter_map(|line| line.split("app_data=").nth(1)).collect();
    assert_eq!(came, ["hello", "tell me", "by the old one", "by the new one", "after all that"], "{all}");
    let told = told(&file("told"));
    let ids = BTreeSet::from_iter(told.iter().map(String::as_str));
    assert_eq!(ids, BTreeSet::from(["3", "4", "5", "6"]), "{all}");
    // A later one has come, so the server has taken the answer for what it is and has not told it again.
    assert_eq!(told.iter().filter(|id| *id == "3").count(), 1, "{told:?} {all}");
    assert_eq!(logs.matches("orderly=true").count(), 3, "{all}");
}

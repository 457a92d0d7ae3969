//! What is shipped for systemd and D-Bus, read by their own tools: the units, whom they run as, and what starts
//! them. How they behave is tried by `make test-systemd`.

#![cfg(all(feature = "agent", feature = "server"))]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const AGENT: &str = "bellwired.service";
const SERVER: &str = "bellwire-server.service";
const REGION: &str = "bellwire-server@.service";

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(shipped(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The units of the system in a folder of their own, with the built programs.
fn units() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for entry in std::fs::read_dir(shipped("systemd/system")).expect("it is there") {
        let name = entry.expect("it can be read").file_name().into_string().expect("a name");
        copy(&format!("systemd/system/{name}"), &folder.path().join(name));
    }
    folder
}

/// Copies a unit, and names the built program in it: a unit is read where its program is.
fn copy(unit: &str, to: &Path) {
    let built = text(unit)
        .replace("/usr/bin/bellwired", env!("CARGO_BIN_EXE_bellwired"))
        .replace("/usr/bin/bellwire-server", env!("CARGO_BIN_EXE_bellwire-server"));
    std::fs::write(to, built).expect("the folder is ours");
}

fn analyze(folder: &TempDir, arguments: &[&str]) -> Output {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).current_dir(folder.path()).env("XDG_RUNTIME_DIR", folder.path());
    command.output().expect("systemd-analyze is missing: apt-get install systemd")
}

/// The settings of a unit, without comments; a key may come several times.
fn settings(unit: &str) -> BTreeSet<String> {
    let text = text(&format!("systemd/system/{unit}"));
    text.lines().filter(|line| line.contains('=') && !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn systemd_finds_nothing_wrong_in_the_units() {
    let folder = units();
    for unit in [AGENT, SERVER, "bellwire-server@03.service", "bellwire-server.socket"] {
        let verified = analyze(&folder, &["verify", "--man=no", &format!("./{unit}")]);
        assert!(verified.status.success() && verified.stderr.is_empty(), "{unit}: {verified:?}");
    }
    let users = tempfile::tempdir().expect("a temporary folder");
    copy("systemd/user/bellwired.service", &users.path().join(AGENT));
    let verified = analyze(&users, &["--user", "--man=no", "verify", &format!("./{AGENT}")]);
    assert!(verified.status.success() && verified.stderr.is_empty(), "{verified:?}");
}

#[test]
fn the_daemons_may_do_little_else_than_their_work() {
    let folder = units();
    // In tenths.
    for (unit, most) in [(AGENT, "20"), (SERVER, "15"), (REGION, "15")] {
        let unit = format!("./{unit}");
        let judged =
            analyze(&folder, &["security", "--offline=true", "--no-pager", "--threshold", most, unit.as_str()]);
        assert!(judged.status.success(), "{unit}: {}", String::from_utf8_lossy(&judged.stdout));
    }
}

#[test]
fn a_region_is_run_as_the_only_server_is() {
    let own = ["Description=", "ExecStart=", "StateDirectory="];
    let common = |unit: &str| -> BTreeSet<String> {
        settings(unit).into_iter().filter(|line| !own.iter().any(|key| line.starts_with(key))).collect()
    };
    assert_eq!(common(REGION), common(SERVER));
    assert_eq!(settings(REGION).len(), settings(SERVER).len());
}

#[test]
fn the_bus_starts_the_unit_that_is_enabled() {
    for (unit, folder, name) in [
        ("systemd/system/bellwired.service", "system", "org.bellwire.Push"),
        ("systemd/user/bellwired.service", "session", "org.bellwire.Push"),
        ("systemd/user/bellwired.service", "session", "org.unifiedpush.Distributor.bellwire"),
    ] {
        let service = text(&format!("dbus/{folder}/{name}.service"));
        let line = |key: &str| service.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        assert_eq!(line("Name=").as_deref(), Some(name));
        let alias = line("SystemdService=").expect("systemd starts it");
        assert!(text(unit).lines().any(|line| line == format!("Alias={alias}")), "{alias} is no alias in {unit}");
    }
}

#[test]
fn the_socket_unit_opens_what_the_configuration_names() {
    let sockets = settings("bellwire-server.socket");
    let addresses: BTreeSet<&str> = sockets.iter().filter_map(|line| line.strip_prefix("ListenStream=")).collect();
    let sample = text("examples/server.toml");
    let listens: BTreeSet<&str> =
        sample.lines().filter_map(|line| line.strip_prefix("listen = \"")?.strip_suffix('"')).collect();
    assert_eq!(addresses, listens);
}

#[test]
fn systemd_makes_the_user_and_its_folders() {
    let root = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(root.path().join("etc")).expect("the folder is ours");
    let run = |program: &str, arguments: &[&str], file: &str| {
        let mut command = Command::new(program);
        command.arg("--root").arg(root.path()).args(arguments).arg(shipped(file));
        let done = command.output().unwrap_or_else(|error| panic!("{program}: {error}: apt-get install systemd"));
        assert!(done.status.success(), "{file}: {done:?}");
    };
    // Both packages may be on one machine.
    for package in ["bellwired", "bellwire-server"] {
        run("systemd-sysusers", &[], &format!("systemd/sysusers.d/{package}.conf"));
    }
    let users = std::fs::read_to_string(root.path().join("etc/passwd")).expect("it was made");
    let bellwire: Vec<&str> = users.lines().filter(|line| line.starts_with("bellwire:")).collect();
    assert!(bellwire.len() == 1 && bellwire[0].ends_with(":/var/lib/bellwire:/usr/sbin/nologin"), "{users}");
}

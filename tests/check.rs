//! `bellwire-server check` and the log's two forms: what an operator sees before and after a start.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Server, first_line};
use serde_json::Value;

const WRONG_INPUT: i32 = 65;
const NO_STORE: i32 = 74;
const CONFIG: i32 = 78;

/// Runs the program with this configuration.
fn check(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bellwire-server"));
    command.arg("--config").arg(config).arg("check").args(arguments).stdin(Stdio::null());
    command.output().expect("the built program runs")
}

#[track_caller]
fn bad(output: &Output, status: i32, part: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(status), 0), "{said}");
    assert!(said.contains(part), "{said}");
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let made = Command::new("openssl").args(arguments).current_dir(folder).output();
    let made = made.expect("openssl is missing: apt-get install openssl");
    assert!(made.status.success(), "{made:?}");
}

/// A certificate that is good for so many days, or else expired long ago, with its key: as a setting.
fn certificate(folder: &Path, days: Option<&str>) -> String {
    let request = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem"];
    let named = ["-subj", "/CN=localhost", "-out"];
    match days {
        Some(days) => openssl(folder, &[&request[..], &named, &["cert.pem", "-x509", "-days", days]].concat()),
        None => {
            openssl(folder, &[&request[..], &named, &["request.pem"]].concat());
            let authority = "[ca]\ndefault_ca = d\n[d]\ndatabase = issued\nnew_certs_dir = .\nrand_serial = yes\n\
                             default_md = sha256\npolicy = p\nx509_extensions = e\n[e]\nbasicConstraints = CA:FALSE\n[p]\n\
                             commonName = supplied\n";
            std::fs::write(folder.join("ca.conf"), authority).expect("the folder is ours");
            std::fs::write(folder.join("issued"), "").expect("the folder is ours");
            let times = ["-startdate", "20200101000000Z", "-enddate", "20200201000000Z"];
            let sign = ["ca", "-batch", "-notext", "-config", "ca.conf", "-selfsign", "-keyfile", "key.pem"];
            openssl(folder, &[&sign[..], &times, &["-in", "request.pem", "-out", "cert.pem"]].concat());
        }
    }
    format!("tls = {{ certificate = {:?}, key = {:?} }}", folder.join("cert.pem"), folder.join("key.pem"))
}

#[test]
fn the_database_is_looked_at_and_left_alone() {
    let server = Server::start("00", "");
    let config = server.folder.path().join("server.toml");
    // Beside the running server.
    let output = check(&config, &["--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(said["schema"].as_i64().unwrap() >= 2 && said["certificates"] == Value::Array(Vec::new()), "{said}");
    let text = String::from_utf8(check(&config, &[]).stdout).unwrap();
    let expected = format!("API on {}, gateway on {}", "http://127.0.0.1:0", "ws://127.0.0.1:0");
    assert!(text.contains(&expected) && text.contains("server.db: schema ") && text.contains(", sound"), "{text}");
}

#[test]
fn a_database_that_is_missing_is_not_made_and_one_that_is_damaged_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (config, state) = (folder.path().join("server.toml"), folder.path().join("state"));
    std::fs::write(&config, format!("state-folder = {state:?}")).unwrap();
    let output = check(&config, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("server.db: not there yet") && !state.exists(), "{text}");
    std::fs::create_dir(&state).unwrap();
    std::fs::write(state.join("server.db"), "this is no database, whatever its name says").unwrap();
    bad(&check(&config, &[]), NO_STORE, "server.db");
    let database = rusqlite::Connection::open(folder.path().join("future.db")).unwrap();
    database.pragma_update(None, "user_version", 999).unwrap();
    std::fs::rename(folder.path().join("future.db"), state.join("server.db")).unwrap();
    bad(&check(&config, &[]), WRONG_INPUT, "newer version");
}

#[test]
fn a_certificate_is_told_to_expire_and_refused_when_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let (config, state) = (folder.path().join("server.toml"), folder.path().join("state"));
    let write = |tls: &str| std::fs::write(&config, format!("state-folder = {state:?}\n[api]\n{tls}")).unwrap();
    write(&certificate(folder.path(), Some("30")));
    let output = check(&config, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("API on https://127.0.0.1:8090") && text.contains("cert.pem: expires in 29 days"), "{text}");
    let output = check(&config, &["--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(said["certificates"][0]["expires_ms"].as_i64().unwrap() > 1_700_000_000_000, "{said}");
    openssl(folder.path(), &["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", "other.pem"]);
    write(&certificate(folder.path(), Some("30")).replace("key.pem", "other.pem"));
    bad(&check(&config, &[]), CONFIG, "cert.pem with the key ");
    write(&certificate(folder.path(), None));
    bad(&check(&config, &[]), CONFIG, "cert.pem has expired ");
}

#[test]
fn the_authorities_of_other_servers_are_read_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("server.toml");
    for key in ["regions-ca", "callbacks-ca"] {
        std::fs::write(&config, format!("{key} = {:?}", folder.path().join("missing.pem"))).unwrap();
        bad(&check(&config, &[]), CONFIG, "missing.pem");
        std::fs::write(&config, format!("{key} = {config:?}")).unwrap();
        bad(&check(&config, &[]), CONFIG, "server.toml: holds no certificate");
    }
}

/// The first line that a program logs to standard error, as JSON; then it is stopped.
fn first_json(mut command: Command) -> Value {
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the built program runs");
    let line = first_line(child.stderr.take().expect("it is piped"));
    common::stop(&mut child);
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn a_log_for_programs_is_json() {
    let folder = tempfile::tempdir().unwrap();
    let (config, state) = (folder.path().join("server.toml"), folder.path().join("state"));
    let listen = "listen = \"127.0.0.1:0\"";
    let text = format!("log-format = \"json\"\nstate-folder = {state:?}\n[api]\n{listen}\n[gateway]\n{listen}");
    std::fs::write(&config, text).unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_bellwire-server"));
    server.arg("--config").arg(&config);
    let line = first_json(server);
    assert_eq!(
        (line["level"].as_str(), line["message"].as_str(), line["region"].as_str()),
        (Some("INFO"), Some("ready"), Some("00"))
    );
    assert!(line["timestamp"].is_string() && line["api"].as_str().unwrap().starts_with("http://"), "{line}");
}

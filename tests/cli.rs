//! The tool as people and scripts use it: what it prints, with `--json` and without, and how it
//! ends, with everything running and with nothing.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use common::{App, Server, so, until};
use device::{Device, tool};
use serde_json::{Value, json};

const APP: &str = "org.example.Chat";
const NOT_REACHED: i32 = 69;

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn wrong(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// The output of a success, which says nothing else.
fn good(output: Output) -> String {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    text(&output)
}

fn json_of(output: Output) -> Value {
    let text = good(output);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A failure with this exit status prints one line that holds `part`, and nothing on stdout.
fn bad(output: &Output, status: i32, part: &str) {
    let wrong = wrong(output);
    assert_eq!((output.status.code(), text(output).as_str()), (Some(status), ""), "{wrong}");
    assert!(wrong.starts_with("bellwire: ") && wrong.contains(part) && wrong.lines().count() == 1, "{wrong}");
}

fn send(server: &Server, app: &App, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bellwire"))
        .args(["send", "--url", &server.api, "--app", &app.id])
        .args(arguments)
        .env("BELLWIRE_APP_SECRET", &app.secret)
        .output()
        .expect("the built program runs")
}

#[tokio::test]
async fn it_shows_registers_sends_and_listens() {
    let server = Server::start("00", "");
    let app = server.app_add(APP);
    let device = Device::start(&server.gateway, "");
    device.until_online().await;

    let status = json_of(device.tool(&["--json", "status"]));
    assert_eq!((&status["link"]["state"], &status["link"]["region"]), (&json!("online"), &json!("00")));
    assert_eq!((&status["link"]["gateway"], &status["link"]["encrypted"]), (&json!(server.gateway), &json!(false)));
    assert_eq!(status["apps"], json!([]));
    let shown = good(device.tool(&["status"]));
    assert!(shown.starts_with("online   at ws://127.0.0.1:") && shown.contains("no app has connected yet"), "{shown}");

    let shown = json_of(device.tool(&["device", "show", "--json"]));
    assert_eq!(shown["device"].as_str().map(str::len), Some(32), "{shown}");
    assert_eq!((&shown["device"], &shown["version"]), (&status["link"]["device"], &json!(env!("CARGO_PKG_VERSION"))));
    let lines = good(device.tool(&["device", "show"]));
    assert!(lines.contains(shown["device"].as_str().expect("text")) && lines.contains(&server.gateway), "{lines}");
    let reconnect = json_of(device.tool(&["device", "reconnect", "--json"]));
    assert_eq!(reconnect, json!({ "reconnecting": false }), "it is online");

    let registered = json_of(device.tool(&["register", APP, "--json"]));
    let reg_id = registered["reg_id"].as_str().expect("a regId").to_owned();
    assert_eq!((registered["app"].as_str(), reg_id.len()), (Some(APP), 100));
    assert_eq!(good(device.tool(&["register", APP])), format!("{reg_id}\n"));

    let sent = json_of(send(&server, &app, &[&reg_id, "--data", "one", "--request-id", "r1", "--json"]));
    let result = json!({ "regID": reg_id, "requestID": "r1", "statusCode": 1000, "statusMsg": "Success" });
    assert_eq!(sent, json!({ "results": [result] }));
    assert_eq!(good(send(&server, &app, &[&reg_id, "--message", "action=ALERT"])), format!("1000 Success  {reg_id}\n"));

    let listed = json_of(device.tool(&["app", "list", "--json"]));
    let row = &listed["apps"][0];
    assert_eq!((&row["app"], &row["state"], &row["connected"]), (&json!(APP), &json!("registered"), &json!(false)));
    assert!(good(device.tool(&["app", "list"])).starts_with(APP));

    let listener = device.tool(&["--json", "listen", APP, "--count", "2", "--timeout", "30"]);
    let events = good(listener);
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    assert_eq!((&events[0]["event"], &events[0]["reg_id"]), (&json!("listening"), &json!(reg_id)));
    assert_eq!((&events[1]["event"], &events[1]["app_data"]), (&json!("message"), &json!("one")));
    assert_eq!((&events[2]["message"], events.len()), (&json!("action=ALERT"), 3));
    bad_listener(&device);

    let gone = json_of(device.tool(&["app", "deregister", APP, "--json"]));
    assert_eq!(gone, json!({ "app": APP, "deregistered": true }));
    let refused = send(&server, &app, &[&reg_id, "--data", "too late"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).starts_with("3008 ") && wrong(&refused).contains("not every recipient"), "{refused:?}");
}

/// A listener whose messages did not come in time says how many did.
fn bad_listener(device: &Device) {
    let late = device.tool(&["listen", APP, "--count", "1", "--timeout", "0"]);
    assert_eq!(late.status.code(), Some(1), "{late:?}");
    assert!(wrong(&late).contains("0 of 1 messages came"), "{late:?}");
}

#[test]
fn it_says_what_is_missing() {
    let status = ["status", "--json"];
    bad(&tool("unix:path=/nonexistent/bus", &status), NOT_REACHED, "--bus");
    let server = Server::start("00", "");
    let app = server.app_add(APP);
    let mut device = Device::start(&server.gateway, "");
    bad(&device.tool(&["register", "org.example.Unknown"]), 1, "bellwire-server app add");
    device.stop_agent();
    for command in [&["status"][..], &["app", "list"], &["device", "show"], &["register", APP], &["listen", APP]] {
        bad(&device.tool(command), NOT_REACHED, "bellwired does not run on this bus");
    }

    let nobody = format!("00{}", "5c".repeat(49));
    let unreached = tool("session", &["send", &nobody, "--app", APP, "--data", "x", "--url", "http://127.0.0.1:1"]);
    bad(&unreached, 64, "BELLWIRE_APP_SECRET");
    let secret = server.folder.path().join("secret");
    std::fs::write(&secret, &app.secret).expect("the folder is ours");
    let secret = secret.to_string_lossy();
    let arguments = ["send", &nobody, "--app", APP, "--data", "x", "--secret-file", &secret, "--url"];
    let unreached = tool("session", &[&arguments[..], &["http://127.0.0.1:1"]].concat());
    bad(&unreached, NOT_REACHED, "http://127.0.0.1:1");
    // A gateway is no API.
    let elsewhere = server.gateway.replace("ws://", "http://");
    bad(&tool("session", &[&arguments[..], &[&elsewhere]].concat()), NOT_REACHED, &elsewhere);
}

#[test]
fn wrong_usage_is_told_from_everything_else() {
    for arguments in [&["nonsense"][..], &["register", "no id"], &["send", "--data", "x"], &["listen"]] {
        let output = tool("session", arguments);
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        assert!(wrong(&output).contains("Usage") || wrong(&output).contains("an app id has"), "{output:?}");
    }
}

#[test]
fn it_completes_in_every_shell_and_explains_itself() {
    for (shell, own) in [("bash", "complete -F"), ("zsh", "#compdef bellwire"), ("fish", "complete -c bellwire")] {
        let script = good(tool("session", &["completions", shell]));
        assert!(script.contains(own) && script.contains("register"), "{shell}: {script}");
        let script = good(tool("session", &["completions", shell, "--bellwired"]));
        assert!(script.contains(&own.replace("bellwire", "bellwired")) && script.contains("bus"), "{shell}: {script}");
    }
    for program in
        [env!("CARGO_BIN_EXE_bellwire"), env!("CARGO_BIN_EXE_bellwired"), env!("CARGO_BIN_EXE_bellwire-server")]
    {
        let help = Command::new(program).arg("--help").output().expect("the built program runs");
        assert!(good(help).contains("Exit status"), "{program}");
        let version = Command::new(program).arg("--version").output().expect("the built program runs");
        assert!(good(version).trim().ends_with(env!("CARGO_PKG_VERSION")), "{program}");
    }
}

#[test]
fn the_demo_sees_every_delivery() {
    let output = Command::new(env!("CARGO_BIN_EXE_bellwire")).args(["demo", "--json"]).output().expect("it runs");
    let events: Vec<Value> = good(output).lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    let delivered = events.iter().filter(|event| event["event"] == "delivered").count();
    assert_eq!((delivered, &events[events.len() - 1]), (11, &json!({ "event": "done", "deliveries": 11 })));
}

#[test]
fn a_reader_that_has_gone_ends_the_listener_in_order() {
    let server = Server::start("00", "");
    let app = server.app_add(APP);
    let device = Device::start(&server.gateway, "");
    let mut listener = Command::new(env!("CARGO_BIN_EXE_bellwire"))
        .args(["--json", "--bus", &device.address, "listen", APP])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the built program runs");
    let mut first = String::new();
    BufReader::new(listener.stdout.take().expect("it is piped")).read_line(&mut first).expect("it says something");
    let listening: Value = serde_json::from_str(&first).expect("JSON");
    // Its output is closed now.
    good(send(&server, &app, &[listening["reg_id"].as_str().expect("a regId"), "--data", "unheard"]));
    let status = listener.wait().expect("the listener is ours");
    assert!(status.success(), "{status}");
    // It has not answered what it could not print.
    let events = good(device.tool(&["--json", "listen", APP, "--count", "1", "--timeout", "30"]));
    let message: Value = serde_json::from_str(events.lines().nth(1).expect("a message")).expect("JSON");
    assert_eq!((&message["app_data"], &message["again"]), (&json!("unheard"), &json!(true)));
}

#[test]
fn a_listener_hears_on_when_the_agent_is_started_anew() {
    let server = Server::start("00", "");
    let app = server.app_add(APP);
    let mut device = Device::start(&server.gateway, "");
    let mut listener = Command::new(env!("CARGO_BIN_EXE_bellwire"))
        .args(["--json", "--bus", &device.address, "listen", APP, "--count", "1", "--timeout", "60"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the built program runs");
    let output = BufReader::new(listener.stdout.take().expect("it is piped"));
    let mut events = output.lines().map(|line| {
        let line = line.expect("text");
        serde_json::from_str::<Value>(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    });
    let first = events.next().expect("it listens");
    device.restart_agent();
    assert_eq!(events.next().expect("it listens again"), first);
    good(send(&server, &app, &[first["reg_id"].as_str().expect("a regId"), "--data", "after the restart"]));
    assert_eq!(events.next().expect("a message")["app_data"], "after the restart");
    assert!(listener.wait().expect("the listener is ours").success());
}

#[cfg(feature = "unifiedpush")]
#[tokio::test]
async fn the_whole_way_of_unifiedpush_can_be_tried_and_leaves_nothing_behind() {
    let mut server = Server::start("00", "");
    let device = Device::start(&server.gateway, "");
    device.until_online().await;
    let said = good(device.tool(&["--json", "unifiedpush", "test"]));
    let steps: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let names: Vec<&str> = steps.iter().filter_map(|step| step["step"].as_str()).collect();
    assert_eq!(names, ["distributor", "register", "endpoint", "send", "receive", "unregister"]);
    assert!(steps.iter().all(|step| step["ms"].is_u64() && step["text"].is_string()), "{said}");
    assert_eq!(good(device.tool(&["unifiedpush", "test"])).lines().count(), 6);
    assert_eq!(good(device.tool(&["unifiedpush"])).trim(), "no app has registered by UnifiedPush");
    assert_eq!(json_of(device.tool(&["--json", "unifiedpush", "list"])), json!({ "apps": [] }));

    // Without a push server it says what is missing.
    server.stop();
    let failed = device.tool(&["unifiedpush", "test", "--timeout", "1"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(wrong(&failed).contains("an endpoint did not come within 1 s"), "{failed:?}");
    until(async || {
        let list = good(device.tool(&["unifiedpush"]));
        so(list.starts_with("no app"), || list)
    })
    .await;
    let other = ["unifiedpush", "test", "--distributor", "org.unifiedpush.Distributor.none"];
    bad(&device.tool(&other), NOT_REACHED, "");
}

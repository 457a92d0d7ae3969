//! Whatever a peer, an app or an operator gets wrong is answered with a clear error and stops
//! nothing. The Tizen door's part of this is in `server_api.rs`, a full disk's in `full_disk.rs`.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use common::{App, DEADLINE, Server};
use device::{Device, DeviceApp, Manners, NAME, OBJECT, PUSH, codes, error_name, post, request, within};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use zbus::ObjectPath;

const APP: &str = "org.example.Chat";
/// Longer than any frame of a device may be, shorter than the kernel's buffers.
const TOO_LONG: usize = 20_000;

/// The server is up, and a message gets through.
async fn expect_service(server: &mut Server, credentials: &App, app: &mut DeviceApp, name: &str) {
    assert!(server.child.try_wait().expect("the server is ours").is_none(), "{}", server.log());
    let answer = post(server, credentials, &request(app.reg_id.clone(), name, name));
    assert_eq!(codes(&answer), [1000], "{answer:?}");
    assert_eq!(app.next().await.data(), name);
}

/// What the gateway sends to these bytes until it closes.
fn raw(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let address = server.gateway.strip_prefix("ws://").expect("a plain gateway");
    let mut stream = TcpStream::connect(address).expect("the gateway listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    // It may close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => answer,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => answer,
        Err(error) => panic!("the gateway keeps a connection that makes no sense: {error}"),
    }
}

/// What the gateway says to this first message until it closes.
async fn say(server: &Server, first: Message) -> Vec<Value> {
    let address = server.gateway.strip_prefix("ws://").expect("a plain gateway");
    let stream = tokio::net::TcpStream::connect(address).await.expect("the gateway listens");
    let (mut socket, _) = tokio_tungstenite::client_async(&server.gateway, stream).await.expect("a handshake");
    // It may close before it has read everything.
    let _ = socket.send(first).await;
    let mut answers = Vec::new();
    while let Some(Ok(message)) = within("the gateway's end", socket.next()).await {
        if let Message::Text(text) = message {
            answers.push(serde_json::from_str(&text).expect("frames are JSON"));
        }
    }
    answers
}

#[tokio::test]
async fn nonsense_on_the_gateway_port_is_answered_if_it_can_be_and_disturbs_nobody() {
    let mut server = Server::start("00", "");
    let credentials = server.app_add(APP);
    let device = Device::start(&server.gateway, "");
    let mut app = device.app(APP).await;

    assert_eq!(raw(&server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n"), b"");
    assert_eq!(raw(&server, &[b'x'; 200_000]), b"");
    let http = raw(&server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(!http.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&http));
    expect_service(&mut server, &credentials, &mut app, "after bytes").await;

    let protocol = [json!({ "bye": { "reason": "protocol" } })];
    for wrong in
        ["", "[]", "{}", "null", r#"{"hello":{}}"#, r#"{"ack":{"ids":[]}}"#, r#"{"ping":{"seq":1,"next_s":1}}"#]
    {
        assert_eq!(say(&server, Message::text(wrong)).await, protocol, "{wrong}");
    }
    assert_eq!(say(&server, Message::text("x".repeat(TOO_LONG))).await, protocol);
    assert_eq!(say(&server, Message::binary(vec![0; 100])).await, [] as [Value; 0]);
    expect_service(&mut server, &credentials, &mut app, "after frames").await;

    let shown: Value = serde_json::from_slice(&device.tool(&["--json", "device", "show"]).stdout).expect("JSON");
    let mut hello = json!({ "hello": { "version": 1, "device": shown["device"], "secret": "00".repeat(32),
                                       "agent": "an impostor", "next_s": 60 } });
    let bad_secret = [json!({ "bye": { "reason": "bad-secret" } })];
    assert_eq!(say(&server, Message::text(hello.to_string())).await, bad_secret);
    hello["hello"]["version"] = json!(0);
    assert_eq!(say(&server, Message::text(hello.to_string())).await, [json!({ "bye": { "reason": "version" } })]);
    expect_service(&mut server, &credentials, &mut app, "after an impostor").await;
    assert_eq!(server.log().lines().filter(|line| !line.contains(" INFO ")).count(), 0, "{}", server.log());
}

#[tokio::test]
async fn connections_that_say_nothing_hold_nobody_up_for_long() {
    let server = Server::start("00", "[gateway]\nhandshakes = 4");
    let address = server.gateway.strip_prefix("ws://").expect("a plain gateway").to_owned();
    let connect = || TcpStream::connect(&address).expect("the gateway listens");
    let silent: Vec<TcpStream> = (0..4).map(|_| connect()).collect();
    let device = Device::start(&server.gateway, "");
    device.until_online().await;
    for mut stream in silent {
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        assert_eq!(stream.read(&mut [0]).expect("it is closed in order"), 0);
    }
}

#[tokio::test]
async fn an_app_can_do_nothing_with_what_is_not_its_own() {
    let mut server = Server::start("00", "");
    let credentials = server.app_add(APP);
    let device = Device::start(&server.gateway, "");
    let mut owner = device.app(APP).await;
    let thief = device.unconnected_app(APP).await;
    assert_eq!(error_name(thief.connect(&[]).await), "PermissionDenied");
    for method in ["Disconnect", "Register", "Deregister", "GetRegistrationId", "TakeUnread", "RequestUnread"] {
        assert_eq!(error_name(thief.call::<String>(method, &APP).await), "PermissionDenied", "{method}");
        assert_eq!(error_name(thief.call::<String>(method, &"org.example.Other").await), "NotConnected", "{method}");
        assert_eq!(error_name(thief.call::<String>(method, &"no id").await), "InvalidAppId", "{method}");
    }
    for id in ["", "a b", "ü", &"x".repeat(129), "a/b", "a\nb"] {
        let nobody = device.unconnected_app(id).await;
        assert_eq!(error_name(nobody.connect(&[]).await), "InvalidAppId", "{id:?}");
    }
    // Calls that are not in the contract.
    let options: HashMap<&str, zbus::Variant<'_>> = HashMap::new();
    let bad_path = (APP, "not a path", options.clone());
    let calls = [
        owner.bus.call_method(Some(NAME), OBJECT, Some(PUSH), "Connect", &APP).await,
        owner.bus.call_method(Some(NAME), OBJECT, Some(PUSH), "Connect", &bad_path).await,
        owner.bus.call_method(Some(NAME), OBJECT, Some(PUSH), "Register", &7).await,
        owner.bus.call_method(Some(NAME), OBJECT, Some(PUSH), "Steal", &APP).await,
        owner.bus.call_method(Some(NAME), "/elsewhere", Some(PUSH), "Register", &APP).await,
    ];
    for call in calls {
        assert!(matches!(call, Err(zbus::Error::FDO(_) | zbus::Error::MethodError(..))), "{call:?}");
    }
    expect_service(&mut server, &credentials, &mut owner, "the owner's").await;

    // An app that names a path where there is nothing keeps its messages.
    let nowhere = ObjectPath::try_from("/nowhere").expect("a path");
    owner.call::<(String, String)>("Connect", &(APP, nowhere, options)).await.expect("any path may be named");
    let answer = post(&server, &credentials, &request(owner.reg_id.clone(), "1", "kept"));
    assert_eq!(codes(&answer), [1000]);
    owner.connect(&[]).await.expect("it is its own");
    assert_eq!(owner.next().await.data(), "kept");
}

#[tokio::test]
async fn an_app_that_does_not_answer_is_answered_all_the_same() {
    let server = Server::start("00", "");
    let credentials = server.app_add(APP);
    let device = Device::start(&server.gateway, "");
    let mut app = device.app(APP).await;
    app.behave(Manners::Ignore);
    for data in ["ignored", "behind it"] {
        assert_eq!(codes(&post(&server, &credentials, &request(app.reg_id.clone(), data, data))), [1000]);
    }
    assert_eq!(app.next().await.data(), "ignored");
    // The daemon's own patience with the app is as long as this test's.
    let taken: HashMap<String, zbus::OwnedVariant> = app.call("TakeUnread", &APP).await.expect("an answer");
    assert!(taken.is_empty(), "{taken:?}");
    assert!(app.call::<u32>("RequestUnread", &APP).await.expect("an answer") >= 1);
    assert_eq!(app.call::<String>("GetRegistrationId", &APP).await.expect("an answer"), app.reg_id);
}

#[tokio::test]
async fn an_app_that_comes_back_at_once_is_let_in() {
    let server = Server::start("00", "");
    let device = Device::start(&server.gateway, "");
    // All are on the bus before, so that nothing happens between the end of one and the next.
    let mut processes = Vec::new();
    for _ in 0..50 {
        processes.push(device.unconnected_app(APP).await);
    }
    for app in processes {
        app.connect(&[]).await.expect("nobody has it any longer");
        within("the end of a connection", app.bus.close()).await.expect("the bus runs");
    }
}

fn daemon(program: &str, config: &Path, bus: &str) -> Output {
    // One that starts all the same must not hold the test up.
    let mut command = Command::new("timeout");
    command.args(["20", program, "--config"]).arg(config).env("DBUS_SESSION_BUS_ADDRESS", bus);
    command.output().expect("the built program runs")
}

/// The one line of an error and the exit status.
fn end(output: &Output) -> (Option<i32>, String) {
    let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
    // An info line may come before.
    (output.status.code(), wrong.lines().last().unwrap_or_default().to_owned())
}

const DAEMONS: [&str; 2] = [env!("CARGO_BIN_EXE_bellwired"), env!("CARGO_BIN_EXE_bellwire-server")];

#[test]
fn a_second_agent_on_a_bus_says_that_there_is_one() {
    let server = Server::start("00", "");
    let device = Device::start(&server.gateway, "");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("agent.toml");
    std::fs::write(&config, format!("state-folder = {:?}", folder.path().join("state"))).expect("the folder is ours");
    let (status, line) = end(&daemon(DAEMONS[0], &config, &device.address));
    assert!(status == Some(69) && line.contains("org.bellwire.Push"), "{status:?} {line}");
    assert!(line.contains("another bellwired"), "{line}");
    let (status, line) = end(&daemon(DAEMONS[0], &device.folder.path().join("agent.toml"), &device.address));
    assert!(status == Some(69) && line.contains("another bellwired"), "{status:?} {line}");
    let (status, line) = end(&daemon(DAEMONS[0], &config, "unix:path=/nonexistent/bus"));
    assert!(status == Some(69) && line.contains("bus"), "{status:?} {line}");
    let silent = folder.path().join("silent");
    let _listener = UnixListener::bind(&silent).expect("the folder is ours");
    let (status, line) = end(&daemon(DAEMONS[0], &config, &format!("unix:path={}", silent.display())));
    assert!(status == Some(69) && line.contains("it does not answer"), "{status:?} {line}");
}

#[test]
fn a_mistake_in_a_configuration_is_shown_with_file_and_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("config.toml");
    let state = format!("state-folder = {:?}\n", folder.path().join("state"));
    for program in DAEMONS {
        for (text, line, part) in [
            ("\nprot = 1\n", 3, "`prot`"),
            ("\n[limits]\nnonsense = 1\n", 4, "`nonsense`"),
            ("log = \"loud\"\n", 2, "loud"),
            ("log = \n", 2, ""),
        ] {
            std::fs::write(&config, format!("{state}{text}")).expect("the folder is ours");
            let (status, said) = end(&daemon(program, &config, ""));
            let place = format!("{}:{line}:", config.display());
            assert_eq!(status, Some(78), "{said}");
            assert!(said.contains(&place) && said.contains(part), "{program}: {said}");
        }
        let (status, said) = end(&daemon(program, &folder.path().join("none.toml"), ""));
        assert!(status == Some(78) && said.contains("none.toml"), "{said}");
    }
    assert!(!folder.path().join("state").exists(), "a daemon with a wrong configuration has begun to work");
}

#[test]
fn a_state_folder_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (file, broken) = (folder.path().join("file"), folder.path().join("broken"));
    std::fs::write(&file, "in the way").expect("the folder is ours");
    std::fs::create_dir(&broken).expect("the folder is ours");
    for database in ["agent.db", "server.db"] {
        std::fs::write(broken.join(database), "this is no database".repeat(100)).expect("the folder is ours");
    }
    let config = folder.path().join("config.toml");
    // Whoever runs this, root too: nothing can be made in /proc.
    for state in [file, broken, "/proc/bellwire".into()] {
        for program in DAEMONS {
            let mut text = format!("state-folder = {state:?}\n");
            if program.ends_with("server") {
                text += "[api]\nlisten = \"127.0.0.1:0\"\n[gateway]\nlisten = \"127.0.0.1:0\"\n";
            }
            std::fs::write(&config, text).expect("the folder is ours");
            let (status, said) = end(&daemon(program, &config, "unix:path=/nonexistent/bus"));
            assert_eq!(status, Some(74), "{program}: {said}");
            assert!(said.contains(&*state.to_string_lossy()), "{program}: {said}");
        }
    }
}

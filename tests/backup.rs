//! Backup and restore as an operator uses them: beside a server that is at work, into another folder,
//! after a crash, and with the power going at every step.
//!
//! The steps are the fault points of the source, which are compiled only into these programs.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{App, DEADLINE, Server, so};
use device::{Device, codes, next_signal, post, request};
use rusqlite::Connection;
use serde_json::Value;

const APP: &str = "org.example.Chat";
const FAILURE: i32 = 1;
const WRONG_INPUT: i32 = 65;
const IN_USE: i32 = 69;
const NO_STORE: i32 = 74;

fn state(server: &Server) -> PathBuf {
    server.folder.path().join("state")
}

/// The program with this server's configuration, set to end at this fault point.
fn program(server: &Server, fault: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bellwire-server"));
    command.arg("--config").arg(server.folder.path().join("server.toml")).args(arguments);
    command.env("BELLWIRE_FAULT", fault).stdin(Stdio::null());
    command
}

fn good(output: &Output) -> Value {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[track_caller]
fn bad(output: &Output, status: i32, part: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(status), 0), "{said}");
    assert!(said.contains(part) && said.lines().count() == 1, "{said}");
}

fn back_up(server: &Server, file: &Path) -> Value {
    good(&server.admin(&["--json", "backup", file.to_str().expect("text")]))
}

fn restore(server: &Server, file: &Path) -> Output {
    server.admin(&["--json", "restore", file.to_str().expect("text")])
}

/// The ids of the apps in a database.
fn apps(database: &Path) -> Vec<String> {
    let db = Connection::open(database).expect("it is there");
    let sound: String = db.query_row("PRAGMA quick_check", [], |row| row.get(0)).expect("it can be read");
    assert_eq!(sound, "ok");
    let mut statement = db.prepare("SELECT app FROM apps ORDER BY app").expect("it is a server's");
    let rows = statement.query_map([], |row| row.get(0)).expect("it is a server's");
    rows.collect::<Result<_, _>>().expect("it is a server's")
}

/// Lets the device use another server.
fn move_to(device: &mut Device, from: &Server, to: &Server) {
    device.stop_agent();
    let config = device.folder.path().join("agent.toml");
    let text = std::fs::read_to_string(&config).expect("the folder is ours");
    std::fs::write(&config, text.replace(&from.gateway, &to.gateway)).expect("the folder is ours");
    device.restart_agent();
}

/// Posts to the regId until it is told to stop; returns what was answered 1000, in order.
fn keep_posting(server: &Server, app: &App, reg_id: &str) -> (Arc<AtomicBool>, Arc<Mutex<Vec<String>>>) {
    let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<String>>>::default());
    let (stopped, noted, reg_id) = (Arc::clone(&stop), Arc::clone(&answered), reg_id.to_owned());
    let url = format!("{}/spp/pns/api/push", server.api);
    let headers = [format!("appID: {}", app.id), format!("appSecret: {}", app.secret)];
    std::thread::spawn(move || {
        for number in 0.. {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            let data = number.to_string();
            let body = request(reg_id.as_str(), &data, &data).to_string();
            let answer =
                common::curl(&["--data-binary", "@-", "-H", &headers[0], "-H", &headers[1], &url], body.as_bytes());
            assert_eq!(codes(&answer), [1000]);
            noted.lock().expect("nobody panics").push(data);
        }
    });
    (stop, answered)
}

#[tokio::test]
async fn what_was_answered_before_a_backup_is_delivered_after_a_restore_elsewhere() {
    let first = Server::start("00", "[limits]\nwaiting-per-registration = 100000");
    let app = first.app_add(APP);
    let mut device = Device::start(&first.gateway, "[limits]\nunread-messages = 100000");
    device.until_online().await;
    let mut chat = device.app(APP).await;
    device.stop_agent();

    let (stop, answered) = keep_posting(&first, &app, &chat.reg_id);
    let count = || answered.lock().expect("nobody panics").len();
    common::until(async || so(count() >= 20, || "too few were posted".into())).await;
    let file = first.folder.path().join("copy.db");
    let before = count();
    let written = back_up(&first, &file);
    let after = count();
    common::until(async || so(count() > after, || "posting has stopped".into())).await;
    stop.store(true, Ordering::Relaxed);
    let metadata = std::fs::metadata(&file).unwrap();
    assert_eq!((written["bytes"].as_u64(), metadata.permissions().mode() & 0o777), (Some(metadata.len()), 0o600));

    let mut second = Server::start("00", "[limits]\nwaiting-per-registration = 100000");
    second.stop();
    let restored = good(&restore(&second, &file));
    let waiting = restored["messages"].as_u64().unwrap() as usize;
    assert!((before..=after + 1).contains(&waiting), "{before} {waiting} {after}");
    second.restart();
    move_to(&mut device, &first, &second);
    device.until_online().await;
    chat.connect(&[]).await.unwrap();
    let expected: Vec<String> = (0..waiting).map(|number| number.to_string()).collect();
    assert_eq!(chat.next_data(waiting).await, expected);
    // The registration stands as it was.
    let again: String = chat.call("Register", &APP).await.unwrap();
    assert_eq!(again, chat.reg_id);
    assert_eq!(codes(&post(&second, &app, &request(again, "new", "new"))), [1000]);
    assert_eq!(chat.next().await.data(), "new");
}

#[tokio::test]
async fn registrations_that_the_backup_lacks_are_made_anew() {
    let mut server = Server::start("00", "");
    let (old, new) = (server.app_add("old"), server.app_add("new"));
    let device = Device::start(&server.gateway, "");
    device.until_online().await;
    let mut early = device.app("old").await;
    let file = server.folder.path().join("copy.db");
    back_up(&server, &file);
    let mut late = device.app("new").await;
    let bus = late.bus.clone();
    let mut signals = device.signals(&bus, device::PUSH).await;
    server.stop();
    good(&restore(&server, &file));
    server.restart();
    device.until_online().await;
    let (app, state, reg_id, _): (String, String, String, String) =
        next_signal(&mut signals, "RegistrationChanged").await;
    assert_eq!((app.as_str(), state.as_str()), ("new", "registered"));
    // A regId that was issued after the backup is never issued again.
    assert_ne!(reg_id, late.reg_id);
    assert_eq!(codes(&post(&server, &new, &request(late.reg_id.as_str(), "1", "dead"))), [3008]);
    assert_eq!(codes(&post(&server, &new, &request(reg_id, "1", "late"))), [1000]);
    assert_eq!(codes(&post(&server, &old, &request(early.reg_id.as_str(), "1", "early"))), [1000]);
    assert_eq!((late.next().await.data(), early.next().await.data()), ("late".into(), "early".into()));
}

#[test]
fn what_is_no_backup_is_not_restored_and_nothing_is_replaced_unasked() {
    let mut server = Server::start("00", "");
    server.app_add("present");
    let file = server.folder.path().join("copy.db");
    back_up(&server, &file);
    let copy = std::fs::read(&file).unwrap();
    let name = file.to_str().unwrap();
    bad(&server.admin(&["backup", name]), FAILURE, "--force");
    bad(&restore(&server, &file), IN_USE, "bellwire-server.lock");
    let second = program(&server, "", &["run"]).output().unwrap();
    bad(&second, IN_USE, "");
    server.app_add("newer");
    good(&server.admin(&["--json", "backup", "--force", name]));
    assert_eq!((apps(&file).len(), copy.len()), (2, std::fs::metadata(&file).unwrap().len() as usize));
    server.stop();

    let refused = |bytes: &[u8], part: &str| {
        let wrong = server.folder.path().join("wrong.db");
        std::fs::write(&wrong, bytes).unwrap();
        bad(&restore(&server, &wrong), WRONG_INPUT, part);
    };
    refused(b"this is no database, and long enough to see that at once", "no");
    refused(&copy[..copy.len() / 2], "");
    let mut damaged = copy.clone();
    damaged[4096..].iter_mut().for_each(|byte| *byte ^= 0x55);
    refused(&damaged, "damaged");
    let other = server.folder.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    bad(&restore(&server, &other), WRONG_INPUT, "no database of a bellwire-server");
    let future = server.folder.path().join("future.db");
    std::fs::write(&future, &copy).unwrap();
    Connection::open(&future).unwrap().pragma_update(None, "user_version", 999).unwrap();
    bad(&restore(&server, &future), WRONG_INPUT, "newer version");
    bad(&restore(&server, Path::new("/nonexistent/copy.db")), NO_STORE, "/nonexistent/copy.db");
    // What was not restored has left nothing behind, and nothing has changed.
    let database = state(&server).join("server.db");
    assert_eq!(apps(&database), ["newer", "present"]);
    let left = std::fs::read_dir(state(&server)).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("restor")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_backup_needs_a_database_and_no_running_server() {
    let mut server = Server::start("00", "");
    server.app_add("chat");
    server.kill();
    let file = server.folder.path().join("copy.db");
    back_up(&server, &file);
    assert_eq!(apps(&file), ["chat"]);
    std::fs::remove_dir_all(state(&server)).unwrap();
    let other = server.folder.path().join("other.db");
    bad(&server.admin(&["backup", other.to_str().unwrap()]), NO_STORE, "server.db");
    assert!(!other.exists());
    // The folder is made by what is put there.
    let restored = good(&restore(&server, &file));
    assert_eq!((&restored["kept"], &restored["apps"]), (&Value::Null, &1.into()));
    assert_eq!(apps(&state(&server).join("server.db")), ["chat"]);
}

/// Waits until the program has been ended by a signal.
fn until_killed(mut child: Child) {
    let started = std::time::Instant::now();
    let status = loop {
        match child.try_wait().expect("it is ours") {
            Some(status) => break status,
            None => assert!(started.elapsed() < DEADLINE, "it does not come to its fault point"),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
}

#[test]
fn a_backup_is_whole_or_not_there_wherever_the_power_goes() {
    let server = Server::start("00", "");
    server.app_add("one");
    let file = server.folder.path().join("copy.db");
    let name = file.to_str().unwrap();
    let arguments = ["backup", "--force", name];
    let cut_off = |fault: &str| until_killed(program(&server, fault, &arguments).spawn().unwrap());
    cut_off("backup-written");
    assert!(!file.exists());
    cut_off("backup-named");
    assert_eq!(apps(&file), ["one"]);
    server.app_add("two");
    cut_off("backup-written");
    assert_eq!(apps(&file), ["one"]);
    cut_off("backup-named");
    assert_eq!(apps(&file), ["one", "two"]);

    // Cut off while it is written.
    let partial = server.folder.path().join("copy.db.partial");
    for _ in 0..10 {
        let mut child = program(&server, "", &arguments).stdout(Stdio::null()).spawn().unwrap();
        while !partial.exists() && child.try_wait().unwrap().is_none() {
            std::hint::spin_loop();
        }
        let _ = child.kill();
        child.wait().unwrap();
        assert_eq!(apps(&file), ["one", "two"]);
    }
    back_up_forced(&server, name);
    assert!(!partial.exists());
}

fn back_up_forced(server: &Server, name: &str) {
    good(&server.admin(&["--json", "backup", "--force", name]));
}

#[test]
fn a_restore_leaves_the_old_database_or_the_new_wherever_the_power_goes() {
    let mut server = Server::start("00", "");
    server.app_add("from-the-backup");
    let file = server.folder.path().join("copy.db");
    back_up(&server, &file);
    assert!(server.admin(&["app", "remove", "from-the-backup"]).status.success());
    server.app_add("present");
    let (database, kept) = (state(&server).join("server.db"), state(&server).join("server.db.before-restore"));
    // What is in its log only belongs to the database as well.
    server.kill();
    assert!(std::fs::metadata(state(&server).join("server.db-wal")).unwrap().len() > 0);
    let listed = |server: &Server| -> Vec<String> {
        let list = good(&server.admin(&["--json", "app", "list"]));
        list["apps"].as_array().unwrap().iter().map(|app| app["appID"].as_str().unwrap().to_owned()).collect()
    };
    for (fault, there) in
        [("restore-copied", "present"), ("restore-kept", "present"), ("restore-placed", "from-the-backup")]
    {
        until_killed(program(&server, fault, &["restore", file.to_str().unwrap()]).spawn().unwrap());
        assert_eq!(listed(&server), [there], "{fault}");
        assert!(server.admin(&["check"]).status.success(), "{fault}");
        if fault != "restore-copied" {
            assert_eq!(apps(&kept), ["present"], "{fault}");
        }
    }
    // A restore can be taken back.
    let output = restore(&server, &kept);
    assert_eq!(good(&output)["apps"], 1);
    assert_eq!((apps(&database), apps(&kept)), (vec!["present".to_owned()], vec!["from-the-backup".to_owned()]));
    server.restart();
    assert_eq!(listed(&server), ["present"]);
}

#[test]
fn a_database_that_is_damaged_is_kept_and_replaced() {
    let mut server = Server::start("00", "");
    server.app_add("chat");
    let file = server.folder.path().join("copy.db");
    back_up(&server, &file);
    server.stop();
    let database = state(&server).join("server.db");
    // Whoever closes it last puts everything into the one file.
    assert_eq!(apps(&database), ["chat"]);
    std::fs::write(&database, "this was a database once").unwrap();
    let check = server.admin(&["check"]);
    assert_eq!(check.status.code(), Some(NO_STORE), "{check:?}");
    let output = restore(&server, &file);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("kept as it is"), "{output:?}");
    assert_eq!(std::fs::read(state(&server).join("server.db.before-restore")).unwrap(), b"this was a database once");
    assert_eq!(apps(&database), ["chat"]);
    server.restart();
    assert_eq!(good(&server.admin(&["--json", "check"]))["database"], Value::from(database.to_str().unwrap()));
}

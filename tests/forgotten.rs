//! What one half has forgotten, the other hears: a device that stayed away for too long registers
//! anew, and a registration that its device knows nothing of ends.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::path::Path;

use common::{App, Server, so};
use device::{Device, codes, next_signal, post, request};

const APP: &str = "org.example.Chat";
const DAY_MS: i64 = 24 * 3600 * 1000;

/// Changes a database whose program does not run.
fn change(database: &Path, statement: &str) {
    let db = rusqlite::Connection::open(database).expect("the database is there");
    assert!(db.execute(statement, []).expect("the statement is good") > 0, "{statement}");
}

/// The code that a message for this regId is answered with.
fn code(server: &Server, app: &App, reg_id: &str, data: &str) -> u64 {
    codes(&post(server, app, &request(reg_id, "1", data)))[0]
}

#[tokio::test]
async fn a_device_that_stayed_away_gets_new_reg_ids_and_the_old_ones_are_dead_for_good() {
    let mut server = Server::start("00", "[limits]\ndevice-days = 30");
    let app = server.app_add(APP);
    let mut device = Device::start(&server.gateway, "");
    device.until_online().await;
    let mut chat = device.app(APP).await;
    let database = server.folder.path().join("state/server.db");
    let bus = chat.bus.clone();
    let mut old = vec![chat.reg_id.clone()];
    for round in 0..2 {
        let mut signals = device.signals(&bus, device::PUSH).await;
        server.stop();
        change(&database, &format!("UPDATE devices SET seen_ms = seen_ms - {}", 31 * DAY_MS));
        server.restart();
        device.until_online().await;
        let (name, state, reg_id, _): (String, String, String, String) =
            next_signal(&mut signals, "RegistrationChanged").await;
        assert_eq!((name.as_str(), state.as_str()), (APP, "registered"), "round {round}");
        assert!(!old.contains(&reg_id), "round {round}");
        old.iter().for_each(|dead| assert_eq!(code(&server, &app, dead, "dead"), 3008, "round {round}"));
        assert_eq!(code(&server, &app, &reg_id, &format!("round {round}")), 1000);
        assert_eq!(chat.next().await.data(), format!("round {round}"));
        old.push(reg_id);
    }
    // Nothing of that is heard again by a device that is known.
    device.restart_agent();
    device.until_online().await;
    assert!(!device.log().lines().rev().take(3).any(|line| line.contains("made anew")), "{}", device.log());
}

#[tokio::test]
async fn a_device_that_stays_away_is_forgotten_without_being_asked() {
    let mut server = Server::start("00", "[limits]\ndevice-days = 30");
    let app = server.app_add(APP);
    let mut device = Device::start(&server.gateway, "");
    device.until_online().await;
    let reg_id = device.app(APP).await.reg_id;
    device.stop_agent();
    assert_eq!(code(&server, &app, &reg_id, "waits"), 1000);
    server.stop();
    let aged = format!("UPDATE devices SET seen_ms = seen_ms - {}", 31 * DAY_MS);
    change(&server.folder.path().join("state/server.db"), &aged);
    server.restart();
    common::until(async || {
        let code = code(&server, &app, &reg_id, "waits too");
        so(code == 3008, || format!("the answer is {code}:\n{}", server.log()))
    })
    .await;
    let lines: Vec<String> = server.log().lines().filter(|line| line.contains("forgot")).map(str::to_owned).collect();
    assert!(lines.len() == 1 && lines[0].contains("devices=1"), "{lines:?}");
}

#[tokio::test]
async fn a_registration_that_the_device_knows_nothing_of_ends() {
    let server = Server::start("00", "");
    let app = server.app_add(APP);
    let mut device = Device::start(&server.gateway, "");
    device.until_online().await;
    let mut chat = device.app(APP).await;
    let dead = chat.reg_id.clone();
    device.stop_agent();
    change(&device.folder.path().join("state/agent.db"), "UPDATE apps SET reg_id = NULL");
    device.restart_agent();
    device.until_online().await;
    assert_eq!(code(&server, &app, &dead, "for nobody"), 1000);
    common::until(async || {
        let code = code(&server, &app, &dead, "for nobody");
        so(code == 3008, || format!("the answer is {code}:\n{}", device.log()))
    })
    .await;
    chat.connect(&[]).await.expect("the app may connect");
    let reg_id: String = chat.call("Register", &APP).await.expect("the app may register");
    assert_ne!(reg_id, dead);
    assert_eq!(code(&server, &app, &reg_id, "for the app"), 1000);
    assert_eq!(chat.next().await.data(), "for the app");
    assert_eq!(code(&server, &app, &dead, "for nobody"), 3008);
}

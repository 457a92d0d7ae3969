//! The foreign judge: an app in Python by the D-Bus library jeepney, and curl as its application
//! server, against the built programs. `foreign/app.py` is the judge; this only starts things.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::process::{Command, Stdio};

use common::{Server, python};
use device::Device;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign");

#[test]
fn an_app_and_a_sender_with_none_of_our_code_exchange_messages() {
    let python = python();
    let server = Server::start("00", "");
    let app = server.app_add("org.example.Python");
    let device = Device::start(&server.gateway, "");
    let judge = Command::new(python)
        .args([&format!("{FOLDER}/app.py"), &device.address, &server.api, &app.id])
        .env("APP_SECRET", &app.secret)
        .stdin(Stdio::null())
        .output()
        .expect("the environment has a python");
    let said = String::from_utf8_lossy(&judge.stdout);
    let (wrong, agent) = (String::from_utf8_lossy(&judge.stderr), device.log());
    assert!(judge.status.success(), "{said}{wrong}\nthe agent said:\n{agent}\nthe server said:\n{}", server.log());
    assert_eq!(said.lines().count(), 9, "{said}");
}

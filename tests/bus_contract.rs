//! `dbus/*.xml` is what app writers read. It must be what the programs say of themselves on the bus.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use common::Server;
use device::{Device, NAME, OBJECT, within};
use roxmltree::{Document, Node, ParsingOptions};
use zbus::Connection;

/// A contract as it is shipped.
fn shipped(interface: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dbus").join(format!("{interface}.xml"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Everything that an interface promises, one line each. Comments and order of members say nothing.
fn promises(xml: &str, interface: &str) -> BTreeSet<String> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(xml, options).expect("the XML is well formed");
    assert_eq!(document.root_element().tag_name().name(), "node");
    let named = |node: &Node<'_, '_>| node.has_tag_name("interface") && node.attribute("name") == Some(interface);
    let interface = document.root_element().children().find(named).unwrap_or_else(|| panic!("no {interface} in {xml}"));
    interface.children().filter(Node::is_element).map(|member| promise(&member)).collect()
}

/// A member with all that is in it, such as `method Register (app s in) (reg_id s out)`.
fn promise(member: &Node<'_, '_>) -> String {
    let attribute = |node: &Node<'_, '_>, name: &str| node.attribute(name).unwrap_or_default().to_owned();
    let mut line = format!("{} {}", member.tag_name().name(), attribute(member, "name"));
    if member.has_tag_name("property") {
        line += &format!(" {} {}", attribute(member, "type"), attribute(member, "access"));
    }
    for part in member.children().filter(Node::is_element) {
        match part.tag_name().name() {
            "arg" => {
                let direction = part.attribute("direction").unwrap_or("out");
                line += &format!(" ({} {} {direction})", attribute(&part, "name"), attribute(&part, "type"));
            }
            "annotation" => line += &format!(" [{}={}]", attribute(&part, "name"), attribute(&part, "value")),
            other => panic!("<{other}> has no place in a contract"),
        }
    }
    line
}

async fn introspect(bus: &Connection, name: &str, path: &str) -> zbus::Result<String> {
    let interface = Some("org.freedesktop.DBus.Introspectable");
    within("introspection", bus.call_method(Some(name), path, interface, "Introspect", &())).await?.body().deserialize()
}

#[tokio::test]
async fn the_daemon_is_what_its_contracts_say() {
    let server = Server::start("00", "");
    let device = Device::start(&server.gateway, "");
    let running = introspect(&device.connect().await, NAME, OBJECT).await.expect("the agent tells");
    for (interface, members) in [("org.bellwire.Push1", 14), ("org.bellwire.Manager1", 13)] {
        let promised = promises(&shipped(interface), interface);
        assert_eq!(promised, promises(&running, interface), "{interface}");
        assert_eq!(promised.len(), members, "the contract has members that this test has not counted: {promised:?}");
    }
}

#[tokio::test]
#[cfg(feature = "unifiedpush")]
async fn the_distributor_is_what_its_contracts_say() {
    let device = Device::start("ws://127.0.0.1:9", "");
    let bus = device.connect().await;
    let name = "org.unifiedpush.Distributor.bellwire";
    let running = introspect(&bus, name, "/org/unifiedpush/Distributor").await.expect("the agent tells");
    for interface in ["org.unifiedpush.Distributor1", "org.unifiedpush.Distributor2"] {
        let promised = promises(&shipped(interface), interface);
        assert_eq!(promised, promises(&running, interface), "{interface}");
        assert_eq!(promised.len(), 2);
    }
}

#[tokio::test]
async fn the_tool_as_an_app_is_what_the_contract_of_apps_says() {
    let server = Server::start("00", "");
    server.app_add("org.example.Chat");
    let device = Device::start(&server.gateway, "");
    let mut listener = Command::new(env!("CARGO_BIN_EXE_bellwire"))
        .args(["--bus", &device.address, "listen", "org.example.Chat"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the built program runs");
    // Read until the end of the test: the tool ends when nobody reads.
    let mut said = BufReader::new(listener.stdout.take().expect("it is piped"));
    let mut first = String::new();
    said.read_line(&mut first).expect("it says something");
    assert!(first.contains("listens"), "{first}");

    let bus = device.connect().await;
    let names = zbus::fdo::DBusProxy::new(&bus).await.expect("the bus runs").list_names().await.expect("names");
    let mut exported = Vec::new();
    for name in names.iter().filter(|name| name.as_str().starts_with(':')) {
        if Some(name.as_str()) == bus.unique_name().map(|own| own.as_str()) {
            continue;
        }
        match introspect(&bus, name, "/org/bellwire/Listener").await {
            Ok(xml) if xml.contains("org.bellwire.App1") => exported.push(xml),
            other => println!("{name}: {other:?}"),
        }
    }
    common::stop(&mut listener);
    assert_eq!(exported.len(), 1);
    let promised = promises(&shipped("org.bellwire.App1"), "org.bellwire.App1");
    assert_eq!(
        promised.iter().map(String::as_str).collect::<Vec<_>>(),
        ["method Message (app s in) (id s in) (message a{sv} in)"]
    );
    assert_eq!(promised, promises(&exported[0], "org.bellwire.App1"));
}

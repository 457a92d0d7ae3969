//! The agent as a UnifiedPush distributor, through the built programs on a real bus: the states of an app
//! as libkunifiedpush goes through them, every way in which an app may answer, and apps that are stopped.
//!
//! The app is scripted (`common/connector.rs`): it is called over the bus as any other. What a connector of
//! another hand makes of it is told by `unifiedpush_connectors.rs`.

#![cfg(all(feature = "agent", feature = "server", feature = "unifiedpush"))]

mod common;
#[path = "common/connector.rs"]
mod connector;
#[path = "common/device.rs"]
mod device;

use std::collections::HashMap;

use common::{Server, WallClock, curl, so};
use connector::{Call, Connector, DISTRIBUTOR, DISTRIBUTOR_PATH, Reply, Version};
use device::{Device, MANAGER, NAME, OBJECT, error_name, within};
use serde_json::Value;
use zbus::{Connection, OwnedVariant, Variant};

const APP: &str = "org.example.Mail";
const TOKEN: &str = "{3d5b7c1e-0c8e-4c1f-8a57-2b9ed5a31f0a}";
/// A gateway where nobody listens.
const NOWHERE: &str = "ws://127.0.0.1:9";
/// Points of the form that a VAPID key has; whether they are on the curve no agent asks.
const VAPID: [&str; 2] = [
    "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE",
    "BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAI",
];

struct Stage {
    server: Server,
    device: Device,
    bus: Connection,
}

impl Stage {
    async fn set() -> Self {
        Self::with("").await
    }

    async fn with(settings: &str) -> Self {
        let server = Server::start("00", "");
        let device = Device::start(&server.gateway, settings);
        let bus = device.connect().await;
        Self { server, device, bus }
    }

    async fn app(&self) -> Connector {
        Connector::start(&self.device, APP, Version::V2).await
    }

    /// An app that is registered, and its endpoint.
    async fn registered(&self) -> (Connector, String) {
        let mut app = self.app().await;
        app.register(TOKEN).await.expect("it may register");
        let endpoint = app.endpoint(TOKEN).await;
        (app, endpoint)
    }

    async fn listed(&self) -> Vec<HashMap<String, OwnedVariant>> {
        self.device.manage(&self.bus, "ListApps", &()).await
    }

    /// The only registration that is listed.
    async fn row(&self) -> HashMap<String, OwnedVariant> {
        let mut rows = self.listed().await;
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows.remove(0)
    }

    /// The name of the only registration.
    async fn channel(&self) -> String {
        String::try_from(self.row().await["app"].clone()).expect("a text")
    }

    async fn switch(&self, name: &str, on: bool) {
        let settings = HashMap::from([(name, Variant::from(on))]);
        self.device.manage::<()>(&self.bus, "SetApp", &(self.channel().await, settings)).await;
    }

    /// Waits until so many messages wait for the only registration.
    async fn until_unread(&self, count: u32) {
        common::until(async || {
            let unread = u32::try_from(self.row().await["unread"].clone()).expect("a number");
            so(unread == count, || format!("{unread} messages wait, not {count}:\n{}", self.device.log()))
        })
        .await;
    }

    /// Waits until so many messages wait for the registration of this service.
    async fn until_unread_of(&self, service: &str, count: u32) {
        let service = OwnedVariant::try_from(Variant::from(service)).expect("a text");
        common::until(async || {
            let rows = self.listed().await;
            let row = rows.iter().find(|row| row["service"] == service).expect("it is listed");
            so(row["unread"] == OwnedVariant::from(count), || format!("{row:?}"))
        })
        .await;
    }

    /// Waits until this has become of the only message; returns all that has.
    async fn until_hop(&self, wanted: &str) -> Vec<(String, String)> {
        common::until(async || {
            let hops = self.hops().await;
            so(hops.iter().any(|(hop, _)| hop == wanted), || format!("no {wanted} in {hops:?}")).map(|()| hops)
        })
        .await
    }

    /// What became of the newest message.
    async fn hops(&self) -> Vec<(String, String)> {
        let messages: Vec<HashMap<String, OwnedVariant>> = self.device.manage(&self.bus, "ListMessages", &1_u32).await;
        let Some(message) = messages.first() else { return Vec::new() };
        let hops: Vec<HashMap<String, OwnedVariant>> = message["hops"].clone().try_into().expect("aa{sv}");
        let text = |hop: &HashMap<String, OwnedVariant>, name: &str| {
            hop.get(name).map(|value| String::try_from(value.clone()).expect("a text")).unwrap_or_default()
        };
        hops.iter().map(|hop| (text(hop, "hop"), text(hop, "why"))).collect()
    }
}

/// Sends bytes to an endpoint, as an application server does; they live for so many seconds.
fn send_for(endpoint: &str, ttl_s: u32, bytes: &[u8]) {
    let ttl = format!("TTL: {ttl_s}");
    let answer = curl(&["--data-binary", "@-", "-H", "Content-Encoding: aes128gcm", "-H", &ttl, endpoint], bytes);
    assert_eq!(answer.status, 201, "{answer:?}");
}

fn send(endpoint: &str, text: &str) {
    send_for(endpoint, 600, text.as_bytes());
}

/// The names on the bus that apps take for distributors.
async fn distributors(bus: &Connection) -> Vec<String> {
    let names = zbus::fdo::DBusProxy::new(bus).await.expect("a bus").list_names().await.expect("names");
    let names = names.iter().map(|name| name.as_str().to_owned());
    names.filter(|name| name.starts_with("org.unifiedpush.Distributor")).collect()
}

// The name and what it offers.

#[tokio::test(flavor = "multi_thread")]
async fn the_name_is_there_without_a_network_and_offers_both_versions() {
    let device = Device::start(NOWHERE, "");
    let bus = device.connect().await;
    assert_eq!(distributors(&bus).await, [DISTRIBUTOR]);
    let interface = Some("org.freedesktop.DBus.Introspectable");
    let call = bus.call_method(Some(DISTRIBUTOR), DISTRIBUTOR_PATH, interface, "Introspect", &());
    let told: String = within("introspection", call).await.expect("it tells").body().deserialize().expect("XML");
    assert!(told.contains("org.unifiedpush.Distributor1") && told.contains("org.unifiedpush.Distributor2"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_takes_the_name_of_kde_s_distributor_as_well_or_none_at_all() {
    let kde = "org.unifiedpush.Distributor.kde";
    let device = Device::start(NOWHERE, "[unifiedpush]\nown-kde-name = true");
    let mut names = distributors(&device.connect().await).await;
    names.sort();
    assert_eq!(names, [DISTRIBUTOR, kde]);
    for settings in ["[unifiedpush]\nenabled = false", "bus = \"system\""] {
        let device = Device::start(NOWHERE, settings);
        assert!(distributors(&device.connect().await).await.is_empty(), "{settings}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_ends_nothing() {
    let mut device = Device::start(NOWHERE, "[unifiedpush]\nown-kde-name = true");
    device.stop_agent();
    let other = device.connect().await;
    other.request_name(DISTRIBUTOR).await.expect("it is free");
    device.restart_agent();
    let state: HashMap<String, OwnedVariant> = device.manage(&device.connect().await, "GetStatus", &()).await;
    assert!(state.contains_key("state"));
    let log = device.log();
    assert!(log.contains(&format!("the name {DISTRIBUTOR} cannot be had")), "{log}");
    assert_eq!(distributors(&other).await.len(), 2);
}

// The states of an app, as libkunifiedpush goes through them.

#[tokio::test(flavor = "multi_thread")]
async fn registering_is_answered_offline_and_the_endpoint_follows_when_there_is_one() {
    let mut server = Server::start("00", "");
    server.stop();
    let device = Device::start(&server.gateway, "");
    let mut app = Connector::start(&device, APP, Version::V2).await;
    app.register(TOKEN).await.expect("it is answered without a server");
    assert_eq!(app.try_next(), None);
    server.restart();
    device.until_online().await;
    let endpoint = app.endpoint(TOKEN).await;
    assert!(endpoint.starts_with(&format!("{}/wp/", server.api)) && endpoint.len() <= 1000, "{endpoint}");
    send(&endpoint, "hello");
    let (interface, call) = app.next_on().await;
    assert_eq!(interface, "org.unifiedpush.Connector2");
    let Call::Message { token, bytes, id } = call else { panic!("{call:?}") };
    assert_eq!((token.as_str(), bytes.as_slice()), (TOKEN, b"hello".as_slice()));
    assert!((1..=100).contains(&id.len()), "{id}");
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_again_tells_the_same_endpoint_again() {
    let stage = Stage::set().await;
    let (mut app, endpoint) = stage.registered().await;
    for _ in 0..3 {
        app.register(TOKEN).await.expect("it is known");
        assert_eq!(app.endpoint(TOKEN).await, endpoint);
    }
    assert_eq!(stage.listed().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_outlives_the_daemon_and_is_not_told_without_need() {
    let mut stage = Stage::set().await;
    let (mut app, endpoint) = stage.registered().await;
    stage.device.stop_agent();
    send(&endpoint, "while it was away");
    stage.device.restart_agent();
    // Had it been told again, that would be the first.
    assert_eq!(app.message().await, b"while it was away");
    app.register(TOKEN).await.expect("it is known");
    assert_eq!(app.endpoint(TOKEN).await, endpoint);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_the_app_was_not_told_is_told_after_a_restart_of_the_daemon() {
    let mut stage = Stage::set().await;
    let app = stage.app().await;
    app.replies(&[], Reply::Error("org.freedesktop.DBus.Error.UnknownObject"));
    app.register(TOKEN).await.expect("it may register");
    app.leave().await;
    common::until(async || {
        let row = stage.row().await;
        so(row.contains_key("endpoint"), || format!("{row:?}"))
    })
    .await;
    stage.device.kill_agent();
    stage.device.restart_agent();
    let mut app = stage.app().await;
    let endpoint = app.endpoint(TOKEN).await;
    send(&endpoint, "good");
    assert_eq!(app.message().await, b"good");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_changes_is_told() {
    let mut stage = Stage::set().await;
    let (mut app, endpoint) = stage.registered().await;
    stage.server.stop();
    // A server that has lost everything has another key.
    std::fs::remove_dir_all(stage.server.folder.path().join("state")).expect("it is the test's");
    stage.server.restart();
    stage.device.until_online().await;
    let other = app.endpoint(TOKEN).await;
    assert_ne!(other, endpoint);
    send(&other, "there");
    assert_eq!(app.message().await, b"there");
}

#[tokio::test(flavor = "multi_thread")]
async fn unregistering_is_confirmed_in_the_words_of_each_version() {
    let stage = Stage::set().await;
    for (version, expected) in [(Version::V1, ""), (Version::V2, TOKEN)] {
        let mut app = Connector::start(&stage.device, APP, version).await;
        app.register_with(TOKEN, &[("description", "mail")]).await.expect("it may register");
        let endpoint = app.endpoint(TOKEN).await;
        app.unregister(TOKEN).await;
        let (interface, call) = app.next_on().await;
        assert_eq!(call, Call::Unregistered { token: expected.to_owned() });
        assert_eq!(interface.ends_with('1'), version == Version::V1, "{interface}");
        common::until(async || so(stage.listed().await.is_empty(), || "it is listed still".to_owned())).await;
        common::until(async || {
            let answer = curl(&["--data-binary", "@-", "-H", "TTL: 9", &endpoint], b"late");
            so([404, 410].contains(&answer.status), || format!("{answer:?}"))
        })
        .await;
        app.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_may_be_registered_again_under_the_same_token() {
    let stage = Stage::set().await;
    let (mut app, endpoint) = stage.registered().await;
    app.unregister(TOKEN).await;
    assert_eq!(app.next().await, Call::Unregistered { token: TOKEN.to_owned() });
    app.register(TOKEN).await.expect("it is nobody's");
    let other = app.endpoint(TOKEN).await;
    assert_ne!(other, endpoint);
    send(&other, "again");
    assert_eq!(app.message().await, b"again");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_app_is_called_in_the_version_it_registered_with() {
    let stage = Stage::set().await;
    let mut old = Connector::start(&stage.device, "org.example.Old", Version::V1).await;
    let (mut new, new_endpoint) = stage.registered().await;
    old.register("old").await.expect("it may register");
    let (interface, call) = old.next_on().await;
    assert_eq!(interface, "org.unifiedpush.Connector1");
    let Call::NewEndpoint { endpoint, .. } = call else { panic!("{call:?}") };
    send(&endpoint, "one");
    send(&new_endpoint, "two");
    let (interface, call) = old.next_on().await;
    assert!(matches!(call, Call::Message { bytes, .. } if bytes == b"one"));
    assert_eq!(interface, "org.unifiedpush.Connector1");
    let (interface, call) = new.next_on().await;
    assert!(matches!(call, Call::Message { bytes, .. } if bytes == b"two"));
    assert_eq!(interface, "org.unifiedpush.Connector2");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_come_as_they_were_sent() {
    let stage = Stage::set().await;
    let (mut app, endpoint) = stage.registered().await;
    let all: Vec<u8> = (0..=255).cycle().take(4096).collect();
    for bytes in [all.as_slice(), b"\0", b"\xff\xfe", b"{\"notification\":{}}"] {
        send_for(&endpoint, 60, bytes);
        assert_eq!(app.message().await, bytes);
    }
}

// Who may register what.

/// All connections of the test are of one process, which may be all of its apps.
fn unregister_as_another_process(device: &Device, interface: &str, argument: &str) {
    let called = std::process::Command::new("gdbus")
        .args(["call", "--address", &device.address, "--dest", DISTRIBUTOR, "--object-path", DISTRIBUTOR_PATH])
        .args(["--method", &format!("org.unifiedpush.{interface}.Unregister"), argument])
        .output()
        .expect("gdbus is missing: apt-get install libglib2.0-bin");
    assert!(called.status.success(), "{called:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_its_service_s_and_has_at_most_100_bytes() {
    let stage = Stage::set().await;
    let (mut app, endpoint) = stage.registered().await;
    let other = Connector::start(&stage.device, "org.example.Other", Version::V2).await;
    assert_eq!(other.register(TOKEN).await, Err("INTERNAL_ERROR".to_owned()));
    unregister_as_another_process(&stage.device, "Distributor2", &format!("{{'token': <'{TOKEN}'>}}"));
    unregister_as_another_process(&stage.device, "Distributor1", TOKEN);
    let old = Connector::start(&stage.device, "org.example.Old", Version::V1).await;
    send(&endpoint, "still the app's");
    assert_eq!(app.message().await, b"still the app's");

    let (most, too_many) = ("x".repeat(100), "x".repeat(101));
    assert_eq!(app.register(&too_many).await, Err("INTERNAL_ERROR".to_owned()));
    assert_eq!(old.register(&too_many).await, Err("INTERNAL_ERROR".to_owned()));
    app.register(&most).await.expect("it is short enough");
    app.endpoint(&most).await;
    let arguments = HashMap::from([("token", Variant::from("a"))]);
    let missing = app.call::<HashMap<String, OwnedVariant>>("Register", &arguments).await;
    let zbus::Error::FDO(error) = missing.expect_err("there is no service") else { panic!("it is the bus's error") };
    assert!(matches!(*error, zbus::fdo::Error::InvalidArgs(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_a_name_registers_it_and_while_nobody_has_it_its_user_may() {
    let stage = Stage::set().await;
    let nobody = Connector::without_name(&stage.device, APP, Version::V2).await;
    let (app, _) = stage.registered().await;
    assert_eq!(nobody.register("another").await, Ok(()), "it is of the same process");
    let stranger = std::process::Command::new("gdbus")
        .args(["call", "--address", &stage.device.address, "--dest", DISTRIBUTOR])
        .args(["--object-path", DISTRIBUTOR_PATH, "--method", "org.unifiedpush.Distributor1.Register"])
        .args([APP, "stranger", "another process"])
        .output()
        .expect("gdbus is missing: apt-get install libglib2.0-bin");
    assert_eq!(String::from_utf8_lossy(&stranger.stdout).trim(), "('REGISTRATION_FAILED', 'UNAUTHORIZED')");
    app.leave().await;
    // An app that is started may not have its name yet.
    assert_eq!(nobody.register("early").await, Ok(()));
    for token in [TOKEN, "another", "early"] {
        nobody.unregister(token).await;
    }
    common::until(async || so(stage.listed().await.is_empty(), || "they are registered still".to_owned())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_none_is_refused_and_a_description_is_shown_and_replaced() {
    let stage = Stage::set().await;
    let mut app = stage.app().await;
    assert_eq!(app.register_with(TOKEN, &[("vapid", "chat")]).await, Err("INTERNAL_ERROR".to_owned()));
    let long = "a long description ".repeat(9);
    for description in ["mail of\nwork", long.as_str()] {
        app.register_with(TOKEN, &[("description", description)]).await.expect("it may register");
        app.endpoint(TOKEN).await;
        let shown = String::try_from(stage.row().await["description"].clone()).expect("a text");
        let expected = description.replace('\n', " ");
        assert_eq!(shown, expected[..expected.len().min(100)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_is_another_endpoint_and_nothing_unread_is_lost() {
    let stage = Stage::with("[limits]\nanswer-s = 1").await;
    let (mut app, first) = stage.registered().await;
    app.leave().await;
    send(&first, "one");
    send(&first, "two");
    stage.until_unread(2).await;
    // The app comes and registers with a key before it takes anything.
    app = Connector::without_name(&stage.device, APP, Version::V2).await;
    app.replies(&[], Reply::Silence);
    app.bus.request_name(APP).await.expect("it is free");
    assert_eq!(app.message().await, b"one");
    app.replies(&[], Reply::Take);
    app.register_with(TOKEN, &[("vapid", VAPID[0])]).await.expect("it may register");
    let mut calls = vec![app.next().await, app.next().await, app.next().await];
    let endpoint = calls.iter().position(|call| matches!(call, Call::NewEndpoint { .. })).expect("an endpoint");
    let Call::NewEndpoint { endpoint, .. } = calls.remove(endpoint) else { panic!("it is one") };
    assert_ne!(endpoint, first);
    let bytes = |call: &Call| {
        let Call::Message { bytes, .. } = call else { panic!("no message: {call:?}") };
        bytes.clone()
    };
    assert_eq!(calls.iter().map(bytes).collect::<Vec<_>>(), [b"one", b"two"]);
    app.register_with(TOKEN, &[("vapid", VAPID[0])]).await.expect("the key is the same");
    assert_eq!(app.endpoint(TOKEN).await, endpoint);
    assert_eq!(stage.listed().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_only_so_many_registrations_of_one_app_and_of_all() {
    let stage = Stage::with("[limits]\nchannels-per-app = 2\napps = 3").await;
    let mut app = stage.app().await;
    for token in ["one", "two"] {
        app.register(token).await.expect("there is room");
        app.endpoint(token).await;
    }
    let full = Err("ACTION_REQUIRED".to_owned());
    assert_eq!(app.register("three").await, full);
    app.register("one").await.expect("it is known");
    let other = Connector::start(&stage.device, "org.example.Other", Version::V1).await;
    other.register("four").await.expect("there is room");
    assert_eq!(Connector::start(&stage.device, "org.example.Last", Version::V1).await.register("five").await, full);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_stays_registered_and_is_asked_for_again() {
    let mut server = Server::start("00", "[limits]\nregistrations-per-device = 1");
    let device = Device::start(&server.gateway, "");
    let mut app = Connector::start(&device, APP, Version::V2).await;
    app.register("one").await.expect("it may register");
    app.endpoint("one").await;
    app.register("two").await.expect("it may register");
    common::until(async || {
        let told = String::from_utf8(device.tool(&["status"]).stdout).expect("text");
        so(told.contains("as many registrations as the push server allows"), || told)
    })
    .await;
    app.unregister("one").await;
    assert_eq!(app.next().await, Call::Unregistered { token: "one".to_owned() });
    server.restart();
    device.until_online().await;
    app.endpoint("two").await;
    let told = String::from_utf8(device.tool(&["status"]).stdout).expect("text");
    assert!(!told.contains("allows"), "{told}");
}

// One store, two faces.

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_is_listed_as_an_app_without_what_others_must_not_know() {
    let stage = Stage::set().await;
    let mut app = stage.app().await;
    app.register_with(TOKEN, &[("description", "mail")]).await.expect("it may register");
    let endpoint = app.endpoint(TOKEN).await;
    let shown = stage.device.tool(&["--json", "app", "list"]);
    let text = String::from_utf8(shown.stdout).expect("JSON");
    let rows: Value = serde_json::from_str(&text).expect("JSON");
    let row = &rows["apps"][0];
    assert_eq!((row["service"].as_str(), row["description"].as_str()), (Some(APP), Some("mail")));
    assert_eq!((row["state"].as_str(), row["connected"].as_bool()), (Some("registered"), Some(true)));
    assert_eq!(row["endpoint"].as_str(), Some(stage.server.api.as_str()));
    let secret = endpoint.rsplit('/').next().expect("a path");
    assert!(!text.contains(TOKEN) && !text.contains(secret), "{text}");
    let told = String::from_utf8(stage.device.tool(&["app", "list"]).stdout).expect("text");
    assert!(told.contains(&format!("for {APP} (mail)")), "{told}");
    app.leave().await;
    common::until(async || {
        let row = stage.row().await;
        so(row["connected"] == OwnedVariant::from(false), || format!("{row:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_switched_off_is_told_and_gets_its_endpoint_when_it_is_switched_on() {
    let stage = Stage::set().await;
    let (mut app, _) = stage.registered().await;
    stage.switch("enabled", false).await;
    assert_eq!(app.next().await, Call::Unregistered { token: TOKEN.to_owned() });
    let off = Err("ACTION_REQUIRED".to_owned());
    assert_eq!(app.register(TOKEN).await, off);
    assert_eq!(app.register("another token").await, off);
    stage.switch("enabled", true).await;
    let endpoint = app.endpoint(TOKEN).await;
    send(&endpoint, "on again");
    assert_eq!(app.message().await, b"on again");
    app.register("another token").await.expect("it is on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_forgotten_is_told_by_its_token_in_both_versions() {
    let stage = Stage::set().await;
    for version in [Version::V1, Version::V2] {
        let mut app = Connector::start(&stage.device, APP, version).await;
        app.register(TOKEN).await.expect("it may register");
        app.endpoint(TOKEN).await;
        stage.device.manage::<()>(&stage.bus, "ForgetApp", &stage.channel().await).await;
        assert_eq!(app.next().await, Call::Unregistered { token: TOKEN.to_owned() });
        assert!(stage.listed().await.is_empty());
        app.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_names_of_channels_are_nobody_s_to_connect() {
    let stage = Stage::set().await;
    let _app = stage.registered().await;
    let channel = stage.channel().await;
    let path = zbus::ObjectPath::try_from("/app").expect("a path");
    let arguments = (channel.as_str(), path, HashMap::<&str, Variant<'_>>::new());
    let call = stage.bus.call_method(Some(NAME), OBJECT, Some("org.bellwire.Push1"), "Connect", &arguments);
    assert_eq!(error_name(within("Connect", call).await), "InvalidAppId");
    assert_eq!(MANAGER, "org.bellwire.Manager1");
}

// Apps without a name of their own.

#[tokio::test(flavor = "multi_thread")]
async fn an_app_with_a_unique_name_is_forgotten_with_its_connection() {
    let mut stage = Stage::set().await;
    let mut guest = Connector::guest(&stage.device, Version::V2).await;
    guest.register(TOKEN).await.expect("it is the caller");
    let endpoint = guest.endpoint(TOKEN).await;
    send(&endpoint, "self-test");
    assert_eq!(guest.message().await, b"self-test");
    let gone = async |stage: &Stage| {
        common::until(async || so(stage.listed().await.is_empty(), || "it is registered still".to_owned())).await;
    };
    guest.leave().await;
    gone(&stage).await;

    let mut guest = Connector::guest(&stage.device, Version::V2).await;
    guest.register(TOKEN).await.expect("the token is nobody's");
    guest.endpoint(TOKEN).await;
    stage.device.stop_agent();
    guest.leave().await;
    stage.device.restart_agent();
    gone(&stage).await;
}

// Every way to answer.

/// An app that answers its first message so and takes what comes then: what it is called with.
async fn answering(stage: &Stage, replies: &[Reply]) -> Vec<Vec<u8>> {
    let (mut app, endpoint) = stage.registered().await;
    app.replies(replies, Reply::Take);
    send(&endpoint, "first");
    let mut calls = Vec::new();
    for _ in 0..=replies.len() {
        calls.push(app.message().await);
        if calls.len() == 1 {
            send(&endpoint, "second");
        }
    }
    calls
}

#[tokio::test(flavor = "multi_thread")]
async fn any_reply_is_the_delivery_even_an_empty_one() {
    let stage = Stage::set().await;
    assert_eq!(answering(&stage, &[Reply::Empty]).await, [b"first".to_vec(), b"second".to_vec()]);
    stage.until_unread(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_reply_is_tried_again_soon() {
    let stage = Stage::set().await;
    let died = Reply::Error("org.freedesktop.DBus.Error.NoReply");
    let calls = answering(&stage, &[died, died]).await;
    assert_eq!(calls, ["first", "first", "first"].map(|text| text.as_bytes().to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_hangs_is_called_again_and_holds_up_nobody() {
    let stage = Stage::with("[limits]\nanswer-s = 1").await;
    let (mut app, endpoint) = stage.registered().await;
    let mut other = Connector::start(&stage.device, "org.example.Other", Version::V1).await;
    other.register("other").await.expect("it may register");
    let other_endpoint = other.endpoint("other").await;
    app.replies(&[Reply::Silence], Reply::Take);
    send(&endpoint, "slow");
    assert_eq!(app.message().await, b"slow");
    send(&other_endpoint, "quick");
    assert_eq!(other.message().await, b"quick");
    assert_eq!(app.message().await, b"slow");
    stage.until_unread_of(APP, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_cannot_be_started_gets_its_messages_when_it_comes() {
    let stage = Stage::set().await;
    let (app, endpoint) = stage.registered().await;
    app.leave().await;
    for text in ["one", "two", "three"] {
        send(&endpoint, text);
    }
    stage.until_unread(3).await;
    let hops = stage.until_hop("received").await;
    assert!(hops.iter().all(|(hop, _)| hop != "delivered"), "{hops:?}");
    let mut app = stage.app().await;
    for text in ["one", "two", "three"] {
        assert_eq!(app.message().await, text.as_bytes());
    }
    stage.until_unread(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_whose_start_fails_gets_its_messages_when_it_comes() {
    let stage = Stage::set().await;
    let (app, endpoint) = stage.registered().await;
    app.leave().await;
    let service = format!("[D-BUS Service]\nName={APP}\nExec=/bin/false\n");
    stage.device.install(&format!("dbus-1/services/{APP}.service"), &service);
    zbus::fdo::DBusProxy::new(&stage.bus).await.expect("a bus").reload_config().await.expect("it reads");
    send(&endpoint, "kept");
    let hops = stage.until_hop("refused").await;
    assert!(hops.iter().any(|(_, why)| why.contains("Spawn.")), "{hops:?}");
    assert_eq!(stage.app().await.message().await, b"kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_has_only_its_name_yet_is_called_again_and_then_when_it_comes_anew() {
    for error in ["UnknownObject", "UnknownInterface", "UnknownMethod"] {
        let stage = Stage::set().await;
        let (mut app, endpoint) = stage.registered().await;
        let not_ready: &'static str = match error {
            "UnknownObject" => "org.freedesktop.DBus.Error.UnknownObject",
            "UnknownInterface" => "org.freedesktop.DBus.Error.UnknownInterface",
            _ => "org.freedesktop.DBus.Error.UnknownMethod",
        };
        app.replies(&[Reply::Error(not_ready)], Reply::Take);
        send(&endpoint, error);
        for _ in 0..2 {
            assert_eq!(app.message().await, error.as_bytes());
        }
        stage.until_unread(0).await;
        app.replies(&[], Reply::Error(not_ready));
        send(&endpoint, "never ready");
        for _ in 0..4 {
            assert_eq!(app.message().await, b"never ready");
        }
        // It has the name anew, and is ready.
        app.bus.release_name(APP).await.expect("it has it");
        app.replies(&[], Reply::Take);
        app.bus.request_name(APP).await.expect("it is free");
        assert_eq!(app.message().await, b"never ready");
        stage.until_unread(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_at_the_root_is_found() {
    let stage = Stage::set().await;
    let mut app = stage.app().await;
    app.export_at("/");
    app.register(TOKEN).await.expect("it may register");
    let endpoint = app.endpoint(TOKEN).await;
    send(&endpoint, "at the root");
    assert_eq!(app.message().await, b"at the root");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_does_not_know_the_token_is_registered_no_longer() {
    let stage = Stage::set().await;
    let (mut app, endpoint) = stage.registered().await;
    app.replies(&[], Reply::Error("org.freedesktop.DBus.Error.InvalidArgs"));
    send(&endpoint, "for nobody");
    assert_eq!(app.message().await, b"for nobody");
    common::until(async || so(stage.listed().await.is_empty(), || "it is registered still".to_owned())).await;
    common::until(async || {
        let answer = curl(&["--data-binary", "@-", "-H", "TTL: 9", &endpoint], b"late");
        so([404, 410].contains(&answer.status), || format!("{answer:?}"))
    })
    .await;
    assert_eq!(app.try_next(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_app_refuses_three_times_is_dropped_and_its_history_says_why() {
    let stage = Stage::set().await;
    let failed = Reply::Error("org.freedesktop.DBus.Error.Failed");
    let calls = answering(&stage, &[failed, failed, failed]).await;
    assert_eq!(calls, ["first", "first", "first", "second"].map(|text| text.as_bytes().to_vec()));
    stage.until_unread(0).await;
    let messages: Vec<HashMap<String, OwnedVariant>> = stage.device.manage(&stage.bus, "ListMessages", &9_u32).await;
    let hops: Vec<HashMap<String, OwnedVariant>> = messages[1]["hops"].clone().try_into().expect("aa{sv}");
    let last = hops.last().expect("hops");
    assert_eq!(last["hop"], OwnedVariant::try_from(Variant::from("dropped")).expect("text"));
    let why = String::try_from(last["why"].clone()).expect("a text");
    assert!(why.contains("org.freedesktop.DBus.Error.Failed"), "{why}");
}

/// Lets the bus start the app by this command.
async fn startable(stage: &Stage, command: &str) {
    let service = format!("[D-BUS Service]\nName={APP}\nExec={command}\n");
    stage.device.install(&format!("dbus-1/services/{APP}.service"), &service);
    zbus::fdo::DBusProxy::new(&stage.bus).await.expect("a bus").reload_config().await.expect("it reads");
}

/// The command of an app that leaves this file behind when it is started.
fn touching(stage: &Stage) -> (std::path::PathBuf, String) {
    let path = stage.device.folder.path().join("started");
    let command = format!("/usr/bin/touch {}", path.display());
    (path, command)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_with_a_broken_activation_file_keeps_its_registration_and_its_messages() {
    let stage = Stage::set().await;
    let (app, endpoint) = stage.registered().await;
    app.leave().await;
    // The bus answers InvalidArgs where the command is no command.
    startable(&stage, "'").await;
    send(&endpoint, "kept");
    let hops = stage.until_hop("refused").await;
    assert!(
        hops.iter().any(|(_, why)| why.contains("could not be started: org.freedesktop.DBus.Error.InvalidArgs")),
        "{hops:?}"
    );
    assert_eq!(stage.app().await.message().await, b"kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_slow_has_what_it_takes_late() {
    let stage = Stage::with("[limits]\nanswer-s = 1").await;
    let (mut app, endpoint) = stage.registered().await;
    app.replies(&[Reply::Late, Reply::Silence], Reply::Silence);
    send(&endpoint, "slow");
    send(&endpoint, "next");
    assert_eq!(app.message().await, b"slow");
    // It was called again, and answers the first call.
    assert_eq!(app.message().await, b"slow");
    app.answer_late().await;
    assert_eq!(app.message().await, b"next");
    stage.until_unread(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_ends_each_time_has_its_pauses_even_if_it_comes_back() {
    let stage = Stage::set().await;
    let (mut app, endpoint) = stage.registered().await;
    app.replies(&[], Reply::Error("org.freedesktop.DBus.Error.NoReply"));
    send(&endpoint, "deadly");
    for _ in 0..4 {
        assert_eq!(app.message().await, b"deadly");
    }
    // It comes back a hundred times, and each time the pause stands.
    for _ in 0..100 {
        app.bus.release_name(APP).await.expect("it has it");
        app.bus.request_name(APP).await.expect("it is free");
    }
    let more = std::iter::from_fn(|| app.try_next()).count();
    assert!(more <= 2, "called {more} times more");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_not_ready_and_leaves_is_started() {
    let stage = Stage::set().await;
    let (mut app, endpoint) = stage.registered().await;
    app.replies(&[], Reply::Error("org.freedesktop.DBus.Error.UnknownObject"));
    let (started, command) = touching(&stage);
    startable(&stage, &command).await;
    send(&endpoint, "never ready");
    for _ in 0..4 {
        assert_eq!(app.message().await, b"never ready");
    }
    assert!(!started.exists());
    app.leave().await;
    common::until(async || so(started.exists(), || stage.device.log())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_app_hears_what_the_user_changes() {
    let stage = Stage::set().await;
    let (mut app, endpoint) = stage.registered().await;
    // It may not be started, and then it may.
    stage.switch("launch", false).await;
    let (started, command) = touching(&stage);
    startable(&stage, &command).await;
    app.leave().await;
    send(&endpoint, "waiting");
    stage.until_hop("refused").await;
    assert!(!started.exists());
    stage.switch("launch", true).await;
    common::until(async || so(started.exists(), || stage.device.log())).await;
    // It hears of its end while it is waited for.
    app = stage.app().await;
    assert_eq!(app.message().await, b"waiting");
    app.replies(&[], Reply::Error("org.freedesktop.DBus.Error.UnknownObject"));
    send(&endpoint, "never ready");
    for _ in 0..4 {
        assert_eq!(app.message().await, b"never ready");
    }
    app.replies(&[], Reply::Take);
    stage.device.manage::<()>(&stage.bus, "ForgetApp", &stage.channel().await).await;
    assert_eq!(app.next().await, Call::Unregistered { token: TOKEN.to_owned() });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_starts_no_app_that_may_not_be_started_or_asked_for_it() {
    let stage = Stage::set().await;
    let (started, command) = touching(&stage);
    startable(&stage, &command).await;
    let (app, _) = stage.registered().await;
    stage.switch("launch", false).await;
    app.leave().await;
    stage.device.manage::<()>(&stage.bus, "ForgetApp", &stage.channel().await).await;
    // It is told when it comes.
    let mut app = stage.app().await;
    assert_eq!(app.next().await, Call::Unregistered { token: TOKEN.to_owned() });
    // What it ended itself is done with, whether it hears of it or not.
    app.register(TOKEN).await.expect("it may register");
    app.endpoint(TOKEN).await;
    let nobody = Connector::without_name(&stage.device, APP, Version::V2).await;
    app.leave().await;
    nobody.unregister(TOKEN).await;
    let mut app = stage.app().await;
    app.register(TOKEN).await.expect("it may register");
    let mut told = app.next().await;
    if told == (Call::Unregistered { token: TOKEN.to_owned() }) {
        // It has come before its end was done with.
        told = app.next().await;
    }
    assert!(matches!(&told, Call::NewEndpoint { token, .. } if token == TOKEN), "{told:?}");
    assert!(!started.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_apps_had_ends_at_the_server_when_unifiedpush_is_switched_off() {
    let mut stage = Stage::set().await;
    let (_app, endpoint) = stage.registered().await;
    let path = stage.device.folder.path().join("agent.toml");
    let config = std::fs::read_to_string(&path).expect("it is the test's");
    std::fs::write(&path, format!("{config}\n[unifiedpush]\nenabled = false\n")).expect("it is the test's");
    stage.device.restart_agent();
    assert!(stage.device.log().contains("UnifiedPush is switched off"), "{}", stage.device.log());
    common::until(async || {
        let answer = curl(&["--data-binary", "@-", "-H", "TTL: 9", &endpoint], b"late");
        so([404, 410].contains(&answer.status), || format!("{answer:?}"))
    })
    .await;
    assert!(stage.listed().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_goes_while_the_disk_is_full_is_seen_off_without_haste() {
    let server = Server::start("00", "");
    // A file that may not grow is an error to the daemon, and no end.
    let inside = ["env", "--ignore-signal=XFSZ"].map(str::to_owned).to_vec();
    let device = Device::start_inside(inside, &server.gateway, "", &[]);
    let bus = device.connect().await;
    let stage = Stage { server, device, bus };
    let mut guest = Connector::guest(&stage.device, Version::V2).await;
    guest.register(TOKEN).await.expect("it is the caller");
    guest.endpoint(TOKEN).await;
    let limited = std::process::Command::new("prlimit")
        .args(["--pid", &stage.device.agent_id().to_string(), "--fsize=100:unlimited"])
        .status()
        .expect("prlimit is missing: apt-get install util-linux");
    assert!(limited.success());
    guest.leave().await;
    let failures = || stage.device.log().matches("does not end yet").count();
    common::until(async || so(failures() > 0, || stage.device.log())).await;
    for _ in 0..200 {
        assert_eq!(stage.listed().await.len(), 1);
    }
    assert!(failures() <= 2, "{}", stage.device.log());
}

// Time and order.

#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_after_its_time() {
    let (server, clock) = (Server::start("00", ""), WallClock::new());
    let environment = clock.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let device = Device::start_inside(Vec::new(), &server.gateway, "", &environment);
    let bus = device.connect().await;
    let stage = Stage { server, device, bus };
    let (app, endpoint) = stage.registered().await;
    app.leave().await;
    send_for(&endpoint, 60, b"short");
    send_for(&endpoint, 600, b"long");
    stage.until_unread(2).await;
    clock.set(clock.real() + 61_000);
    let mut app = stage.app().await;
    assert_eq!(app.message().await, b"long");
    stage.until_unread(0).await;
    assert_eq!(app.try_next(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_messages_are_handed_over_by_the_next_daemon() {
    let mut stage = Stage::set().await;
    let (app, endpoint) = stage.registered().await;
    app.leave().await;
    send(&endpoint, "one");
    send(&endpoint, "two");
    stage.until_unread(2).await;
    stage.device.kill_agent();
    let mut app = stage.app().await;
    stage.device.restart_agent();
    assert_eq!([app.message().await, app.message().await], [b"one".to_vec(), b"two".to_vec()]);
}

// What is shipped for packages.

#[tokio::test]
async fn the_bus_knows_the_distributor_as_one_that_can_be_started() {
    let mut device = Device::start(NOWHERE, "");
    device.stop_agent();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("dbus/session/{DISTRIBUTOR}.service"));
    let text = std::fs::read_to_string(path).expect("it is there");
    device.install(&format!("dbus-1/services/{DISTRIBUTOR}.service"), &text);
    let bus = device.connect().await;
    let dbus = zbus::fdo::DBusProxy::new(&bus).await.expect("a bus");
    dbus.reload_config().await.expect("it reads");
    let names = dbus.list_activatable_names().await.expect("names");
    assert!(names.iter().any(|name| name.as_str() == DISTRIBUTOR), "{names:?}");
}

//! Messages that are not worth waking a device for: what waits for an idle device, and what a device does
//! not take, through the built programs.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::sync::Arc;

use bellwire::link::dial::{Caller, DeviceLink, Dialling, dial};
use bellwire::link::proxy::Proxies;
use bellwire::link::{Link as _, LinkError};
use bellwire::proto::frame::{Hello, ToDevice, ToServer, VERSION};
use bellwire::proto::keepalive::Profile;
use bellwire::proto::urgency::{Taking, Urgency};
use bellwire::{tls, world};
use common::{App, Server, curl, so, until};
use device::{Device, codes, post, request, within};
use serde_json::{Value, json};

const APP: &str = "org.example.Chat";

/// A server with an app.
struct Sender {
    server: Server,
    app: App,
}

impl Sender {
    fn start() -> Self {
        let server = Server::start("00", "");
        let app = server.app_add(APP);
        Self { server, app }
    }

    /// Posts a message that is low, or else has something for the user.
    fn post(&self, reg_id: &str, id: &str, low: bool) {
        let mut message = request(reg_id, id, id);
        match low {
            true => message["action"] = json!("backgroundLaunch"),
            false => message["message"] = json!("action=SILENT"),
        }
        assert_eq!(codes(&post(&self.server, &self.app, &message)), [1000]);
    }

    /// Asks about a message, or takes it back; status and body.
    fn ask(&self, method: &str, path: &str) -> (u16, Value) {
        let (id, secret) = (format!("appID: {}", self.app.id), format!("appSecret: {}", self.app.secret));
        let url = format!("{}/v1/messages{path}", self.server.api);
        let answer = curl(&["-X", method, "-H", &id, "-H", &secret, &url], b"");
        (answer.status, serde_json::from_str(&answer.body).unwrap_or_default())
    }

    fn newest(&self, request_id: &str) -> Value {
        self.ask("GET", &format!("?requestID={request_id}")).1["messages"][0].clone()
    }

    async fn until_state(&self, request_id: &str, state: &str) {
        until(async || {
            let message = self.newest(request_id);
            so(message["state"] == state, || format!("{request_id} is {message}, not {state}:\n{}", self.server.log()))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_low_waits_until_an_idle_device_is_awake_anyway() {
    const HELD: &str = "held: it is low, and the device is idle";
    let sender = Sender::start();
    let device = Device::start(&sender.server.gateway, "profile = \"battery\"");
    device.until_online().await;
    let mut app = device.app(APP).await;

    // It has just said something: the messages that follow find it silent.
    sender.post(&app.reg_id, "one", true);
    sender.post(&app.reg_id, "two", true);
    sender.until_state("one", HELD).await;
    sender.until_state("two", HELD).await;
    // What is for the user goes at once, and takes with it what came before.
    sender.post(&app.reg_id, "three", false);
    assert_eq!(app.next_data(3).await, ["one", "two", "three"]);
    sender.until_state("three", "delivered").await;

    sender.post(&app.reg_id, "four", true);
    sender.until_state("four", HELD).await;
    // Whatever the device says, it is awake now.
    let other = device.unconnected_app("org.example.Other").await;
    other.connect(&[]).await.expect("the app may connect");
    let refused = other.call::<String>("Register", &other.id).await;
    assert!(refused.is_err(), "the server does not know the app");
    assert_eq!(app.next_data(1).await, ["four"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_low_is_sent_at_once_to_a_device_on_the_mains() {
    let sender = Sender::start();
    let device = Device::start(&sender.server.gateway, "profile = \"mains\"");
    let mut app = device.app(APP).await;
    sender.post(&app.reg_id, "one", true);
    assert_eq!(app.next_data(1).await, ["one"]);
}

/// A device of our own, which says what it takes.
struct Link {
    socket: DeviceLink,
    reg_id: String,
    pings: u32,
}

impl Link {
    async fn start(gateway: &str, taking: Taking) -> Self {
        let tls = tls::client(None).expect("TLS has defaults");
        let how = Dialling { tls, plain_text: false, from: None, ends: Arc::default(), proxies: Proxies::none() };
        let (device, secret) = (world::device_id(), world::secret());
        let caller = Caller::new(device, secret.clone(), Profile::Mains);
        let socket = dial(&gateway.parse().expect("a gateway"), &how, &caller).await.expect("the server listens");
        let mut link = Self { socket, reg_id: String::new(), pings: 0 };
        link.say(&ToServer::Hello(Hello {
            version: VERSION,
            device,
            secret,
            agent: "test".into(),
            enrolment_key: None,
            resume: Vec::new(),
            next_s: 600,
            taking,
        }));
        link.say(&ToServer::Register { req: 1, app: APP.parse().expect("an app id") });
        loop {
            if let ToDevice::Registered { reg_id, .. } = link.next().await {
                link.reg_id = reg_id.to_string();
                return link;
            }
        }
    }

    fn say(&mut self, frame: &ToServer) {
        self.socket.queue(frame).expect("the server listens");
    }

    async fn next(&mut self) -> ToDevice {
        let next: Result<ToDevice, LinkError> = within("a frame", self.socket.next()).await;
        next.expect("the server has no reason to hang up")
    }

    /// Says what it takes; returns the requests of what is sent before the answer to another ping.
    async fn take(&mut self, taking: Taking) -> Vec<String> {
        let mut come = Vec::new();
        for _ in 0..2 {
            self.pings += 1;
            self.say(&ToServer::Ping { seq: self.pings, next_s: 600, taking });
            loop {
                let frame = self.next().await;
                if let ToDevice::Pong { .. } = frame {
                    break;
                }
                let ToDevice::Push(delivery) = frame else { panic!("{frame:?}") };
                self.say(&ToServer::Ack { ids: vec![delivery.push.id] });
                come.extend(delivery.push.request_id);
            }
        }
        come
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_does_not_take_is_held_until_it_does() {
    const HELD: &str = "held: it is low, and the device takes nothing below normal";
    let sender = Sender::start();
    let some = Taking { least: Urgency::Normal, idle: false };
    let mut link = Link::start(&sender.server.gateway, some).await;
    let reg_id = link.reg_id.clone();
    for id in ["one", "two", "three"] {
        sender.post(&reg_id, id, true);
        sender.until_state(id, HELD).await;
    }
    assert_eq!(link.take(some).await, [""; 0]);

    // It can be taken back, and replaced, like any other.
    let id = sender.newest("two")["messageID"].as_str().expect("a text").to_owned();
    assert_eq!(sender.ask("DELETE", &format!("/{id}")).0, 204);
    sender.post(&reg_id, "one", true);
    assert_eq!(sender.newest("two")["state"], "cancelled");
    assert_eq!(link.take(some).await, [""; 0]);
    assert_eq!(link.take(Taking { least: Urgency::Low, ..some }).await, ["three", "one"]);
    sender.until_state("one", "acknowledged").await;

    // Another device says so in its greeting.
    let mut link = Link::start(&sender.server.gateway, Taking { least: Urgency::High, idle: true }).await;
    let reg_id = link.reg_id.clone();
    sender.post(&reg_id, "four", true);
    sender.until_state("four", "held: it is low, and the device takes nothing below high").await;
    assert_eq!(link.take(Taking::default()).await, ["four"]);
    sender.until_state("four", "acknowledged").await;
}

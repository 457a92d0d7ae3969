//! The daemon is ended at every step between a message's arrival and its last effect, as a power cut
//! would end it, and started again: each message has exactly its effects, none twice and none
//! missing, and the badge is never off.
//!
//! The steps are the fault points of the source, which are compiled only into these programs.

mod common;
#[path = "common/desktop.rs"]
mod desktop;
#[path = "common/device.rs"]
mod device;

use common::{App, Server, so};
use desktop::{Desktop, Installed};
use device::{Device, DeviceApp, codes, post};
use serde_json::json;
use zbus::Connection;

const APP: &str = "org.example.Faulty";

struct Stage {
    server: Server,
    app: App,
    device: Device,
    desktop: Desktop,
    installed: Installed,
    bus: Connection,
    here: DeviceApp,
    sent: u32,
}

impl Stage {
    async fn set(activatable: bool) -> Self {
        let server = Server::start("00", "");
        let app = server.app_add(APP);
        let settings = "[limits]\nalerts-per-minute = 1000\nlaunches-per-minute = 1000\nreconnect-s = 1";
        let device = Device::start(&server.gateway, settings);
        let installed = Installed::new(&device, APP, "Faulty", activatable).await;
        let desktop = Desktop::start(&device).await;
        let here = device.app(APP).await;
        here.call::<()>("Disconnect", &APP).await.expect("it is connected");
        let bus = device.connect().await;
        Self { server, app, device, desktop, installed, bus, here, sent: 0 }
    }

    /// Posts a message that asks for this, and returns its request id.
    fn post(&mut self, message: &str) -> String {
        self.sent += 1;
        let id = format!("m{}", self.sent);
        let request = json!({ "regID": self.here.reg_id, "requestID": id, "appData": id, "message": message,
                              "sessionInfo": "last" });
        assert_eq!(codes(&post(&self.server, &self.app, &request)), [1000]);
        id
    }

    /// Starts the daemon so that it ends at this point.
    async fn arm(&mut self, point: &str) {
        self.device.restart_agent_with(&[("BELLWIRE_FAULT", point)]);
        self.device.until_online().await;
    }

    /// Waits until the daemon has ended, and starts it again for good.
    async fn revive(&mut self, point: &str) {
        let device = &mut self.device;
        common::until(async || {
            let ended = !device.agent_runs();
            so(ended, || format!("the daemon does not come to {point}:\n{}", device.log()))
        })
        .await;
        self.device.restart_agent();
    }

    async fn badge(&self) -> u32 {
        self.here.call("GetBadge", &APP).await.expect("it is the app's own")
    }

    /// What the app finds unread, in order.
    async fn take_all(&self) -> Vec<String> {
        self.here.connect(&[("hold-unread", true)]).await.expect("the app may connect");
        let mut taken = Vec::new();
        loop {
            let message: std::collections::HashMap<String, zbus::OwnedVariant> =
                self.here.call("TakeUnread", &APP).await.expect("it is connected");
            let Some(data) = message.get("app_data") else { break };
            taken.push(String::try_from(data.clone()).expect("text"));
        }
        self.here.call::<()>("Disconnect", &APP).await.expect("it is connected");
        taken
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_and_its_badge_come_once_wherever_the_power_goes() {
    let mut stage = Stage::set(true).await;
    for (round, point) in (1..).zip(["arrived", "keeping", "stored", "alerting", "alert-noted", "alerted"]) {
        stage.arm(point).await;
        let id = stage.post("action=ALERT&alertMessage=once&badgeOption=INCREASE&badgeNumber=2");
        stage.revive(point).await;
        stage.device.until_hop(&stage.bus, &id, "alerted").await;
        assert_eq!(stage.badge().await, 2 * round, "{point}");
        assert_eq!(stage.desktop.displayed(&stage.bus).await, 1, "{point}");
        assert_eq!(stage.take_all().await, [id.as_str()], "{point}");
        stage.desktop.until_displayed(&stage.bus, 0).await;
        let hops = stage.device.hops(&stage.bus, &id).await;
        assert_eq!(hops, ["received", "alerted", "delivered"], "{point}");
    }
}

async fn starts_once(activatable: bool, points: &[&str]) {
    let mut stage = Stage::set(activatable).await;
    for (round, point) in (1..).zip(points) {
        stage.installed.forget();
        stage.arm(point).await;
        let id = stage.post("action=BACKGROUNDLAUNCH&badgeOption=INCREASE&badgeNumber=1");
        stage.revive(point).await;
        stage.device.until_hop(&stage.bus, &id, "delivered").await;
        stage.installed.until("ended", 1).await;
        assert_eq!(stage.installed.events_of("started").len(), 1, "{point}: {:?}", stage.installed.events());
        let messages = stage.installed.events_of("message");
        assert_eq!(messages.len(), 1, "{point}");
        assert_eq!((&messages[0]["members"]["app_data"], stage.badge().await), (&json!(id), round), "{point}");
        assert!(stage.take_all().await.is_empty(), "{point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_activated_once_wherever_the_power_goes() {
    starts_once(true, &["arrived", "keeping", "stored", "launching", "launched"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_started_once_wherever_the_power_goes() {
    starts_once(false, &["arrived", "keeping", "stored", "launching", "process-noted", "launched"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_app_has_its_message_and_nothing_else_happens() {
    let mut stage = Stage::set(true).await;
    for point in ["arrived", "keeping", "stored", "handing", "handed", "delivered"] {
        stage.arm(point).await;
        stage.here.connect(&[]).await.expect("the app may connect");
        let id = stage.post("action=ALERT&alertMessage=no&badgeOption=INCREASE&badgeNumber=1");
        stage.revive(point).await;
        // As an app does that sees the daemon come back.
        stage.here.connect(&[]).await.expect("the app may connect");
        stage.device.until_hop(&stage.bus, &id, "delivered").await;
        let first = stage.here.next().await;
        assert_eq!(first.data(), id, "{point}");
        // Between the app's answer and the note of it nobody but the app can know.
        if let Some(second) = stage.here.try_next() {
            assert!(point == "handed" && second.data() == id && second.members.contains_key("again"), "{point}");
        }
        assert_eq!((stage.badge().await, stage.desktop.displayed(&stage.bus).await), (0, 0), "{point}");
        stage.here.call::<()>("Disconnect", &APP).await.expect("it is connected");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_app_that_never_comes_back_is_dealt_with_as_one_that_is_away() {
    let mut stage = Stage::set(true).await;
    stage.arm("handing").await;
    let gone = stage.device.unconnected_app(APP).await;
    gone.connect(&[]).await.expect("the app may connect");
    let id = stage.post("action=ALERT&alertMessage=yes&badgeOption=INCREASE&badgeNumber=1");
    stage.revive("handing").await;
    stage.device.until_hop(&stage.bus, &id, "alerted").await;
    assert_eq!((stage.badge().await, stage.desktop.displayed(&stage.bus).await), (1, 1));
    assert_eq!(stage.take_all().await, [id.as_str()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_click_that_was_lost_with_the_power_can_be_made_again() {
    let mut stage = Stage::set(true).await;
    stage.arm("clicked").await;
    let id = stage.post("action=ALERT&alertMessage=click");
    stage.device.until_hop(&stage.bus, &id, "alerted").await;
    stage.desktop.click();
    stage.revive("clicked").await;
    stage.desktop.until_displayed(&stage.bus, 1).await;
    assert!(stage.installed.events().is_empty());
    stage.desktop.click();
    stage.device.until_hop(&stage.bus, &id, "delivered").await;
    stage.installed.until("ended", 1).await;
    assert_eq!(stage.installed.events_of("started").len(), 1);
    stage.desktop.until_displayed(&stage.bus, 0).await;
}

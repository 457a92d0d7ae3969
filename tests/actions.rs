//! What messages ask for, through the built programs: each row of the truth table with a real
//! notification server and an app that is really started, and what a row cannot show.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/desktop.rs"]
mod desktop;
#[path = "common/device.rs"]
mod device;

use std::collections::HashMap;
use std::time::Instant;

use common::{App, DEADLINE, Server};
use desktop::{Desktop, Installed};
use device::{Device, DeviceApp, codes, post};
use serde_json::{Value, json};
use zbus::{Connection, Variant};

const APP: &str = "org.example.Rows";
/// Nothing is held back by its number.
const MANY: &str = "[limits]\nalerts-per-minute = 10000\nlaunches-per-minute = 10000";

struct Stage {
    server: Server,
    app: App,
    device: Device,
    desktop: Desktop,
    installed: Installed,
    /// The test's own connection to the bus.
    bus: Connection,
    reg_id: String,
    /// The app as a process of the test.
    here: DeviceApp,
}

impl Stage {
    async fn set(settings: &str) -> Self {
        let server = Server::start("00", "");
        let app = server.app_add(APP);
        let device = Device::start(&server.gateway, settings);
        let installed = Installed::new(&device, APP, "Rows", true).await;
        let desktop = Desktop::start(&device).await;
        let here = device.app(APP).await;
        here.call::<()>("Disconnect", &APP).await.expect("it is connected");
        let bus = device.connect().await;
        let reg_id = here.reg_id.clone();
        Self { server, app, device, desktop, installed, bus, reg_id, here }
    }

    /// Posts a message; `extra` goes beside its other members.
    fn post(&self, request_id: &str, message: &str, extra: Value) {
        let mut request = json!({
            "regID": self.reg_id, "requestID": request_id, "appData": request_id, "message": message,
            "sessionInfo": "last",
        });
        request.as_object_mut().expect("an object").extend(extra.as_object().cloned().unwrap_or_default());
        assert_eq!(codes(&post(&self.server, &self.app, &request)), [1000], "{request_id}");
    }

    async fn settings(&self, all: &[(&str, bool)]) {
        let settings: HashMap<&str, Variant<'_>> = all.iter().map(|(name, on)| (*name, Variant::from(*on))).collect();
        self.device.manage::<()>(&self.bus, "SetApp", &(APP, settings)).await;
    }

    async fn do_not_disturb(&self, on: bool) {
        self.device.manage::<()>(&self.bus, "SetDoNotDisturb", &on).await;
    }

    async fn until_hop(&self, request_id: &str, hop: &str) {
        self.device.until_hop(&self.bus, request_id, hop).await;
    }

    async fn badge(&self) -> u32 {
        self.here.call("GetBadge", &APP).await.expect("it is the app's own")
    }

    async fn unread(&self) -> u32 {
        u32::try_from(self.device.listed(&self.bus, APP).await["unread"].clone()).expect("a number")
    }

    async fn until_away(&self) {
        let started = Instant::now();
        while bool::try_from(self.device.listed(&self.bus, APP).await["connected"].clone()).expect("a boolean") {
            assert!(started.elapsed() < DEADLINE, "the app does not go");
            tokio::task::yield_now().await;
        }
    }

    /// Takes whatever is unread, as the app.
    async fn take_all(&mut self) -> Vec<String> {
        self.here.connect(&[("hold-unread", true)]).await.expect("the app may connect");
        let mut taken = Vec::new();
        loop {
            let message: HashMap<String, zbus::OwnedVariant> =
                self.here.call("TakeUnread", &APP).await.expect("it is connected");
            let Some(data) = message.get("app_data") else { break };
            taken.push(String::try_from(data.clone()).expect("text"));
        }
        self.here.call::<()>("Disconnect", &APP).await.expect("it is connected");
        self.until_away().await;
        taken
    }

    /// Runs one row of the table: `number` makes its message known.
    async fn run(&mut self, row: &str, number: usize) {
        let words: Vec<&str> = row.split_whitespace().collect();
        let [action, app, option, setting, "|", kept, badge, effect] = words[..] else { panic!("no row: {row}") };
        let id = format!("row{number}");
        self.prepare(setting).await;
        let before = self.badge().await;
        if app == "connected" {
            self.here.connect(&[]).await.expect("the app may connect");
        }
        let mut message = format!("alertMessage={id}");
        if !["none", "top-level"].contains(&action) {
            message.push_str(&format!("&action={action}"));
        }
        if option != "none" {
            message.push_str(&format!("&badgeOption={option}&badgeNumber=2"));
        }
        let extra = if action == "top-level" { json!({ "action": "backgroundLaunch" }) } else { json!({}) };
        self.post(&id, &message, extra);
        let end = match (kept, effect) {
            ("handed", _) | (_, "foreground" | "background") => "delivered",
            ("nowhere", _) => "discarded",
            (_, "alert") => "alerted",
            _ => "received",
        };
        self.until_hop(&id, end).await;
        let badge = badge.parse().unwrap_or(before);
        assert_eq!(self.badge().await, badge, "{row}");
        self.check_effect(effect, &id, row).await;
        if kept == "handed" {
            assert_eq!(self.here.next_data(1).await, [id.as_str()], "{row}");
            self.here.call::<()>("Disconnect", &APP).await.expect("it is connected");
        }
        self.until_away().await;
        let waits = kept == "unread" && !["foreground", "background"].contains(&effect);
        assert_eq!(self.unread().await, u32::from(waits), "{row}");
        assert_eq!(self.take_all().await, Vec::from_iter(waits.then_some(id)), "{row}");
        assert!(self.here.try_next().is_none(), "{row}");
    }

    async fn prepare(&self, setting: &str) {
        let on = |name: &str| name != setting;
        self.settings(&[("alerts", on("alerts-off")), ("launch", on("launch-off")), ("badge", true)]).await;
        self.here.call::<()>("SetBadge", &(APP, 5_u32)).await.expect("it is the app's own");
        self.settings(&[("badge", on("badge-off"))]).await;
        self.do_not_disturb(setting == "do-not-disturb").await;
        self.installed.forget();
    }

    async fn check_effect(&self, effect: &str, id: &str, row: &str) {
        let launched = ["foreground", "background"].contains(&effect);
        if launched {
            self.installed.until("ended", 1).await;
        }
        assert_eq!(self.installed.events_of("started").len(), usize::from(launched), "{row}");
        let events = self.installed.events();
        let activated = self.installed.events_of("activated").len();
        assert_eq!(activated, usize::from(effect == "foreground"), "{row}: {events:?}");
        if launched {
            let message = &self.installed.events_of("message")[0]["members"];
            assert_eq!((&message["app_data"], &message["launch_type"]), (&json!(id), &json!("notification")), "{row}");
            let reason = &self.installed.events_of("reason")[0];
            assert_eq!((&reason["launch_type"], &reason["id"]), (&json!("notification"), &message["id"]), "{row}");
        }
        if effect == "held" {
            assert_eq!(self.desktop.displayed(&self.bus).await, 0, "{row}");
            self.do_not_disturb(false).await;
            self.until_hop(id, "alerted").await;
        }
        let shown = self.desktop.close_all(&self.bus).await;
        let expected = ["alert", "held"].contains(&effect).then(|| ("Rows".to_owned(), id.to_owned()));
        assert_eq!(shown, Vec::from_iter(expected), "{row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_truth_table_holds_through_the_built_programs() {
    let table = include_str!("truth-table.txt");
    let rows: Vec<&str> = table.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(rows.len(), 7 * 2 * 4 * 5);
    let mut stage = Stage::set(MANY).await;
    for (number, row) in rows.into_iter().enumerate() {
        stage.run(row, number).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_click_on_an_alert_starts_the_app_with_its_message() {
    let stage = Stage::set(MANY).await;
    stage.post("click", "action=ALERT&alertMessage=Lunch+at+%3Cnoon%3E+%26+not+later", json!({ "sender": "kitchen" }));
    stage.until_hop("click", "alerted").await;
    stage.desktop.until_displayed(&stage.bus, 1).await;
    if let Ok(path) = std::env::var("BELLWIRE_PICTURE") {
        stage.desktop.picture(&path);
    }
    assert!(stage.installed.events().is_empty());
    stage.desktop.click();
    stage.installed.until("ended", 1).await;
    let message = &stage.installed.events_of("message")[0]["members"];
    assert_eq!((&message["app_data"], &message["launch_type"]), (&json!("click"), &json!("notification")));
    assert_eq!(stage.installed.events_of("activated").len(), 1, "{:?}", stage.installed.events());
    assert_eq!(stage.installed.events_of("started").len(), 1);
    stage.until_hop("click", "delivered").await;
    let hops = stage.device.hops(&stage.bus, "click").await;
    assert_eq!(hops.iter().filter(|hop| *hop == "opened").count(), 1, "{hops:?}");
    stage.desktop.until_displayed(&stage.bus, 0).await;
}

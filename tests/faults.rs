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

use std::sync::atomic::{AtomicU32, Ordering};

use common::so;
use desktop::Stage;
use serde_json::json;

const APP: &str = "org.example.Faulty";

const SETTINGS: &str = "[limits]\nalerts-per-minute = 1000\nlaunches-per-minute = 1000\nreconnect-s = 1";

/// Starts the daemon so that it ends at this point.
async fn arm(stage: &mut Stage, point: &str) {
    stage.device.restart_agent_with(&[("BELLWIRE_FAULT", point)]);
    stage.device.until_online().await;
}

/// Waits until the daemon has ended, and starts it again for good.
async fn revive(stage: &mut Stage, point: &str) {
    let device = &mut stage.device;
    common::until(async || {
        let ended = !device.agent_runs();
        so(ended, || format!("the daemon does not come to {point}:\n{}", device.log()))
    })
    .await;
    stage.device.restart_agent();
}

/// Posts a message that asks for this, and returns its request id.
fn post_one(stage: &Stage, message: &str) -> String {
    static SENT: AtomicU32 = AtomicU32::new(1);
    let id = format!("m{}", SENT.fetch_add(1, Ordering::Relaxed));
    stage.post(&id, message, json!({}));
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_and_its_badge_come_once_wherever_the_power_goes() {
    let mut stage = Stage::set(APP, SETTINGS, true).await;
    for (round, point) in (1..).zip(["arrived", "keeping", "stored", "alerting", "alert-noted", "alerted"]) {
        arm(&mut stage, point).await;
        let id = post_one(&stage, "action=ALERT&alertMessage=once&badgeOption=INCREASE&badgeNumber=2");
        revive(&mut stage, point).await;
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
    let mut stage = Stage::set(APP, SETTINGS, activatable).await;
    for (round, point) in (1..).zip(points) {
        stage.installed.forget();
        arm(&mut stage, point).await;
        let id = post_one(&stage, "action=BACKGROUNDLAUNCH&badgeOption=INCREASE&badgeNumber=1");
        revive(&mut stage, point).await;
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
    let mut stage = Stage::set(APP, SETTINGS, true).await;
    for point in ["arrived", "keeping", "stored", "handing", "handed", "delivered"] {
        arm(&mut stage, point).await;
        stage.here.connect(&[]).await.expect("the app may connect");
        let id = post_one(&stage, "action=ALERT&alertMessage=no&badgeOption=INCREASE&badgeNumber=1");
        revive(&mut stage, point).await;
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
        stage.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_app_that_never_comes_back_is_dealt_with_as_one_that_is_away() {
    let mut stage = Stage::set(APP, SETTINGS, true).await;
    arm(&mut stage, "handing").await;
    let gone = stage.device.unconnected_app(APP).await;
    gone.connect(&[]).await.expect("the app may connect");
    let id = post_one(&stage, "action=ALERT&alertMessage=yes&badgeOption=INCREASE&badgeNumber=1");
    revive(&mut stage, "handing").await;
    stage.device.until_hop(&stage.bus, &id, "alerted").await;
    assert_eq!((stage.badge().await, stage.desktop.displayed(&stage.bus).await), (1, 1));
    assert_eq!(stage.take_all().await, [id.as_str()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_click_that_was_lost_with_the_power_can_be_made_again() {
    let mut stage = Stage::set(APP, SETTINGS, true).await;
    arm(&mut stage, "clicked").await;
    let id = post_one(&stage, "action=ALERT&alertMessage=click");
    stage.device.until_hop(&stage.bus, &id, "alerted").await;
    stage.desktop.click();
    revive(&mut stage, "clicked").await;
    stage.desktop.until_displayed(&stage.bus, 1).await;
    assert!(stage.installed.events().is_empty());
    stage.desktop.click();
    stage.device.until_hop(&stage.bus, &id, "delivered").await;
    stage.installed.until("ended", 1).await;
    assert_eq!(stage.installed.events_of("started").len(), 1);
    stage.desktop.until_displayed(&stage.bus, 0).await;
}

//! What messages ask for, through the built programs: each row of the truth table with a real
//! notification server and an app that is really started, and what a row cannot show.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/desktop.rs"]
mod desktop;
#[path = "common/device.rs"]
mod device;

use std::collections::HashMap;
use std::time::Duration;

use common::{Server, so};
use desktop::{Installed, Stage};
use device::{Device, codes, post};
use serde_json::{Value, json};
use zbus::OwnedVariant;

const APP: &str = "org.example.Rows";
/// Nothing is held back by its number.
const MANY: &str = "[limits]\nalerts-per-minute = 10000\nlaunches-per-minute = 10000";

/// Runs one row of the table: `number` makes its message known.
async fn run(stage: &mut Stage, row: &str, number: usize) {
    let words: Vec<&str> = row.split_whitespace().collect();
    let [action, app, option, setting, "|", kept, badge, effect] = words[..] else { panic!("no row: {row}") };
    let id = format!("row{number}");
    prepare(stage, setting).await;
    let before = stage.badge().await;
    if app == "connected" {
        stage.here.connect(&[]).await.expect("the app may connect");
    }
    let mut message = format!("alertMessage={id}");
    if !["none", "top-level"].contains(&action) {
        message.push_str(&format!("&action={action}"));
    }
    if option != "none" {
        message.push_str(&format!("&badgeOption={option}&badgeNumber=2"));
    }
    let extra = if action == "top-level" { json!({ "action": "backgroundLaunch" }) } else { json!({}) };
    stage.post(&id, &message, extra);
    let end = match (kept, effect) {
        ("handed", _) | (_, "foreground" | "background") => "delivered",
        ("nowhere", _) => "discarded",
        (_, "alert") => "alerted",
        _ => "received",
    };
    stage.until_hop(&id, end).await;
    let badge = badge.parse().unwrap_or(before);
    assert_eq!(stage.badge().await, badge, "{row}");
    check_effect(stage, effect, &id, row).await;
    if kept == "handed" {
        assert_eq!(stage.here.next_data(1).await, [id.as_str()], "{row}");
        stage.leave().await;
    }
    stage.until_away().await;
    let waits = kept == "unread" && !["foreground", "background"].contains(&effect);
    assert_eq!(stage.unread().await, u32::from(waits), "{row}");
    assert_eq!(stage.take_all().await, Vec::from_iter(waits.then_some(id)), "{row}");
    assert!(stage.here.try_next().is_none(), "{row}");
}

async fn prepare(stage: &Stage, setting: &str) {
    let on = |name: &str| name != setting;
    stage.settings(&[("alerts", on("alerts-off")), ("launch", on("launch-off")), ("badge", true)]).await;
    stage.here.call::<()>("SetBadge", &(APP, 5_u32)).await.expect("it is the app's own");
    stage.settings(&[("badge", on("badge-off"))]).await;
    stage.do_not_disturb(setting == "do-not-disturb").await;
    stage.installed.forget();
}

async fn check_effect(stage: &Stage, effect: &str, id: &str, row: &str) {
    let launched = ["foreground", "background"].contains(&effect);
    if launched {
        stage.installed.until("ended", 1).await;
    }
    assert_eq!(stage.installed.events_of("started").len(), usize::from(launched), "{row}");
    let events = stage.installed.events();
    let activated = stage.installed.events_of("activated").len();
    assert_eq!(activated, usize::from(effect == "foreground"), "{row}: {events:?}");
    if launched {
        let message = &stage.installed.events_of("message")[0]["members"];
        assert_eq!((&message["app_data"], &message["launch_type"]), (&json!(id), &json!("notification")), "{row}");
        let reason = &stage.installed.events_of("reason")[0];
        assert_eq!((&reason["launch_type"], &reason["id"]), (&json!("notification"), &message["id"]), "{row}");
    }
    if launched {
        stage.until_hop(id, "launched").await;
    }
    if effect == "held" {
        assert_eq!(stage.desktop.displayed(&stage.bus).await, 0, "{row}");
        stage.do_not_disturb(false).await;
        stage.until_hop(id, "alerted").await;
    }
    let shown = stage.desktop.close_all(&stage.bus).await;
    let expected = ["alert", "held"].contains(&effect).then(|| ("Chat".to_owned(), id.to_owned()));
    assert_eq!(shown, Vec::from_iter(expected), "{row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_truth_table_holds_through_the_built_programs() {
    let table = include_str!("truth-table.txt");
    let rows: Vec<&str> = table.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(rows.len(), 7 * 2 * 4 * 5);
    let mut stage = Stage::set(APP, MANY, true).await;
    for (number, row) in rows.into_iter().enumerate() {
        run(&mut stage, row, number).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_click_on_an_alert_starts_the_app_with_its_message() {
    let stage = Stage::set(APP, MANY, true).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_outlives_daemon_and_server_and_goes_when_its_message_is_read() {
    let mut stage = Stage::set(APP, MANY, true).await;
    let more = json!({ "sessionInfo": "more" });
    stage.post("one", "action=ALERT&alertMessage=one", more.clone());
    stage.post("two", "action=ALERT&alertMessage=two", more);
    stage.until_hop("two", "alerted").await;
    stage.desktop.until_displayed(&stage.bus, 2).await;
    // The daemon is started anew: the same two, and a click still finds its app.
    stage.device.kill_agent();
    stage.device.restart_agent();
    stage.post("three", "action=ALERT&alertMessage=three", json!({}));
    stage.until_hop("three", "alerted").await;
    assert_eq!(stage.desktop.displayed(&stage.bus).await, 3);
    // The notification server is started anew: it knows nothing, and is told.
    stage.desktop.restart_server(&stage.bus).await;
    stage.desktop.until_displayed(&stage.bus, 3).await;
    stage.desktop.click();
    stage.installed.until("message", 3).await;
    stage.until_hop("three", "delivered").await;
    stage.desktop.until_displayed(&stage.bus, 0).await;
    let reasons: Vec<Value> =
        stage.installed.events_of("message").into_iter().map(|event| event["members"]["launch_type"].clone()).collect();
    assert_eq!(reasons.iter().filter(|reason| **reason == json!("notification")).count(), 1, "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_goes_when_its_message_has_expired() {
    let stage = Stage::set(APP, MANY, true).await;
    stage.post("soon", "action=ALERT&alertMessage=soon", json!({ "expiryDate": 1 }));
    stage.until_hop("soon", "alerted").await;
    assert_eq!(stage.desktop.displayed(&stage.bus).await, 1);
    // A minute is the shortest that the API has.
    common::until_within(Duration::from_secs(100), async || {
        so(stage.desktop.displayed(&stage.bus).await == 0, || "the alert stays".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_too_fast_is_one_alert_and_the_same_topic_is_the_same_alert() {
    let stage = Stage::set(APP, "[limits]\nalerts-per-minute = 3", true).await;
    // While alerts are held back they gather.
    stage.do_not_disturb(true).await;
    for number in 1..=5 {
        stage.post(&format!("n{number}"), &format!("action=ALERT&alertMessage=text{number}"), json!({}));
    }
    stage.until_hop("n5", "received").await;
    stage.do_not_disturb(false).await;
    stage.until_hop("n5", "alerted").await;
    let shown = stage.desktop.close_all(&stage.bus).await;
    let mut bodies: Vec<&str> = shown.iter().map(|(_, body)| body.as_str()).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, ["text1", "text2", "text5 (and 2 more)"]);
    stage.post("n6", "action=ALERT&alertMessage=late", json!({}));
    stage.until_hop("n6", "received").await;
    assert_eq!(stage.take_all().await.len(), 6);
    assert!(!stage.device.hops(&stage.bus, "n6").await.contains(&"alerted".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_with_the_request_id_of_an_earlier_one_takes_its_place() {
    let stage = Stage::set(APP, MANY, true).await;
    stage.post("score", "action=ALERT&alertMessage=1:0", json!({}));
    stage.until_hop("score", "alerted").await;
    stage.post("score", "action=ALERT&alertMessage=2:0", json!({}));
    stage.post("other", "action=ALERT&alertMessage=other", json!({}));
    stage.until_hop("other", "alerted").await;
    stage.desktop.until_displayed(&stage.bus, 2).await;
    let shown = stage.desktop.close_all(&stage.bus).await;
    let mut bodies: Vec<&str> = shown.iter().map(|(_, body)| body.as_str()).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, ["2:0", "other"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_notification_server_the_device_s_shell_is_told() {
    let server = Server::start("00", "");
    let app = server.app_add(APP);
    let device = Device::start(&server.gateway, MANY);
    let installed = Installed::new(&device, APP, "Chat", true).await;
    let here = device.app(APP).await;
    here.call::<()>("Disconnect", &APP).await.expect("it is connected");
    let bus = device.connect().await;
    let status = String::from_utf8_lossy(&device.tool(&["status"]).stdout).into_owned();
    assert!(status.contains("there is no notification server"), "{status}");
    let mut signals = device.signals(&bus, device::MANAGER).await;
    let post_one = |id: &str| {
        let request = json!({ "regID": here.reg_id, "requestID": id, "appData": id, "sessionInfo": "last",
                              "message": format!("action=ALERT&alertMessage={id}") });
        assert_eq!(codes(&post(&server, &app, &request)), [1000]);
    };
    post_one("hello");
    let (of, id, alert): (String, String, HashMap<String, OwnedVariant>) =
        device::next_signal(&mut signals, "Alert").await;
    let text = |name: &str| String::try_from(alert[name].clone()).expect("text");
    assert_eq!((of.as_str(), text("title").as_str(), text("text").as_str()), (APP, "Chat", "hello"));
    device.until_hop(&bus, "hello", "alerted").await;
    device.manage::<()>(&bus, "OpenAlert", &(id.as_str(), "")).await;
    installed.until("ended", 1).await;
    assert_eq!(installed.events_of("message")[0]["members"]["launch_type"], "notification");
    assert_eq!(installed.events_of("activated").len(), 1);
    let (manager, arguments) = (Some(device::MANAGER), (id.as_str(), ""));
    let again = bus.call_method(Some(device::NAME), device::OBJECT, manager, "OpenAlert", &arguments).await;
    assert_eq!(device::error_name(again), "NoAlert");
    device.until_hop(&bus, "hello", "delivered").await;
    // A message that is read otherwise takes its alert with it.
    post_one("read");
    let (_, id, _): (String, String, HashMap<String, OwnedVariant>) = device::next_signal(&mut signals, "Alert").await;
    device.until_hop(&bus, "read", "alerted").await;
    here.connect(&[]).await.expect("the app may connect");
    let closed: String = device::next_signal(&mut signals, "AlertClosed").await;
    assert_eq!(closed, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_started_once_and_outlives_the_daemon() {
    let server = Server::start("00", "");
    let app = server.app_add(APP);
    let mut device = Device::start(&server.gateway, MANY);
    let installed = Installed::new(&device, APP, "Chat", false).await;
    let here = device.app(APP).await;
    here.call::<()>("Disconnect", &APP).await.expect("it is connected");
    for (id, action, manner) in [("one", "LAUNCH", "foreground"), ("two", "BACKGROUNDLAUNCH", "background")] {
        installed.forget();
        let request =
            json!({ "regID": here.reg_id, "requestID": id, "appData": id, "message": format!("action={action}") });
        assert_eq!(codes(&post(&server, &app, &request)), [1000]);
        installed.until("message", 1).await;
        let started = &installed.events_of("started")[0];
        let environment = &started["environment"];
        assert_eq!(
            (
                &environment["BELLWIRE_APP"],
                &environment["BELLWIRE_LAUNCH_TYPE"],
                &environment["BELLWIRE_LAUNCH_MANNER"]
            ),
            (&json!(APP), &json!("notification"), &json!(manner))
        );
        assert_eq!(environment["BELLWIRE_MESSAGE_ID"], installed.events_of("message")[0]["members"]["id"]);
        let pid = started["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a process");
        let process = nix::unistd::Pid::from_raw(pid);
        if id == "one" {
            device.stop_agent();
            nix::sys::signal::kill(process, None).expect("the app outlives the daemon");
            device.restart_agent();
        }
        assert_eq!(installed.events_of("started").len(), 1);
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).expect("the app runs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_cannot_be_started_keeps_its_message_and_somebody_is_told() {
    let server = Server::start("00", "");
    let app = server.app_add(APP);
    let device = Device::start(&server.gateway, MANY);
    let here = device.app(APP).await;
    here.call::<()>("Disconnect", &APP).await.expect("it is connected");
    let bus = device.connect().await;
    let mut signals = device.signals(&bus, device::MANAGER).await;
    let launch = |id: &str| {
        let request = json!({ "regID": here.reg_id, "requestID": id, "appData": id, "message": "action=LAUNCH" });
        assert_eq!(codes(&post(&server, &app, &request)), [1000]);
    };
    launch("nothing");
    let (of, _, why): (String, String, String) = device::next_signal(&mut signals, "LaunchFailed").await;
    assert_eq!((of.as_str(), why.as_str()), (APP, "nothing is installed that says how to start it"));
    // Installed, but of no use: the bus's way and the program's both fail, and both say why.
    device
        .install(&format!("dbus-1/services/{APP}.service"), &format!("[D-BUS Service]\nName={APP}\nExec=/bin/false\n"));
    device.install(
        &format!("applications/{APP}.desktop"),
        "[Desktop Entry]\nType=Application\nName=Rows\nExec=/nowhere/rows\n",
    );
    zbus::fdo::DBusProxy::new(&bus).await.expect("a bus").reload_config().await.expect("the bus reads its folders");
    launch("broken");
    device.until_hop(&bus, "broken", "failed").await;
    let why = device.reason("broken", "failed");
    assert!(why.contains("the bus did not start") && why.contains("there is no program /nowhere/rows"), "{why}");
    assert_eq!(u32::try_from(device.listed(&bus, APP).await["unread"].clone()).expect("a number"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_connected_app_does_not_take_is_done_when_it_goes() {
    let stage = Stage::set(APP, MANY, true).await;
    let crashing = stage.device.unconnected_app(APP).await;
    crashing.behave(device::Manners::Ignore);
    crashing.connect(&[]).await.expect("the app may connect");
    stage.post("lost", "action=ALERT&alertMessage=lost&badgeOption=INCREASE&badgeNumber=1", json!({}));
    let (crashing, mut handed) = crashing.split();
    handed.recv().await.expect("the app was handed it");
    assert_eq!((stage.badge().await, stage.desktop.displayed(&stage.bus).await), (0, 0));
    crashing.bus.close().await.expect("it is connected");
    stage.until_hop("lost", "alerted").await;
    assert_eq!((stage.badge().await, stage.desktop.displayed(&stage.bus).await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn badges_are_said_on_both_interfaces_and_again_to_a_new_desktop() {
    let stage = Stage::set(APP, MANY, true).await;
    let mut ours = stage.device.signals(&stage.bus, device::PUSH).await;
    let other = stage.device.connect().await;
    let mut theirs = stage.device.signals(&other, "com.canonical.Unity.LauncherEntry").await;
    stage.post("badge", "action=SILENT&badgeOption=SET&badgeNumber=7", json!({}));
    let said: (String, u32) = device::next_signal(&mut ours, "BadgeChanged").await;
    assert_eq!(said, (APP.to_owned(), 7));
    type Entry = (String, HashMap<String, OwnedVariant>);
    let check = |(uri, members): Entry, count: i64| {
        assert_eq!(uri, format!("application://{APP}.desktop"));
        assert_eq!(i64::try_from(members["count"].clone()).expect("count is x"), count);
        assert_eq!(bool::try_from(members["count-visible"].clone()).expect("a boolean"), count > 0);
    };
    check(device::next_signal(&mut theirs, "Update").await, 7);
    // A desktop that starts later.
    stage.bus.request_name("com.canonical.Unity").await.expect("the name is free");
    check(device::next_signal(&mut theirs, "Update").await, 7);
    stage.here.call::<()>("SetBadge", &(APP, 0_u32)).await.expect("it is the app's own");
    check(device::next_signal(&mut theirs, "Update").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_the_user_switches_off_is_deregistered_and_on_again_told_to_register() {
    let stage = Stage::set(APP, MANY, true).await;
    stage.here.connect(&[]).await.expect("the app may connect");
    let mut signals = stage.device.signals(&stage.here.bus, device::PUSH).await;
    type Change = (String, String, String, String);
    assert!(stage.device.tool(&["apps", "disable", APP]).status.success());
    let (_, state, _, _): Change = device::next_signal(&mut signals, "RegistrationChanged").await;
    assert_eq!(state, "disabled");
    let refused = stage.here.call::<String>("Register", &APP).await;
    assert_eq!(device::error_name(refused), "Disabled");
    until_answer(&stage, 3008).await;
    stage.leave().await;
    stage.until_away().await;
    assert!(stage.device.tool(&["apps", "enable", APP]).status.success());
    // It is away: it is started to hear of it.
    stage.installed.until("reason", 1).await;
    assert_eq!(stage.installed.events_of("reason")[0]["launch_type"], "registration_change");
    stage.installed.until("ended", 1).await;
    stage.until_away().await;
    stage.here.connect(&[]).await.expect("the app may connect");
    let reg_id: String = stage.here.call("Register", &APP).await.expect("it may register again");
    assert_ne!(reg_id, stage.here.reg_id);
}

/// Waits until the server answers a message for the app's first regId so.
async fn until_answer(stage: &Stage, code: u64) {
    common::until(async || {
        // Nothing of it is kept: no queue overflows.
        let request =
            json!({ "regID": stage.here.reg_id, "requestID": "probe", "appData": "probe", "message": "action=DISCARD" });
        let answer = codes(&post(&stage.server, &stage.app, &request));
        so(answer == [code], || format!("the server answers {answer:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_uninstalled_is_deregistered_and_its_id_is_free() {
    let stage = Stage::set(APP, MANY, true).await;
    stage.post("unread", "action=ALERT&alertMessage=unread&badgeOption=SET&badgeNumber=3", json!({}));
    stage.until_hop("unread", "alerted").await;
    let data = stage.device.folder.path().join("data");
    std::fs::remove_file(data.join(format!("applications/{APP}.desktop"))).expect("it is installed");
    std::fs::remove_file(data.join(format!("dbus-1/services/{APP}.service"))).expect("it is installed");
    until_answer(&stage, 3008).await;
    stage.desktop.until_displayed(&stage.bus, 0).await;
    assert_eq!(stage.device.hops(&stage.bus, "unread").await.last().map(String::as_str), Some("unwanted"));
    let apps: Vec<HashMap<String, OwnedVariant>> = stage.device.manage(&stage.bus, "ListApps", &()).await;
    assert!(apps.is_empty(), "{apps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_the_server_ends_starts_the_app() {
    let mut stage = Stage::set(APP, MANY, true).await;
    assert!(stage.server.admin(&["app", "remove", APP]).status.success());
    stage.server.restart();
    stage.device.until_link("online").await;
    stage.installed.until("ended", 1).await;
    assert_eq!(stage.installed.events_of("reason")[0]["launch_type"], "registration_change");
    // Told in the background: no window comes in front.
    assert!(stage.installed.events_of("activated").is_empty());
}

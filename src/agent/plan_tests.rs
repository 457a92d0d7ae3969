//! The truth table, row by row, and what a row cannot show.

use super::*;
use crate::proto::samples;

/// A row of `tests/truth-table.txt`, which the end-to-end test reads as well.
fn check_row(row: &str) {
    let words: Vec<&str> = row.split_whitespace().collect();
    let [action, app, option, setting, "|", kept, badge, effect] = words[..] else { panic!("no row: {row}") };
    let settings = match setting {
        "all-on" => Settings::default(),
        "alerts-off" => Settings { alerts: false, ..Settings::default() },
        "launch-off" => Settings { launch: false, ..Settings::default() },
        "badge-off" => Settings { badge: false, ..Settings::default() },
        "do-not-disturb" => Settings { do_not_disturb: true, ..Settings::default() },
        other => panic!("no setting: {other}"),
    };
    let mut text = String::from("alertMessage=Hi");
    if !["none", "top-level"].contains(&action) {
        text.push_str(&format!("&action={action}"));
    }
    if option != "none" {
        text.push_str(&format!("&badgeOption={option}&badgeNumber=2"));
    }
    let message = message(&text, action == "top-level");
    let plan = plan(&message, app == "connected", 5, settings);
    let place = match plan.place {
        Place::HandOver => "handed",
        Place::Unread => "unread",
        Place::Nowhere => "nowhere",
    };
    let done = match plan.effect {
        None => "none",
        Some(Effect::Alert) if settings.do_not_disturb => "held",
        Some(Effect::Alert) => "alert",
        Some(Effect::Launch(Manner::Foreground)) => "foreground",
        Some(Effect::Launch(Manner::Background)) => "background",
    };
    let count = plan.badge.map_or_else(|| "unchanged".to_owned(), |badge| badge.to_string());
    assert_eq!((place, count.as_str(), done), (kept, badge, effect), "{row}");
}

fn message(text: &str, background_launch: bool) -> Push {
    let message = Some(text.to_owned().into());
    Push { message, background_launch, ..samples::push(samples::message_id(1)) }
}

#[test]
fn every_row_of_the_truth_table_holds() {
    let table = include_str!("../../tests/truth-table.txt");
    let rows: Vec<&str> = table.lines().filter(|line| !line.starts_with('#')).collect();
    // Actions, connected or not, badge options, settings.
    assert_eq!(rows.len(), 7 * 2 * 4 * 5);
    rows.iter().for_each(|row| check_row(row));
}

fn badge_after(text: &str, before: u16) -> Option<u16> {
    plan(&message(text, false), false, before, Settings::default()).badge
}

#[test]
fn a_badge_stays_within_its_range() {
    assert_eq!(badge_after("badgeOption=INCREASE&badgeNumber=999", 1), Some(999));
    assert_eq!(badge_after("badgeOption=DECREASE&badgeNumber=6", 5), Some(0));
    assert_eq!(badge_after("badgeOption=INCREASE&badgeNumber=1", 999), None);
    assert_eq!(badge_after("badgeOption=SET&badgeNumber=1000", 5), None);
    assert_eq!(badge_after("badgeOption=SET&badgeNumber=0", 5), Some(0));
}

#[test]
fn the_message_s_own_action_goes_before_the_request_s() {
    let plan = plan(&message("action=SILENT", true), false, 0, Settings::default());
    assert_eq!(plan.effect, None);
}

#[test]
fn whatever_was_passed_over_has_its_reason() {
    let strict = Settings { alerts: false, launch: false, badge: false, do_not_disturb: true };
    let reasons = |text: &str, settings| plan(&message(text, false), false, 0, settings).reasons;
    assert_eq!(reasons("action=ALERT&badgeOption=SET&badgeNumber=1", strict).len(), 2);
    assert_eq!(reasons("action=LAUNCH", strict), [NO_LAUNCH]);
    let quiet = Settings { do_not_disturb: true, ..Settings::default() };
    assert_eq!(reasons("action=LAUNCH", quiet), ["do-not-disturb: the app was not started"]);
    assert_eq!(reasons("action=ALERT", quiet), ["the alert waits until do-not-disturb ends"]);
    assert_eq!(reasons("action=SHOUT", Settings::default()).len(), 1);
    assert_eq!(plan(&message("action=SHOUT", false), true, 0, Settings::default()).reasons.len(), 1);
    assert_eq!(reasons("action=ALERT&badgeOption=SET&badgeNumber=1", Settings::default()), [""; 0]);
}

#[test]
fn a_message_of_a_channel_is_kept_for_its_app_and_does_nothing() {
    let mut push = message("action=LAUNCH&alertMessage=Hi&badgeOption=INCREASE&badgeNumber=2", true);
    push.app = crate::proto::Channel { id: [7; 16], sender: None }.app();
    for connected in [false, true] {
        let plan = plan(&push, connected, 5, Settings::default());
        assert_eq!(plan, Plan { place: Place::Unread, badge: None, effect: None, reasons: Vec::new() });
    }
}

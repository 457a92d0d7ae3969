//! What becomes of a message on the device. PURE: this file decides and does nothing.
//!
//! The rules are those of the Tizen push service, where its documents leave no gap; where they do,
//! this page is the rule:
//!
//! | the message asks for | app connected | not connected: kept | badge | effect |
//! |---|---|---|---|---|
//! | `ALERT` | handed over | unread | as asked | the user is shown `alertMessage` |
//! | `SILENT`, or nothing | handed over | unread | as asked | none |
//! | `DISCARD` | handed over | no | unchanged | none |
//! | `LAUNCH` | handed over | unread | as asked | the app is started in the foreground |
//! | `BACKGROUNDLAUNCH` | handed over | unread | as asked | the app is started without a window |
//!
//! To a connected app the `message` string is nothing but a string: no badge, no alert. A request's
//! `action: backgroundLaunch` counts where the `message` string names no action. A badge stays
//! within 0 and 999. What the user has switched off is left out, and the message is kept all the
//! same; do-not-disturb holds alerts back until it ends, and a `LAUNCH` starts nothing meanwhile.
//!
//! A message of a Web Push channel asks for nothing: it is kept for the app, and neither shown nor
//! does it start anything by itself.

#![deny(clippy::disallowed_methods)]

use crate::proto::field::{Action, BADGE_MAX, Badge, Fields};
use crate::proto::{Channel, Push};

/// What the user allows an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Alerts are shown.
    pub alerts: bool,
    /// Messages may start the app.
    pub launch: bool,
    /// The app's badge is shown and changed.
    pub badge: bool,
    /// The user wants to be left alone, by all apps.
    pub do_not_disturb: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { alerts: true, launch: true, badge: true, do_not_disturb: false }
    }
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// To the app, which is connected.
    HandOver,
    /// Into the unread messages, until the app asks for them.
    Unread,
    /// Nowhere.
    Nowhere,
}

/// What a message does beside being kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The user is shown its text.
    Alert,
    /// The app is started.
    Launch(Manner),
}

/// How an app is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// With its window in front.
    Foreground,
    /// Without a window.
    Background,
}

/// The decision about one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where it goes.
    pub place: Place,
    /// The app's badge from now on, if it changes.
    pub badge: Option<u16>,
    /// What else is done.
    pub effect: Option<Effect>,
    /// What of the message was passed over and why, for its history.
    pub reasons: Vec<String>,
}

/// Decides about a message of an app that has this badge and is `connected` or not.
pub fn plan(message: &Push, connected: bool, badge: u16, settings: Settings) -> Plan {
    if Channel::is_reserved(&message.app) {
        return Plan { place: Place::Unread, badge: None, effect: None, reasons: Vec::new() };
    }
    let nothing = Fields::default();
    let fields = message.message.as_ref().map_or(&nothing, |field| field.fields());
    let mut reasons = fields.problems.clone();
    if connected {
        return Plan { place: Place::HandOver, badge: None, effect: None, reasons };
    }
    let top_level = message.background_launch.then_some(Action::BackgroundLaunch);
    let action = fields.action.or(top_level).unwrap_or(Action::Silent);
    if action == Action::Discard {
        return Plan { place: Place::Nowhere, badge: None, effect: None, reasons };
    }
    let effect = effect(action, settings, &mut reasons);
    let badge = fields.badge.and_then(|change| changed(badge, change, settings, &mut reasons));
    Plan { place: Place::Unread, badge, effect, reasons }
}

fn effect(action: Action, settings: Settings, reasons: &mut Vec<String>) -> Option<Effect> {
    let mut unless = |forbidden: bool, why: &str| {
        if forbidden {
            reasons.push(why.to_owned());
        }
        !forbidden
    };
    match action {
        Action::Alert => {
            let shown = unless(!settings.alerts, "the user has switched off alerts of this app");
            if shown && settings.do_not_disturb {
                reasons.push("the alert waits until do-not-disturb ends".to_owned());
            }
            shown.then_some(Effect::Alert)
        }
        Action::Launch => (unless(!settings.launch, NO_LAUNCH)
            && unless(settings.do_not_disturb, "do-not-disturb: the app was not started"))
        .then_some(Effect::Launch(Manner::Foreground)),
        Action::BackgroundLaunch => unless(!settings.launch, NO_LAUNCH).then_some(Effect::Launch(Manner::Background)),
        Action::Silent | Action::Discard => None,
    }
}

const NO_LAUNCH: &str = "the user does not let messages start this app";

fn changed(badge: u16, change: Badge, settings: Settings, reasons: &mut Vec<String>) -> Option<u16> {
    if !settings.badge {
        reasons.push("the user has switched off the badge of this app".to_owned());
        return None;
    }
    let new = match change {
        Badge::Increase(by) => badge.saturating_add(by).min(BADGE_MAX),
        Badge::Decrease(by) => badge.saturating_sub(by),
        Badge::Set(to) => to.min(BADGE_MAX),
    };
    (new != badge).then_some(new)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

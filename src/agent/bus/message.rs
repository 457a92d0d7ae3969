//! A message as apps see it on D-Bus: a dictionary `a{sv}`.

use std::collections::HashMap;

use zbus::Variant;

use crate::agent::store::Unread;

/// The dictionary of `App1.Message` and `Push1.TakeUnread`. Members that the sender left out are
/// absent. The payload is `app_data` (s) if it is text that D-Bus can hold, else `payload` (ay).
/// `again`: it may have been handed over before. `launch_type`: the app was started for it.
pub fn dictionary(unread: &Unread, again: bool) -> HashMap<&'static str, Variant<'static>> {
    let push = &unread.push;
    let mut members: HashMap<&'static str, Variant<'static>> = HashMap::new();
    let mut text = |name: &'static str, value: Option<&String>| {
        if let Some(value) = value {
            members.insert(name, Variant::from(value.clone()));
        }
    };
    text("id", Some(&push.id.to_string()));
    text("app", Some(&push.app.to_string()));
    text("sender", push.sender.as_ref());
    text("request_id", push.request_id.as_ref());
    text("session_info", push.session_info.as_ref());
    text("message", push.message.as_ref().map(|field| field.raw().to_owned()).as_ref());
    if let Some(payload) = &push.payload {
        text("content_type", payload.content_type.as_ref());
        text("content_encoding", payload.content_encoding.as_ref());
        match payload.as_text().filter(|text| !text.contains('\0')) {
            Some(app_data) => members.insert("app_data", Variant::from(app_data.to_owned())),
            None => members.insert("payload", Variant::from(payload.bytes.0.clone())),
        };
    }
    let mut number = |name: &'static str, value: Option<i64>| {
        if let Some(value) = value {
            members.insert(name, Variant::from(value));
        }
    };
    number("type", push.kind);
    number("time_stamp", push.time_stamp);
    number("accepted_ms", Some(push.accepted_ms.0));
    number("received_ms", Some(unread.received_ms.0));
    number("expires_ms", Some(unread.expires_ms.0));
    if unread.dropped > 0 {
        members.insert("dropped", Variant::from(unread.dropped));
    }
    if unread.launched {
        members.insert("launch_type", Variant::from("notification"));
    }
    if again {
        members.insert("again", Variant::from(true));
    }
    members
}

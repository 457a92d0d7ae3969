//! Values that several tests start from.

use uuid::Uuid;

use super::message::{Door, Reliability};
use super::urgency::Urgency;
use super::{AppId, MessageId, Push, RegId, Region, UnixMillis};

/// When sample pushes are accepted.
pub(crate) const WALL: UnixMillis = UnixMillis(1_760_000_000_000);

/// The message id of this number; ids sort as their numbers do.
pub(crate) fn message_id(number: u64) -> MessageId {
    MessageId::from_uuid(Uuid::from_u128(number.into()))
}

/// The app id in this text.
pub(crate) fn app(text: &str) -> AppId {
    text.parse().unwrap()
}

/// A push with this id and no optional member, which lives for an hour.
pub(crate) fn push(id: MessageId) -> Push {
    Push {
        id,
        reg_id: RegId::new(Region(3), 0xa7, &[0x5c; 48]),
        app: app("org.example.Chat"),
        door: Door::Tizen,
        payload: None,
        message: None,
        sender: None,
        request_id: None,
        session_info: None,
        kind: None,
        time_stamp: None,
        accepted_ms: WALL,
        expires_ms: WALL.plus_minutes(60),
        reliability: Reliability::Transport,
        urgency: Urgency::Normal,
        collapse_key: None,
        receipt: false,
        receipts_to: None,
        background_launch: false,
    }
}

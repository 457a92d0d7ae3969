//! The URLs of messages and of subscriptions, of endpoints and of receipts: capabilities, whose secret part only this server
//! makes and opens.
//!
//! What is not ours fails here and costs no read of the database. A message's URL names its channel and
//! itself, so that it is found without an index of its own. Sealing is deterministic: two URLs of one
//! device have no more than region and shard in common because every id in them is another.

use crate::proto::{Channel, DeviceId, MessageId, ReceiptsId};
use crate::server::origin::Origin;
use crate::server::regid::{KeyRing, Purpose};

/// The path of all messages; the secret part follows.
pub const MESSAGES: &str = "/wp/m/";
/// The path of all subscriptions of endpoints; the secret part follows.
pub const SUBSCRIPTIONS: &str = "/wp/s/";
/// The path of all subscriptions of receipts; the secret part follows.
pub const RECEIPTS: &str = "/wp/r/";

/// A message, as its URL names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The channel that it was sent to.
    pub channel: Channel,
    /// Its id.
    pub id: MessageId,
}

/// The URL of a message to this device.
pub fn message_url(origin: &Origin, keys: &KeyRing, device: DeviceId, message: &Named) -> String {
    let plain = [message.id.as_bytes().as_slice(), &message.channel.to_bytes()];
    format!("{origin}{MESSAGES}{}", keys.seal(Purpose::Message, keys.shard(device), &plain.concat()))
}

/// The message that the secret part of a URL names, if this server made it.
pub fn open_message(keys: &KeyRing, secret: &str) -> Option<Named> {
    let plain = keys.open_sealed(Purpose::Message, secret)?;
    let (id, channel) = plain.split_at_checked(16)?;
    Some(Named { channel: Channel::from_bytes(channel)?, id: MessageId::from_slice(id).ok()? })
}

/// The URL of a channel's subscription on this device.
pub fn subscription_url(origin: &Origin, keys: &KeyRing, device: DeviceId, channel: &Channel) -> String {
    let plain = [device.as_bytes().as_slice(), &channel.to_bytes()].concat();
    format!("{origin}{SUBSCRIPTIONS}{}", keys.seal(Purpose::Subscription, keys.shard(device), &plain))
}

/// The subscription that the secret part of a URL names, if this server made it.
pub fn open_subscription(keys: &KeyRing, secret: &str) -> Option<(DeviceId, Channel)> {
    let plain = keys.open_sealed(Purpose::Subscription, secret)?;
    let (device, channel) = plain.split_at_checked(16)?;
    Some((DeviceId::from_slice(device).ok()?, Channel::from_bytes(channel)?))
}

/// The URL of a subscription of receipts, which is of no device.
pub fn receipts_url(origin: &Origin, keys: &KeyRing, link: ReceiptsId) -> String {
    format!("{origin}{RECEIPTS}{}", keys.seal(Purpose::Receipts, 0, link.as_bytes()))
}

/// The subscription that the secret part of a URL names, if this server made it.
pub fn open_receipts(keys: &KeyRing, secret: &str) -> Option<ReceiptsId> {
    ReceiptsId::from_slice(&keys.open_sealed(Purpose::Receipts, secret)?).ok()
}

/// The subscription that a URL names, whatever its origin: that the server made it shows in its secret part.
pub fn receipts_of_url(keys: &KeyRing, url: &str) -> Option<ReceiptsId> {
    let (_, secret) = url.split_once(RECEIPTS)?;
    open_receipts(keys, secret)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::proto::Region;
    use crate::proto::channel::SenderHash;
    use crate::server::regid::SealKey;
    use crate::world;

    fn ring(region: u8, key: u8) -> KeyRing {
        KeyRing::new(Region(region), vec![SealKey::new(1, &[key; 64]).unwrap()], b"shard").unwrap()
    }

    fn origin() -> Origin {
        "https://push.example.org".parse().unwrap()
    }

    fn secret<'a>(url: &'a str, path: &str) -> &'a str {
        url.strip_prefix(&format!("https://push.example.org{path}")).unwrap()
    }

    #[test]
    fn a_url_names_what_it_was_made_for_and_nothing_else() {
        let (here, device) = (ring(3, 1), world::device_id());
        for sender in [None, Some(SenderHash([9; 32]))] {
            let message = Named { channel: Channel { id: [7; 16], sender }, id: world::message_id() };
            let url = message_url(&origin(), &here, device, &message);
            let message_secret = secret(&url, MESSAGES);
            assert_eq!(open_message(&here, message_secret), Some(message));
            assert_eq!(open_receipts(&here, message_secret), None);
            assert_eq!(here.open_endpoint(message_secret), None);
            for elsewhere in [ring(3, 2), ring(0, 1)] {
                assert_eq!(open_message(&elsewhere, message_secret), None);
            }
        }
        let link = world::receipts_id();
        let url = receipts_url(&origin(), &here, link);
        assert_eq!(open_receipts(&here, secret(&url, RECEIPTS)), Some(link));
        assert_eq!(open_message(&here, secret(&url, RECEIPTS)), None);
        // A sender may have had it under a name that the server had before.
        let renamed = url.replace("push.example.org", "old.example.org:8443");
        assert_eq!(receipts_of_url(&here, &renamed), Some(link));
        for bad in ["", "https://push.example.org/wp/r/", "https://push.example.org/wp/m/x", &format!("{url}A")] {
            assert_eq!(receipts_of_url(&here, bad), None, "{bad}");
        }
    }

    #[test]
    fn t3_a_thousand_messages_of_one_device_share_nothing_but_region_and_shard() {
        let (ring, device) = (ring(0, 1), world::device_id());
        let channel = Channel { id: [7; 16], sender: Some(SenderHash([9; 32])) };
        let mut pieces = HashSet::new();
        for _ in 0..1000 {
            let message = Named { channel, id: world::message_id() };
            let url = message_url(&origin(), &ring, device, &message);
            // Region and shard are in the first three characters, the third also has four bits of the seal.
            let text = &secret(&url, MESSAGES)[3..];
            let own: HashSet<String> = (0..text.len() - 8).map(|at| text[at..at + 8].to_owned()).collect();
            assert!(pieces.is_disjoint(&own), "{url}");
            pieces.extend(own);
        }
    }
}

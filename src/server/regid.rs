//! Issuing and opening regIds: pure cryptography, no store.
//!
//! The sealed part is AES-SIV (RFC 5297, deterministic) over device, app and generation, with
//! region and shard as associated data. A forged or foreign regId fails here and costs no read;
//! two regIds of one device have nothing in common but region and shard. Keys are never removed,
//! so that rotating them leaves issued regIds good.
//!
//! The secret part of every other address is sealed likewise: that of a Web Push channel's endpoint, which
//! names the channel and the only sender it may have, and those of what is told about messages. What is
//! sealed for one [`Purpose`] opens for no other, so that a regId, which takes its app's secret to send
//! to, is no endpoint, which takes nothing.

use aes_siv::KeyInit;
use aes_siv::siv::Aes256Siv;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{digest, hmac};

use crate::proto::{AppId, Channel, DeviceId, RegId, Region};

/// What a regId of ours says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The device.
    pub device: DeviceId,
    /// Stands for the app; compare with [`Opened::is_for`].
    app_tag: [u8; 8],
    /// Counts the registrations of this app on this device.
    pub generation: u64,
}

impl Opened {
    /// Whether it was issued for this app.
    pub fn is_for(&self, app: &AppId) -> bool {
        self.app_tag == app_tag(app)
    }
}

/// A 64-byte key that seals regIds, with its number.
#[derive(Clone)]
pub struct SealKey {
    /// Higher is newer.
    pub number: i64,
    key: [u8; 64],
}

impl SealKey {
    /// The key in these bytes, if there are 64.
    pub fn new(number: i64, bytes: &[u8]) -> Option<Self> {
        Some(Self { number, key: bytes.try_into().ok()? })
    }

    fn seal(&self, header: &[u8], plain: &[u8]) -> Vec<u8> {
        // Invariant: one header is fewer than 126.
        Aes256Siv::new((&self.key).into()).encrypt([header], plain).expect("one header is not too many")
    }

    fn open(&self, header: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        Aes256Siv::new((&self.key).into()).decrypt([header], sealed).ok()
    }
}

/// The longest text that is tried to be opened.
const SEALED_MAX: usize = 256;

/// What something is sealed for. The numbers stand in what was issued: they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Sending to a Web Push channel.
    Endpoint = 1,
    /// Looking at the subscription of a Web Push channel, and ending it.
    Subscription = 2,
    /// Looking at a message, and taking it back.
    Message = 3,
    /// Being told what became of messages.
    Receipts = 4,
}

/// The region that a sealed text says it is of.
pub fn region_of(text: &str) -> Option<Region> {
    // Two characters hold the first byte, and half of the next.
    let head = URL_SAFE_NO_PAD.decode(text.get(..4)?).ok()?;
    head.first().copied().map(Region)
}

/// What an endpoint of ours says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Whom it is for.
    pub to: Opened,
    /// The channel, which names the app.
    pub channel: Channel,
    /// The regId that the registration was given with it.
    pub reg_id: RegId,
}

/// All keys of this server.
pub struct KeyRing {
    region: Region,
    /// Newest first; never empty.
    seal: Vec<SealKey>,
    shard: hmac::Key,
}

impl KeyRing {
    /// A ring of these keys, or `None` without a key to seal with.
    pub fn new(region: Region, mut seal: Vec<SealKey>, shard: &[u8]) -> Option<Self> {
        seal.sort_by_key(|key| std::cmp::Reverse(key.number));
        if seal.is_empty() {
            return None;
        }
        Some(Self { region, seal, shard: hmac::Key::new(hmac::HMAC_SHA256, shard) })
    }

    /// The number of the key in use.
    pub fn newest(&self) -> i64 {
        self.seal.first().map_or(0, |key| key.number)
    }

    /// The regId of this app on this device.
    pub fn issue(&self, device: DeviceId, app: &AppId, generation: u64) -> RegId {
        // Invariant: a key ring has a key.
        self.seal_with(&self.seal[0], device, app, generation)
    }

    fn seal_with(&self, key: &SealKey, device: DeviceId, app: &AppId, generation: u64) -> RegId {
        let shard = self.shard(device);
        let mut plain = [0; 32];
        plain[..16].copy_from_slice(device.as_bytes());
        plain[16..24].copy_from_slice(&app_tag(app));
        plain[24..].copy_from_slice(&generation.to_be_bytes());
        let sealed = key.seal(&[self.region.0, shard], &plain);
        // Invariant: 32 bytes seal to 48.
        RegId::new(self.region, shard, &sealed.try_into().expect("32 bytes and a tag"))
    }

    /// The virtual shard of a device inside the region.
    pub fn shard(&self, device: DeviceId) -> u8 {
        hmac::sign(&self.shard, device.as_bytes()).as_ref()[0]
    }

    /// The secret part of the channel's endpoint on this device: base64url of region, shard, and what is
    /// sealed.
    pub fn issue_endpoint(&self, device: DeviceId, channel: &Channel, generation: u64) -> String {
        let plain = [device.as_bytes().as_slice(), &generation.to_be_bytes(), &channel.to_bytes()];
        self.seal(Purpose::Endpoint, self.shard(device), &plain.concat())
    }

    /// What the secret part of an endpoint says, if this server issued it.
    pub fn open_endpoint(&self, text: &str) -> Option<Endpoint> {
        let (key, plain) = self.unseal(Purpose::Endpoint, text)?;
        let (device, rest) = plain.split_at_checked(16)?;
        let (generation, channel) = rest.split_at_checked(8)?;
        let (device, generation) =
            (DeviceId::from_slice(device).ok()?, u64::from_be_bytes(generation.try_into().ok()?));
        let channel = Channel::from_bytes(channel)?;
        let app = channel.app();
        Some(Endpoint {
            to: Opened { device, app_tag: app_tag(&app), generation },
            channel,
            // With the same key, as the regId was then.
            reg_id: self.seal_with(key, device, &app, generation),
        })
    }

    /// Base64url of region, shard, and the plain bytes as only this server can open them again.
    pub fn seal(&self, purpose: Purpose, shard: u8, plain: &[u8]) -> String {
        // Invariant: a key ring has a key.
        let sealed = self.seal[0].seal(&[self.region.0, shard, purpose as u8], plain);
        URL_SAFE_NO_PAD.encode([&[self.region.0, shard], sealed.as_slice()].concat())
    }

    /// What was sealed here for this purpose.
    pub fn open_sealed(&self, purpose: Purpose, text: &str) -> Option<Vec<u8>> {
        self.unseal(purpose, text).map(|(_, plain)| plain)
    }

    fn unseal(&self, purpose: Purpose, text: &str) -> Option<(&SealKey, Vec<u8>)> {
        if text.len() > SEALED_MAX || region_of(text)? != self.region {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (head, sealed) = bytes.split_at_checked(2)?;
        let header = [head[0], head[1], purpose as u8];
        self.seal.iter().find_map(|key| Some((key, key.open(&header, sealed)?)))
    }

    /// What the regId says, if this server issued it.
    pub fn open(&self, reg_id: &RegId) -> Option<Opened> {
        if reg_id.region() != self.region {
            return None;
        }
        let header = [self.region.0, reg_id.shard()];
        let plain: [u8; 32] = self.seal.iter().find_map(|key| key.open(&header, reg_id.sealed()))?.try_into().ok()?;
        let (device, rest) = plain.split_at(16);
        let (tag, generation) = rest.split_at(8);
        Some(Opened {
            device: DeviceId::from_slice(device).ok()?,
            app_tag: tag.try_into().ok()?,
            generation: u64::from_be_bytes(generation.try_into().ok()?),
        })
    }
}

/// 64 bits that stand for an app. The registration's row names the app in full.
fn app_tag(app: &AppId) -> [u8; 8] {
    let hash = digest::digest(&digest::SHA256, app.as_str().as_bytes());
    let mut tag = [0; 8];
    tag.copy_from_slice(&hash.as_ref()[..8]);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::channel::SenderHash;
    use crate::world;
    use std::collections::HashSet;

    fn ring(region: u8, numbers: &[u8]) -> KeyRing {
        let seal = numbers.iter().map(|number| SealKey::new((*number).into(), &[*number; 64]).unwrap()).collect();
        KeyRing::new(Region(region), seal, b"shard").unwrap()
    }

    fn app(text: &str) -> AppId {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_sealed_opens_again_and_only_here() {
        let (here, device) = (ring(3, &[1]), world::device_id());
        let reg_id = here.issue(device, &app("chat"), 7);
        let opened = here.open(&reg_id).unwrap();
        assert_eq!((opened.device, opened.generation), (device, 7));
        assert!(opened.is_for(&app("chat")) && !opened.is_for(&app("mail")));
        assert_eq!(ring(3, &[2]).open(&reg_id), None);
        assert_eq!(ring(0, &[1]).open(&reg_id), None);
    }

    #[test]
    fn every_bit_of_a_reg_id_is_proven() {
        let ring = ring(0, &[1]);
        let text = ring.issue(world::device_id(), &app("chat"), 1).to_string();
        let bytes = hex::decode(&text).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(ring.open(&RegId::from_slice(&forged).unwrap()), None, "bit {bit}");
        }
    }

    #[test]
    fn two_reg_ids_of_one_device_share_only_region_and_shard() {
        let (ring, device) = (ring(0, &[1]), world::device_id());
        let (one, two) = (ring.issue(device, &app("a"), 1).to_string(), ring.issue(device, &app("a"), 2).to_string());
        assert_eq!(one[..4], two[..4]);
        let pieces: HashSet<&str> = (4..92).map(|at| &one[at..at + 8]).collect();
        assert!((4..92).all(|at| !pieces.contains(&two[at..at + 8])));
    }

    #[test]
    fn rotating_the_key_leaves_old_reg_ids_good() {
        let device = world::device_id();
        let old = ring(0, &[1]).issue(device, &app("a"), 1);
        let rotated = ring(0, &[1, 2]);
        assert!(rotated.open(&old).is_some());
        assert_ne!(rotated.issue(device, &app("a"), 1), old);
        assert_eq!(rotated.newest(), 2);
    }

    #[test]
    fn an_endpoint_names_its_channel_and_is_no_reg_id() {
        let (here, device) = (ring(3, &[1]), world::device_id());
        for sender in [None, Some(SenderHash([9; 32]))] {
            let channel = Channel { id: [7; 16], sender };
            let text = here.issue_endpoint(device, &channel, 5);
            let opened = here.open_endpoint(&text).unwrap();
            assert_eq!((opened.channel, opened.to.device, opened.to.generation), (channel, device, 5));
            assert_eq!(opened.reg_id, here.issue(device, &channel.app(), 5));
            assert!(opened.to.is_for(&channel.app()));
            assert_eq!(region_of(&text), Some(Region(3)));
            // A new key leaves the registration's regId as the device knows it.
            assert_eq!(ring(3, &[1, 2]).open_endpoint(&text), Some(opened));
            for elsewhere in [ring(3, &[2]), ring(0, &[1])] {
                assert_eq!(elsewhere.open_endpoint(&text), None);
            }
            for purpose in [Purpose::Subscription, Purpose::Message, Purpose::Receipts] {
                assert_eq!(here.open_sealed(purpose, &text), None);
            }
        }
    }

    #[test]
    fn every_character_of_an_endpoint_is_proven() {
        let ring = ring(0, &[1]);
        let text = ring.issue_endpoint(world::device_id(), &Channel { id: [7; 16], sender: None }, 1);
        for at in 0..text.len() {
            for other in ['A', 'b', '_', '='] {
                let forged = format!("{}{other}{}", &text[..at], &text[at + 1..]);
                assert!(forged == text || ring.open_endpoint(&forged).is_none(), "{forged}");
            }
        }
        let reg_id = ring.issue(world::device_id(), &app("chat"), 1);
        for bad in
            ["", "A", &text[1..], &reg_id.to_string(), &URL_SAFE_NO_PAD.encode(reg_id.as_bytes()), &"A".repeat(300)]
        {
            assert_eq!(ring.open_endpoint(bad), None, "{bad}");
        }
    }
}

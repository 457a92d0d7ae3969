//! Issuing and opening regIds: pure cryptography, no store.
//!
//! The sealed part is AES-SIV (RFC 5297, deterministic) over device, app and generation, with
//! region and shard as associated data. A forged or foreign regId fails here and costs no read;
//! two regIds of one device have nothing in common but region and shard. Keys are never removed,
//! so that rotating them leaves issued regIds good.

use aes_siv::KeyInit;
use aes_siv::siv::Aes256Siv;
use ring::{digest, hmac};

use crate::proto::{AppId, DeviceId, RegId, Region};

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
        let shard = hmac::sign(&self.shard, device.as_bytes()).as_ref()[0];
        let mut plain = [0; 32];
        plain[..16].copy_from_slice(device.as_bytes());
        plain[16..24].copy_from_slice(&app_tag(app));
        plain[24..].copy_from_slice(&generation.to_be_bytes());
        // Invariants: a key ring has a key, one header is fewer than 126, and 32 bytes seal to 48.
        let mut cipher = Aes256Siv::new((&self.seal[0].key).into());
        let sealed = cipher.encrypt([[self.region.0, shard]], &plain).expect("one header is not too many");
        RegId::new(self.region, shard, &sealed.try_into().expect("32 bytes and a tag"))
    }

    /// What the regId says, if this server issued it.
    pub fn open(&self, reg_id: &RegId) -> Option<Opened> {
        if reg_id.region() != self.region {
            return None;
        }
        let header = [[self.region.0, reg_id.shard()]];
        let open = |key: &SealKey| Aes256Siv::new((&key.key).into()).decrypt(header, reg_id.sealed()).ok();
        let plain: [u8; 32] = self.seal.iter().find_map(open)?.try_into().ok()?;
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
}

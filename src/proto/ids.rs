//! The names of things: apps, devices, messages, registrations, regions, and points in time.
//!
//! Each is parsed once, where it enters, into a type that cannot hold a wrong value. None of them
//! may print a secret: [`Secret`] shows nothing, and a [`RegId`] shows only its region and shard.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Milliseconds since 1970-01-01 UTC, as stores and peers count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// This time moved by `minutes`, saturating at the ends of the scale.
    pub fn plus_minutes(self, minutes: u32) -> Self {
        Self(self.0.saturating_add(i64::from(minutes) * 60_000))
    }
}

/// Why a name was refused. The text is complete and fit for the person who sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not an app id.
    #[error("an app id has 1 to 128 of the characters A-Z a-z 0-9 . _ - : @")]
    App,
    /// Not a regId.
    #[error("a regId has 100 lower-case hexadecimal characters")]
    RegId,
    /// Not a region.
    #[error("a region has two lower-case hexadecimal digits, such as \"00\" or \"03\"")]
    Region,
    /// Not a secret.
    #[error("a secret has 64 hexadecimal characters")]
    Secret,
    /// Not a device or message id.
    #[error("an id has 32 hexadecimal characters")]
    Uuid,
}

macro_rules! serde_as_text {
    ($name:ty) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                out.collect_str(&self.to_text())
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A push app id: what the application server sends as `appID` and the app names on D-Bus.
///
/// 1 to 128 characters of `A-Z a-z 0-9 . _ - : @`. Tizen's own have 16.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppId(String);

impl AppId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn to_text(&self) -> &str {
        &self.0
    }
}

impl FromStr for AppId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:@".contains(&byte);
        if text.is_empty() || text.len() > 128 || !text.bytes().all(allowed) {
            return Err(IdError::App);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

serde_as_text!(AppId);

macro_rules! uuid_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// The id made of these 16 bytes.
            pub fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The same.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// Its 16 bytes, as stores keep them.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The id in these bytes, if there are 16.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| IdError::Uuid)
            }

            fn to_text(self) -> uuid::fmt::Simple {
                self.0.simple()
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if text.len() != 32 {
                    return Err(IdError::Uuid);
                }
                Uuid::try_parse(text).map(Self).map_err(|_| IdError::Uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.to_text().fmt(out)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, out)
            }
        }

        serde_as_text!($name);
    };
}

uuid_name! {
    /// A device, as it named itself when it enrolled: 128 random bits, not secret.
    DeviceId
}

uuid_name! {
    /// One notification to one registration. Sorts by the time at which it was accepted.
    MessageId
}

uuid_name! {
    /// A subscription of receipts: 128 random bits that only who was given them knows.
    ReceiptsId
}

/// A region of the service: the first byte of every regId it issues.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(pub u8);

impl Region {
    fn to_text(self) -> String {
        format!("{:02x}", self.0)
    }
}

impl FromStr for Region {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let mut byte = [0];
        hex::decode_to_slice(text, &mut byte).map_err(|_| IdError::Region)?;
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(IdError::Region);
        }
        Ok(Self(byte[0]))
    }
}

impl fmt::Display for Region {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.to_text())
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

serde_as_text!(Region);

/// A registration id: the capability to send to one app on one device.
///
/// 50 bytes, written as 100 lower-case hex characters: region, virtual shard, and 48 sealed bytes
/// that only the issuing server can open. It grants sending, never reading, and is not logged
/// whole: `Debug` shows region and shard.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RegId([u8; RegId::LEN]);

impl RegId {
    /// Bytes in a regId.
    pub const LEN: usize = 50;

    /// Puts the three parts together.
    pub fn new(region: Region, shard: u8, sealed: &[u8; 48]) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes[0] = region.0;
        bytes[1] = shard;
        bytes[2..].copy_from_slice(sealed);
        Self(bytes)
    }

    /// The regId in these bytes, if there are 50.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
        bytes.try_into().map(Self).map_err(|_| IdError::RegId)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The region that issued it and takes notifications for it.
    pub fn region(&self) -> Region {
        Region(self.0[0])
    }

    /// The virtual shard of its device inside the region.
    pub fn shard(&self) -> u8 {
        self.0[1]
    }

    /// The part that only the issuing server can open.
    pub fn sealed(&self) -> &[u8] {
        &self.0[2..]
    }

    fn to_text(self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for RegId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let mut bytes = [0; Self::LEN];
        let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if lower => Ok(Self(bytes)),
            Ok(()) | Err(_) => Err(IdError::RegId),
        }
    }
}

impl fmt::Display for RegId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.to_text())
    }
}

impl fmt::Debug for RegId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "RegId({}{:02x}..)", self.region(), self.shard())
    }
}

serde_as_text!(RegId);

/// 256 secret bits. Shown by nothing but [`Secret::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// The secret made of these bytes; they must come from a good random source.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes themselves, for hashing or storing.
    pub fn reveal(&self) -> &[u8; 32] {
        &self.0
    }

    fn to_text(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Secret {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| IdError::Secret)?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(..)")
    }
}

serde_as_text!(Secret);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_ids_are_limited_to_plain_characters() {
        for good in ["1234567890987654", "org.example.Chat", "a"] {
            assert_eq!(good.parse::<AppId>().unwrap().as_str(), good);
        }
        for bad in ["", "a b", "ä", "a/b", &"x".repeat(129), "a\nb"] {
            assert_eq!(bad.parse::<AppId>(), Err(IdError::App), "{bad:?}");
        }
    }

    #[test]
    fn reg_ids_are_a_hundred_lower_case_hex_characters() {
        let text = format!("03a7{}", "5c".repeat(48));
        let reg_id: RegId = text.parse().unwrap();
        assert_eq!((reg_id.region(), reg_id.shard()), (Region(3), 0xa7));
        assert_eq!(reg_id.to_string(), text);
        for bad in [text.to_uppercase(), text[2..].to_owned(), format!("{text}00"), "ab123456".into()] {
            assert_eq!(bad.parse::<RegId>(), Err(IdError::RegId));
        }
    }

    #[test]
    fn secrets_and_reg_ids_do_not_show_themselves() {
        let secret: Secret = "7f".repeat(32).parse().unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        let reg_id = RegId::new(Region(0), 1, &[0x7f; 48]);
        assert!(!format!("{reg_id:?}").contains("7f7f"));
    }
}

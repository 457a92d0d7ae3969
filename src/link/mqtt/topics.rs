//! The topics that frames travel on, below the root of a server. Pure.
//!
//! | topic | who writes | who reads |
//! |---|---|---|
//! | `DEVICE/hello/LINK` | the device, its greeting | one of the servers that share the work |
//! | `DEVICE/up/LINK/SERVER` | the device, all other frames | that server |
//! | `DEVICE/down/LINK` | the server | the device |
//! | `DEVICE/gone/LINK` | the broker, when the device is lost | all servers |
//! | `servers/SERVER` | the broker, when that server is lost | all devices |
//!
//! A link has topics of its own, so that what was said over an earlier one cannot arrive on it.

use std::fmt;
use std::str::FromStr;

use ring::hmac;

use crate::link::url::Root;
use crate::proto::DeviceId;
use crate::world;

/// The level below the root for what servers say to all devices.
const SERVERS: &str = "servers";

/// A name that is used once: of a link, or of a server from its start to its end. 16 hex digits where we
/// choose it; up to 32 letters and digits where a peer does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tag(String);

impl Tag {
    /// A new one.
    pub fn random() -> Self {
        Self(hex::encode(world::random_bytes::<8>()))
    }
}

impl FromStr for Tag {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let good = (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if good { Ok(Self(text.to_owned())) } else { Err(()) }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Which link of which device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinkName {
    /// The device.
    pub device: DeviceId,
    /// Its link.
    pub link: Tag,
}

/// What a device or its broker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromDevice {
    /// A greeting.
    Hello(LinkName),
    /// Another frame, for this server.
    Up(LinkName, Tag),
    /// The device is lost.
    Gone(LinkName),
}

/// The topics of one link, for its device.
#[derive(Clone, Debug)]
pub struct LinkTopics {
    root: Root,
    name: LinkName,
}

impl LinkTopics {
    /// Those of this link.
    pub fn new(root: Root, name: LinkName) -> Self {
        Self { root, name }
    }

    /// For the greeting.
    pub fn hello(&self) -> String {
        self.of("hello")
    }

    /// What the broker is to write when the device is lost.
    pub fn gone(&self) -> String {
        self.of("gone")
    }

    /// What the device reads.
    pub fn down(&self) -> String {
        self.of("down")
    }

    /// For all other frames to this server.
    pub fn up(&self, server: &Tag) -> String {
        format!("{}/{server}", self.of("up"))
    }

    /// The server that this topic leads to, if it is one of [`up`](Self::up).
    pub fn server_of(&self, up: &str) -> Option<Tag> {
        up.strip_prefix(&self.of("up"))?.strip_prefix('/')?.parse().ok()
    }

    fn of(&self, level: &str) -> String {
        format!("{}/{}/{level}/{}", self.root, self.name.device, self.name.link)
    }
}

/// What all devices read: the ends of servers.
pub fn ends_of_servers(root: &Root) -> String {
    format!("{root}/{SERVERS}/+")
}

/// What the broker is to write when this server is lost.
pub fn end_of_server(root: &Root, server: &Tag) -> String {
    format!("{root}/{SERVERS}/{server}")
}

/// Who shares the greetings: all servers with this password, and nobody else. A broker may let anybody into
/// a group whose name is known, and gives each greeting to one of the group.
pub fn group(password: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, password.as_bytes());
    hex::encode(&hmac::sign(&key, b"who shares the greetings").as_ref()[..16])
}

/// What this server reads. Greetings are shared by its group.
pub fn for_server(root: &Root, server: &Tag, group: &str) -> [String; 3] {
    [format!("$share/{group}/{root}/+/hello/+"), format!("{root}/+/up/+/{server}"), format!("{root}/+/gone/+")]
}

/// Which server's end this topic tells.
pub fn ended_server(root: &Root, topic: &str) -> Option<Tag> {
    below(root, topic)?.strip_prefix(SERVERS)?.strip_prefix('/')?.parse().ok()
}

/// What a topic that a server reads is for.
pub fn from_device(root: &Root, topic: &str) -> Option<FromDevice> {
    let mut levels = below(root, topic)?.split('/');
    let (device, kind, link) = (levels.next()?, levels.next()?, levels.next()?);
    let name = LinkName { device: device.parse().ok()?, link: link.parse().ok()? };
    let end = levels.next();
    match (kind, end, levels.next()) {
        ("hello", None, None) => Some(FromDevice::Hello(name)),
        ("gone", None, None) => Some(FromDevice::Gone(name)),
        ("up", Some(server), None) => Some(FromDevice::Up(name, server.parse().ok()?)),
        _ => None,
    }
}

/// Whether a device may write to this topic, or read what this filter matches.
pub fn may(root: &Root, device: DeviceId, topic: &str, access: Access) -> bool {
    let Some(rest) = below(root, topic) else { return false };
    let own = rest.strip_prefix(&device.to_string()).and_then(|rest| rest.strip_prefix('/'));
    let levels: Vec<&str> = own.unwrap_or_default().split('/').collect();
    match access {
        // A name that is published to has no wildcards, but who asks us may not have looked.
        Access::Write => {
            let plain = levels.iter().all(|level| level.parse::<Tag>().is_ok());
            plain && matches!(levels.as_slice(), ["hello" | "gone", _] | ["up", _, _])
        }
        Access::Read => matches!(levels.as_slice(), ["down", _]) || topic == ends_of_servers(root),
    }
}

/// Whether a topic, or a filter, is one that servers use.
pub fn of_servers(root: &Root, topic: &str) -> bool {
    let unshared = topic.strip_prefix("$share/").and_then(|rest| rest.split_once('/')).map_or(topic, |(_, rest)| rest);
    below(root, unshared).is_some()
}

/// What a device wants of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To publish.
    Write,
    /// To subscribe.
    Read,
}

fn below<'a>(root: &Root, topic: &'a str) -> Option<&'a str> {
    topic.strip_prefix(&root.to_string())?.strip_prefix('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> LinkName {
        LinkName { device: world::device_id(), link: Tag::random() }
    }

    #[test]
    fn a_server_reads_what_devices_write() {
        let (root, name, server) = (Root::default(), name(), Tag::random());
        let topics = LinkTopics::new(root.clone(), name.clone());
        let read = |topic: &str| from_device(&root, topic);
        assert_eq!(read(&topics.hello()), Some(FromDevice::Hello(name.clone())));
        assert_eq!(read(&topics.gone()), Some(FromDevice::Gone(name.clone())));
        assert_eq!(read(&topics.up(&server)), Some(FromDevice::Up(name.clone(), server.clone())));
        assert_eq!(topics.server_of(&topics.up(&server)), Some(server.clone()));
        assert_eq!(ended_server(&root, &end_of_server(&root, &server)), Some(server.clone()));
        let hello = topics.hello();
        assert!(for_server(&root, &server, &group("x")).iter().all(|filter| of_servers(&root, filter)));
        assert!(group("x") != group("y") && group("x").len() == 32);
        assert!(!of_servers(&root, "#") && !of_servers(&root, "$share/x/#"));
        for strange in
            [topics.down(), end_of_server(&root, &server), format!("x{hello}"), format!("{hello}/x"), String::new()]
        {
            assert_eq!(read(&strange), None, "{strange}");
        }
        let other = LinkTopics::new(root, LinkName { link: Tag::random(), ..name });
        assert_eq!(topics.server_of(&other.up(&server)), None, "an earlier link's");
    }

    #[test]
    fn a_device_may_write_and_read_what_is_its_own() {
        let (root, name, server) = (Root::default(), name(), Tag::random());
        let topics = LinkTopics::new(root.clone(), name.clone());
        let may = |topic: &str, access| may(&root, name.device, topic, access);
        for topic in [topics.hello(), topics.gone(), topics.up(&server)] {
            assert!(may(&topic, Access::Write), "{topic}");
            assert!(!may(&topic, Access::Read), "{topic}");
        }
        for filter in [topics.down(), format!("{root}/{}/down/+", name.device), ends_of_servers(&root)] {
            assert!(may(&filter, Access::Read), "{filter}");
            assert!(!may(&filter, Access::Write), "{filter}");
        }
        let other = LinkTopics::new(root.clone(), LinkName { device: world::device_id(), ..name.clone() });
        for strange in [
            other.hello(),
            other.down(),
            other.up(&server),
            format!("{root}/#"),
            "#".into(),
            format!("{root}/+/down/+"),
        ] {
            assert!(!may(&strange, Access::Read) && !may(&strange, Access::Write), "{strange}");
        }
        assert!(!may(&end_of_server(&root, &server), Access::Write));
        assert!(!may(&format!("{root}/{}/hello/+", name.device), Access::Write));
    }

    #[test]
    fn names_are_plain() {
        for bad in ["", "+", "a/b", "#", &"x".repeat(33)] {
            assert_eq!(bad.parse::<Tag>(), Err(()), "{bad}");
        }
    }
}

//! Frames over MQTT 5, through a broker, from either end: one frame is one publication.
//!
//! All frames have QoS 1 but pings and pongs, which are repeated by who sends them. No message depends on
//! the broker: what a device has not acknowledged in a frame of its own, the server's store sends again.
//!
//! * [`topics`]: where frames are published.
//! * [`client`]: a connection to a broker, which a device has to itself and a server for all its devices.
//! * [`Socket`]: a link over such a connection; [`links`]: a server's, over the one that they share.

pub mod client;
pub mod links;
pub mod topics;

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;

use super::dial::{Caller, Stream};
use super::url::{Gateway, Root};
use super::ws::WRITE_BUFFER_MAX;
use super::{Link, LinkError, Traffic, bytes};
use crate::proto::UnixMillis;
use crate::proto::frame::{Bye, Frame, Reason, TO_DEVICE_MAX, ToServer, WINDOW};

use crate::world;

use client::{Arrived, Client, Event, Inbox, Login, Outgoing, Terms, Will};
use links::Entry;
use topics::{LinkName, LinkTopics, Tag};

/// Frames that wait for their reader: a window, and what goes with it.
pub const INBOX: usize = 2 * WINDOW;
/// How long a greeting is worth being read.
pub const GREETING_MS: i64 = 15_000;

/// A link over MQTT.
pub struct Socket {
    outbox: mpsc::Sender<Outgoing>,
    inbox: Inbox,
    waiting: VecDeque<Outgoing>,
    /// Bytes that wait.
    weight: usize,
    traffic: Traffic,
    end: End,
}

/// Which end of the link this is.
enum End {
    Device(Box<DeviceEnd>),
    Server {
        /// Where frames go.
        down: String,
        /// Where the device is to answer, until it has been told.
        answer_to: Option<String>,
        /// Its place among the links of the connection, which it leaves at its end.
        _entry: Entry,
    },
}

struct DeviceEnd {
    client: Client,
    root: Root,
    topics: LinkTopics,
    /// Who answers, and where frames for it go: known with its first frame.
    server: Option<(Tag, String)>,
}

impl Socket {
    /// Connects a device to a broker over an open stream.
    pub async fn connect(
        stream: Box<dyn Stream>,
        gateway: &Gateway,
        root: &Root,
        caller: &Caller,
    ) -> Result<Self, LinkError> {
        let named = |error: LinkError| match error {
            LinkError::Broken(why) => LinkError::Broken(format!("{gateway}: {why}")),
            LinkError::NotAGateway(why) => LinkError::NotAGateway(format!("{gateway}: {why}")),
            error @ (LinkError::Closed | LinkError::Frame(_) | LinkError::Unreachable(_)) => error,
        };
        let topics = LinkTopics::new(root.clone(), LinkName { device: caller.device, link: Tag::random() });
        let terms = Terms {
            login: Login {
                id: caller.device.to_string(),
                user: caller.device.to_string(),
                password: hex::encode(caller.secret.reveal()),
            },
            keep_alive: caller.longest_silence,
            will: Will { topic: topics.gone(), text: ToServer::Bye(Bye::because(Reason::Silent)).encode() },
            frame_max: TO_DEVICE_MAX,
            receive_max: u16::try_from(INBOX).unwrap_or(u16::MAX),
            needs_reader: true,
        };
        let (client, mut inbox) = Client::connect(stream, terms, INBOX).await.map_err(named)?;
        client.subscribe([topics.down(), topics::ends_of_servers(root)]).await?;
        // What others say before that is for other links.
        while let Event::Arrived(_) = inbox.recv().await.unwrap_or(Err(LinkError::Closed)).map_err(named)? {}
        let outbox = client.outbox();
        let end = DeviceEnd { client, root: root.clone(), topics, server: None };
        Ok(Self::new(outbox, inbox, End::Device(Box::new(end))))
    }

    /// The server's end of the link with these topics, over a connection that it shares with others.
    fn accepted(outbox: mpsc::Sender<Outgoing>, inbox: Inbox, topics: &LinkTopics, server: &Tag, entry: Entry) -> Self {
        let end = End::Server { down: topics.down(), answer_to: Some(topics.up(server)), _entry: entry };
        Self::new(outbox, inbox, end)
    }

    fn new(outbox: mpsc::Sender<Outgoing>, inbox: Inbox, end: End) -> Self {
        Self { outbox, inbox, waiting: VecDeque::new(), weight: 0, traffic: Traffic::default(), end }
    }

    /// The longest silence that the broker allows, if it says.
    pub fn longest_silence(&self) -> Option<Duration> {
        match &self.end {
            End::Device(end) => end.client.longest_silence,
            End::Server { .. } => None,
        }
    }
}

impl Link for Socket {
    fn queue(&mut self, frame: &impl Frame) -> Result<(), LinkError> {
        let (topic, answer_to) = match &mut self.end {
            End::Server { down, answer_to, .. } => (down.clone(), answer_to.take()),
            End::Device(end) => match &end.server {
                Some((_, up)) => (up.clone(), None),
                None => (end.topics.hello(), None),
            },
        };
        // A greeting that nobody has read in time must not replace what has come of a later one.
        let greets = matches!(&self.end, End::Device(end) if end.server.is_none());
        let patience = greets.then(|| UnixMillis(world::now().0 + GREETING_MS));
        let text = frame.encode();
        self.weight += text.len();
        if self.weight > WRITE_BUFFER_MAX {
            return Err(LinkError::Broken("too much waits for the broker".into()));
        }
        self.traffic.sent += bytes(text.len());
        let (pulse, expires) = (frame.is_pulse(), frame.expires().or(patience));
        self.waiting.push_back(Outgoing { topic, answer_to, text, pulse, expires });
        Ok(())
    }

    async fn next<F: Frame>(&mut self) -> Result<F, LinkError> {
        loop {
            tokio::select! {
                biased;
                // Neither arm loses anything when the other one is taken.
                room = self.outbox.reserve(), if !self.waiting.is_empty() => {
                    let room = room.map_err(|_| LinkError::Closed)?;
                    if let Some(next) = self.waiting.pop_front() {
                        self.weight -= next.text.len();
                        room.send(next);
                    }
                }
                event = self.inbox.recv() => {
                    let Event::Arrived(arrived) = event.unwrap_or(Err(LinkError::Closed))? else { continue };
                    let Some(payload) = self.end.take(arrived)? else { continue };
                    let text = String::from_utf8(payload).map_err(|_| LinkError::NotAGateway("a frame that is no text".into()))?;
                    self.traffic.received += bytes(text.len());
                    return Ok(F::decode(&text)?);
                }
            }
        }
    }

    async fn close(self) -> Result<(), LinkError> {
        let Self { outbox, mut inbox, waiting, end, .. } = self;
        for next in waiting {
            outbox.send(next).await.map_err(|_| LinkError::Closed)?;
        }
        drop(outbox);
        if let End::Device(end) = end {
            // What still comes is let go, as the goodbye is behind it.
            tokio::join!(end.client.close(), async { while inbox.recv().await.is_some() {} });
        }
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }
}

impl End {
    /// The frame in it, if it is for this link.
    fn take(&mut self, arrived: Arrived) -> Result<Option<Vec<u8>>, LinkError> {
        match self {
            Self::Server { .. } => Ok(Some(arrived.payload)),
            Self::Device(end) => end.take(arrived),
        }
    }
}

impl DeviceEnd {
    fn take(&mut self, arrived: Arrived) -> Result<Option<Vec<u8>>, LinkError> {
        if let Some(ended) = topics::ended_server(&self.root, &arrived.topic) {
            let ours = self.server.as_ref().is_some_and(|(server, _)| *server == ended);
            return Ok(ours.then_some(arrived.payload));
        }
        if let Some(up) = arrived.answer_to {
            let server = self.topics.server_of(&up);
            let server = server.ok_or_else(|| LinkError::NotAGateway("an answer from nowhere".into()))?;
            self.server = Some((server, up));
        }
        Ok(Some(arrived.payload))
    }
}

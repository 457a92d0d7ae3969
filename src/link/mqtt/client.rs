//! A connection to a broker: the library's event loop in a task of its own, as its `poll` must not be
//! cancelled, and a task that hands it what is to be published. It tries once: whoever wants it to come back
//! connects anew.
//!
//! The broker keeps nothing of a connection that has ended: what waits is in the server's store, where it can
//! be replaced, taken back and looked at.

use std::sync::Mutex;
use std::time::Duration;

use rumqttc::mqttbytes::v5::{
    ConnAck, LastWill, LastWillProperties, Packet, PubAckReason, Publish, PublishProperties, SubscribeReasonCode,
};
use rumqttc::{
    AsyncClient, Broker, ConnectionError, Event as LibraryEvent, EventLoop, MqttOptions, PublishOptions, QoS,
    RetainForwardRule, SubscribeFilter,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::daemon::lock;
use crate::link::LinkError;
use crate::link::dial::Stream;
use crate::proto::UnixMillis;
use crate::tls;
use crate::world;

/// Publications that may wait for the broker, between all who share a connection.
const OUTBOX: usize = 256;
/// Publications that are sent and not acknowledged by the broker, if it allows as many.
const IN_FLIGHT: u16 = 1024;
/// How long the broker may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// Bytes of a packet beside its frame: topics and properties.
const AROUND: usize = 2048;

/// Who connects.
pub struct Login {
    /// The client id.
    pub id: String,
    /// The user name.
    pub user: String,
    /// The password.
    pub password: String,
}

/// What the broker is to publish when it loses the connection without a goodbye.
pub struct Will {
    /// Where.
    pub topic: String,
    /// What.
    pub text: String,
}

/// How to connect.
pub struct Terms {
    /// Who.
    pub login: Login,
    /// How long the connection may be silent.
    pub keep_alive: Duration,
    /// What becomes known when it breaks.
    pub will: Will,
    /// Bytes of the longest frame that comes in.
    pub frame_max: usize,
    /// Publications that the broker may send without an acknowledgement.
    pub receive_max: u16,
    /// Whether what nobody reads ends the connection: a device has nobody else to talk to.
    pub needs_reader: bool,
}

/// Something to publish.
#[derive(Debug)]
pub struct Outgoing {
    /// Where.
    pub topic: String,
    /// Where answers are to go.
    pub answer_to: Option<String>,
    /// The frame.
    pub text: String,
    /// Whether it may be lost: it is repeated anyway.
    pub pulse: bool,
    /// When it is worth nothing any more.
    pub expires: Option<UnixMillis>,
}

/// What comes in.
#[derive(Debug)]
pub enum Event {
    /// A subscription is granted.
    Granted,
    /// A publication.
    Arrived(Arrived),
}

/// A publication that has come in.
#[derive(Debug)]
pub struct Arrived {
    /// Where.
    pub topic: String,
    /// Where answers are to go.
    pub answer_to: Option<String>,
    /// The frame, if it is one.
    pub payload: Vec<u8>,
}

/// What comes in, or why nothing does any more.
pub type Inbox = mpsc::Receiver<Result<Event, LinkError>>;

/// A connection to a broker.
pub struct Client {
    client: AsyncClient,
    outbox: mpsc::Sender<Outgoing>,
    forward: JoinHandle<()>,
    pump: JoinHandle<()>,
    /// The longest silence that the broker allows, if it says.
    pub longest_silence: Option<Duration>,
}

impl Client {
    /// Connects over an open stream. What comes in waits in the inbox, up to `room`; while it is full, nothing
    /// more is read.
    pub async fn connect(stream: Box<dyn Stream>, terms: Terms, room: usize) -> Result<(Self, Inbox), LinkError> {
        let needs_reader = terms.needs_reader;
        let options = options(stream, terms);
        let (client, mut events) =
            AsyncClient::builder(options).capacity(OUTBOX).try_build().map_err(|error| broken(&error))?;
        let greeted = tokio::time::timeout(ANSWER, greeting(&mut events)).await;
        let connack = greeted.map_err(|_| LinkError::Broken("the broker does not answer".into()))??;
        let keep_alive = connack.properties.and_then(|properties| properties.server_keep_alive);
        let (inbound, inbox) = mpsc::channel(room);
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        let this = Self {
            forward: tokio::spawn(forward(client.clone(), outgoing)),
            pump: tokio::spawn(pump(events, inbound, needs_reader)),
            client,
            outbox,
            longest_silence: keep_alive
                .filter(|seconds| *seconds > 0)
                .map(|seconds| Duration::from_secs(seconds.into())),
        };
        Ok((this, inbox))
    }

    /// Asks for what is published there; [`Event::Granted`] or an error follows.
    pub async fn subscribe(&self, filters: impl IntoIterator<Item = String>) -> Result<(), LinkError> {
        // What a broker has kept is of nobody who is there.
        let filter = |path| SubscribeFilter {
            retain_forward_rule: RetainForwardRule::Never,
            ..SubscribeFilter::new(path, QoS::AtLeastOnce)
        };
        let filters = filters.into_iter().map(filter);
        self.client.subscribe_many(filters.collect::<Vec<_>>()).await.map_err(|error| broken(&error))
    }

    /// Where to put what is to be published.
    pub fn outbox(&self) -> mpsc::Sender<Outgoing> {
        self.outbox.clone()
    }

    /// Publishes what is in the outbox and says goodbye, so that the broker forgets the will. Every other
    /// holder of the outbox must have let go of it.
    pub async fn close(self) {
        let Self { client, outbox, forward, pump, .. } = self;
        drop(outbox);
        // A task that has ended early has nothing left to do; the other one knows why.
        let _ = forward.await;
        if client.disconnect().await.is_ok() {
            let _ = pump.await;
        }
    }
}

fn options(stream: Box<dyn Stream>, terms: Terms) -> MqttOptions {
    let Terms { login, keep_alive, will, frame_max, receive_max, needs_reader: _ } = terms;
    // The stream is open: the name of the broker is of no use to the library.
    let mut options = MqttOptions::new(login.id, Broker::tcp("broker", 0));
    let once = Mutex::new(Some(stream));
    options.set_socket_connector(move |_, _| {
        let stream = lock(&once).take();
        async move { stream.ok_or_else(|| std::io::Error::other("the connection has ended")) }
    });
    options.set_credentials(login.user, login.password);
    options.set_keep_alive(u16::try_from(keep_alive.as_secs()).unwrap_or(u16::MAX));
    options.set_clean_start(true);
    options.set_session_expiry_interval(Some(0));
    options.set_receive_maximum(Some(receive_max));
    options.set_max_packet_size(u32::try_from(frame_max + AROUND).ok());
    options.set_outgoing_inflight_upper_limit(IN_FLIGHT);
    options.set_connect_timeout(ANSWER);
    let properties = LastWillProperties {
        delay_interval: None,
        payload_format_indicator: Some(1),
        message_expiry_interval: None,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    };
    options.set_last_will(LastWill::new(will.topic, will.text, QoS::AtLeastOnce, false, Some(properties)));
    options
}

/// Until the broker has let us in.
async fn greeting(events: &mut EventLoop) -> Result<ConnAck, LinkError> {
    loop {
        if let LibraryEvent::Incoming(Packet::ConnAck(connack)) = events.poll().await.map_err(explain)? {
            return Ok(connack);
        }
    }
}

/// Publishes what is in the outbox, in order. Ends when nobody can put anything there, or the connection
/// has ended.
async fn forward(client: AsyncClient, mut outgoing: mpsc::Receiver<Outgoing>) {
    while let Some(next) = outgoing.recv().await {
        let Some(options) = how_to_publish(&next) else { continue };
        if client.publish(next.topic, next.text, options).await.is_err() {
            return;
        }
    }
}

/// Nothing, if it has expired.
fn how_to_publish(outgoing: &Outgoing) -> Option<PublishOptions> {
    let rest = outgoing.expires.map(|expires| expires.0.saturating_sub(world::now().0));
    if rest.is_some_and(|rest| rest <= 0) {
        return None;
    }
    // Whole seconds are what MQTT has; the device looks at the milliseconds itself.
    let expiry = rest.map(|rest| u32::try_from(rest.unsigned_abs().div_ceil(1000)).unwrap_or(u32::MAX));
    let properties = PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: expiry,
        response_topic: outgoing.answer_to.clone(),
        ..PublishProperties::default()
    };
    let qos = if outgoing.pulse { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    Some(PublishOptions::new(qos).properties(properties))
}

/// Has the library's event loop, until the connection or its owner ends.
async fn pump(mut events: EventLoop, inbound: mpsc::Sender<Result<Event, LinkError>>, needs_reader: bool) {
    loop {
        let polled = tokio::select! {
            polled = events.poll() => polled,
            // Nobody reads any more: the loop is given up, and the connection with it.
            () = inbound.closed() => return,
        };
        let event = match polled {
            Ok(LibraryEvent::Incoming(packet)) => take(packet, needs_reader),
            Ok(LibraryEvent::Outgoing(_) | LibraryEvent::Auth(_)) => None,
            Err(error) => Some(Err(explain(error))),
        };
        let Some(event) = event else { continue };
        let last = event.is_err();
        if inbound.send(event).await.is_err() || last {
            return;
        }
    }
}

// The enum is another crate's: most of its variants are the library's own business.
#[allow(clippy::wildcard_enum_match_arm)]
fn take(packet: Packet, needs_reader: bool) -> Option<Result<Event, LinkError>> {
    match packet {
        Packet::Publish(publish) => Some(Ok(Event::Arrived(arrived(publish)))),
        Packet::SubAck(ack) => {
            let granted = |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
            Some(match ack.return_codes.iter().find(|code| !granted(code)) {
                None => Ok(Event::Granted),
                Some(code) => Err(LinkError::NotAGateway(format!("the broker refuses a subscription: {code:?}"))),
            })
        }
        Packet::PubAck(ack) if ack.reason == PubAckReason::NotAuthorized => {
            Some(Err(LinkError::NotAGateway("the broker refuses a publication: not authorized".into())))
        }
        Packet::PubAck(ack) if ack.reason == PubAckReason::NoMatchingSubscribers && needs_reader => {
            Some(Err(LinkError::Broken("no server takes what the device says to the broker".into())))
        }
        Packet::Disconnect(bye) => {
            Some(Err(LinkError::Broken(format!("the broker ended the connection: {:?}", bye.reason_code))))
        }
        _ => None,
    }
}

fn arrived(publish: Publish) -> Arrived {
    Arrived {
        topic: String::from_utf8_lossy(&publish.topic).into_owned(),
        answer_to: publish.properties.and_then(|properties| properties.response_topic),
        payload: publish.payload.into(),
    }
}

// The enum is another crate's: what it does not say in our words, it says in its own.
#[allow(clippy::wildcard_enum_match_arm)]
fn explain(error: ConnectionError) -> LinkError {
    match error {
        ConnectionError::RequestsDone => LinkError::Closed,
        ConnectionError::Io(error) => LinkError::Broken(tls::explain(&error)),
        ConnectionError::ConnectionRefused(code) => {
            LinkError::NotAGateway(format!("the broker does not let us in: {code:?}"))
        }
        other => broken(&other),
    }
}

fn broken(error: &dyn std::error::Error) -> LinkError {
    LinkError::Broken(error.to_string())
}

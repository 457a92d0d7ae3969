//! What the server counts, and how that is written for a scraper (OpenMetrics 1.0, text).
//!
//! Counting is an atomic addition: nothing here takes a lock or makes memory on the way of a
//! message, and a connection holds nothing of it. Gauges are read when somebody asks.
//!
//! Every label has few values that are fixed in the code. Ids of apps, devices and registrations
//! are never labels: there may be millions of them, each would be a time series for ever, and a
//! regId is a capability.

pub mod histogram;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::proto::frame::{Fate, NotKept};
use crate::proto::message::Door;
use crate::server::Server;
use crate::server::doors::tizen;

use histogram::{Histogram, PATIENT, QUICK};

/// The media type of what [`scrape`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The statuses that the API answers; any other is counted as `other`.
const STATUSES: [u16; 14] = [200, 201, 204, 400, 401, 404, 405, 409, 411, 413, 415, 429, 500, 503];
/// The route of requests that no path is for.
const OTHER: &str = "other";

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds so many.
    pub fn add(&self, many: usize) {
        self.0.fetch_add(many as u64, Ordering::Relaxed);
    }

    /// How many there are.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a handshake of a device ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// A session of a device that has registrations here.
    Known,
    /// A session of a device that is new here.
    Enrolled,
    /// Sent to another gateway.
    Redirected,
    /// The device is known by another secret.
    BadSecret,
    /// It may not enrol.
    EnrolmentRefused,
    /// What it said made no sense.
    Protocol,
    /// Its version is too old.
    Version,
    /// The server could not serve it.
    Busy,
    /// It did not greet in time.
    Timeout,
    /// The connection or its encryption broke.
    Broken,
}

impl Handshake {
    const ALL: [(Self, &'static str); 10] = [
        (Self::Known, "known"),
        (Self::Enrolled, "enrolled"),
        (Self::Redirected, "redirected"),
        (Self::BadSecret, "bad-secret"),
        (Self::EnrolmentRefused, "enrolment-refused"),
        (Self::Protocol, "protocol"),
        (Self::Version, "version"),
        (Self::Busy, "busy"),
        (Self::Timeout, "timeout"),
        (Self::Broken, "broken"),
    ];
}

/// The codes that a door answered to the recipients of one request. It goes with the response, as
/// an extension, to be counted.
#[derive(Clone, Debug)]
pub struct Verdicts {
    /// The door.
    pub door: Door,
    /// A code for each recipient, or one for a request that was refused.
    pub codes: Arc<[u16]>,
}

/// The requests of one route.
#[derive(Debug)]
struct Route {
    path: String,
    statuses: [Counter; STATUSES.len() + 1],
    took: Histogram,
}

/// What is counted outside of the store.
#[derive(Debug)]
pub struct Metrics {
    started: SystemTime,
    /// One for each code of the guide's table.
    tizen: [Counter; tizen::TABLE.len()],
    routes: Box<[Route]>,
    handshakes: [Counter; Handshake::ALL.len()],
    /// Whether the broker that carries frames is connected.
    pub broker_connected: AtomicBool,
    outcomes: [Counter; Fate::ALL.len()],
    sent: Histogram,
    acknowledged: Histogram,
    delivered: Histogram,
    taken: Histogram,
}

impl Metrics {
    /// Nothing counted yet; requests will be counted by these paths.
    pub fn new(paths: impl IntoIterator<Item = String>) -> Self {
        let route = |path| Route { path, statuses: Default::default(), took: Histogram::new(QUICK) };
        Self {
            started: SystemTime::now(),
            tizen: [const { Counter(AtomicU64::new(0)) }; tizen::TABLE.len()],
            routes: paths.into_iter().chain([OTHER.to_owned()]).map(route).collect(),
            handshakes: Default::default(),
            broker_connected: AtomicBool::new(false),
            outcomes: Default::default(),
            sent: Histogram::new(PATIENT),
            acknowledged: Histogram::new(QUICK),
            delivered: Histogram::new(PATIENT),
            taken: Histogram::new(PATIENT),
        }
    }

    /// A request was answered. `path` is that of its route, as the document has it.
    pub fn request(&self, path: Option<&str>, status: u16, took: Duration) {
        let known = path.and_then(|path| self.routes.iter().find(|route| route.path == path));
        // Invariant: the last one is always there.
        let Some(route) = known.or(self.routes.last()) else { return };
        let place = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len());
        route.statuses[place].add(1);
        route.took.observe(took);
    }

    /// A door gave verdicts.
    pub fn verdicts(&self, verdicts: &Verdicts) {
        match verdicts.door {
            Door::Tizen => {
                for code in verdicts.codes.iter() {
                    if let Some(place) = tizen::TABLE.iter().position(|row| row.number == *code) {
                        self.tizen[place].add(1);
                    }
                }
            }
            // The first two answer each message by the status of a request, which is counted; the others are not
            // open yet.
            Door::WebPush | Door::Matrix | Door::CodenameOne | Door::Iizi | Door::Gcm => {}
        }
    }

    /// A device's handshake ended.
    pub fn handshake(&self, how: Handshake) {
        if let Some(place) = Handshake::ALL.iter().position(|(known, _)| *known == how) {
            self.handshakes[place].add(1);
        }
    }

    /// A message was sent to its device, so long after it was accepted.
    pub fn sent(&self, since_accepted: Duration) {
        self.sent.observe(since_accepted);
    }

    /// Devices acknowledged messages, each so long after it was sent.
    pub fn acknowledged(&self, since_sent: &[Duration]) {
        since_sent.iter().for_each(|wait| self.acknowledged.observe(*wait));
    }

    /// A device told what became of a message, so long after that was accepted, and acknowledged if
    /// that is known.
    pub fn outcome(&self, fate: Fate, since_accepted: Duration, since_acknowledged: Option<Duration>) {
        if fate == Fate::Delivered {
            self.delivered.observe(since_accepted);
            since_acknowledged.into_iter().for_each(|wait| self.taken.observe(wait));
        }
        self.outcomes[fate as usize].add(1);
    }

    /// A device did not keep a message.
    pub fn not_kept(&self, why: NotKept) {
        self.outcomes[why.fate() as usize].add(1);
    }
}

/// What is looked up for one scrape.
struct Scrape {
    server: Arc<Server>,
    connected: usize,
    /// What the store cannot tell now is left out.
    waiting: Option<i64>,
    bytes: Option<i64>,
}

/// Nothing of the server, which has secrets.
impl fmt::Debug for Scrape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Scrape").finish_non_exhaustive()
    }
}

/// Everything that is counted, as text.
pub async fn scrape(server: &Arc<Server>) -> Result<String, fmt::Error> {
    let scrape = Scrape {
        server: Arc::clone(server),
        connected: server.registry.count(),
        waiting: server.store.waiting().await.ok(),
        bytes: server.store.bytes().await.ok(),
    };
    let mut registry = Registry::with_prefix("bellwire");
    registry.register_collector(Box::new(scrape));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (metrics, vitals) = (&self.server.metrics, self.server.store.vitals());
        let mut out = Writer { encoder };
        out.info("build", "Version and region of the server", &self.server)?;
        out.gauge("start_time", "When the server started, since 1970", Some(Unit::Seconds), started(metrics))?;
        out.gauge("devices_connected", "Devices with a session", None, count(self.connected))?;
        out.gauge("receipt_waiters", "Who waits for receipts of Web Push", None, count(self.server.waiters.count()))?;
        if self.server.config.mqtt.broker.is_some() {
            let connected = metrics.broker_connected.load(Ordering::Relaxed);
            out.gauge("broker_connected", "Whether the MQTT broker is connected", None, i64::from(connected))?;
        }
        if let Some(waiting) = self.waiting {
            out.gauge("messages_waiting", "Messages that wait in the store", None, waiting)?;
        }
        if let Some(bytes) = self.bytes {
            out.gauge("store", "Size of the database", Some(Unit::Bytes), bytes)?;
        }
        let codes = tizen::TABLE.iter().zip(&metrics.tizen).filter(|(_, count)| count.get() > 0);
        let codes = codes.map(|(row, count)| ([("door", "tizen".to_owned()), ("code", row.number.to_string())], count));
        out.counters("verdicts", "Codes answered to recipients and refused requests, by door", codes)?;
        out.counter("messages_acknowledged", "Messages that a device has stored", &vitals.acknowledged)?;
        out.counter("messages_expired", "Messages that expired before their device had them", &vitals.expired)?;
        out.counter("messages_replaced", "Messages whose place a later one took", &vitals.replaced)?;
        out.counter("messages_dropped", "Messages that had to go, as too many waited", &vitals.dropped)?;
        let fates =
            Fate::ALL.iter().zip(&metrics.outcomes).map(|(fate, count)| ([("fate", fate.name().to_owned())], count));
        out.counters("outcomes", "What devices told of the end of messages", fates)?;
        out.histogram("message_stored", "From a message to its fsync", &vitals.stored)?;
        out.histogram("message_sent", "From acceptance to each sending to a device", &metrics.sent)?;
        out.histogram("message_acknowledged", "From sending to the device's fsync, as told", &metrics.acknowledged)?;
        out.histogram("message_taken", "From the device's word to the news that the app has it", &metrics.taken)?;
        out.histogram("message_delivered", "From acceptance to the news that the app has it", &metrics.delivered)?;
        out.histogram("store_commit", "Commits of the store, with their fsync", &vitals.commits)?;
        out.counter("store_failed_commits", "Commits of which nothing stands", &vitals.failed_commits)?;
        out.counter("store_writes", "Writes that commits made durable", &vitals.writes)?;
        let ends = Handshake::ALL.iter().zip(&metrics.handshakes);
        let ends = ends.map(|((_, name), count)| ([("result", (*name).to_owned())], count));
        out.counters("handshakes", "How handshakes of devices ended", ends)?;
        self.requests(&mut out)
    }
}

impl Scrape {
    /// Routes that were asked for; the others would be series of nothing.
    fn requests(&self, out: &mut Writer<'_>) -> fmt::Result {
        let routes = &self.server.metrics.routes;
        let labels = |route: &Route, status: String| [("route", route.path.clone()), ("status", status)];
        let names = STATUSES.iter().map(u16::to_string).chain([OTHER.to_owned()]);
        let names: Vec<String> = names.collect();
        let counts = routes.iter().flat_map(|route| {
            let used = names.iter().zip(&route.statuses).filter(|(_, count)| count.get() > 0);
            used.map(move |(name, count)| (labels(route, name.clone()), count))
        });
        out.counters("http_requests", "Requests answered, by path and status", counts)?;
        let used = routes.iter().filter(|route| route.statuses.iter().any(|count| count.get() > 0));
        let took = used.map(|route| ([("route", route.path.clone())], &route.took));
        out.histograms("http_request", "From a request's headers to its answer", took)
    }
}

/// Writes metrics one after the other.
struct Writer<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Writer<'_> {
    fn describe(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        kind: MetricType,
        write: impl FnOnce(MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        write(self.encoder.encode_descriptor(name, help, unit, kind)?)
    }

    fn info(&mut self, name: &str, help: &str, server: &Server) -> fmt::Result {
        let labels = [("version", env!("CARGO_PKG_VERSION").to_owned()), ("region", server.config.region.to_string())];
        self.describe(name, help, None, MetricType::Info, |mut metric| metric.encode_info(&labels))
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<Unit>, value: i64) -> fmt::Result {
        self.describe(name, help, unit.as_ref(), MetricType::Gauge, |mut metric| metric.encode_gauge(&value))
    }

    fn counter(&mut self, name: &str, help: &str, value: &Counter) -> fmt::Result {
        self.describe(name, help, None, MetricType::Counter, |metric| encode_counter(metric, value))
    }

    fn counters<'c, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        all: impl Iterator<Item = ([(&'static str, String); N], &'c Counter)>,
    ) -> fmt::Result {
        self.describe(name, help, None, MetricType::Counter, |mut metric| {
            all.into_iter().try_for_each(|(labels, value)| encode_counter(metric.encode_family(&labels)?, value))
        })
    }

    fn histogram(&mut self, name: &str, help: &str, value: &Histogram) -> fmt::Result {
        self.describe(name, help, Some(&Unit::Seconds), MetricType::Histogram, |metric| value.encode(metric))
    }

    fn histograms<'h, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        all: impl Iterator<Item = ([(&'static str, String); N], &'h Histogram)>,
    ) -> fmt::Result {
        self.describe(name, help, Some(&Unit::Seconds), MetricType::Histogram, |mut metric| {
            all.into_iter().try_for_each(|(labels, value)| value.encode(metric.encode_family(&labels)?))
        })
    }
}

fn encode_counter(mut metric: MetricEncoder<'_>, value: &Counter) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, _, u64>(&value.get(), None)
}

fn started(metrics: &Metrics) -> i64 {
    let since = metrics.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn count(many: usize) -> i64 {
    i64::try_from(many).unwrap_or(i64::MAX)
}

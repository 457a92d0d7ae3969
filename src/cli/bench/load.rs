//! Load end to end: senders post over HTTP, devices put on disk and acknowledge.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::body::Bytes;
use serde_json::{Value, json};

use super::devices::{Report, micros};
use super::quantiles::Quantiles;
use super::{APP, BenchArgs, Devices, SECRET};
use crate::cli::lab::{Lab, free_port};
use crate::daemon::{Exit, Fatal};
use crate::http::{HttpClient, HttpError};
use crate::server::doors::tizen::PATH;
use crate::tls;

/// The answer of a handler that does nothing.
pub const EMPTY_ANSWER: &str = r#"{"results":[]}"#;
/// What would slow the load down that is to be measured.
const NO_LIMITS: &str = "[limits]\nwaiting-per-registration = 1000000\nwaiting-per-app = 0\n\
    device-messages-per-minute = 0\ndevice-messages-per-hour = 0\napp-messages-per-second = 0\n";
/// Recipients of a multicast.
const MULTICAST: usize = 100;
/// How long the devices get to take the last messages.
const SETTLE: Duration = Duration::from_secs(20);

/// Throughput of single posts and multicasts, and latency at half the throughput of single posts.
pub async fn measure(lab: &Lab, args: &BenchArgs) -> Result<Value, Fatal> {
    let mut server = lab.server("20", free_port()?, free_port()?, None, NO_LIMITS)?;
    server.start().await?;
    server.add_app(APP, SECRET).await?;
    let (mut devices, ready) = Devices::start(lab, &server, args.devices, None, Some(APP)).await?;
    let reg_ids = Arc::new(ready.reg_ids);
    let senders = Senders::new(&server.api, (APP, SECRET), args.senders)?;
    let time = Duration::from_secs(args.seconds);
    let one = single(&reg_ids);
    senders.post_for(Duration::from_secs(1), None, &one).await?;
    settle(&mut devices, None).await?;
    let (posted, report, seconds) = run(&senders, &mut devices, time, None, 1, &one).await?;
    let rate = posted.messages as f64 / seconds;
    let many = multicast(&reg_ids);
    let (cast, _, cast_seconds) = run(&senders, &mut devices, time, None, MULTICAST, &many).await?;
    let (half, half_report, _) = run(&senders, &mut devices, time, Some(rate / 2.0), 1, &one).await?;
    Ok(json!({
        "single": { "per_s": rate, "messages": posted.messages, "answered_us": posted.answered_us, "stored_us": report.stored_us },
        "multicast": { "per_s": cast.messages as f64 / cast_seconds, "messages": cast.messages },
        "half": { "per_s": half.messages as f64 / time.as_secs_f64(), "answered_us": half.answered_us,
                  "arrived_us": half_report.arrived_us, "stored_us": half_report.stored_us },
    }))
}

/// Posts for a while and waits until everything is on the devices' disk. Returns what was posted,
/// the devices' report and the seconds until the last message was stored.
async fn run(
    senders: &Senders,
    devices: &mut Devices,
    time: Duration,
    rate: Option<f64>,
    recipients: usize,
    body: impl Fn(usize) -> Value,
) -> Result<(Posted, Report, f64), Fatal> {
    let started = Instant::now();
    let mut posted = senders.post_for(time, rate, body).await?;
    posted.messages = posted.requests * recipients;
    let report = settle(devices, Some(posted.messages)).await?;
    Ok((posted, report, started.elapsed().as_secs_f64()))
}

/// Waits until the devices have `expected` messages, or, if none are expected, until no more come.
pub async fn settle(devices: &mut Devices, expected: Option<usize>) -> Result<Report, Fatal> {
    let deadline = Instant::now() + SETTLE;
    let mut all = devices.report().await?;
    let enough = |report: &Report| expected.is_some_and(|expected| report.stored >= expected as u64);
    while !enough(&all) {
        if Instant::now() > deadline {
            return Err(Fatal::new(
                Exit::Failure,
                format!("only {} of {expected:?} messages were delivered", all.stored),
            ));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let more = devices.report().await?;
        if expected.is_none() && more.stored == 0 {
            break;
        }
        // The first report holds nearly all of a load; its quantiles stand for it.
        all.stored += more.stored;
    }
    Ok(all)
}

/// Requests for one recipient after the other.
pub fn single(reg_ids: &Arc<Vec<String>>) -> impl Fn(usize) -> Value + use<> {
    let reg_ids = Arc::clone(reg_ids);
    move |number| body(&reg_ids[number % reg_ids.len()])
}

pub fn multicast(reg_ids: &Arc<Vec<String>>) -> impl Fn(usize) -> Value + use<> {
    let reg_ids = Arc::clone(reg_ids);
    move |number| {
        let recipients: Vec<&String> =
            (0..MULTICAST).map(|at| &reg_ids[(number * MULTICAST + at) % reg_ids.len()]).collect();
        let mut message = body("");
        message["regID"] = json!(recipients);
        json!({ "messages": [message] })
    }
}

/// A request of usual size, stamped with the time. No two are the same request.
pub fn body(reg_id: &str) -> Value {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    json!({ "regID": reg_id, "requestID": format!("{number:07}"), "sender": "bench", "type": 0,
            "message": "badgeOption=INCREASE&badgeNumber=1&action=ALERT&alertMessage=Hi",
            "appData": format!("{};{}", micros(), "x".repeat(100)) })
}

/// Senders that post over kept connections.
pub struct Senders {
    http: HttpClient,
    url: String,
    /// Its app, and the secret of that.
    app: (&'static str, &'static str),
    count: usize,
}

/// What senders have posted.
pub struct Posted {
    /// Requests that were answered.
    pub requests: usize,
    /// Recipients of these.
    pub messages: usize,
    /// Microseconds from a post to its answer.
    pub answered_us: Quantiles,
}

impl Senders {
    /// Senders to this API.
    pub fn new(api: &str, app: (&'static str, &'static str), count: u32) -> Result<Self, Fatal> {
        let http = HttpClient::new(&tls::client(None).map_err(Fatal::of(Exit::Config))?);
        Ok(Self { http, url: format!("{api}{PATH}"), app, count: usize::try_from(count).unwrap_or(1) })
    }

    /// Posts as fast as answers come, or at `rate` a second altogether.
    pub async fn post_for(
        &self,
        time: Duration,
        rate: Option<f64>,
        body: impl Fn(usize) -> Value,
    ) -> Result<Posted, Fatal> {
        let (started, next) = (Instant::now(), AtomicUsize::new(0));
        let sender = async || {
            let mut times = Vec::new();
            while started.elapsed() < time {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if let Some(rate) = rate {
                    tokio::time::sleep_until((started + Duration::from_secs_f64(number as f64 / rate)).into()).await;
                }
                times.push(self.post(body(number).to_string()).await?);
            }
            Ok::<_, Fatal>(times)
        };
        let results = futures_util::future::join_all((0..self.count).map(|_| sender())).await;
        let mut all = Vec::new();
        for times in results {
            all.extend(times?);
        }
        Ok(Posted { requests: all.len(), messages: all.len(), answered_us: Quantiles::of(all) })
    }

    /// Posts as fast as answers come, whatever they are; returns how many came.
    pub async fn flood_for(&self, time: Duration, body: impl Fn(usize) -> Value) -> usize {
        let (started, next) = (Instant::now(), AtomicUsize::new(0));
        let sender = async || {
            while started.elapsed() < time {
                let number = next.fetch_add(1, Ordering::Relaxed);
                // A refusal is what a flood deserves.
                let _ = self.exchange(body(number).to_string()).await;
            }
        };
        futures_util::future::join_all((0..self.count).map(|_| sender())).await;
        next.into_inner()
    }

    async fn exchange(&self, body: String) -> Result<(StatusCode, Bytes), HttpError> {
        self.http.post(&self.url, &[("appID", self.app.0), ("appSecret", self.app.1)], body).await
    }

    async fn post(&self, body: String) -> Result<u64, Fatal> {
        let started = Instant::now();
        let (status, answer) = self.exchange(body).await.map_err(Fatal::of(Exit::Unavailable))?;
        let refused = !status.is_success() || answer.windows(15).any(|part| part.starts_with(br#""statusCode":3"#));
        if refused {
            return Err(Fatal::new(Exit::Failure, format!("a post was refused: {}", String::from_utf8_lossy(&answer))));
        }
        Ok(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

//! What one app's misuse costs the others: the latency of an app's messages undisturbed, and while a
//! device of another app reads nothing, that app's senders post as fast as they are answered, and its
//! callback hangs. The server has the limits that it has by default.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::load::{Senders, multicast, settle, single};
use super::{APP, BenchArgs, Devices, SECRET};
use crate::cli::lab::{Lab, free_port};
use crate::daemon::{Exit, Fatal};
use crate::link::Link;
use crate::link::dial::{Caller, Dialling, dial};
use crate::link::proxy::Proxies;
use crate::proto::frame::{Hello, ToDevice, ToServer, VERSION};
use crate::proto::keepalive::Profile;
use crate::proto::urgency::Taking;
use crate::tls;
use crate::world;

const OTHER: &str = "otherotherother1";
const OTHER_SECRET: &str = "other-secret-of-20-bytes";
/// Devices of each app.
const DEVICES: u32 = 100;
/// Messages a second of the app that behaves.
const RATE: f64 = 100.0;
/// Senders of the app that does not.
const FLOOD: u32 = 16;

/// The floods, by name.
pub const FLOODS: [&str; 2] = ["single", "multicast"];

/// For each flood both latencies, and the ratio of their medians.
pub async fn measure(lab: &Lab, args: &BenchArgs) -> Result<Value, Fatal> {
    let single = flooded(lab, args, "21", single).await?;
    let multicast = flooded(lab, args, "22", multicast).await?;
    Ok(json!({ "single": single, "multicast": multicast }))
}

/// The same with a server of this region, which is flooded with such requests.
async fn flooded<F, B>(lab: &Lab, args: &BenchArgs, region: &str, flood: F) -> Result<Value, Fatal>
where
    F: Fn(&Arc<Vec<String>>) -> B,
    B: Fn(usize) -> Value,
{
    let mut server = lab.server(region, free_port()?, free_port()?, None, "")?;
    server.start().await?;
    server.add_app(APP, SECRET).await?;
    server.add_app(OTHER, OTHER_SECRET).await?;
    let hanging = TcpListener::bind("127.0.0.1:0").await.map_err(Fatal::of(Exit::Unavailable))?;
    let callback = format!("http://{}/", hanging.local_addr().map_err(Fatal::of(Exit::Unavailable))?);
    server.admin(&["app", "callback", OTHER, &callback], "").await?;
    let (mut devices, ready) = Devices::start(lab, &server, DEVICES, None, Some(APP)).await?;
    let (_others, others) = Devices::start(lab, &server, DEVICES, None, Some(OTHER)).await?;
    let (stalled, _link) = stalled_device(&server.gateway).await?;
    let mut victims = others.reg_ids;
    victims.push(stalled);

    let well = Senders::new(&server.api, (APP, SECRET), 8)?;
    let ill = Senders::new(&server.api, (OTHER, OTHER_SECRET), FLOOD)?;
    let (one, flood) = (single(&Arc::new(ready.reg_ids)), flood(&Arc::new(victims)));
    let time = Duration::from_secs(args.seconds);
    let calm = well.post_for(time, Some(RATE), &one).await?;
    let calm_devices = settle(&mut devices, Some(calm.requests)).await?;
    let (rough, posted) = tokio::join!(well.post_for(time, Some(RATE), &one), ill.flood_for(time, &flood));
    let rough = rough?;
    let rough_devices = settle(&mut devices, Some(rough.requests)).await?;
    let ratio = |rough: u64, calm: u64| rough as f64 / (calm as f64).max(1.0);
    Ok(json!({
        "calm": { "answered_us": calm.answered_us, "stored_us": calm_devices.stored_us },
        "disturbed": { "answered_us": rough.answered_us, "stored_us": rough_devices.stored_us },
        "flood_per_s": posted as f64 / time.as_secs_f64(),
        "answered_ratio": ratio(rough.answered_us.p50, calm.answered_us.p50),
        "stored_ratio": ratio(rough_devices.stored_us.p50, calm_devices.stored_us.p50),
    }))
}

/// A device that registers the other app and then reads nothing any more, for as long as its link is
/// kept. Returns its regId.
async fn stalled_device(gateway: &str) -> Result<(String, impl Sized), Fatal> {
    let broken = |what: &str| Fatal::new(Exit::Unavailable, format!("the device that stalls: {what}"));
    let tls = tls::client(None).map_err(Fatal::of(Exit::Config))?;
    let gateway = gateway.parse().map_err(|why| Fatal::new(Exit::Usage, why))?;
    let (device, secret) = (world::device_id(), world::secret());
    let caller = Caller::new(device, secret.clone(), Profile::default());
    let dialling = Dialling { tls, plain_text: false, from: None, ends: Arc::default(), proxies: Proxies::none() };
    let mut link = dial(&gateway, &dialling, &caller).await.map_err(|error| broken(&error.to_string()))?;
    let hello = Hello {
        version: VERSION,
        device,
        secret,
        agent: "bench".into(),
        enrolment_key: None,
        resume: Vec::new(),
        next_s: 3600,
        taking: Taking::default(),
    };
    // Invariant: the id is one.
    let app = OTHER.parse().map_err(Fatal::of(Exit::Software))?;
    for frame in [ToServer::Hello(hello), ToServer::Register { req: 1, app }] {
        link.queue(&frame).map_err(|error| broken(&error.to_string()))?;
    }
    loop {
        let frame = link.next().await.map_err(|error| broken(&error.to_string()))?;
        if let ToDevice::Registered { reg_id, .. } = frame {
            return Ok((reg_id.to_string(), link));
        }
        if !matches!(frame, ToDevice::Welcome(_)) {
            return Err(broken(&format!("it was told {frame:?}")));
        }
    }
}

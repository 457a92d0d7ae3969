//! Simulated devices: the bench's second process.
//!
//! Each device has the real state machine over a real link; all of them put what they get into one
//! SQLite file with group commit, and acknowledge after it. The process prints a line when all are
//! connected, and for each line on its standard input a report of what came since the last one.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{Semaphore, mpsc};

use super::quantiles::Quantiles;
use crate::daemon::{self, Exit, Fatal, lock};
use crate::db::{self, Worker};
use crate::link::dial::{Caller, Dialling};
use crate::link::proxy::Proxies;
use crate::link::{DeviceLink, Gateway, Link, LinkError, dial};
use crate::proto::device::{Device, DeviceAction, Identity};
use crate::proto::frame::{Delivery, ToDevice};
use crate::proto::keepalive::Profile;
use crate::proto::{AppId, RegId};
use crate::tls;
use crate::world::{self, Clock};

/// Devices that dial at the same time.
const DIALLING: usize = 64;
/// Devices on one source address, well below what slows connecting down.
const PER_ADDRESS: u32 = 4000;
/// What the devices keep.
pub const SCHEMA: &[&str] = &["CREATE TABLE received (id BLOB PRIMARY KEY, body TEXT NOT NULL) STRICT, WITHOUT ROWID"];

/// Keeps one message.
pub const INSERT: &str = "INSERT INTO received VALUES (?1, ?2) ON CONFLICT DO NOTHING";

/// What the process is told on its command line.
#[derive(Debug, clap::Args)]
pub struct DevicesArgs {
    /// The gateway
    #[arg(long)]
    gateway: String,
    /// How many devices
    #[arg(long)]
    count: u32,
    /// Certificates to trust
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Folder of the database
    #[arg(long)]
    folder: PathBuf,
    /// The app that every device registers; none if absent
    #[arg(long)]
    app: Option<AppId>,
}

/// The first line that the process prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ready {
    /// How long connecting all devices took, in seconds.
    pub seconds: f64,
    /// The regIds, one a device, if an app was named.
    pub reg_ids: Vec<String>,
}

/// What came since the last report. Times are microseconds from the sender's stamp.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Messages on the devices' disk.
    pub stored: u64,
    /// Arrival of the frame.
    pub arrived_us: Quantiles,
    /// On the devices' disk.
    pub stored_us: Quantiles,
}

#[derive(Default)]
struct Seen {
    stored: u64,
    arrived: Vec<u64>,
    on_disk: Vec<u64>,
}

#[derive(Clone)]
struct World {
    gateway: Gateway,
    dialling: Dialling,
    store: Worker,
    clock: Clock,
    places: Arc<Semaphore>,
    seen: Arc<Mutex<Seen>>,
}

/// The process.
pub async fn run(args: DevicesArgs) -> Result<(), Fatal> {
    daemon::raise_file_limit();
    let connection = db::open(&args.folder.join("devices.db"), SCHEMA).map_err(Fatal::of(Exit::IoErr))?;
    let world = World {
        gateway: args.gateway.parse().map_err(|why| Fatal::new(Exit::Usage, why))?,
        dialling: Dialling {
            tls: tls::client(args.ca.as_deref()).map_err(Fatal::of(Exit::Config))?,
            plain_text: false,
            from: None,
            proxies: Proxies::none(),
            ends: Arc::default(),
        },
        store: Worker::start("devices", connection).map_err(Fatal::of(Exit::Software))?,
        clock: Clock::start(),
        places: Arc::new(Semaphore::new(DIALLING)),
        seen: Arc::default(),
    };
    let started = std::time::Instant::now();
    let (ready, mut all_ready) = mpsc::channel(256);
    for number in 0..args.count {
        tokio::spawn(live(world.clone(), number, args.app.clone(), ready.clone()));
    }
    drop(ready);
    let mut reg_ids = Vec::new();
    for _ in 0..args.count {
        let reg_id = all_ready.recv().await.ok_or_else(|| Fatal::new(Exit::Software, "a device has ended"))?;
        reg_ids.extend(reg_id.map(|reg_id: RegId| reg_id.to_string()));
    }
    print(&Ready { seconds: started.elapsed().as_secs_f64(), reg_ids })?;
    let mut asked = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(_)) = asked.next_line().await {
        let seen = std::mem::take(&mut *lock(&world.seen));
        print(&Report {
            stored: seen.stored,
            arrived_us: Quantiles::of(seen.arrived),
            stored_us: Quantiles::of(seen.on_disk),
        })?;
    }
    Ok(())
}

/// One device, for as long as the process runs.
async fn live(world: World, number: u32, app: Option<AppId>, ready: mpsc::Sender<Option<RegId>>) {
    let identity =
        Identity { device: world::device_id(), secret: world::secret(), agent: "bench".into(), enrolment_key: None };
    let caller = Caller::new(identity.device, identity.secret.clone(), Profile::default());
    let mut device = Device::new(identity, Profile::default());
    if let Some(app) = &app {
        device.register(world.clock.now(), app.clone());
    }
    device.start();
    let mut simulated = Simulated { world, number, caller, link: None, ready: Some(ready), registers: app.is_some() };
    loop {
        simulated.act(&mut device).await;
        let luck = world::luck();
        let timeout = simulated.world.clock.sleep_until(device.poll_timeout());
        let event = tokio::select! {
            frame = next_frame(&mut simulated.link) => Some(frame),
            () = timeout => None,
        };
        let now = simulated.world.clock.now();
        match event {
            Some(Ok(frame)) => device.handle_frame(now, frame, luck),
            Some(Err(error)) => {
                simulated.link = None;
                device.handle_link_down(now, &error.to_string(), luck);
            }
            None => device.handle_timer(now, luck),
        }
    }
}

struct Simulated {
    world: World,
    number: u32,
    caller: Caller,
    link: Option<DeviceLink>,
    ready: Option<mpsc::Sender<Option<RegId>>>,
    registers: bool,
}

impl Simulated {
    async fn act(&mut self, device: &mut Device) {
        let mut batch = Vec::new();
        while let Some(action) = device.poll_action() {
            match action {
                DeviceAction::Dial => Box::pin(self.dial(device)).await,
                DeviceAction::Send(frame) => {
                    if let Some(link) = &mut self.link {
                        // A broken link shows itself at the next read.
                        let _ = link.queue(&frame);
                    }
                }
                DeviceAction::Store(delivery) => batch.push(*delivery),
                DeviceAction::Hangup => self.link = None,
                DeviceAction::Online(_) if !self.registers => self.tell_ready(None).await,
                DeviceAction::Registered(_, reg_id, _) => self.tell_ready(Some(reg_id)).await,
                DeviceAction::Online(_)
                | DeviceAction::UseGateway(_)
                | DeviceAction::Refused(..)
                | DeviceAction::Deregistered(_)
                | DeviceAction::Unregistered(_)
                | DeviceAction::Noted(_)
                | DeviceAction::Learned(..) => {}
            }
        }
        if !batch.is_empty() {
            Box::pin(self.store(device, batch)).await;
        }
    }

    async fn dial(&mut self, device: &mut Device) {
        let (now, luck) = (self.world.clock.now(), world::luck());
        let Ok(_place) = Arc::clone(&self.world.places).acquire_owned().await else { return };
        let address = self.number / PER_ADDRESS + 1;
        let from = IpAddr::V4(Ipv4Addr::from(0x7f01_0001 + (address << 8)));
        let dialling = Dialling { from: Some(from), ..self.world.dialling.clone() };
        match dial(&self.world.gateway, &dialling, &self.caller).await {
            Ok(link) => {
                self.link = Some(link);
                device.handle_link_up(now, Vec::new(), None);
            }
            Err(error) => device.handle_link_down(now, &error.to_string(), luck),
        }
    }

    async fn tell_ready(&mut self, reg_id: Option<RegId>) {
        if let Some(ready) = self.ready.take() {
            // The process may be ending.
            let _ = ready.send(reg_id).await;
        }
    }

    async fn store(&mut self, device: &mut Device, batch: Vec<Delivery>) {
        let arrived = micros();
        let ids: Vec<_> = batch.iter().map(|delivery| delivery.push.id).collect();
        let stamps: Vec<u64> = batch.iter().filter_map(stamp).collect();
        let stored = self.world.store.write(move |db| {
            let mut insert = db.prepare_cached(INSERT)?;
            let mut new = 0;
            for delivery in &batch {
                let body = serde_json::to_string(&delivery.push).unwrap_or_default();
                new += insert.execute(rusqlite::params![delivery.push.id.as_bytes(), body])?;
            }
            Ok(new)
        });
        let now = self.world.clock.now();
        match stored.await {
            Ok(new) => {
                let on_disk = micros();
                let mut seen = lock(&self.world.seen);
                seen.stored += u64::try_from(new).unwrap_or(0);
                seen.arrived.extend(stamps.iter().map(|stamp| arrived.saturating_sub(*stamp)));
                seen.on_disk.extend(stamps.iter().map(|stamp| on_disk.saturating_sub(*stamp)));
                drop(seen);
                device.handle_stored(now, &ids);
                // The acknowledgements that this decided on.
                while let Some(action) = device.poll_action() {
                    if let (DeviceAction::Send(frame), Some(link)) = (action, &mut self.link) {
                        let _ = link.queue(&frame);
                    }
                }
            }
            Err(_) => device.handle_store_failed(now, world::luck()),
        }
    }
}

async fn next_frame(link: &mut Option<DeviceLink>) -> Result<ToDevice, LinkError> {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

/// The microseconds that the sender wrote at the head of the message.
fn stamp(delivery: &Delivery) -> Option<u64> {
    delivery.push.payload.as_ref()?.as_text()?.split(';').next()?.parse().ok()
}

/// The wall clock in microseconds since 1970.
pub fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn print(value: &impl Serialize) -> Result<(), Fatal> {
    println!("{}", serde_json::to_string(value).map_err(Fatal::of(Exit::Software))?);
    Ok(())
}

//! A thousand devices whose server restarts: they come back spread over the time that it announced, no
//! faster than it admits them, and none is left behind. The devices are the state machine over real sockets.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bellwire::link::dial::{Caller, Dialling};
use bellwire::link::proxy::Proxies;
use bellwire::link::{DeviceLink, Gateway, Link, dial};
use bellwire::proto::device::{Device, DeviceAction, Identity};
use bellwire::proto::frame::ToDevice;
use bellwire::proto::keepalive::Profile;
use bellwire::world::{self, Clock};
use bellwire::{daemon, tls};
use common::{Server, so, until_within};

const DEVICES: usize = 1000;
/// Handshakes a second that the server admits.
const RATE: usize = 200;
/// Seconds over which the devices are to spread.
const WINDOW: usize = 12;

/// When devices came online, in order.
type Arrivals = Arc<Mutex<Vec<Instant>>>;

/// One device, for as long as the test runs.
async fn live(gateway: Gateway, dialling: Dialling, arrivals: Arrivals) {
    let identity =
        Identity { device: world::device_id(), secret: world::secret(), agent: "storm".into(), enrolment_key: None };
    let caller = Caller::new(identity.device, identity.secret.clone(), Profile::Mains);
    let (clock, mut device) = (Clock::start(), Device::new(identity, Profile::Mains));
    let mut link: Option<DeviceLink> = None;
    device.start();
    loop {
        while let Some(action) = device.poll_action() {
            match action {
                DeviceAction::Dial => match dial(&gateway, &dialling, &caller).await {
                    Ok(open) => {
                        link = Some(open);
                        device.handle_link_up(clock.now(), Vec::new(), None);
                    }
                    Err(error) => device.handle_link_down(clock.now(), &error.to_string(), world::luck()),
                },
                DeviceAction::Send(frame) => {
                    // A broken link shows itself at the next read.
                    let _ = link.as_mut().map(|link| link.queue(&frame));
                }
                DeviceAction::Online(_) => arrivals.lock().expect("nobody panics").push(Instant::now()),
                DeviceAction::Hangup => link = None,
                DeviceAction::Store(_)
                | DeviceAction::UseGateway(_)
                | DeviceAction::Registered(..)
                | DeviceAction::Refused(..)
                | DeviceAction::Deregistered(_)
                | DeviceAction::Unregistered(_)
                | DeviceAction::Noted(_)
                | DeviceAction::Learned(..) => {}
            }
        }
        let event = tokio::select! {
            frame = next(&mut link) => Some(frame),
            () = clock.sleep_until(device.poll_timeout()) => None,
        };
        match event {
            Some(Ok(frame)) => device.handle_frame(clock.now(), frame, world::luck()),
            Some(Err(why)) => {
                link = None;
                device.handle_link_down(clock.now(), &why, world::luck());
            }
            None => device.handle_timer(clock.now(), world::luck()),
        }
    }
}

async fn next(link: &mut Option<DeviceLink>) -> Result<ToDevice, String> {
    match link {
        Some(link) => link.next().await.map_err(|error| error.to_string()),
        None => std::future::pending().await,
    }
}

/// Waits until so many have come, and returns when they did.
async fn arrived(arrivals: &Arrivals, count: usize) -> Vec<Instant> {
    let here = || arrivals.lock().expect("nobody panics").len();
    until_within(Duration::from_secs(90), async || so(here() >= count, || format!("{} of {count}", here()))).await;
    std::mem::take(&mut arrivals.lock().expect("nobody panics"))
}

/// The most that came within any one second.
fn busiest(arrivals: &[Instant]) -> usize {
    let in_that_second = |first: Instant| {
        let within = |at: &&Instant| **at >= first && at.duration_since(first) < Duration::from_secs(1);
        arrivals.iter().filter(within).count()
    };
    arrivals.iter().map(|first| in_that_second(*first)).max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_devices_come_back_spread_over_the_window_and_none_is_left_behind() {
    daemon::raise_file_limit();
    let settings = format!("[gateway]\nhandshakes-per-second = {RATE}\nreconnect-window-s = {WINDOW}");
    let mut server = Server::start("00", &settings);
    let gateway: Gateway = server.gateway.parse().expect("a gateway");
    let dialling = Dialling {
        tls: tls::client(None).expect("there is a trust store"),
        plain_text: false,
        from: None,
        proxies: Proxies::none(),
        ends: Arc::default(),
    };
    let arrivals = Arrivals::default();
    for _ in 0..DEVICES {
        tokio::spawn(live(gateway.clone(), dialling.clone(), Arc::clone(&arrivals)));
    }
    // All at once, they are let in one after the other.
    let first = arrived(&arrivals, DEVICES).await;
    // The admission may have saved up a tenth, and what it let in may be answered late.
    let most = RATE * 3 / 2;
    assert!(busiest(&first) <= most, "{} in one second", busiest(&first));

    server.stop();
    let ended = Instant::now();
    server.restart();
    let back = arrived(&arrivals, DEVICES).await;
    assert!(busiest(&back) <= most, "{} in one second", busiest(&back));
    let seconds: Vec<f64> = back.iter().map(|at| at.duration_since(ended).as_secs_f64()).collect();
    let quarter = WINDOW as f64 / 4.0;
    let mut quarters = [0; 4];
    for at in &seconds {
        let number = ((at - 1.0).max(0.0) / quarter).floor().min(3.0);
        quarters[number as usize] += 1;
    }
    println!("came back by quarters of the window: {quarters:?}, most in one second {}", busiest(&back));
    // An even draw leaves each quarter 250, give or take 14.
    assert!(quarters.iter().all(|count| (150..=350).contains(count)), "{quarters:?}");
}

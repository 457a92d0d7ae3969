//! Both halves of a session against each other in simulated time.
//!
//! One device and one server, each with a disk, live through a scenario that proptest chose: frames
//! are delayed, lost and doubled, links are cut with and without notice, dials fail, either side
//! dies at any moment, the device sleeps, its disk fails, apps come and go, the server says goodbye.
//! Then the weather turns calm. For every scenario it must hold that
//!
//! * what the server accepted and what has neither expired nor lost its registration is on the
//!   device's disk, once, and in the server's order for each registration, but for what the device does not
//!   keep;
//! * nothing is sent after its expiry, never more than the window is on its way, and nothing for which the
//!   device has said that it does not want to be woken;
//! * nothing is acknowledged that is not on the device's disk, and nothing given up that is;
//! * device and server agree on every registration, and every outcome has been noted;
//! * nobody spins or comes back too soon, and once all is done nothing is said but pings.
//!
//! All but the last two hold without help; for lost news that only a new session repeats (outcomes,
//! ends of registrations) there is one last cut. Links keep the order of frames, as TCP and MQTT do.
//! `PROPTEST_CASES` sets the number of scenarios.

mod agent;
mod scenario;
mod server;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use self::agent::Agent;
use self::scenario::{Act, Dice, FOREVER_S, Scenario, Weather, app_id, scenario};
use self::server::{Change, Server};
use super::device::Device;
use super::frame::Bye;
use super::gateway::Backlog;
use super::message::Reliability;
use super::surroundings::Surroundings;
use super::urgency::Urgency;
use super::{MessageId, Moment, UnixMillis};

/// The weather in which everything must come right.
const CALM: Weather = Weather { loss_percent: 0, double_percent: 0, delay_ms: 200, disk_ms: 50 };
const HOUR: u64 = 3_600_000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Device,
    Server,
}

/// `Written`: the device's disk takes the next pushes; a moment later the device is `Told`.
/// `Read`: the server's disk answers a fetch. `Commit`: it takes a change.
#[derive(Clone, Debug)]
enum Event {
    Act(Act),
    Boot(Side),
    Dialled { boot: u64, link: usize },
    Frame { to: Side, link: usize, text: String },
    Gone { at: Side, link: usize },
    HelloDue { link: usize },
    Written { boot: u64 },
    Told { boot: u64, ids: Vec<MessageId> },
    Read { link: usize, backlog: Backlog },
    Commit { boot: u64, link: usize, change: Change },
}

struct Link {
    flows: bool,
    /// When the last frame arrives, for each direction: none may overtake another.
    last: [u64; 2],
}

struct World {
    now: u64,
    dice: Dice,
    weather: Weather,
    /// By time, then in the order of scheduling.
    queue: BTreeMap<(u64, u64), Event>,
    serial: u64,
    links: Vec<Link>,
    agent: Agent,
    server: Server,
    actions: u64,
}

impl World {
    fn new(scenario: &Scenario) -> Self {
        let mut world = Self {
            now: 0,
            dice: Dice(scenario.seed),
            weather: scenario.weather,
            queue: BTreeMap::new(),
            serial: 0,
            links: vec![],
            agent: Agent::default(),
            server: Server::default(),
            actions: 0,
        };
        world.at(0, Event::Boot(Side::Server));
        world.at(0, Event::Boot(Side::Device));
        world
    }

    fn at(&mut self, time: u64, event: Event) {
        self.serial += 1;
        self.queue.insert((time, self.serial), event);
    }

    fn moment(&self) -> Moment {
        Moment(self.now)
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(self.now as i64)
    }

    /// Takes what comes next, event or deadline, until `end`.
    fn run_until(&mut self, end: u64) {
        let mut spent = (self.now, 0);
        loop {
            let event = self.queue.keys().next().map(|(time, _)| *time);
            let device = self.agent.machine.as_ref().and_then(Device::poll_timeout);
            let device = device.map(|at| at.0.max(self.agent.asleep_until));
            let server = self.server.session.as_ref().and_then(|open| open.machine.poll_timeout()).map(|at| at.0);
            let next = [event, device, server].into_iter().flatten().min().filter(|at| *at <= end);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            spent = if spent.0 == self.now { (self.now, spent.1 + 1) } else { (self.now, 0) };
            assert!(spent.1 < 1_000, "somebody spins");
            if event == Some(next) {
                let ((_, serial), event) = self.queue.pop_first().unwrap();
                self.handle_event(serial, event);
            } else if device == Some(next) {
                let (now, luck) = (self.moment(), self.dice.luck());
                self.agent.machine.iter_mut().for_each(|machine| machine.handle_timer(now, luck));
            } else {
                let now = self.moment();
                self.server.session.iter_mut().for_each(|open| open.machine.handle_timer(now));
            }
            self.attend();
            self.serve();
        }
        self.now = end;
    }

    fn handle_event(&mut self, serial: u64, event: Event) {
        let of_device = matches!(
            event,
            Event::Dialled { .. }
                | Event::Written { .. }
                | Event::Told { .. }
                | Event::Frame { to: Side::Device, .. }
                | Event::Gone { at: Side::Device, .. }
        );
        if of_device && self.now < self.agent.asleep_until {
            // It comes to it when it wakes, in the same order.
            self.queue.insert((self.agent.asleep_until, serial), event);
            return;
        }
        match event {
            Event::Act(act) => self.act(act),
            Event::Boot(Side::Device) => self.boot_device(),
            Event::Boot(Side::Server) => self.server.up = true,
            Event::Dialled { boot, link } => self.dialled(boot, link),
            Event::Frame { to, link, text } if self.links[link].flows => match to {
                Side::Device => self.device_hears(link, &text),
                Side::Server => self.server_hears(link, &text),
            },
            Event::Frame { .. } => {}
            Event::Gone { at: Side::Device, link } => self.device_loses(link),
            Event::Gone { at: Side::Server, link } => {
                self.server.strangers.remove(&link);
                self.server.session.take_if(|open| open.link == link);
            }
            Event::HelloDue { link } => {
                if self.server.strangers.remove(&link) {
                    self.hang_up(Side::Server, link);
                }
            }
            Event::Written { boot } => self.written(boot),
            Event::Told { boot, ids } => self.told(boot, &ids),
            Event::Read { link, backlog } => {
                let (now, wall) = (self.moment(), self.wall());
                if let Some(open) = self.session_on(link) {
                    open.machine.handle_backlog(now, wall, backlog);
                }
            }
            Event::Commit { boot, link, change } if boot == self.server.boot => self.commit(link, change),
            Event::Commit { .. } => {}
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Send { app, count, ttl_s, urgency } => {
                (0..count).for_each(|_| self.accept(app, ttl_s, urgency, true));
            }
            Act::Offer { app, count, urgency } => {
                (0..count).for_each(|_| self.accept(app, FOREVER_S, urgency, false));
            }
            Act::Surroundings(surroundings) => self.surround(surroundings),
            Act::Register { app } => self.wish(app_id(app), true),
            Act::Deregister { app } => self.wish(app_id(app), false),
            Act::Revoke { app } => {
                if self.end_registration(&app_id(app)) {
                    self.server.revoked.insert(app_id(app));
                    self.server.session.iter_mut().for_each(|open| open.machine.unregistered(app_id(app)));
                }
            }
            Act::Cut { told } => self.cut(told),
            Act::RestartDevice { down_ms } => {
                let told = self.dice.percent(50);
                self.cut(told);
                let agent = &mut self.agent;
                agent.boot += 1;
                (agent.machine, agent.link, agent.asleep_until, agent.rest_until) = (None, None, 0, 0);
                agent.handed.clear();
                self.at(self.now + down_ms, Event::Boot(Side::Device));
            }
            Act::RestartServer { down_ms } => {
                let told = self.dice.percent(50);
                self.cut(told);
                self.server.boot += 1;
                (self.server.up, self.server.session) = (false, None);
                self.server.strangers.clear();
                self.at(self.now + down_ms, Event::Boot(Side::Server));
            }
            Act::Sleep { ms } => self.agent.asleep_until = self.now + ms,
            Act::DiskFails => {
                self.agent.handed.clear();
                let (now, luck) = (self.moment(), self.dice.luck());
                self.agent.machine.iter_mut().for_each(|machine| machine.handle_store_failed(now, luck));
            }
            Act::Goodbye { reason, retry_after_s } => {
                let bye = Bye { retry_after_s, ..Bye::because(reason) };
                self.server.session.iter_mut().for_each(|open| open.machine.close(bye.clone()));
            }
            Act::TryNow => {
                self.agent.rest_until = 0;
                self.agent.machine.iter_mut().for_each(Device::try_now);
            }
        }
    }

    // The path between the two.

    fn transmit(&mut self, to: Side, link: usize, text: String) {
        if self.dice.percent(self.weather.loss_percent) {
            return;
        }
        let copies = 1 + u64::from(self.dice.percent(self.weather.double_percent));
        for _ in 0..copies {
            let time = self.arrival(to, link);
            self.at(time, Event::Frame { to, link, text: text.clone() });
        }
    }

    fn arrival(&mut self, to: Side, link: usize) -> u64 {
        let earliest = self.now + 1 + self.dice.below(self.weather.delay_ms);
        let last = &mut self.links[link].last[to as usize];
        *last = earliest.max(*last);
        *last
    }

    /// One side closes the link in order: what it said before still arrives.
    fn hang_up(&mut self, by: Side, link: usize) {
        let other = if by == Side::Device { Side::Server } else { Side::Device };
        if self.links[link].flows {
            let time = self.arrival(other, link);
            self.at(time, Event::Gone { at: other, link });
        }
    }

    /// The device's link breaks; what is on its way is lost. Told or not, both sides must cope.
    fn cut(&mut self, told: bool) {
        let Some(link) = self.agent.link else { return };
        self.links[link].flows = false;
        if told {
            self.at(self.now + 1, Event::Gone { at: Side::Device, link });
            self.at(self.now + 1, Event::Gone { at: Side::Server, link });
        }
    }

    // What must hold in the end.

    fn check_pushes(&self) {
        let mut last = BTreeMap::new();
        for push in self.agent.disk.iter().filter(|push| push.reliability == Reliability::Transport) {
            // Ids are numbered in the order in which the server accepted them.
            let before = last.insert(push.reg_id.to_string(), push.id);
            assert!(before < Some(push.id), "out of order or twice: {before:?}, {:?}", push.id);
        }
        let have: BTreeSet<MessageId> = self.agent.disk.iter().map(|push| push.id).collect();
        for push in self.server.accepted.iter().filter(|push| !push.expired(self.wall()) && agent::is_kept(push.id)) {
            assert!(have.contains(&push.id), "lost: {:?}", push.id);
        }
        assert!(self.server.rows.values().all(|row| row.push.expired(self.wall())), "the server keeps what arrived");
    }

    fn check_registrations(&self) {
        assert_eq!(self.agent.wishes, BTreeMap::new(), "a wish without an answer");
        let mut known = self.agent.regs.clone();
        known.retain(|app, _| !self.server.revoked.contains(app));
        assert_eq!(known, self.server.regs, "device and server disagree");
    }

    fn check_told(&self) {
        assert_eq!(self.server.revoked, BTreeSet::new(), "an end that the device was not told");
        assert_eq!(self.agent.unnoted, BTreeSet::new(), "an outcome that was not noted");
        assert!(self.agent.disk.iter().all(|push| self.server.noted.contains(&push.id)));
    }
}

/// Plays a scenario to its end and checks it.
fn play(scenario: &Scenario) -> World {
    let mut world = World::new(scenario);
    let mut time = 0;
    for (gap, act) in &scenario.script {
        time += gap;
        world.at(time, Event::Act(act.clone()));
    }
    world.at(time, Event::Act(Act::Surroundings(Surroundings::default())));
    world.run_until(time);
    world.weather = CALM;
    let attempts = world.links.len();
    world.run_until(time + HOUR);
    assert!(world.links.len() - attempts <= 12, "{} attempts in calm weather", world.links.len() - attempts);
    let work = 100 + 10 * world.server.issued + 100 * world.links.len() as u64;
    assert!(world.actions <= work, "{} actions where {work} are plenty", world.actions);
    world.check_pushes();
    world.check_registrations();
    let busy = world.actions;
    world.run_until(time + 2 * HOUR);
    assert!(world.actions - busy <= 4 * 3600 / 240, "{} actions in an idle hour", world.actions - busy);
    world.cut(true);
    world.run_until(time + 3 * HOUR);
    world.check_pushes();
    world.check_registrations();
    world.check_told();
    world
}

fn config() -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let config = ProptestConfig::default();
    ProptestConfig { cases: if asked { config.cases } else { 300 }, ..config }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_accepted_is_lost_whatever_happens_on_the_way(scenario in scenario()) {
        play(&scenario);
    }
}

#[test]
fn a_calm_day_delivers_everything_in_one_session() {
    let send = |app, count| (60_000, Act::Send { app, count, ttl_s: FOREVER_S, urgency: Urgency::Normal });
    let register = |app| (0, Act::Register { app });
    let script = vec![register(0), register(1), send(0, 100), send(1, 100), (60_000, Act::Cut { told: true })];
    let world = play(&Scenario { seed: 1, weather: CALM, script });
    let kept = world.server.accepted.iter().filter(|push| agent::is_kept(push.id)).count();
    assert_eq!((world.server.accepted.len(), world.agent.disk.len()), (200, kept));
    assert_eq!(world.links.len(), 3, "the first, and one after each cut");
}

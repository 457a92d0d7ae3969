//! The device around its state machine: link, disk and apps, as the real one has them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use uuid::Uuid;

use super::super::device::{Device, DeviceAction, Identity};
use super::super::frame::{Delivery, Fate, Frame, NotKept, Outcome, ToDevice, ToServer, WINDOW};
use super::super::gateway::HELLO;
use super::super::keepalive::Profile;
use super::super::surroundings::Surroundings;
use super::super::{AppId, DeviceId, MessageId, Moment, Push, RegId, Secret};
use super::{Event, Link, Side, World};

/// The device around its state machine. What is below the line survives a restart.
#[derive(Default)]
pub(super) struct Agent {
    pub(super) machine: Option<Device>,
    pub(super) boot: u64,
    pub(super) asleep_until: u64,
    pub(super) link: Option<usize>,
    /// No attempt to connect before this, unless somebody asked for it.
    pub(super) rest_until: u64,
    pub(super) handed: VecDeque<Delivery>,
    // ---
    pub(super) surroundings: Surroundings,
    pub(super) disk: Vec<Push>,
    /// Wishes without an answer: true to register, false to deregister.
    pub(super) wishes: BTreeMap<AppId, bool>,
    pub(super) regs: BTreeMap<AppId, RegId>,
    pub(super) unnoted: BTreeSet<MessageId>,
}

/// Whether the device keeps this push; of some it has not the app.
pub(super) fn is_kept(id: MessageId) -> bool {
    id.as_bytes()[15] % 8 != 7
}

impl World {
    pub(super) fn boot_device(&mut self) {
        let identity = Identity {
            device: DeviceId::from_uuid(Uuid::from_u128(1)),
            secret: Secret::from_bytes([1; 32]),
            agent: "simulated".into(),
            enrolment_key: None,
        };
        let machine = self.agent.machine.get_or_insert_with(|| Device::new(identity, Profile::Battery));
        machine.start();
        machine.handle_surroundings(Moment(self.now), self.agent.surroundings);
        for (app, wanted) in self.agent.wishes.clone() {
            self.wish(app, wanted);
        }
    }

    pub(super) fn wish(&mut self, app: AppId, wanted: bool) {
        self.agent.wishes.insert(app.clone(), wanted);
        let now = self.moment();
        match &mut self.agent.machine {
            Some(machine) if wanted => machine.register(now, app),
            Some(machine) => machine.deregister(now, app),
            None => {}
        }
    }

    pub(super) fn surround(&mut self, surroundings: Surroundings) {
        self.agent.surroundings = surroundings;
        let now = self.moment();
        self.agent.machine.iter_mut().for_each(|machine| machine.handle_surroundings(now, surroundings));
    }

    pub(super) fn dialled(&mut self, boot: u64, link: usize) {
        if self.agent.boot != boot || self.agent.link != Some(link) {
            return;
        }
        if !self.server.up || self.dice.percent(self.weather.loss_percent) {
            return self.device_loses(link);
        }
        self.server.strangers.insert(link);
        self.at(self.moment().after(HELLO).0, Event::HelloDue { link });
        let resume = self.agent.disk.iter().rev().take(WINDOW).map(|push| push.id).collect();
        let now = self.moment();
        if let Some(machine) = &mut self.agent.machine {
            machine.handle_link_up(now, resume, None);
        }
    }

    pub(super) fn device_loses(&mut self, link: usize) {
        if self.agent.link == Some(link) {
            (self.agent.link, self.agent.rest_until) = (None, self.now + 1_000);
            let (now, luck) = (self.moment(), self.dice.luck());
            self.agent.machine.iter_mut().for_each(|machine| machine.handle_link_down(now, "gone", luck));
        }
    }

    pub(super) fn device_hears(&mut self, link: usize, text: &str) {
        let (now, luck) = (self.moment(), self.dice.luck());
        if self.agent.link == Some(link) {
            let frame = ToDevice::decode(text).unwrap();
            self.agent.machine.iter_mut().for_each(|machine| machine.handle_frame(now, frame.clone(), luck));
        }
    }

    /// The disk takes one push, or all that were handed over; it knows what it has already.
    pub(super) fn written(&mut self, boot: u64) {
        if self.agent.boot != boot {
            return;
        }
        let agent = &mut self.agent;
        let count = if self.dice.percent(50) { 1.min(agent.handed.len()) } else { agent.handed.len() };
        let mut ids = vec![];
        for delivery in agent.handed.drain(..count) {
            ids.push(delivery.push.id);
            if !is_kept(delivery.push.id) {
                continue;
            }
            if agent.disk.iter().all(|push| push.id != delivery.push.id) {
                agent.unnoted.insert(delivery.push.id);
                agent.disk.push(delivery.push);
            }
        }
        self.at(self.now + 5, Event::Told { boot, ids });
    }

    pub(super) fn told(&mut self, boot: u64, ids: &[MessageId]) {
        if self.agent.boot == boot && !ids.is_empty() {
            let (kept, others): (Vec<MessageId>, Vec<MessageId>) = ids.iter().partition(|id| is_kept(**id));
            let (now, outcomes) = (self.moment(), self.outcomes(kept.iter().copied()));
            if let Some(machine) = &mut self.agent.machine {
                machine.handle_stored(now, &kept);
                machine.handle_not_kept(now, &others.iter().map(|id| (*id, NotKept::Unwanted)).collect::<Vec<_>>());
                machine.report(now, &outcomes);
            }
        }
    }

    pub(super) fn outcomes(&self, ids: impl Iterator<Item = MessageId>) -> Vec<Outcome> {
        ids.map(|id| Outcome { id, fate: Fate::Delivered, at_ms: self.wall() }).collect()
    }

    pub(super) fn attend(&mut self) {
        while let Some(action) = self.agent.machine.as_mut().and_then(Device::poll_action) {
            self.actions += 1;
            match action {
                DeviceAction::Dial => {
                    assert!(self.now >= self.agent.rest_until, "comes back too soon");
                    let (boot, link) = (self.agent.boot, self.links.len());
                    self.links.push(Link { flows: true, last: [0; 2] });
                    self.agent.link = Some(link);
                    let time = self.now + 1 + self.dice.below(2_000);
                    self.at(time, Event::Dialled { boot, link });
                }
                DeviceAction::Send(frame) => {
                    if let ToServer::Ack { ids } = &frame {
                        let stored = |id| self.agent.disk.iter().any(|push| push.id == id);
                        assert!(ids.iter().copied().all(stored), "acknowledged before it was stored");
                    }
                    if let ToServer::NotKept { ids, .. } = &frame {
                        assert!(!ids.iter().copied().any(is_kept), "given up although it was stored");
                    }
                    self.transmit(Side::Server, self.agent.link.unwrap(), frame.encode());
                }
                DeviceAction::Store(delivery) => {
                    self.agent.handed.push_back(*delivery);
                    let time = self.now + 1 + self.dice.below(self.weather.disk_ms);
                    self.at(time, Event::Written { boot: self.agent.boot });
                }
                DeviceAction::Hangup => {
                    let link = self.agent.link.take().unwrap();
                    self.agent.rest_until = self.now + 1_000;
                    self.hang_up(Side::Device, link);
                }
                DeviceAction::Online(_) => {
                    let outcomes = self.outcomes(self.agent.unnoted.iter().copied());
                    let now = self.moment();
                    self.agent.machine.iter_mut().for_each(|machine| machine.report(now, &outcomes));
                }
                DeviceAction::Registered(app, reg_id, _) => {
                    assert_eq!(self.agent.wishes.remove(&app), Some(true));
                    self.agent.regs.insert(app, reg_id);
                }
                DeviceAction::Refused(app, _) => {
                    assert_eq!(self.agent.wishes.remove(&app), Some(true));
                }
                DeviceAction::Deregistered(app) => {
                    assert_eq!(self.agent.wishes.remove(&app), Some(false));
                    self.agent.regs.remove(&app);
                }
                // A new registration that is being asked for is not the one that ended.
                DeviceAction::Unregistered(app) if self.agent.wishes.get(&app) == Some(&true) => {}
                DeviceAction::Unregistered(app) => self.wish(app, false),
                DeviceAction::Noted(ids) => self.agent.unnoted.retain(|id| !ids.contains(id)),
                DeviceAction::UseGateway(_) => unreachable!("there is one gateway"),
                DeviceAction::Learned(..) => {}
            }
        }
    }
}

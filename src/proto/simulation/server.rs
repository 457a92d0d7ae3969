//! The server around its sessions: one device's share of its disk, and the doors.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::super::backlog::{Choosing, Chosen, Gate};
use super::super::frame::{Bye, Frame, Outcome, Reason, Refusal, ToDevice, ToServer, WINDOW};
use super::super::gateway::{Backlog, GatewayAction, Greeting, Queued, Seq, Session, Terms, Wanted};
use super::super::message::Reliability;
use super::super::samples;
use super::super::urgency::{self, Urgency};
use super::super::{AppId, MessageId, Push, RegId, Region, UnixMillis};
use super::scenario::{UNKNOWN, app_id};
use super::{Event, Side, World};

/// What the server's disk is asked to change.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Delete(Vec<Seq>),
    Register(u32, AppId),
    Deregister(u32, AppId),
    Note(Vec<Outcome>),
}

/// The server around its sessions. What is below the line survives a restart.
#[derive(Default)]
pub(super) struct Server {
    pub(super) up: bool,
    pub(super) boot: u64,
    pub(super) strangers: BTreeSet<usize>,
    pub(super) session: Option<Open>,
    pub(super) disk_free: u64,
    // ---
    pub(super) rows: BTreeMap<Seq, Queued>,
    /// Everything ever accepted whose registration still stands.
    pub(super) accepted: Vec<Push>,
    pub(super) regs: BTreeMap<AppId, RegId>,
    pub(super) revoked: BTreeSet<AppId>,
    pub(super) noted: BTreeSet<MessageId>,
    pub(super) issued: u64,
}

pub(super) struct Open {
    pub(super) link: usize,
    pub(super) machine: Session,
    pub(super) on_their_way: BTreeSet<MessageId>,
    /// What may go of what the disk was last asked for.
    pub(super) may_go: BTreeSet<MessageId>,
}

impl World {
    pub(super) fn session_on(&mut self, link: usize) -> Option<&mut Open> {
        self.server.session.as_mut().filter(|open| open.link == link)
    }

    /// Takes a notification from a sender: onto the disk, or for a session that is open now.
    pub(super) fn accept(&mut self, app: u8, ttl_s: u32, urgency: Urgency, keep: bool) {
        let Some(reg_id) = self.server.regs.get(&app_id(app)).copied() else { return };
        self.server.issued += 1;
        let push = Push {
            reg_id,
            app: app_id(app),
            accepted_ms: self.wall(),
            expires_ms: UnixMillis(self.wall().0 + i64::from(ttl_s) * 1000),
            reliability: if keep { Reliability::Transport } else { Reliability::NoReliable },
            urgency,
            ..samples::push(samples::message_id(self.server.issued))
        };
        let (now, wall) = (self.moment(), self.wall());
        if keep {
            let seq = Seq(self.server.issued as i64);
            self.server.rows.insert(seq, Queued { seq, dropped: 0, replaces: vec![], push: push.clone() });
            self.server.accepted.push(push);
            self.server.session.iter_mut().for_each(|open| open.machine.handle_wake());
        } else if let Some(open) = &mut self.server.session {
            open.machine.offer(now, wall, push);
        }
    }

    pub(super) fn end_registration(&mut self, app: &AppId) -> bool {
        let Some(ended) = self.server.regs.remove(app) else { return false };
        self.server.rows.retain(|_, row| row.push.reg_id != ended);
        self.server.accepted.retain(|push| push.reg_id != ended);
        true
    }

    pub(super) fn server_hears(&mut self, link: usize, text: &str) {
        let now = self.moment();
        let frame = ToServer::decode(text).unwrap();
        if self.server.strangers.remove(&link) {
            return self.greeted(link, frame);
        }
        if let Some(open) = self.session_on(link) {
            if let ToServer::Ack { ids } | ToServer::NotKept { ids, .. } = &frame {
                open.on_their_way.retain(|id| !ids.contains(id));
            }
            open.machine.handle_frame(now, frame);
        }
    }

    pub(super) fn greeted(&mut self, link: usize, frame: ToServer) {
        let Ok(claim) = Greeting.handle_frame(frame) else {
            // Its hello was lost and something else came first.
            return self.hang_up(Side::Server, link);
        };
        self.server.session.iter_mut().for_each(|open| open.machine.close(Bye::because(Reason::Replaced)));
        self.serve();
        let terms = Terms { region: Region(0), ka_max_s: 3600, links: Vec::new() };
        let mut machine = Session::open(claim, terms, false, self.moment());
        self.server.revoked.iter().for_each(|app| machine.unregistered(app.clone()));
        self.server.session = Some(Open { link, machine, on_their_way: BTreeSet::new(), may_go: BTreeSet::new() });
    }

    pub(super) fn serve(&mut self) {
        let next = |open: &mut Open| open.machine.poll_action().map(|action| (open.link, action));
        while let Some((link, action)) = self.server.session.as_mut().and_then(next) {
            self.actions += 1;
            match action {
                GatewayAction::Send(frame) => {
                    if let ToDevice::Push(delivery) = &frame {
                        assert!(!delivery.push.expired(self.wall()), "sent after its expiry");
                        let open = self.server.session.as_mut().unwrap();
                        open.on_their_way.insert(delivery.push.id);
                        assert!(open.on_their_way.len() <= WINDOW, "the window is exceeded");
                        let least = open.machine.taking().least;
                        let goes = open.may_go.contains(&delivery.push.id) || delivery.push.urgency >= least;
                        assert!(goes, "the device is woken for what it does not want");
                    }
                    self.transmit(Side::Device, link, frame.encode());
                }
                GatewayAction::Fetch(wanted) => {
                    let backlog = self.read(&wanted);
                    let open = self.server.session.as_mut().unwrap();
                    assert_eq!(open.machine.taking().least, wanted.gate.least);
                    open.may_go = backlog.rows.iter().map(|row| row.push.id).collect();
                    let time = self.now + 1 + self.dice.below(self.weather.disk_ms);
                    self.at(time, Event::Read { link, backlog });
                }
                GatewayAction::Settled(all) => {
                    self.change(link, Change::Delete(all.iter().map(|settled| settled.sent.seq).collect()));
                }
                GatewayAction::Expired(seqs) => self.change(link, Change::Delete(seqs)),
                // Nobody counts here.
                GatewayAction::Answered(_) => {}
                GatewayAction::Register { req, app } => self.change(link, Change::Register(req, app)),
                GatewayAction::Deregister { req, app } => self.change(link, Change::Deregister(req, app)),
                GatewayAction::Outcomes(list) => self.change(link, Change::Note(list)),
                GatewayAction::Close => {
                    self.server.session = None;
                    self.hang_up(Side::Server, link);
                }
            }
        }
    }

    /// What the disk has of what is wanted.
    fn read(&self, wanted: &Wanted) -> Backlog {
        let waiting = self.server.rows.range((Bound::Excluded(wanted.from()), Bound::Unbounded));
        let mut choosing = Choosing::new(wanted, self.wall());
        for (seq, row) in waiting {
            let until = urgency::waits_until(&row.push, row.push.accepted_ms);
            choosing.see(*seq, &row.push.app, row.push.urgency, until);
        }
        let Chosen { go, complete, held, until } = choosing.choose();
        let rows: Vec<Queued> = go.iter().map(|(seq, _)| self.server.rows[seq].clone()).collect();
        assert!(rows.iter().all(|row| self.may_go(&row.push, wanted.gate)));
        Backlog { rows, complete, held, until }
    }

    /// Whether the device takes this message now, or a later one of its registration.
    fn may_go(&self, push: &Push, gate: Gate) -> bool {
        let goes = |row: &Push| {
            let waits = urgency::waits_until(row, row.accepted_ms) > self.wall();
            row.urgency >= gate.least && !(gate.quiet && waits)
        };
        let later = |row: &Queued| row.push.reg_id == push.reg_id && row.push.id > push.id && goes(&row.push);
        goes(push) || self.server.rows.values().any(later)
    }

    /// Gives the disk something to change. It works in order, and a restart loses what waits.
    pub(super) fn change(&mut self, link: usize, change: Change) {
        self.server.disk_free = self.server.disk_free.max(self.now) + 1 + self.dice.below(self.weather.disk_ms / 10);
        self.at(self.server.disk_free, Event::Commit { boot: self.server.boot, link, change });
    }

    pub(super) fn commit(&mut self, link: usize, change: Change) {
        match change {
            Change::Delete(seqs) => seqs.iter().for_each(|seq| drop(self.server.rows.remove(seq))),
            Change::Register(req, app) => {
                self.server.revoked.remove(&app);
                let result =
                    if app == app_id(UNKNOWN) { Err(Refusal::UnknownApp) } else { Ok((self.reg_id(&app), None)) };
                self.session_on(link)
                    .into_iter()
                    .for_each(|open| open.machine.registered(req, app.clone(), result.clone()));
            }
            Change::Deregister(req, app) => {
                self.server.revoked.remove(&app);
                self.end_registration(&app);
                self.session_on(link).into_iter().for_each(|open| open.machine.deregistered(req, app.clone()));
            }
            Change::Note(list) => {
                let ids: Vec<MessageId> = list.iter().map(|outcome| outcome.id).collect();
                self.server.noted.extend(&ids);
                self.session_on(link).into_iter().for_each(|open| open.machine.noted(ids.clone()));
            }
        }
    }

    pub(super) fn reg_id(&mut self, app: &AppId) -> RegId {
        self.server.issued += 1;
        let mut sealed = [0; 48];
        sealed[..8].copy_from_slice(&self.server.issued.to_be_bytes());
        *self.server.regs.entry(app.clone()).or_insert(RegId::new(Region(0), 0, &sealed))
    }
}

//! What a device still wants of the server: a registration, or the end of one, for each app at
//! most one. A wish stands across sessions until it is answered; a newer one replaces it, and an
//! answer to the older one is none.

use std::collections::BTreeMap;

use super::frame::ToServer;
use super::ids::AppId;
use super::timers::Moment;

/// What is wanted for an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A regId.
    Register,
    /// The end of the registration.
    Deregister,
}

#[derive(Debug)]
struct Standing {
    wish: Wish,
    /// Number and time of its request, once sent in this session.
    sent: Option<(u32, Moment)>,
}

/// The wishes of one device.
#[derive(Debug, Default)]
pub struct Wishes {
    standing: BTreeMap<AppId, Standing>,
    last_req: u32,
}

impl Wishes {
    /// Adds a wish; `false` if the same one stands already.
    pub fn add(&mut self, app: AppId, wish: Wish) -> bool {
        let new = self.standing.get(&app).is_none_or(|standing| standing.wish != wish);
        if new {
            self.standing.insert(app, Standing { wish, sent: None });
        }
        new
    }

    /// The requests for all wishes that were not sent in this session.
    pub fn requests(&mut self, now: Moment) -> Vec<ToServer> {
        let unsent = self.standing.iter_mut().filter(|(_, standing)| standing.sent.is_none());
        unsent
            .map(|(app, standing)| {
                self.last_req = self.last_req.wrapping_add(1);
                let (req, app) = (self.last_req, app.clone());
                standing.sent = Some((req, now));
                match standing.wish {
                    Wish::Register => ToServer::Register { req, app },
                    Wish::Deregister => ToServer::Deregister { req, app },
                }
            })
            .collect()
    }

    /// Whether this answers the app's latest request; if so, the wish is fulfilled.
    pub fn answered(&mut self, app: &AppId, req: u32) -> bool {
        let current = |standing: &Standing| standing.sent.is_some_and(|(number, _)| number == req);
        let fulfilled = self.standing.get(app).is_some_and(current);
        if fulfilled {
            self.standing.remove(app);
        }
        fulfilled
    }

    /// Whether nothing is wanted any more.
    pub fn are_fulfilled(&self) -> bool {
        self.standing.is_empty()
    }

    /// When the oldest request that waits for its answer was sent.
    pub fn oldest_sent(&self) -> Option<Moment> {
        self.standing.values().filter_map(|standing| standing.sent).map(|(_, asked)| asked).min()
    }

    /// The session is over: every wish has to be sent anew.
    pub fn forget_requests(&mut self) {
        self.standing.values_mut().for_each(|standing| standing.sent = None);
    }
}

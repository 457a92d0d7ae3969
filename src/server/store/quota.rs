//! How much may wait: for all devices of one app, and in the database altogether.
//!
//! What waits for an app, receipts for its server included, is counted from time to time, on a connection of its own, and what was
//! accepted since is added: a queue that empties quickly is known to be empty a little late. It must
//! never make a message wait for the counting.
//!
//! A Web Push channel is one device's, and has no more waiting than its registration may: it is not counted, so
//! that what is known here does not grow with the channels.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{info, warn};

use crate::daemon::lock;
use crate::proto::{AppId, Channel};
use crate::server::config::Limits;

/// The quotas, and what is known about how far they are used up.
#[derive(Debug)]
pub struct Quotas {
    waiting_per_app: u64,
    store_bytes: u64,
    waiting: Mutex<Waiting>,
    store_full: AtomicBool,
}

/// Messages by app.
#[derive(Debug, Default)]
struct Waiting {
    counted: HashMap<AppId, u64>,
    accepted_since: HashMap<AppId, u64>,
    over: HashSet<AppId>,
}

impl Waiting {
    fn of(&self, app: &AppId) -> u64 {
        let known = |counts: &HashMap<AppId, u64>| counts.get(app).copied().unwrap_or(0);
        known(&self.counted) + known(&self.accepted_since)
    }
}

impl Quotas {
    /// These quotas, with nothing waiting.
    pub fn new(limits: &Limits) -> Self {
        Self {
            waiting_per_app: limits.waiting_per_app,
            store_bytes: limits.store_megabytes.saturating_mul(1 << 20),
            waiting: Mutex::default(),
            store_full: AtomicBool::new(false),
        }
    }

    /// Whether the size of the database matters.
    pub fn limits_store(&self) -> bool {
        self.store_bytes > 0
    }

    /// Whether the number of messages matters.
    pub fn limits_apps(&self) -> bool {
        self.waiting_per_app > 0
    }

    /// Whether so many bytes leave room; says so in the log when that changes.
    pub fn has_room(&self, used_bytes: u64) -> bool {
        let full = self.limits_store() && used_bytes >= self.store_bytes;
        let was_full = self.store_full.swap(full, Ordering::Relaxed);
        let megabytes = used_bytes >> 20;
        match (was_full, full) {
            (false, true) => {
                warn!(
                    megabytes,
                    "the database is over `store-megabytes`: senders are refused (3013, or 503 by Web Push)"
                );
            }
            (true, false) => info!(megabytes, "the database is below `store-megabytes` again"),
            (true, true) | (false, false) => {}
        }
        !full
    }

    fn limits(&self, app: &AppId) -> bool {
        self.limits_apps() && !Channel::is_reserved(app)
    }

    /// Whether another message may wait for the app.
    pub fn may_wait(&self, app: &AppId) -> bool {
        if !self.limits(app) {
            return true;
        }
        let mut waiting = lock(&self.waiting);
        let fits = waiting.of(app) < self.waiting_per_app;
        if !fits && waiting.over.insert(app.clone()) {
            warn!(%app, "as many messages as `waiting-per-app` allows wait for the app: its senders are refused (3013, or 503 by Web Push)");
        }
        fits
    }

    /// A message has begun to wait for the app.
    pub fn add(&self, app: &AppId) {
        if self.limits(app) {
            *lock(&self.waiting).accepted_since.entry(app.clone()).or_default() += 1;
        }
    }

    /// What is accepted from now on may be missing in the count that begins.
    pub fn begin_count(&self) {
        let mut waiting = lock(&self.waiting);
        for (app, accepted) in std::mem::take(&mut waiting.accepted_since) {
            *waiting.counted.entry(app).or_default() += accepted;
        }
    }

    /// The count is done.
    pub fn end_count(&self, counted: HashMap<AppId, u64>) {
        let mut waiting = lock(&self.waiting);
        waiting.counted = counted;
        let over = std::mem::take(&mut waiting.over);
        let (over, again): (HashSet<_>, HashSet<_>) =
            over.into_iter().partition(|app| waiting.of(app) >= self.waiting_per_app);
        waiting.over = over;
        again.iter().for_each(|app| info!(%app, "fewer messages than `waiting-per-app` allows wait for the app again"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(waiting_per_app: u64, store_megabytes: u64) -> Quotas {
        Quotas::new(&Limits { waiting_per_app, store_megabytes, ..Limits::default() })
    }

    fn app(text: &str) -> AppId {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_accepted_since_the_count_is_added_to_it() {
        let (quotas, chat, mail) = (quotas(3, 0), app("chat"), app("mail"));
        quotas.end_count(HashMap::from([(chat.clone(), 1)]));
        for fits in [true, true, false, false] {
            assert_eq!(quotas.may_wait(&chat), fits);
            if fits {
                quotas.add(&chat);
            }
        }
        assert!(quotas.may_wait(&mail));
    }

    #[test]
    fn channels_are_not_counted() {
        let (quotas, channel) = (quotas(1, 0), Channel { id: [1; 16], sender: None }.app());
        quotas.add(&channel);
        assert!(quotas.may_wait(&channel));
        assert!(lock(&quotas.waiting).accepted_since.is_empty());
    }

    #[test]
    fn nothing_is_overlooked_while_it_is_counted() {
        let (quotas, chat) = (quotas(2, 0), app("chat"));
        quotas.add(&chat);
        quotas.begin_count();
        quotas.add(&chat);
        assert!(!quotas.may_wait(&chat));
        // One was removed meanwhile; the one that was accepted meanwhile is not in the count.
        quotas.end_count(HashMap::new());
        assert!(quotas.may_wait(&chat));
        quotas.add(&chat);
        assert!(!quotas.may_wait(&chat));
    }

    #[test]
    fn a_store_is_full_at_its_limit_and_not_before() {
        let limited = quotas(0, 2);
        assert!(limited.has_room((2 << 20) - 1) && !limited.has_room(2 << 20) && limited.has_room(0));
        let unlimited = quotas(0, 0);
        assert!(unlimited.has_room(u64::MAX) && unlimited.may_wait(&app("chat")));
    }
}

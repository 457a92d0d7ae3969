//! Who waits for receipts of Web Push, and how they hear that there are some.
//!
//! A wake-up is a hint: what there is to tell is in the store. Whoever waits enters here first and reads
//! afterwards, so that nothing is made in between unseen. Of one subscription only a few wait at a time, and
//! the oldest has to go for a new one: a peer that has died without a word keeps nobody out. It must never hold
//! more than the limits say.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tracing::debug;

use super::Server;
use crate::daemon::{Stop, lock};
use crate::proto::ReceiptsId;

/// Most that wait for one subscription.
const EACH: usize = 4;

/// Everybody who waits.
#[derive(Debug)]
pub struct Waiters {
    most: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first.
    links: HashMap<ReceiptsId, Vec<Line>>,
    count: usize,
    /// Counts all there were.
    last: u64,
    ended: bool,
}

/// The line to one who waits.
#[derive(Debug)]
struct Line {
    number: u64,
    signal: watch::Sender<Signal>,
}

/// What one who waits is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    /// Look into the store.
    Look,
    /// Leave.
    Leave,
}

/// One who waits. Dropping it gives its place back.
#[derive(Debug)]
pub struct Waiter {
    waiters: Arc<Waiters>,
    link: ReceiptsId,
    number: u64,
    signal: watch::Receiver<Signal>,
}

impl Waiters {
    /// Nobody waits; so many may.
    pub fn new(most: u32) -> Self {
        Self { most, state: Mutex::default() }
    }

    /// Waits for what is made for this subscription from now on. Where all places are taken, whoever has waited
    /// longest has to go: subscriptions cost nothing, and nobody is to keep all the places for itself.
    pub fn enter(self: &Arc<Self>, link: ReceiptsId) -> Waiter {
        let mut state = lock(&self.state);
        if state.links.get(&link).map_or(0, Vec::len) >= EACH {
            state.remove_oldest(link);
        } else if state.count >= usize::try_from(self.most).unwrap_or(usize::MAX) {
            state.remove_oldest_of_all();
        }
        // Whoever enters behind the back of `end` has taken the lock after it, and sees this.
        let first = if state.ended { Signal::Leave } else { Signal::Look };
        let (sender, signal) = watch::channel(first);
        state.last += 1;
        state.count += 1;
        let number = state.last;
        state.links.entry(link).or_default().push(Line { number, signal: sender });
        Waiter { waiters: Arc::clone(self), link, number, signal }
    }

    /// Tells those who wait for these subscriptions that there may be something for them.
    fn wake(&self, links: impl IntoIterator<Item = ReceiptsId>) {
        let state = lock(&self.state);
        for link in links {
            state.links.get(&link).into_iter().flatten().for_each(Line::look);
        }
    }

    /// Tells everybody who waits for this subscription to look again.
    pub fn wake_one(&self, link: ReceiptsId) {
        self.wake([link]);
    }

    fn wake_all(&self) {
        lock(&self.state).links.values().flatten().for_each(Line::look);
    }

    /// Everybody is to leave, and whoever comes from now on: the server stops.
    pub fn end(&self) {
        let mut state = lock(&self.state);
        state.ended = true;
        state.links.values().flatten().for_each(Line::leave);
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        lock(&self.state).count
    }
}

impl State {
    fn remove_oldest(&mut self, link: ReceiptsId) {
        if let Some(oldest) = self.links.get(&link).and_then(|lines| lines.first()) {
            oldest.leave();
            self.remove(link, oldest.number);
        }
    }

    fn remove_oldest_of_all(&mut self) {
        let oldest = |(link, lines): (&ReceiptsId, &Vec<Line>)| lines.first().map(|line| (line.number, *link));
        if let Some((_, link)) = self.links.iter().filter_map(oldest).min_by_key(|(number, _)| *number) {
            self.remove_oldest(link);
        }
    }

    /// Removes one who may have been removed before.
    fn remove(&mut self, link: ReceiptsId, number: u64) {
        let Some(lines) = self.links.get_mut(&link) else { return };
        let before = lines.len();
        lines.retain(|line| line.number != number);
        self.count -= before - lines.len();
        if lines.is_empty() {
            self.links.remove(&link);
        }
    }
}

impl Line {
    /// One who is to leave stays so.
    fn look(&self) {
        self.signal.send_if_modified(|signal| *signal == Signal::Look);
    }

    fn leave(&self) {
        self.signal.send_replace(Signal::Leave);
    }
}

impl Waiter {
    /// Waits until the store is worth a look; `false` if there is nothing more to wait for here. Safe to cancel.
    pub async fn news(&mut self) -> bool {
        if *self.signal.borrow() == Signal::Leave {
            return false;
        }
        // An end without a word is that of the place.
        self.signal.changed().await.is_ok() && *self.signal.borrow() == Signal::Look
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        lock(&self.waiters.state).remove(self.link, self.number);
    }
}

/// Passes the store's hints on to those whom they are for, until the stop comes.
pub async fn run(server: Arc<Server>, mut stop: Stop) {
    let mut last = server.store.last_confirmation().await.unwrap_or(0);
    loop {
        tokio::select! {
            () = server.store.confirmations_made() => pass_on(&server, &mut last).await,
            () = stop.wait() => return,
        }
    }
}

async fn pass_on(server: &Server, last: &mut i64) {
    loop {
        match server.store.confirmed_after(*last).await {
            Ok(made) => {
                let Some((place, _)) = made.last() else { return };
                *last = *place;
                server.waiters.wake(made.into_iter().map(|(_, link)| link).collect::<HashSet<_>>());
            }
            Err(error) => {
                debug!("whom new receipts are for could not be read: {error}");
                return server.waiters.wake_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world;
    use futures_util::FutureExt;

    #[test]
    fn who_is_woken_before_it_waits_hears_it_and_nobody_else_does() {
        let waiters = Arc::new(Waiters::new(10));
        let (link, other) = (world::receipts_id(), world::receipts_id());
        let (mut one, mut two) = (waiters.enter(link), waiters.enter(other));
        waiters.wake([link]);
        waiters.wake([link]);
        assert_eq!(one.news().now_or_never(), Some(true));
        assert_eq!((one.news().now_or_never(), two.news().now_or_never()), (None, None));
        drop(one);
        waiters.wake_all();
        assert_eq!(two.news().now_or_never(), Some(true));
        drop(two);
        assert_eq!((waiters.count(), lock(&waiters.state).links.len()), (0, 0));
    }

    #[test]
    fn of_one_subscription_the_oldest_has_to_go_and_others_have_their_places() {
        let waiters = Arc::new(Waiters::new(EACH as u32 + 1));
        let (link, other) = (world::receipts_id(), world::receipts_id());
        let mut all: Vec<_> = (0..=EACH).map(|_| waiters.enter(link)).collect();
        assert_eq!(waiters.count(), EACH);
        assert_eq!(all[0].news().now_or_never(), Some(false));
        assert_eq!(all[1].news().now_or_never(), None);
        let mut last = waiters.enter(other);
        // All places are taken: of all who wait the oldest has to go.
        let stranger = waiters.enter(world::receipts_id());
        assert_eq!((all[1].news().now_or_never(), last.news().now_or_never()), (Some(false), None));
        drop((last, stranger, all));
        assert_eq!((waiters.count(), lock(&waiters.state).links.len()), (0, 0));
    }

    #[test]
    fn at_the_end_all_leave_and_so_does_who_comes_late() {
        let waiters = Arc::new(Waiters::new(10));
        let link = world::receipts_id();
        let mut early = waiters.enter(link);
        waiters.end();
        let mut late = waiters.enter(link);
        waiters.wake([link]);
        assert_eq!((early.news().now_or_never(), late.news().now_or_never()), (Some(false), Some(false)));
    }
}

//! Which devices are connected to this process, and how to get their session's attention.
//!
//! A wake-up is a hint, never the message: what waits is in the store. Only what must not be
//! stored (`NoReliable`) is handed over here, and dropped when the session is busy. A newer
//! session of a device replaces the older one, and the older one's end cannot remove the newer.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::{Notify, oneshot};

use crate::daemon::lock;
use crate::proto::gateway::Seq;
use crate::proto::urgency::Taking;
use crate::proto::{DeviceId, MessageId, Push};

/// Parts of the map, so that many cores do not wait for one lock.
const PARTS: usize = 16;
/// Most offers that wait for a session.
const OFFERS: usize = 32;
/// Most questions that wait for a session.
const QUESTIONS: usize = 1024;

/// What a session is to look at.
#[derive(Debug, Default)]
pub struct Signals {
    /// The store may hold something.
    pub wake: bool,
    /// A newer session has taken its place.
    pub replaced: bool,
    /// The server is shutting down; devices are to spread over so many seconds when they come back.
    pub drain: Option<u32>,
    /// A registration of the device was ended here.
    pub revoked: bool,
    /// Pushes that are delivered now or never.
    pub offers: Vec<Push>,
    /// Whether these may have been sent; whoever asks may have gone.
    pub questions: Vec<(Seq, MessageId, oneshot::Sender<bool>)>,
    /// From this place on the store may hold what it did not show before.
    pub look_again: Option<Seq>,
}

/// The line to one session.
#[derive(Debug, Default)]
pub struct Line {
    signals: Mutex<Signals>,
    attention: Notify,
    taking: Mutex<Taking>,
}

impl Line {
    /// Waits for the next signals and takes them. Safe to cancel.
    pub async fn signals(&self) -> Signals {
        self.attention.notified().await;
        std::mem::take(&mut *lock(&self.signals))
    }

    /// Notes what the device takes, for whoever asks why a message waits.
    pub fn note(&self, taking: Taking) {
        *lock(&self.taking) = taking;
    }

    fn signal(&self, change: impl FnOnce(&mut Signals)) {
        change(&mut lock(&self.signals));
        self.attention.notify_one();
    }
}

/// The connected devices.
#[derive(Debug)]
pub struct Registry {
    parts: [Mutex<HashMap<DeviceId, Arc<Line>>>; PARTS],
    hasher: RandomState,
    draining: OnceLock<u32>,
}

impl Registry {
    /// A registry in which nobody is connected.
    pub fn new() -> Self {
        Self { parts: Default::default(), hasher: RandomState::new(), draining: OnceLock::new() }
    }

    /// Enters a new session of the device, and tells the one it replaces; says whether there was one.
    pub fn enter(&self, device: DeviceId) -> (Arc<Line>, bool) {
        let line = Arc::new(Line::default());
        let replaced = lock(self.part(device)).insert(device, Arc::clone(&line));
        if let Some(older) = &replaced {
            older.signal(|signals| signals.replaced = true);
        }
        // Whoever enters behind the back of `drain` has taken the lock after it, and sees this.
        if let Some(window_s) = self.draining.get() {
            line.signal(|signals| signals.drain = Some(*window_s));
        }
        (line, replaced.is_some())
    }

    /// Removes the session that has this line, and no other.
    pub fn leave(&self, device: DeviceId, line: &Arc<Line>) {
        let mut part = lock(self.part(device));
        if part.get(&device).is_some_and(|current| Arc::ptr_eq(current, line)) {
            part.remove(&device);
        }
    }

    /// Tells the device's session, if there is one, that the store may hold something for it.
    pub fn wake(&self, device: DeviceId) {
        if let Some(line) = self.line(device) {
            line.signal(|signals| signals.wake = true);
        }
    }

    /// Tells the device's session, if there is one, that a registration was ended here.
    pub fn revoke(&self, device: DeviceId) {
        if let Some(line) = self.line(device) {
            line.signal(|signals| signals.revoked = true);
        }
    }

    /// Offers a push that is not stored, as its device is sent it; it is dropped if the device is away or busy.
    pub fn offer(&self, device: DeviceId, push: Push) {
        if let Some(line) = self.line(device) {
            line.signal(|signals| {
                if signals.offers.len() < OFFERS {
                    signals.offers.push(push.for_device());
                }
            });
        }
    }

    /// Asks the device's session whether the message at this place may have been sent; `None` if
    /// there is no session. One that is asked too much does not answer.
    pub fn was_sent(&self, device: DeviceId, seq: Seq, id: MessageId) -> Option<oneshot::Receiver<bool>> {
        let line = self.line(device)?;
        let (answer, answered) = oneshot::channel();
        line.signal(|signals| {
            if signals.questions.len() < QUESTIONS {
                signals.questions.push((seq, id, answer));
            }
        });
        Some(answered)
    }

    /// Tells the device's session that the store shows again what is at this place.
    pub fn look_again(&self, device: DeviceId, seq: Seq) {
        if let Some(line) = self.line(device) {
            line.signal(|signals| signals.look_again = Some(signals.look_again.map_or(seq, |other| other.min(seq))));
        }
    }

    /// What the device takes, if it is connected.
    pub fn taking(&self, device: DeviceId) -> Option<Taking> {
        Some(*lock(&self.line(device)?.taking))
    }

    /// Tells every session to end, those that have yet to begin as well; its device is to come back at
    /// some moment of so many seconds.
    pub fn drain(&self, window_s: u32) {
        let window_s = *self.draining.get_or_init(|| window_s);
        for part in &self.parts {
            for line in lock(part).values() {
                line.signal(|signals| signals.drain = Some(window_s));
            }
        }
    }

    /// How many devices are connected.
    pub fn count(&self) -> usize {
        self.parts.iter().map(|part| lock(part).len()).sum()
    }

    fn line(&self, device: DeviceId) -> Option<Arc<Line>> {
        lock(self.part(device)).get(&device).cloned()
    }

    fn part(&self, device: DeviceId) -> &Mutex<HashMap<DeviceId, Arc<Line>>> {
        let number = self.hasher.hash_one(device) % PARTS as u64;
        &self.parts[usize::try_from(number).unwrap_or(0)]
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world;

    #[tokio::test]
    async fn a_newer_session_replaces_the_older_and_outlives_its_goodbye() {
        let (registry, device) = (Registry::new(), world::device_id());
        let (older, first) = registry.enter(device);
        let (newer, second) = registry.enter(device);
        assert_eq!((first, second), (false, true));
        assert!(older.signals().await.replaced);
        registry.leave(device, &older);
        assert_eq!(registry.count(), 1);
        registry.wake(device);
        assert!(newer.signals().await.wake);
        registry.leave(device, &newer);
        assert_eq!(registry.count(), 0);
    }

    #[tokio::test]
    async fn a_wake_up_before_anybody_listens_is_not_lost() {
        let (registry, device) = (Registry::new(), world::device_id());
        let (line, _) = registry.enter(device);
        registry.wake(device);
        registry.wake(device);
        assert!(line.signals().await.wake);
    }

    #[tokio::test]
    async fn a_session_that_begins_during_the_drain_is_told_to_end() {
        let registry = Registry::new();
        let (early, _) = registry.enter(world::device_id());
        registry.drain(60);
        let (late, _) = registry.enter(world::device_id());
        for line in [early, late] {
            let signals = tokio::time::timeout(std::time::Duration::from_secs(10), line.signals()).await;
            assert_eq!(signals.unwrap().drain, Some(60));
        }
    }
}

//! What the store says of itself while it works: whether its last write reached the disk, how long
//! commits take, and what became of messages. Only atomics; whoever asks disturbs nobody.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::db::Commit;
use crate::proto::Moment;
use crate::server::metrics::Counter;
use crate::server::metrics::histogram::{Histogram, QUICK};
use crate::world::Clock;

use super::sql::Ends;

/// A commit that takes longer holds everybody up, and the store does not count as ready.
pub const STUCK: Duration = Duration::from_secs(5);

/// How the writer's last commit went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastWrite {
    /// There was none since the start.
    None,
    /// It is on disk.
    Good,
    /// It failed.
    Failed,
    /// One is under way for longer than [`STUCK`].
    Stuck,
}

/// The store's state and counts.
#[derive(Debug)]
pub struct Vitals {
    clock: Clock,
    /// 0 none, 1 good, 2 failed.
    last: AtomicU8,
    /// When the commit that is under way began, plus one; 0 if none is.
    begun_ms: AtomicU64,
    /// Microseconds that the disk takes for a commit.
    sync_us: AtomicU64,
    /// Commits, with their fsync.
    pub commits: Histogram,
    /// Commits of which nothing stands.
    pub failed_commits: Counter,
    /// Writes that those shared which succeeded.
    pub writes: Counter,
    /// From a sender's message to its fsync.
    pub stored: Histogram,
    /// Messages that expired before their device had them.
    pub expired: Counter,
    /// Messages that had to go because too many waited for a registration.
    pub dropped: Counter,
    /// Messages whose place a later one took.
    pub replaced: Counter,
    /// Messages that were removed because their device has them.
    pub acknowledged: Counter,
}

impl Vitals {
    pub(super) fn new() -> Self {
        Self {
            clock: Clock::start(),
            last: AtomicU8::new(0),
            begun_ms: AtomicU64::new(0),
            sync_us: AtomicU64::new(0),
            commits: Histogram::new(QUICK),
            failed_commits: Counter::default(),
            writes: Counter::default(),
            stored: Histogram::new(QUICK),
            expired: Counter::default(),
            dropped: Counter::default(),
            replaced: Counter::default(),
            acknowledged: Counter::default(),
        }
    }

    /// How the last write went.
    pub fn last_write(&self) -> LastWrite {
        let begun = self.begun_ms.load(Ordering::Relaxed);
        if begun > 0 && self.clock.now().since(Moment(begun - 1)) > STUCK {
            return LastWrite::Stuck;
        }
        match self.last.load(Ordering::Relaxed) {
            0 => LastWrite::None,
            1 => LastWrite::Good,
            _ => LastWrite::Failed,
        }
    }

    /// How long the disk takes for a commit, usually.
    pub fn sync(&self) -> Duration {
        Duration::from_micros(self.sync_us.load(Ordering::Relaxed))
    }

    /// Down quickly, up slowly: now and then a commit also copies the log into the database.
    fn note_sync(&self, sync: Duration) {
        let sample = u64::try_from(sync.as_micros()).unwrap_or(u64::MAX);
        let usual = self.sync_us.load(Ordering::Relaxed);
        let next = if sample < usual { usual.midpoint(sample) } else { usual + (sample - usual) / 32 };
        // Only the writer writes it.
        self.sync_us.store(next, Ordering::Relaxed);
    }

    /// As if there had been no write.
    pub(super) fn forget_last(&self) {
        self.last.store(0, Ordering::Relaxed);
    }

    /// Counts messages that have ended for others.
    pub(super) fn count(&self, all: impl IntoIterator<Item = Ends>) {
        for Ends { dropped, expired, replaced } in all {
            self.dropped.add(dropped);
            self.expired.add(expired);
            self.replaced.add(replaced);
        }
    }

    pub(super) fn note(&self, commit: Commit<'_>) {
        match commit {
            Commit::Begins => self.begun_ms.store(self.clock.now().0 + 1, Ordering::Relaxed),
            Commit::Ends { writes, took, sync, error } => {
                self.note_sync(sync);
                self.last.store(if error.is_none() { 1 } else { 2 }, Ordering::Relaxed);
                self.begun_ms.store(0, Ordering::Relaxed);
                self.commits.observe(took);
                match error {
                    None => self.writes.add(writes),
                    Some(_) => self.failed_commits.add(1),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::DbError;

    #[test]
    fn the_last_write_counts_and_no_earlier_one() {
        let vitals = Vitals::new();
        assert_eq!(vitals.last_write(), LastWrite::None);
        let took = Duration::from_millis(1);
        vitals.note(Commit::Ends { writes: 3, took, sync: took, error: None });
        assert_eq!(vitals.last_write(), LastWrite::Good);
        vitals.note(Commit::Ends { writes: 3, took, sync: took, error: Some(&DbError::Full) });
        assert_eq!(vitals.last_write(), LastWrite::Failed);
        assert_eq!((vitals.writes.get(), vitals.failed_commits.get()), (3, 1));
        vitals.note(Commit::Begins);
        assert_eq!(vitals.last_write(), LastWrite::Failed, "what is under way says nothing yet");
        vitals.note(Commit::Ends { writes: 1, took, sync: took, error: None });
        assert_eq!(vitals.last_write(), LastWrite::Good);
    }

    #[test]
    fn what_the_disk_usually_takes_is_not_what_it_takes_now_and_then() {
        let vitals = Vitals::new();
        let note = |ms| {
            let sync = Duration::from_millis(ms);
            vitals.note(Commit::Ends { writes: 1, took: sync, sync, error: None });
        };
        (0..200).for_each(|_| note(10));
        assert!((9..=10).contains(&vitals.sync().as_millis()));
        note(50);
        assert!(vitals.sync() < Duration::from_millis(12));
        (0..10).for_each(|_| note(1));
        assert!(vitals.sync() < Duration::from_millis(2));
    }
}

//! Turns at the store: while several apps send, each has only a few requests there at a time.
//!
//! A turn is for a few messages; a request with more takes several turns, one after the other.
//!
//! A commit serves everybody who waits for it. Without turns, one app with many senders makes every
//! commit long and keeps the cores busy, and all others wait as long as it does. An app that is alone
//! has no such limit. A turn is for the store only: it must not be held while a peer is waited for
//! that does not belong to the app.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::rates::TooFast;
use crate::proto::AppId;

/// How long an app that has sent counts as company to the others.
const COMPANY: Duration = Duration::from_secs(5);
/// Most requests of one app that wait for their turn. Each holds its body.
const WAITING: usize = 512;
/// How long a request waits for its turn: less than another region that has passed it on waits for the
/// answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// For so many microseconds of the disk's a turn is for one message more.
const SHARE_US: u128 = 500;
/// Messages that a turn is for on the fastest disk.
const SHARE_LEAST: usize = 2;
/// And on the slowest.
const SHARE_MOST: usize = 64;
/// When whoever found no place to wait, or waited too long, may come again.
const AFTER: Duration = Duration::from_secs(1);

/// The turns of every app that was heard of lately.
#[derive(Debug)]
pub struct Turns {
    each: u32,
    patience: Duration,
    state: Mutex<State>,
}

/// A request's place in the line of its app.
#[derive(Debug)]
pub struct InLine {
    line: Option<(Arc<Semaphore>, OwnedSemaphorePermit)>,
    /// When the patience ends.
    until: tokio::time::Instant,
    over: TooFast,
}

/// A request's turn, for as long as it is kept.
#[derive(Debug)]
pub struct Turn {
    _turn: Option<OwnedSemaphorePermit>,
}

impl InLine {
    /// For how many messages a turn is at the most, if the disk takes so long for a commit: about as many
    /// as make it half as long again.
    pub fn share(&self, sync: Duration) -> usize {
        let share = usize::try_from(sync.as_micros() / SHARE_US).unwrap_or(SHARE_MOST);
        self.line.as_ref().map_or(usize::MAX, |_| share.clamp(SHARE_LEAST, SHARE_MOST))
    }

    /// Waits for a turn, or says that it does not come soon.
    pub async fn turn(&self) -> Result<Turn, TooFast> {
        let Some((turns, _place)) = &self.line else { return Ok(Turn { _turn: None }) };
        match tokio::time::timeout_at(self.until, Arc::clone(turns).acquire_owned()).await {
            // The line was given up: the app is alone.
            Ok(turn) => Ok(Turn { _turn: turn.ok() }),
            Err(_) => Err(self.over),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    company: Company,
    lines: HashMap<AppId, Line>,
}

/// The requests of one app.
#[derive(Clone, Debug)]
struct Line {
    turns: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl Turns {
    /// Turns for `each` requests of an app at a time; 0 for as many as there are.
    pub fn new(each: u32) -> Self {
        Self { each, patience: PATIENCE, state: Mutex::default() }
    }

    /// A place in the app's line, or that too many wait already. Nobody else is asked for anything, and
    /// nothing counted, before a request has one.
    pub fn line_up(&self, app: &AppId) -> Result<InLine, TooFast> {
        let over = TooFast { key: "app-requests", limit: self.each, after: AFTER };
        let line = match self.line(app, Instant::now()) {
            Some(line) => Some((line.turns, line.places.try_acquire_owned().map_err(|_| over)?)),
            None => None,
        };
        Ok(InLine { line, until: tokio::time::Instant::now() + self.patience, over })
    }

    /// Forgets the apps of which no request is here.
    pub fn forget_idle(&self) {
        let idle = |line: &Line| Arc::strong_count(&line.turns) == 1 && Arc::strong_count(&line.places) == 1;
        self.state().lines.retain(|_, line| !idle(line));
    }

    /// The line of an app that has to queue now.
    fn line(&self, app: &AppId, now: Instant) -> Option<Line> {
        let each = usize::try_from(self.each).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        if each == 0 {
            return None;
        }
        let mut state = self.state();
        if !state.company.has(app, now) {
            // Whoever waits still must not be overtaken by whoever comes now.
            state.lines.remove(app).iter().for_each(|line| line.turns.close());
            return None;
        }
        if let Some(line) = state.lines.get(app) {
            return Some(line.clone());
        }
        let line = Line { turns: Arc::new(Semaphore::new(each)), places: Arc::new(Semaphore::new(WAITING)) };
        state.lines.insert(app.clone(), line.clone());
        Some(line)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which app sent last, and when another did.
#[derive(Debug, Default)]
struct Company {
    latest: Option<(AppId, Instant)>,
    other: Option<Instant>,
}

impl Company {
    /// Notes that this app sends now; returns whether another did so lately.
    fn has(&mut self, app: &AppId, now: Instant) -> bool {
        match &mut self.latest {
            Some((latest, at)) if latest == app => *at = now,
            latest => self.other = latest.replace((app.clone(), now)).map(|(_, at)| at).or(self.other),
        }
        self.other.is_some_and(|at| now.saturating_duration_since(at) < COMPANY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn app(text: &str) -> AppId {
        text.parse().unwrap()
    }

    /// What is there without waiting.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        future.now_or_never()
    }

    #[test]
    fn an_app_has_company_while_another_has_sent_lately() {
        let (mut company, start) = (Company::default(), Instant::now());
        let mut has = |name: &str, ms| company.has(&app(name), start + Duration::from_millis(ms));
        assert!(!has("chat", 0));
        assert!(!has("chat", 1));
        assert!(has("mail", 2));
        assert!(has("chat", 3));
        assert!(has("chat", 5_001));
        assert!(!has("chat", 5_002));
        // Of three, each has the company of the other that came last.
        assert!(has("mail", 6_000));
        assert!(has("news", 10_500));
        assert!(has("mail", 15_000));
        assert!(!has("mail", 15_500));
    }

    /// What a request is at its turn.
    async fn turn(turns: &Turns, app: &AppId) -> Result<Turn, TooFast> {
        turns.line_up(app)?.turn().await
    }

    #[tokio::test]
    async fn who_is_alone_has_no_limit_and_who_is_not_has_some_turns() {
        let turns = Turns::new(2);
        let (chat, mail) = (app("chat"), app("mail"));
        let alone: Vec<Turn> = (0..100).map(|_| now(turn(&turns, &chat)).unwrap().unwrap()).collect();
        let _mail = now(turn(&turns, &mail)).unwrap().unwrap();
        // What has begun goes on; from now on there are two turns for each.
        let first = now(turn(&turns, &chat)).unwrap().unwrap();
        let _second = now(turn(&turns, &chat)).unwrap().unwrap();
        let mut third = Box::pin(turn(&turns, &chat));
        assert!(now(&mut third).is_none());
        assert!(now(turn(&turns, &mail)).is_some());
        drop(alone);
        assert!(now(&mut third).is_none());
        drop(first);
        assert!(now(&mut third).unwrap().is_ok());
    }

    #[tokio::test]
    async fn who_finds_no_place_to_wait_is_told_when_to_come_again() {
        let turns = Turns::new(1);
        let (chat, mail) = (app("chat"), app("mail"));
        let _mail = now(turn(&turns, &mail)).unwrap().unwrap();
        let _turn = now(turn(&turns, &chat)).unwrap().unwrap();
        let places: Vec<InLine> = (0..WAITING).map(|_| turns.line_up(&chat).unwrap()).collect();
        let over = turns.line_up(&chat).unwrap_err();
        assert_eq!((over.key, over.limit, over.retry_s()), ("app-requests", 1, 1));
        drop(places);
        assert!(turns.line_up(&chat).is_ok());
        assert!(now(turn(&turns, &mail)).is_some());
    }

    #[tokio::test]
    async fn who_waits_too_long_is_told_to_come_again() {
        let turns = Turns { patience: Duration::ZERO, ..Turns::new(1) };
        let (chat, mail) = (app("chat"), app("mail"));
        let _mail = turn(&turns, &mail).await.unwrap();
        let held = turn(&turns, &chat).await.unwrap();
        assert_eq!(turn(&turns, &chat).await.unwrap_err().key, "app-requests");
        drop(held);
        assert!(turn(&turns, &chat).await.is_ok());
    }

    #[tokio::test]
    async fn who_waits_when_the_company_has_gone_is_not_overtaken() {
        let turns = Turns::new(1);
        let (chat, mail) = (app("chat"), app("mail"));
        let _mail = turn(&turns, &mail).await.unwrap();
        let _turn = turn(&turns, &chat).await.unwrap();
        let mut waiting = Box::pin(turn(&turns, &chat));
        assert!(now(&mut waiting).is_none());
        assert!(turns.line(&chat, Instant::now() + COMPANY).is_none());
        assert!(now(&mut waiting).unwrap().is_ok());
    }

    #[test]
    fn zero_is_no_limit_and_idle_apps_are_forgotten() {
        let turns = Turns::new(0);
        let (chat, mail) = (app("chat"), app("mail"));
        turns.line_up(&mail).unwrap();
        let _all: Vec<InLine> = (0..2000).map(|_| turns.line_up(&chat).unwrap()).collect();

        let turns = Turns::new(1);
        turns.line_up(&mail).unwrap();
        let place = turns.line_up(&chat).unwrap();
        turns.forget_idle();
        assert_eq!(turns.state().lines.len(), 1);
        drop(place);
        turns.forget_idle();
        assert_eq!(turns.state().lines.len(), 0);
    }
}

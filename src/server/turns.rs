//! Turns at the store: while several apps send, each has only a few requests there at a time.
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
/// When whoever found no place to wait may come again.
const AFTER: Duration = Duration::from_secs(1);

/// The turns of every app that was heard of lately.
#[derive(Debug)]
pub struct Turns {
    each: u32,
    state: Mutex<State>,
}

/// A request's turn, for as long as it is kept.
#[derive(Debug)]
pub struct Turn {
    _turn: Option<OwnedSemaphorePermit>,
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
        Self { each, state: Mutex::default() }
    }

    /// Waits for a turn, or says that too many wait already.
    pub async fn take(&self, app: &AppId) -> Result<Turn, TooFast> {
        let Some(line) = self.line(app, Instant::now()) else { return Ok(Turn { _turn: None }) };
        let full = |_| TooFast { key: "app-requests", limit: self.each, after: AFTER };
        let _place = line.places.try_acquire_owned().map_err(full)?;
        // Nobody closes it; if somebody did, there would be no limit.
        Ok(Turn { _turn: line.turns.acquire_owned().await.ok() })
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

    #[test]
    fn who_is_alone_has_no_limit_and_who_is_not_has_some_turns() {
        let turns = Turns::new(2);
        let (chat, mail) = (app("chat"), app("mail"));
        let alone: Vec<Turn> = (0..100).map(|_| now(turns.take(&chat)).unwrap().unwrap()).collect();
        let _mail = now(turns.take(&mail)).unwrap().unwrap();
        // What has begun goes on; from now on there are two turns for each.
        let first = now(turns.take(&chat)).unwrap().unwrap();
        let _second = now(turns.take(&chat)).unwrap().unwrap();
        let mut third = Box::pin(turns.take(&chat));
        assert!(now(&mut third).is_none());
        assert!(now(turns.take(&mail)).is_some());
        drop(alone);
        assert!(now(&mut third).is_none());
        drop(first);
        assert!(now(&mut third).unwrap().is_ok());
    }

    #[test]
    fn who_finds_no_place_to_wait_is_told_when_to_come_again() {
        let turns = Turns::new(1);
        let (chat, mail) = (app("chat"), app("mail"));
        let _mail = now(turns.take(&mail)).unwrap().unwrap();
        let _turn = now(turns.take(&chat)).unwrap().unwrap();
        let mut waiting: Vec<_> = (0..WAITING).map(|_| Box::pin(turns.take(&chat))).collect();
        assert!(waiting.iter_mut().all(|waiting| now(waiting).is_none()));
        let over = now(turns.take(&chat)).unwrap().unwrap_err();
        assert_eq!((over.key, over.limit, over.retry_s()), ("app-requests", 1, 1));
        // Who hangs up leaves its place to another.
        drop(waiting.pop());
        assert!(now(turns.take(&chat)).is_none());
        assert!(now(turns.take(&mail)).is_some());
    }

    #[test]
    fn zero_is_no_limit_and_idle_apps_are_forgotten() {
        let turns = Turns::new(0);
        let (chat, mail) = (app("chat"), app("mail"));
        let _mail = now(turns.take(&mail)).unwrap().unwrap();
        let _all: Vec<Turn> = (0..2000).map(|_| now(turns.take(&chat)).unwrap().unwrap()).collect();

        let turns = Turns::new(1);
        let _alone = now(turns.take(&mail)).unwrap().unwrap();
        let turn = now(turns.take(&chat)).unwrap().unwrap();
        turns.forget_idle();
        assert_eq!(turns.state().lines.len(), 1);
        drop(turn);
        turns.forget_idle();
        assert_eq!(turns.state().lines.len(), 0);
    }
}

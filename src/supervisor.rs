//! What a supervisor such as systemd hears of the daemons: that they are ready, a line about how they
//! are, and signs of life. Where there is none, nothing here does anything. Source: sd_notify(3).
//!
//! It is told what is, and never asked: nothing may depend on whether anybody listens.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;
use tracing::debug;

/// Whether there is one.
pub fn listens() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The daemon does its work. Also the end of a reload.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// How the daemon is.
pub fn tell(how: &str) {
    send(&[NotifyState::Status(how)]);
}

/// The configuration is read again; [`ready`] ends it, whatever came of it.
pub fn reloading() {
    // Newer ones of systemd want to know when. A clock that cannot be read is no reason not to reload.
    let since = NotifyState::monotonic_usec_now().ok();
    let states: Vec<NotifyState> = [NotifyState::Reloading].into_iter().chain(since).collect();
    send(&states);
}

/// The daemon ends in order.
pub fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!("the supervisor was not told: {error}");
    }
}

/// The loop that says so still turns. Of one that hangs nothing is heard any more, and the supervisor
/// starts the daemon anew.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// When a loop has to say that it is [alive](alive()): a part of its select.
#[derive(Debug)]
pub struct Watchdog {
    /// Half of the longest silence; `None` if nobody waits.
    every: Option<Duration>,
    last: Instant,
}

impl Watchdog {
    /// As the supervisor wants it.
    pub fn wanted() -> Self {
        let longest_silence = listens().then(sd_notify::watchdog_enabled).flatten();
        Self { every: longest_silence.map(|silence| silence / 2), last: Instant::now() }
    }

    /// Returns when it is time; never if nobody waits. Safe to cancel.
    pub async fn due(&mut self) {
        let Some(every) = self.every else { return std::future::pending().await };
        tokio::time::sleep_until(self.last + every).await;
        self.last = Instant::now();
    }
}

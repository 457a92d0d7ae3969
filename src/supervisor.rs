//! What a supervisor such as systemd hears of the daemons: that they are ready, a line about how they
//! are, and signs of life. Where there is none, nothing here does anything. Source: sd_notify(3).
//!
//! It is told what is, and never asked: nothing may depend on whether anybody listens. Of the libraries for this
//! each waits for as long as the supervisor does not read; a daemon that serves others must not.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::world;

/// How long a supervisor that is busy may keep the daemon waiting with what it must not miss.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether there is one.
pub fn listens() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The daemon does its work. Also the end of a reload.
pub fn ready() {
    send("READY=1\n", Some(PATIENCE));
}

/// How the daemon is; a line that cannot be taken now is followed by the next.
pub fn tell(how: &str) {
    send(&format!("STATUS={}\n", how.replace('\n', " ")), None);
}

/// The configuration is read again; [`ready`] ends it, whatever came of it.
pub fn reloading() {
    // Newer ones of systemd want to know when.
    let since_us = world::awake_time().as_micros();
    send(&format!("RELOADING=1\nMONOTONIC_USEC={since_us}\n"), Some(PATIENCE));
}

/// The daemon ends in order.
pub fn stopping() {
    send("STOPPING=1\nSTATUS=stopping\n", Some(PATIENCE));
}

/// The loop that says so still turns. Of one that hangs nothing is heard any more, and the supervisor
/// starts the daemon anew.
pub fn alive() {
    send("WATCHDOG=1\n", None);
}

fn send(message: &str, patience: Option<Duration>) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send_to(name.as_bytes(), message.as_bytes(), patience) {
        debug!("the supervisor was not told: {error}");
    }
}

/// A name that begins with `@` is one of the abstract namespace: unix(7).
fn send_to(name: &[u8], message: &[u8], patience: Option<Duration>) -> io::Result<()> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(patience.is_none())?;
    socket.set_write_timeout(patience)?;
    socket.send_to_addr(message, &address).map(drop)
}

/// When a loop has to say that it is [alive](alive()): a part of its select.
#[derive(Debug)]
pub struct Watchdog {
    /// A third of the longest silence, so that one sign may be lost; `None` if nobody waits.
    every: Option<Duration>,
    last: Instant,
}

impl Watchdog {
    /// As the supervisor wants it.
    pub fn wanted() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        // What it wants of another process is inherited.
        let of_this = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let longest_silence = number("WATCHDOG_USEC").filter(|_| listens() && of_this).map(Duration::from_micros);
        Self { every: longest_silence.map(|silence| silence / 3), last: Instant::now() }
    }

    /// Returns when it is time; never if nobody waits. Safe to cancel.
    pub async fn due(&mut self) {
        let Some(every) = self.every else { return std::future::pending().await };
        tokio::time::sleep_until(self.last + every).await;
        self.last = Instant::now();
    }
}

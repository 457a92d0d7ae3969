//! The one alarm of the connection, on the clock that goes on while the device sleeps.
//!
//! Where the system lets it (`CAP_WAKE_ALARM`), the alarm wakes the device; elsewhere it comes when
//! something else has woken it, and how long it slept is found out by comparing two clocks.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;
use tracing::debug;

use crate::proto::Moment;
use crate::world::{self, Clock};

/// A device that slept longer has to find out whether its connection still lives.
const ASLEEP: Duration = Duration::from_secs(10);

/// The alarm.
#[derive(Debug)]
pub struct Alarm {
    clock: Clock,
    timer: OwnedFd,
    /// The same, as it is read from: eight bytes when it has rung.
    rung: Receiver,
    wakes: bool,
    set: Option<Moment>,
    sleep: SleepWatch,
}

impl Alarm {
    /// An alarm that is not set.
    pub fn new(clock: Clock) -> std::io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let (timer, wakes) = match timerfd_create(TimerfdClockId::BoottimeAlarm, flags) {
            Ok(timer) => (timer, true),
            Err(error) => {
                debug!("the alarm does not wake the device: {error}");
                (timerfd_create(TimerfdClockId::Boottime, flags)?, false)
            }
        };
        let sleep = SleepWatch::new(world::boot_time(), world::awake_time());
        // For tokio it is like a pipe: unless it has rung, there is nothing in it.
        let rung = Receiver::from_owned_fd_unchecked(timer.try_clone()?)?;
        Ok(Self { clock, timer, rung, wakes, set: None, sleep })
    }

    /// Whether it wakes a device that sleeps.
    pub fn wakes(&self) -> bool {
        self.wakes
    }

    /// Returns at that moment; never if there is none. Safe to cancel.
    pub async fn ring(&mut self, at: Option<Moment>) {
        let Some(at) = at else {
            // One that was set for nothing costs a wake-up.
            if self.set.take().is_some() {
                self.arm(None);
            }
            return std::future::pending().await;
        };
        while self.clock.now() < at {
            if self.set != Some(at) {
                self.set = Some(at);
                self.arm(Some(at));
            }
            if self.rung.readable().await.is_err() {
                // The runtime is ending.
                return std::future::pending().await;
            }
            // Read, it is quiet until it rings again.
            if self.rung.try_read(&mut [0; 8]).is_ok() {
                self.set = None;
            }
        }
    }

    /// How long the device has slept since this was last asked, if that was long.
    pub fn slept(&mut self) -> Option<Duration> {
        self.sleep.look(world::boot_time(), world::awake_time()).filter(|slept| *slept > ASLEEP)
    }

    /// Sets the alarm, or unsets it: a time of zero is none.
    fn arm(&self, at: Option<Moment>) {
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let time = at.map(|at| self.clock.boot_time_of(at).max(Duration::from_nanos(1)));
        let it_value = time.and_then(|time| time.try_into().ok()).unwrap_or(none);
        let set = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval: none, it_value });
        // The kernel refuses times that are none; these are.
        if let Err(error) = set {
            debug!("the alarm could not be set: {error}");
        }
    }
}

/// Two clocks, of which one stands still while the device sleeps.
#[derive(Clone, Copy, Debug)]
struct SleepWatch {
    boot: Duration,
    awake: Duration,
}

impl SleepWatch {
    fn new(boot: Duration, awake: Duration) -> Self {
        Self { boot, awake }
    }

    /// How much further the one has gone than the other since the last look.
    fn look(&mut self, boot: Duration, awake: Duration) -> Option<Duration> {
        let slept = (boot - self.boot).checked_sub(awake - self.awake);
        (self.boot, self.awake) = (boot, awake);
        slept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_rings_at_its_time_and_can_be_moved_and_given_up() {
        let clock = Clock::start();
        let mut alarm = Alarm::new(clock).unwrap();
        let soon = clock.now().after(Duration::from_millis(30));
        alarm.ring(Some(soon)).await;
        assert!(clock.now() >= soon);
        // What has passed already is not waited for.
        alarm.ring(Some(Moment(0))).await;
        let far = clock.now().after(Duration::from_secs(3600));
        let near = clock.now().after(Duration::from_millis(30));
        tokio::select! {
            biased;
            () = alarm.ring(Some(far)) => panic!("an hour has not passed"),
            () = std::future::ready(()) => {}
        }
        alarm.ring(Some(near)).await;
        assert!(clock.now() >= near && clock.now() < far);
        tokio::select! {
            biased;
            () = alarm.ring(None) => panic!("it is not set"),
            () = std::future::ready(()) => {}
        }
        assert_eq!((alarm.set, alarm.slept()), (None, None));
    }

    #[test]
    fn sleep_is_what_one_clock_has_missed() {
        let s = Duration::from_secs;
        let mut watch = SleepWatch::new(s(100), s(90));
        assert_eq!(watch.look(s(160), s(150)), Some(s(0)));
        assert_eq!(watch.look(s(800), s(190)), Some(s(600)));
        assert_eq!(watch.look(s(801), s(191)), Some(s(0)));
        // The two are not read in one moment.
        assert_eq!(watch.look(s(802), s(192) + Duration::from_nanos(1)), None);
    }
}

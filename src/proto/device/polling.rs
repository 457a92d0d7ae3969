//! Interval mode: where a network forgets connections so soon that holding one costs more than coming back
//! now and then, a device on a battery leaves after each sync, in order, and comes back after a while. What
//! is urgent is then as late as the device is away; so it is only for whoever asks for it.

use std::time::Duration;

use super::super::frame::{Bye, Reason};
use super::super::keepalive::{Profile, Stage};
use super::super::timers::Moment;
use super::{Device, Timer};

/// Silences below this cost more pings a day than syncs do.
const TOO_SHORT: Duration = Duration::from_secs(120);
/// So long nothing is said before a sync is over.
pub const QUIET: Duration = Duration::from_secs(5);

impl Device {
    /// Allows interval mode, with a sync every so often.
    pub fn sync_every(&mut self, every: Duration) {
        self.sync_every = Some(every);
    }

    /// How often to sync, if the device is not to stay connected on this network.
    pub fn syncs(&self) -> Option<Duration> {
        let reading = self.pulse.reading();
        let ended = matches!(reading.learned.stage, Stage::Steady | Stage::Floor);
        let short = ended && reading.interval < TOO_SHORT;
        self.sync_every.filter(|_| short && self.profile == Profile::Battery)
    }

    /// Something was said: the sync is not over before it has been quiet.
    pub(super) fn watch_quiet(&mut self, now: Moment) {
        match self.syncs() {
            Some(_) if self.session.is_some() => self.timers.set(Timer::Quiet, now.after(QUIET)),
            _ => self.timers.clear(Timer::Quiet),
        }
    }

    /// It has been quiet: the device leaves, unless something is under way.
    pub(super) fn end_sync(&mut self, now: Moment) {
        let Some(every) = self.syncs() else { return };
        let Some(session) = &self.session else { return };
        if session.storing > 0 || !self.wishes.are_fulfilled() || self.timers.is_set(Timer::Pong) {
            return self.watch_quiet(now);
        }
        // It did what it was for: earlier failures count no more.
        self.backoff.reset();
        self.leave(Bye::because(Reason::Shutdown));
        let minutes = every.as_secs().div_ceil(60);
        let why = format!("interval mode: this network forgets connections too soon; a sync every {minutes} min");
        self.rest(now, &why, every);
        // That is no failure.
        self.end_offline();
        self.between_syncs = true;
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::keepalive::{Learned, NetworkKind};
    use super::super::super::pulse::{Memory, Network, NetworkKey};
    use super::super::super::samples::{self, app, message_id as id};
    use super::super::super::surroundings::Surroundings;
    use super::super::super::wishes::Wish;
    use super::super::tests::{actions, connect, delivery, device, later};
    use super::super::{DeviceAction, LinkState};
    use super::*;
    use crate::proto::Luck;
    use crate::proto::frame::{ToDevice, ToServer};

    const LOW: Luck = Luck(0);
    const EVERY: Duration = Duration::from_secs(900);

    fn network(key: u8, stage: Stage, good_s: Option<u32>) -> Option<(Network, Option<Memory>)> {
        let bad_s = good_s.filter(|_| stage == Stage::Steady).map(|good| good + 10);
        let learned = Learned { stage, good_s, bad_s, probe_s: 86_400 };
        let network = Network { key: NetworkKey([key; 16]), kind: NetworkKind::Wifi };
        Some((network, Some(Memory { learned, age: Duration::ZERO })))
    }

    /// A device that is online, in a network of which this is known.
    fn online(stage: Stage, good_s: Option<u32>) -> Device {
        let mut device = device();
        device.sync_every(EVERY);
        device.handle_network(later(0), network(1, stage, good_s));
        device.start();
        connect(&mut device, later(0));
        device
    }

    fn left(device: &mut Device) -> bool {
        let all = actions(device);
        all.contains(&DeviceAction::Send(ToServer::Bye(Bye::because(Reason::Shutdown))))
            && all.contains(&DeviceAction::Hangup)
    }

    #[test]
    fn where_silences_are_short_the_device_leaves_after_a_sync_and_comes_back() {
        for (stage, good_s) in [(Stage::Steady, Some(80)), (Stage::Floor, None)] {
            let mut device = online(stage, good_s);
            device.handle_timer(later(4), LOW);
            assert_eq!(actions(&mut device), [], "it is not quiet yet");
            device.handle_timer(later(5), LOW);
            assert!(left(&mut device));
            let LinkState::Waiting { until, why } = device.state() else { panic!("{:?}", device.state()) };
            assert_eq!(*until, later(905));
            assert_eq!(why, "interval mode: this network forgets connections too soon; a sync every 15 min");
            assert_eq!(device.failures(), 0);
            device.handle_timer(later(905), LOW);
            assert_eq!(actions(&mut device), [DeviceAction::Dial]);
        }
    }

    #[test]
    fn a_device_stays_where_silences_are_long_or_still_searched_for_or_nobody_asked() {
        let mut unasked = online(Stage::Steady, Some(80));
        unasked.sync_every = None;
        let mut mains = online(Stage::Steady, Some(80));
        mains.profile = Profile::Mains;
        let others = [online(Stage::Steady, Some(300)), online(Stage::Up, Some(60)), unasked, mains];
        for mut device in others {
            device.handle_timer(later(50), LOW);
            assert!(!left(&mut device) && matches!(device.state(), LinkState::Online { .. }));
        }
    }

    #[test]
    fn nothing_that_is_under_way_is_left_behind() {
        let mut device = online(Stage::Steady, Some(80));
        device.handle_frame(later(4), delivery(1), LOW);
        device.handle_timer(later(30), LOW);
        assert!(!left(&mut device), "the push is not on disk");
        device.handle_stored(later(31), &[id(1)]);
        device.handle_timer(later(35), LOW);
        assert!(!left(&mut device), "its acknowledgement was the last word");
        device.wish(later(35), app("chat"), Wish::Register);
        device.handle_timer(later(42), LOW);
        assert!(!left(&mut device), "the wish is not answered");
        let reg_id = samples::push(id(1)).reg_id;
        device.handle_frame(later(43), ToDevice::Registered { req: 1, app: app("chat"), reg_id, endpoint: None }, LOW);
        device.handle_timer(later(48), LOW);
        assert!(left(&mut device));
    }

    #[test]
    fn a_wish_and_whoever_asks_end_the_wait_and_so_does_another_network() {
        let resting = || {
            let mut device = online(Stage::Steady, Some(80));
            device.handle_timer(later(5), LOW);
            assert!(left(&mut device));
            device
        };
        let mut device = resting();
        device.wish(later(6), app("chat"), Wish::Register);
        assert_eq!(actions(&mut device), [DeviceAction::Dial]);
        let mut device = resting();
        device.try_now();
        assert_eq!(actions(&mut device), [DeviceAction::Dial]);

        let mut device = resting();
        device.handle_surroundings(later(6), Surroundings::default());
        device.handle_network(later(10), network(2, Stage::Steady, Some(600)));
        device.handle_timer(later(12), LOW);
        assert_eq!(actions(&mut device), [DeviceAction::Dial]);
        connect(&mut device, later(13));
        device.handle_timer(later(60), LOW);
        assert!(!left(&mut device), "there it stays connected");
    }

    #[test]
    fn a_wish_does_not_shorten_the_wait_after_a_failure() {
        let mut device = online(Stage::Steady, Some(80));
        device.handle_link_down(later(1), "gone", LOW);
        actions(&mut device);
        device.wish(later(1), app("chat"), Wish::Register);
        assert_eq!(actions(&mut device), []);
    }
}

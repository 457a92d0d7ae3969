//! Tests of the device's half, one behaviour each.

use uuid::Uuid;

use super::*;
use crate::proto::backoff;
use crate::proto::frame::Fate;
use crate::proto::frame::Refusal;
use crate::proto::keepalive::NetworkKind;
use crate::proto::pulse::Network;
use crate::proto::pulse::NetworkKey;
use crate::proto::samples::{self, app, message_id as id};
use crate::proto::surroundings::Power;
use crate::proto::urgency::Urgency;
use crate::proto::{DeviceId, RegId, Region, Secret, UnixMillis};

const START: Moment = Moment(1_000);
/// What a device takes that knows nothing of its surroundings.
const IDLE: Taking = Taking { least: Urgency::VeryLow, idle: true };
const LOW: Luck = Luck(0);
const HIGH: Luck = Luck(u32::MAX);

fn reg_id() -> RegId {
    RegId::new(Region(0), 0, &[7; 48])
}

/// The push of this number in its session; its id is the number too.
pub(super) fn delivery(n: u64) -> ToDevice {
    ToDevice::Push(Box::new(Delivery { n, dropped: 0, replaces: vec![], push: samples::push(id(n)) }))
}

fn store(n: u64) -> DeviceAction {
    let ToDevice::Push(delivery) = delivery(n) else { unreachable!() };
    DeviceAction::Store(delivery)
}

pub(super) fn device() -> Device {
    let identity = Identity {
        device: DeviceId::from_uuid(Uuid::from_u128(1)),
        secret: Secret::from_bytes([1; 32]),
        agent: "test".into(),
        enrolment_key: Some("key".into()),
    };
    Device::new(identity, Profile::Battery)
}

pub(super) fn actions(device: &mut Device) -> Vec<DeviceAction> {
    std::iter::from_fn(|| device.poll_action()).collect()
}

fn welcome(ka_max_s: u32) -> ToDevice {
    ToDevice::Welcome(Welcome { version: VERSION, region: Region(3), enrolled: false, ka_max_s, links: Vec::new() })
}

/// Brings a device that dials to the greeting.
fn greet(device: &mut Device, now: Moment) {
    device.handle_link_up(now, vec![], None);
}

/// Brings a device that dials online and forgets what it said on the way.
pub(super) fn connect(device: &mut Device, now: Moment) {
    greet(device, now);
    device.handle_frame(now, welcome(3600), LOW);
    assert!(matches!(device.state(), LinkState::Online { .. }));
    actions(device);
}

fn greeting() -> Device {
    let mut device = device();
    device.start();
    greet(&mut device, START);
    actions(&mut device);
    device
}

fn online() -> Device {
    let mut device = device();
    device.start();
    connect(&mut device, START);
    device
}

pub(super) fn later(seconds: u64) -> Moment {
    START.after(Duration::from_secs(seconds))
}

fn send(frame: ToServer) -> DeviceAction {
    DeviceAction::Send(frame)
}

fn farewell(reason: Reason) -> [DeviceAction; 2] {
    [send(ToServer::Bye(Bye::because(reason))), DeviceAction::Hangup]
}

/// How long the device waits before its next attempt, counted from `now`.
fn waits(device: &Device, now: Moment) -> Duration {
    let LinkState::Waiting { until, .. } = device.state() else { panic!("{:?}", device.state()) };
    let told = device.timers.is_set(Timer::OutOfReach).then(|| device.offline().unwrap().since.after(OUT_OF_REACH));
    assert_eq!(device.poll_timeout(), Some(*until).min(told.or(Some(*until))), "beside the wait only people wait");
    until.since(now)
}

/// The wait after a server's goodbye in an open session.
fn wait_after(bye: Bye, luck: Luck) -> Duration {
    let mut device = online();
    device.handle_frame(later(1), ToDevice::Bye(bye), luck);
    assert_eq!(actions(&mut device), [DeviceAction::Hangup]);
    waits(&device, later(1))
}

// The greeting.

#[test]
fn a_device_does_nothing_until_it_is_started_and_dials_once() {
    let mut device = device();
    device.register(START, app("a"));
    device.try_now();
    device.handle_timer(later(9999), LOW);
    assert_eq!(actions(&mut device), []);
    assert_eq!(device.poll_timeout(), None);
    device.start();
    device.start();
    assert_eq!(actions(&mut device), [DeviceAction::Dial]);
    assert_eq!(device.state(), &LinkState::Dialling);
}

#[test]
fn who_starts_over_leaves_whatever_is_open_and_dials_once() {
    let key = || Some("another".to_owned());
    let mut stopped = device();
    stopped.start_over(START, key());
    assert_eq!(actions(&mut stopped), []);
    let mut dialling = device();
    dialling.start();
    let mut waiting = device();
    waiting.start();
    waiting.handle_link_down(START, "nobody is there", LOW);
    for mut device in [dialling, waiting] {
        actions(&mut device);
        device.start_over(START, key());
        assert_eq!((actions(&mut device), device.state()), (vec![DeviceAction::Dial], &LinkState::Dialling));
    }
    // A welcome that comes late is the old server's.
    for mut device in [greeting(), online()] {
        actions(&mut device);
        device.start_over(START, key());
        let [bye, hangup] = farewell(Reason::Shutdown);
        assert_eq!(actions(&mut device), [bye, hangup, DeviceAction::Dial]);
        device.handle_frame(START, welcome(300), LOW);
        assert_eq!(device.state(), &LinkState::Dialling);
        greet(&mut device, START);
        let hello = actions(&mut device);
        assert!(matches!(&hello[..], [DeviceAction::Send(ToServer::Hello(hello))] if hello.enrolment_key == key()));
    }
}

#[test]
fn a_new_link_is_greeted_with_identity_and_resume_point() {
    let mut device = device();
    device.start();
    actions(&mut device);
    device.handle_link_up(START, (0..WINDOW as u64 + 5).map(id).collect(), None);
    let hello = Hello {
        version: VERSION,
        device: DeviceId::from_uuid(Uuid::from_u128(1)),
        secret: Secret::from_bytes([1; 32]),
        agent: "test".into(),
        enrolment_key: Some("key".into()),
        resume: (0..WINDOW as u64).map(id).collect(),
        next_s: 420,
        taking: IDLE,
    };
    assert_eq!(actions(&mut device), [send(ToServer::Hello(hello))]);
    assert_eq!(device.state(), &LinkState::Greeting);
}

#[test]
fn a_greeting_without_answer_is_given_up_after_thirty_seconds() {
    let mut device = greeting();
    assert_eq!(device.poll_timeout(), Some(later(30)));
    device.handle_timer(Moment(later(30).0 - 1), LOW);
    assert_eq!(actions(&mut device), []);
    device.handle_timer(later(30), LOW);
    assert_eq!(actions(&mut device), farewell(Reason::Silent));
    assert_eq!(waits(&device, later(30)), Duration::from_secs(1));
}

#[test]
fn the_welcome_opens_the_session() {
    let mut device = greeting();
    device.handle_frame(later(1), welcome(3600), LOW);
    let online = Online { region: Region(3), enrolled: false, links: Vec::new() };
    assert_eq!(actions(&mut device), [DeviceAction::Online(online)]);
    assert_eq!(device.state(), &LinkState::Online { since: later(1), region: Region(3) });
}

#[test]
fn a_repeated_welcome_changes_nothing() {
    let mut device = online();
    device.handle_frame(START, welcome(10), LOW);
    assert_eq!(actions(&mut device), []);
    assert_eq!(device.poll_timeout(), Some(later(240)));
}

#[test]
fn a_server_of_another_version_is_left() {
    let mut device = greeting();
    let welcome = Welcome { version: VERSION + 1, region: Region(3), enrolled: false, ka_max_s: 1, links: Vec::new() };
    device.handle_frame(START, ToDevice::Welcome(welcome), LOW);
    assert_eq!(actions(&mut device), farewell(Reason::Version));
}

#[test]
fn any_other_frame_before_the_welcome_ends_the_session() {
    for frame in [delivery(1), ToDevice::Pong { seq: 1 }, ToDevice::Noted { ids: vec![] }] {
        let mut device = greeting();
        device.handle_frame(START, frame, LOW);
        assert_eq!(actions(&mut device), farewell(Reason::Protocol));
    }
}

#[test]
fn a_text_that_is_no_frame_ends_the_session() {
    for mut device in [greeting(), online()] {
        device.handle_garbage(START, LOW);
        assert_eq!(actions(&mut device), farewell(Reason::Protocol));
    }
}

// Pushes.

#[test]
fn a_push_is_acknowledged_only_when_it_is_stored() {
    let mut device = online();
    device.handle_frame(START, delivery(1), LOW);
    device.handle_frame(START, delivery(2), LOW);
    assert_eq!(actions(&mut device), [store(1), store(2)]);
    device.handle_stored(START, &[id(1), id(2)]);
    assert_eq!(actions(&mut device), [send(ToServer::Ack { ids: vec![id(1), id(2)] })]);
}

#[test]
fn acks_are_cut_to_the_length_of_a_list() {
    let mut device = online();
    let ids: Vec<MessageId> = (0..LIST_MAX as u64 + 1).map(id).collect();
    device.handle_stored(START, &ids);
    let acks = ids.chunks(LIST_MAX).map(|ids| send(ToServer::Ack { ids: ids.to_vec() }));
    assert_eq!(actions(&mut device), acks.collect::<Vec<_>>());
}

#[test]
fn what_is_not_kept_is_said_to_be_so_and_not_acknowledged() {
    let mut device = online();
    let ids: Vec<MessageId> = (0..LIST_MAX as u64 + 1).map(id).collect();
    let not_kept: Vec<_> = ids.iter().map(|id| (*id, NotKept::Expired)).chain([(id(99), NotKept::Unwanted)]).collect();
    device.handle_not_kept(START, &not_kept);
    let said = |ids: &[MessageId], why| send(ToServer::NotKept { ids: ids.to_vec(), why });
    let (first, rest) = ids.split_at(LIST_MAX);
    let expected = [said(first, NotKept::Expired), said(rest, NotKept::Expired), said(&[id(99)], NotKept::Unwanted)];
    assert_eq!(actions(&mut device), expected);
}

#[test]
fn nothing_is_acknowledged_without_a_session() {
    let mut device = greeting();
    device.handle_stored(START, &[id(1)]);
    device.handle_not_kept(START, &[(id(2), NotKept::Unwanted)]);
    assert_eq!(actions(&mut device), []);
}

#[test]
fn a_repeated_push_is_stored_and_acknowledged_again() {
    let mut device = online();
    for _ in 0..2 {
        device.handle_frame(START, delivery(1), LOW);
        assert_eq!(actions(&mut device), [store(1)]);
        device.handle_stored(START, &[id(1)]);
        assert_eq!(actions(&mut device), [send(ToServer::Ack { ids: vec![id(1)] })]);
    }
    device.handle_frame(START, delivery(2), LOW);
    assert_eq!(actions(&mut device), [store(2)]);
}

#[test]
fn a_gap_in_the_count_hangs_up_and_stores_nothing_behind_it() {
    for (first, second) in [(None, 2), (Some(1), 3)] {
        let mut device = online();
        if let Some(n) = first {
            device.handle_frame(START, delivery(n), LOW);
        }
        actions(&mut device);
        device.handle_frame(START, delivery(second), LOW);
        assert_eq!(actions(&mut device), farewell(Reason::Protocol));
        device.handle_frame(START, delivery(second + 1), LOW);
        assert_eq!(actions(&mut device), []);
    }
}

#[test]
fn the_count_starts_again_with_each_session() {
    let mut device = online();
    device.handle_frame(START, delivery(1), LOW);
    device.handle_link_down(START, "cut", LOW);
    device.try_now();
    connect(&mut device, START);
    device.handle_frame(START, delivery(1), LOW);
    assert_eq!(actions(&mut device), [store(1)]);
}

#[test]
fn a_device_that_cannot_store_gives_up_and_lets_nothing_overtake() {
    let mut device = online();
    device.handle_frame(START, delivery(1), LOW);
    assert_eq!(device.poll_action(), Some(store(1)));
    device.handle_frame(START, delivery(2), LOW);
    device.handle_store_failed(START, LOW);
    assert_eq!(actions(&mut device), farewell(Reason::Busy));
}

#[test]
fn outcomes_are_reported_in_lists_and_only_in_a_session() {
    let outcome = |n| Outcome { id: id(n), fate: Fate::Delivered, at_ms: UnixMillis(0) };
    let all: Vec<Outcome> = (0..LIST_MAX as u64 + 1).map(outcome).collect();
    let mut device = online();
    device.report(START, &all);
    let lists = all.chunks(LIST_MAX).map(|list| send(ToServer::Outcomes { list: list.to_vec() }));
    assert_eq!(actions(&mut device), lists.collect::<Vec<_>>());
    device.handle_frame(START, ToDevice::Noted { ids: vec![id(0)] }, LOW);
    assert_eq!(actions(&mut device), [DeviceAction::Noted(vec![id(0)])]);
    let mut device = greeting();
    device.report(START, &all);
    assert_eq!(actions(&mut device), []);
}

// Keepalive.

fn ping(seq: u32, next_s: u32) -> DeviceAction {
    send(ToServer::Ping { seq, next_s, taking: IDLE })
}

fn pong(seq: u32) -> ToDevice {
    ToDevice::Pong { seq }
}

/// Lets the device reach this time, timer by timer.
fn pass(device: &mut Device, until: Moment) -> Vec<DeviceAction> {
    while let Some(at) = device.poll_timeout().filter(|at| *at <= until) {
        device.handle_timer(at, LOW);
    }
    actions(device)
}

#[test]
fn silence_is_broken_by_a_ping_and_the_pong_starts_it_again() {
    let mut device = online();
    assert_eq!(pass(&mut device, later(239)), []);
    assert_eq!(pass(&mut device, later(240)), [ping(1, 420)]);
    device.handle_frame(later(241), pong(1), LOW);
    assert_eq!(device.poll_timeout(), Some(later(241 + 240)));
}

#[test]
fn a_ping_is_repeated_once_before_the_session_is_given_up() {
    let mut device = online();
    device.handle_frame(later(0), delivery(1), LOW);
    actions(&mut device);
    assert_eq!(pass(&mut device, later(249)), [ping(1, 420)]);
    assert_eq!(pass(&mut device, later(259)), [ping(2, 420)]);
    device.handle_timer(later(260), HIGH);
    assert_eq!(actions(&mut device), farewell(Reason::Silent));
    // It had lasted, and there is nobody to be spared.
    assert_eq!(waits(&device, later(260)), Duration::from_secs(1));
    assert_eq!(device.failures(), 0);
}

#[test]
fn a_session_that_had_not_lasted_is_followed_by_a_wait() {
    let mut device = online();
    device.handle_awake(later(1));
    device.handle_timer(later(11), HIGH);
    device.handle_timer(later(21), HIGH);
    assert_eq!(waits(&device, later(21)), Duration::from_secs(2));
}

#[test]
fn any_frame_counts_as_a_sign_of_life() {
    let mut device = online();
    pass(&mut device, later(250));
    device.handle_frame(later(259), delivery(1), LOW);
    assert_eq!(device.poll_timeout(), Some(later(259 + 240)));
}

#[test]
fn after_a_long_sleep_the_device_asks_before_it_gives_up() {
    let mut device = online();
    device.handle_awake(later(100_000));
    assert_eq!(actions(&mut device), [ping(1, 420)]);
    device.handle_timer(later(100_000), LOW);
    assert_eq!(actions(&mut device), [], "it is asking");
    assert_eq!(device.poll_timeout(), Some(later(100_010)));
    assert_eq!(pass(&mut device, later(100_020))[1..], farewell(Reason::Silent));
    // The path had forgotten a silence that nobody had asked for.
    device.try_now();
    connect(&mut device, later(100_030));
    assert_eq!(device.poll_timeout(), Some(later(100_030 + 240)));
}

#[test]
fn longer_silences_are_found_and_remembered() {
    let mut device = online();
    let mut now = START;
    let mut learned = vec![];
    for (seq, silence) in (1..).zip([240, 240, 360, 360, 540, 540]) {
        now = now.after(Duration::from_secs(silence));
        assert_eq!(device.poll_timeout(), Some(now));
        assert_eq!(pass(&mut device, now).len(), 1);
        device.handle_frame(now, pong(seq), LOW);
        for action in actions(&mut device) {
            if let DeviceAction::Learned(_, news) = action {
                learned.extend(news.good_s);
            }
        }
    }
    assert_eq!(learned, [240, 360, 540]);
}

#[test]
fn a_link_that_breaks_at_the_first_word_after_a_silence_counts_and_a_goodbye_does_not() {
    let end = |end: fn(&mut Device, Moment)| {
        let mut device = online();
        let mut now = START;
        for _ in 0..2 {
            now = now.after(Duration::from_secs(240));
            pass(&mut device, now);
            end(&mut device, now);
            device.try_now();
            connect(&mut device, now);
        }
        device.poll_timeout().unwrap().since(now)
    };
    assert_eq!(end(|device, now| device.handle_link_broken(now, "reset", LOW)), Duration::from_secs(120));
    assert_eq!(end(|device, now| device.handle_link_down(now, "closed", LOW)), Duration::from_secs(240));
    let bye = |device: &mut Device, now| device.handle_frame(now, ToDevice::Bye(Bye::because(Reason::Shutdown)), LOW);
    assert_eq!(end(bye), Duration::from_secs(240));
}

#[test]
fn the_server_may_shorten_the_silence_within_reason_but_not_lengthen_it() {
    for (allowed, silence, growth) in [(60, 60, 60), (1, 10, 10), (0, 10, 10), (240, 240, 240), (u32::MAX, 240, 360)] {
        let mut device = greeting();
        device.handle_frame(START, welcome(allowed), LOW);
        actions(&mut device);
        assert_eq!(device.poll_timeout(), Some(later(silence)));
        assert_eq!(pass(&mut device, later(silence)), [ping(1, growth + 60)]);
    }
}

// Networks.

/// The network of this number.
fn network(number: u8) -> Network {
    Network { key: NetworkKey([number; 16]), kind: NetworkKind::Wifi }
}

#[test]
fn a_network_that_comes_is_tried_soon_and_not_too_often() {
    let mut device = device();
    device.start();
    actions(&mut device);
    for _ in 0..6 {
        device.handle_link_down(START, "unreachable", HIGH);
        device.try_now();
        actions(&mut device);
    }
    device.handle_network(START, None);
    device.handle_link_down(START, "unreachable", HIGH);
    assert_eq!(waits(&device, START), Duration::from_secs(900), "it is looked for all the same");
    device.handle_network(later(10), Some((network(1), None)));
    assert_eq!(pass(&mut device, later(11)), []);
    assert_eq!(pass(&mut device, later(12)), [DeviceAction::Dial]);
    // The attempt fails, and the network flickers.
    device.handle_link_down(later(13), "unreachable", HIGH);
    assert!(waits(&device, later(13)) > Duration::from_secs(60), "the back-off goes on");
    device.handle_network(later(20), None);
    device.handle_network(later(21), Some((network(1), None)));
    assert_eq!(pass(&mut device, later(30)), []);
    device.handle_network(later(50), Some((network(2), None)));
    assert_eq!(pass(&mut device, later(52)), [DeviceAction::Dial]);
}

#[test]
fn a_session_over_another_network_is_asked_whether_it_lives() {
    let mut device = online();
    device.handle_network(later(100), Some((network(1), None)));
    assert_eq!(actions(&mut device), [ping(1, 420)]);
    device.handle_network(later(101), Some((network(1), None)));
    assert_eq!(actions(&mut device), []);
    device.handle_frame(later(102), pong(1), LOW);
    assert_eq!(device.poll_timeout(), Some(later(342)));
}

#[test]
fn an_address_that_changes_costs_a_ping_and_counts_for_nothing() {
    let mut device = online();
    for round in 1..=3 {
        // The path knows nothing of the new address, and the session is lost.
        device.handle_moved(later(1000 * round + 240));
        assert_eq!(actions(&mut device).len(), 1);
        device.handle_moved(later(1000 * round + 241));
        assert_eq!(actions(&mut device), [], "it is asking");
        pass(&mut device, later(1000 * round + 300));
        device.try_now();
        connect(&mut device, later(1000 * round + 300));
    }
    let reading = device.pulse();
    assert_eq!((reading.losses, reading.last_loss.unwrap().counts), (3, false));
    assert_eq!(reading.interval, Duration::from_secs(240));
}

#[test]
fn a_link_whose_address_is_gone_is_replaced_at_once_and_is_no_loss() {
    let mut device = online();
    device.handle_frame(later(1), delivery(1), LOW);
    actions(&mut device);
    device.handle_address_gone(later(400), HIGH);
    assert_eq!(actions(&mut device), [DeviceAction::Hangup]);
    assert_eq!(waits(&device, later(400)), Duration::from_secs(1));
    assert_eq!((device.pulse().losses, device.failures()), (0, 0));
    device.handle_address_gone(later(400), HIGH);
    assert_eq!(actions(&mut device), [], "there is no link");
    // Addresses that flicker are met with more patience.
    device.try_now();
    connect(&mut device, later(401));
    device.handle_address_gone(later(402), HIGH);
    assert_eq!(waits(&device, later(402)), Duration::from_secs(2));
}

// Sleep.

#[test]
fn an_answer_that_a_sleep_swallows_is_asked_for_again_and_counts_for_nothing() {
    for told in [true, false] {
        let mut device = online();
        assert_eq!(pass(&mut device, later(240)), [ping(1, 420)]);
        if told {
            device.handle_asleep(later(241));
        }
        device.handle_awake(later(5000));
        assert_eq!(actions(&mut device), [ping(2, 420)], "told: {told}");
        device.handle_timer(later(5000), LOW);
        assert_eq!(actions(&mut device), [], "it is asking");
        pass(&mut device, later(5030));
        assert_eq!(device.pulse().last_loss.map(|loss| loss.counts), Some(false));
    }
}

#[test]
fn one_sleep_that_two_tell_of_costs_one_ping() {
    let mut device = online();
    device.handle_awake(later(1000));
    assert_eq!(actions(&mut device).len(), 1);
    device.handle_frame(later(1001), pong(1), LOW);
    device.handle_awake(later(1002));
    assert_eq!(actions(&mut device), []);
    device.handle_awake(later(2000));
    assert_eq!(actions(&mut device).len(), 1);
}

#[test]
fn a_device_that_was_to_sleep_and_did_not_goes_on() {
    let mut device = online();
    assert_eq!(pass(&mut device, later(240)), [ping(1, 420)]);
    device.handle_asleep(later(241));
    assert_eq!(pass(&mut device, later(1000)).first(), Some(&ping(2, 420)));
}

// Out of reach.

#[test]
fn a_device_that_is_offline_for_long_with_a_network_says_so_once() {
    let mut device = online();
    device.handle_link_down(later(10), "cut", LOW);
    assert_eq!(device.offline(), Some(&Offline { since: later(10), why: "cut".into() }));
    for seconds in [100, 200, 300] {
        device.try_now();
        device.handle_link_down(later(seconds), "unreachable", LOW);
        assert!(!device.out_of_reach());
    }
    pass(&mut device, later(310));
    assert!(device.out_of_reach());
    assert_eq!(device.offline(), Some(&Offline { since: later(10), why: "unreachable".into() }));
    device.try_now();
    device.handle_link_down(later(400), "unreachable", HIGH);
    assert!(!device.timers.is_set(Timer::OutOfReach), "it is told once");
    device.try_now();
    connect(&mut device, later(500));
    assert_eq!((device.out_of_reach(), device.offline()), (false, None));
    assert_eq!(pass(&mut device, later(739)), []);
    // The next such time is told again.
    device.handle_link_down(later(739), "cut", LOW);
    pass(&mut device, later(1039));
    assert!(device.out_of_reach());
    device.stop();
    assert_eq!((device.out_of_reach(), device.offline(), device.poll_timeout()), (false, None, None));
}

#[test]
fn the_time_without_a_network_and_that_of_a_sleep_are_not_out_of_reach() {
    let mut device = online();
    device.handle_network(later(10), None);
    device.handle_link_down(later(10), "unreachable", LOW);
    pass(&mut device, later(800));
    assert!(!device.out_of_reach());
    device.handle_network(later(800), Some((network(1), None)));
    pass(&mut device, later(1099));
    assert!(!device.out_of_reach());
    device.handle_awake(later(5000));
    device.handle_timer(later(5000), LOW);
    device.handle_link_down(later(5001), "unreachable", LOW);
    assert!(!device.out_of_reach());
    pass(&mut device, later(5300));
    assert!(device.out_of_reach());
    device.handle_network(later(5301), None);
    assert!(!device.out_of_reach());
}

// Waiting.

#[test]
fn waits_grow_with_each_attempt_that_fails() {
    let mut device = device();
    device.start();
    let mut now = START;
    for (failures, expected) in [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600].into_iter().enumerate() {
        assert_eq!(device.failures() as usize, failures);
        assert_eq!(actions(&mut device), [DeviceAction::Dial]);
        device.handle_link_down(now, "unreachable", HIGH);
        assert_eq!(waits(&device, now), Duration::from_secs(expected));
        now = now.after(waits(&device, now));
        device.handle_timer(now, HIGH);
    }
}

/// The wait after a third failure: 8 s, unless the session before it counted as a recovery.
fn wait_after_session(session: impl FnOnce(&mut Device) -> Moment) -> Duration {
    let mut device = device();
    device.start();
    for _ in 0..2 {
        device.handle_link_down(START, "unreachable", HIGH);
        device.try_now();
    }
    connect(&mut device, START);
    let end = session(&mut device);
    device.handle_link_down(end, "cut", HIGH);
    waits(&device, end)
}

#[test]
fn a_session_that_lasted_with_an_exchange_starts_the_waits_over() {
    let wait = wait_after_session(|device| {
        device.handle_frame(later(1), delivery(1), LOW);
        later(60)
    });
    assert_eq!(wait, Duration::from_secs(2));
    let wait = wait_after_session(|device| {
        device.handle_timer(later(240), LOW);
        device.handle_frame(later(241), pong(1), LOW);
        later(242)
    });
    assert_eq!(wait, Duration::from_secs(2));
}

#[test]
fn a_short_session_does_not_start_the_waits_over() {
    let wait = wait_after_session(|device| {
        device.handle_frame(later(1), delivery(1), LOW);
        later(59)
    });
    assert_eq!(wait, Duration::from_secs(8));
}

#[test]
fn a_session_without_an_exchange_does_not_start_the_waits_over() {
    assert_eq!(wait_after_session(|_| later(100)), Duration::from_secs(8));
    let unanswered_ping = wait_after_session(|device| {
        device.handle_timer(later(240), LOW);
        later(259)
    });
    assert_eq!(unanswered_ping, Duration::from_secs(8));
}

#[test]
fn a_wait_that_the_server_asked_for_is_obeyed_and_spread_upwards() {
    let bye = Bye::until(Reason::Busy, 100);
    assert_eq!(wait_after(bye.clone(), LOW), Duration::from_secs(100));
    assert_eq!(wait_after(bye, HIGH), Duration::from_secs(130));
    let at_once = Bye::until(Reason::Shutdown, 0);
    assert_eq!(wait_after(at_once, LOW), Duration::from_secs(1));
}

#[test]
fn what_only_an_operator_can_mend_waits_long() {
    for reason in [Reason::BadSecret, Reason::EnrolmentRefused, Reason::Version] {
        assert_eq!(wait_after(Bye::because(reason), LOW), backoff::HOPELESS);
        assert_eq!(wait_after(Bye::until(reason, 5), LOW), backoff::HOPELESS);
        assert_eq!(wait_after(Bye::until(reason, 1000), LOW), Duration::from_secs(1000));
    }
}

#[test]
fn a_replaced_device_waits_at_least_a_minute() {
    assert_eq!(wait_after(Bye::because(Reason::Replaced), LOW), Duration::from_secs(60));
}

#[test]
fn a_wish_of_the_server_holds_for_one_wait_only() {
    let mut device = online();
    let bye = Bye::until(Reason::Busy, 5000);
    device.handle_frame(START, ToDevice::Bye(bye), LOW);
    device.try_now();
    device.handle_link_down(START, "unreachable", LOW);
    assert_eq!(waits(&device, START), Duration::from_secs(2));
}

#[test]
fn the_wait_ends_with_a_new_attempt_at_its_time_or_on_demand() {
    let mut device = online();
    device.handle_link_down(START, "cut", LOW);
    assert!(matches!(device.state(), LinkState::Waiting { why, .. } if why == "cut"));
    assert_eq!(actions(&mut device), [], "the link is gone already");
    device.handle_timer(later(1), LOW);
    assert_eq!(actions(&mut device), [DeviceAction::Dial]);
    device.try_now();
    assert_eq!(actions(&mut device), []);
    device.handle_link_down(later(1), "refused", LOW);
    device.try_now();
    assert_eq!(actions(&mut device), [DeviceAction::Dial]);
}

#[test]
fn what_comes_from_a_link_that_was_given_up_does_nothing() {
    let mut device = online();
    device.handle_garbage(START, HIGH);
    actions(&mut device);
    let before = device.state().clone();
    device.handle_link_down(START, "closed", LOW);
    device.handle_frame(START, ToDevice::Bye(Bye::because(Reason::BadSecret)), LOW);
    device.handle_frame(START, delivery(1), LOW);
    device.handle_garbage(START, LOW);
    device.handle_stored(START, &[id(1)]);
    device.handle_store_failed(START, LOW);
    device.handle_link_up(START, vec![], None);
    assert_eq!(actions(&mut device), []);
    assert_eq!(device.state(), &before);
}

// Registrations.

#[test]
fn a_wish_is_asked_for_at_once_in_a_session_and_only_once() {
    let mut device = online();
    device.register(START, app("a"));
    device.register(START, app("a"));
    assert_eq!(actions(&mut device), [send(ToServer::Register { req: 1, app: app("a") })]);
    device.handle_frame(START, ToDevice::Registered { req: 1, app: app("a"), reg_id: reg_id(), endpoint: None }, LOW);
    assert_eq!(actions(&mut device), [DeviceAction::Registered(app("a"), reg_id(), None)]);
    assert_eq!(device.poll_timeout(), Some(later(240)), "nothing is waited for any more");
}

#[test]
fn wishes_are_kept_until_a_session_answers_them() {
    let mut device = device();
    device.register(START, app("a"));
    device.deregister(START, app("b"));
    device.start();
    for first in [1, 3] {
        greet(&mut device, START);
        actions(&mut device);
        device.handle_frame(START, welcome(3600), LOW);
        assert_eq!(
            actions(&mut device)[1..],
            [
                send(ToServer::Register { req: first, app: app("a") }),
                send(ToServer::Deregister { req: first + 1, app: app("b") }),
            ]
        );
        device.handle_link_down(START, "cut", LOW);
        device.try_now();
    }
}

#[test]
fn an_answered_wish_is_not_asked_for_in_the_next_session() {
    let mut device = online();
    device.register(START, app("a"));
    device.deregister(START, app("b"));
    device.register(START, app("c"));
    actions(&mut device);
    device.handle_frame(START, ToDevice::Registered { req: 1, app: app("a"), reg_id: reg_id(), endpoint: None }, LOW);
    device.handle_frame(START, ToDevice::Deregistered { req: 2, app: app("b") }, LOW);
    device.handle_frame(START, ToDevice::Refused { req: 3, app: app("c"), refusal: Refusal::UnknownApp }, LOW);
    assert_eq!(
        actions(&mut device),
        [
            DeviceAction::Registered(app("a"), reg_id(), None),
            DeviceAction::Deregistered(app("b")),
            DeviceAction::Refused(app("c"), Refusal::UnknownApp),
        ]
    );
    device.handle_link_down(START, "cut", LOW);
    device.try_now();
    greet(&mut device, START);
    actions(&mut device);
    device.handle_frame(START, welcome(3600), LOW);
    assert_eq!(
        actions(&mut device),
        [DeviceAction::Online(Online { region: Region(3), enrolled: false, links: Vec::new() })]
    );
}

#[test]
fn a_changed_wish_wins_and_the_answer_to_the_old_one_is_ignored() {
    let mut device = online();
    device.register(START, app("a"));
    device.deregister(START, app("a"));
    assert_eq!(
        actions(&mut device),
        [send(ToServer::Register { req: 1, app: app("a") }), send(ToServer::Deregister { req: 2, app: app("a") }),]
    );
    device.handle_frame(START, ToDevice::Registered { req: 1, app: app("a"), reg_id: reg_id(), endpoint: None }, LOW);
    assert_eq!(actions(&mut device), []);
    device.handle_frame(START, ToDevice::Deregistered { req: 2, app: app("a") }, LOW);
    device.handle_frame(START, ToDevice::Deregistered { req: 2, app: app("a") }, LOW);
    assert_eq!(actions(&mut device), [DeviceAction::Deregistered(app("a"))]);
}

#[test]
fn a_request_without_answer_ends_the_session_and_stays_a_wish() {
    let mut device = online();
    device.register(START, app("a"));
    actions(&mut device);
    device.handle_timer(later(30), LOW);
    assert_eq!(actions(&mut device), farewell(Reason::Silent));
    device.try_now();
    greet(&mut device, later(30));
    device.handle_frame(later(30), welcome(3600), LOW);
    assert_eq!(actions(&mut device).last(), Some(&send(ToServer::Register { req: 2, app: app("a") })));
    assert_eq!(device.poll_timeout(), Some(later(60)));
}

#[test]
fn every_request_has_its_own_thirty_seconds() {
    let mut device = online();
    device.register(START, app("a"));
    device.register(later(29), app("b"));
    assert_eq!(device.poll_timeout(), Some(later(30)));
    device.handle_frame(
        later(29),
        ToDevice::Registered { req: 1, app: app("a"), reg_id: reg_id(), endpoint: None },
        LOW,
    );
    assert_eq!(device.poll_timeout(), Some(later(59)));
    device.deregister(later(40), app("b"));
    assert_eq!(device.poll_timeout(), Some(later(70)), "nobody waits for the old wish");
}

#[test]
fn an_end_that_the_server_decided_is_passed_on() {
    let mut device = online();
    device.handle_frame(START, ToDevice::Unregistered { app: app("a") }, LOW);
    assert_eq!(actions(&mut device), [DeviceAction::Unregistered(app("a"))]);
}

// Ends.

#[test]
fn a_redirect_is_remembered_and_followed_after_a_short_wait() {
    for mut device in [greeting(), online()] {
        device.handle_frame(START, ToDevice::Redirect { gateway: "wss://b.example".into() }, LOW);
        assert_eq!(actions(&mut device), [DeviceAction::UseGateway("wss://b.example".into()), DeviceAction::Hangup]);
        assert_eq!(waits(&device, START), Duration::from_secs(1));
        device.handle_timer(later(1), LOW);
        assert_eq!(actions(&mut device), [DeviceAction::Dial]);
    }
}

#[test]
fn a_goodbye_in_place_of_the_welcome_is_heeded() {
    let mut device = greeting();
    device.handle_frame(START, ToDevice::Bye(Bye::because(Reason::BadSecret)), LOW);
    assert_eq!(actions(&mut device), [DeviceAction::Hangup]);
    assert_eq!(waits(&device, START), backoff::HOPELESS);
}

#[test]
fn stopping_says_goodbye_and_leaves_no_timer() {
    let mut device = online();
    device.register(START, app("a"));
    actions(&mut device);
    device.stop();
    assert_eq!(actions(&mut device), farewell(Reason::Shutdown));
    assert_eq!((device.state(), device.poll_timeout()), (&LinkState::Stopped, None));
    device.stop();
    device.handle_link_down(START, "closed", LOW);
    device.handle_frame(START, delivery(1), LOW);
    device.handle_timer(later(9999), LOW);
    device.try_now();
    assert_eq!(actions(&mut device), []);
}

#[test]
fn stopping_ends_a_dial_a_greeting_and_a_wait() {
    let mut dialling = device();
    dialling.start();
    actions(&mut dialling);
    for mut device in [dialling, greeting()] {
        device.stop();
        assert_eq!(actions(&mut device), [DeviceAction::Hangup]);
    }
    let mut waiting = online();
    waiting.handle_link_down(START, "cut", LOW);
    waiting.stop();
    assert_eq!((actions(&mut waiting), waiting.poll_timeout()), (vec![], None));
}

#[test]
fn a_stopped_device_can_start_again_with_its_wishes() {
    let mut device = online();
    device.register(START, app("a"));
    device.stop();
    actions(&mut device);
    device.start();
    assert_eq!(actions(&mut device), [DeviceAction::Dial]);
    greet(&mut device, START);
    device.handle_frame(START, welcome(3600), LOW);
    assert_eq!(actions(&mut device).last(), Some(&send(ToServer::Register { req: 2, app: app("a") })));
}

// What the device takes.

/// What the device says that it takes, in its pings and greetings.
fn told(device: &mut Device) -> Vec<Urgency> {
    let mut told = vec![];
    for action in actions(device) {
        if let DeviceAction::Send(ToServer::Ping { taking, .. } | ToServer::Hello(Hello { taking, .. })) = action {
            told.push(taking.least);
        }
    }
    told
}

#[test]
fn the_server_is_told_at_once_what_the_device_takes_and_only_if_that_changes() {
    let mut device = online();
    let power = |power| Surroundings { power, metered: false };
    device.handle_surroundings(START, power(Power::External));
    assert_eq!(told(&mut device), []);
    device.handle_surroundings(START, power(Power::LowBattery));
    assert_eq!(told(&mut device), [Urgency::High]);
    // The pong is still to come.
    device.handle_surroundings(later(1), power(Power::Battery));
    assert_eq!(told(&mut device), [Urgency::Low]);
    device.handle_frame(later(2), pong(2), LOW);
    device.handle_surroundings(later(3), power(Power::Battery));
    assert_eq!(told(&mut device), []);
}

#[test]
fn a_change_during_the_greeting_is_told_after_it() {
    let mut device = greeting();
    device.handle_surroundings(START, Surroundings { power: Power::Battery, metered: true });
    assert_eq!(told(&mut device), []);
    device.handle_frame(START, welcome(3600), LOW);
    assert_eq!(told(&mut device), [Urgency::Normal]);
    device.handle_link_down(later(1), "gone", LOW);
    device.try_now();
    greet(&mut device, later(2));
    assert_eq!(told(&mut device), [Urgency::Normal]);
    device.handle_frame(later(2), welcome(3600), LOW);
    assert_eq!(told(&mut device), []);
}

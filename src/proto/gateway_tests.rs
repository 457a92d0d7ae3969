//! Tests of the server's half, one behaviour each.

use uuid::Uuid;

use super::*;
use crate::proto::frame::{Fate, NotKept};
use crate::proto::ids::{DeviceId, Secret};
use crate::proto::samples::{self, WALL, message_id as id};
use crate::proto::urgency::Urgency;

const START: Moment = Moment(1_000);

fn app() -> AppId {
    samples::app("org.example.Chat")
}

fn push(number: u64) -> Push {
    samples::push(id(number))
}

/// Push `number`, with which the device is done.
fn settled(number: i64, at_ms: Option<UnixMillis>, how: Done) -> Settled {
    Settled { sent: Sent { seq: Seq(number), id: id(number as u64), at_ms }, how }
}

/// The device has stored these, which this session has sent.
fn acked<const N: usize>(numbers: [i64; N]) -> GatewayAction {
    GatewayAction::Settled(numbers.map(|number| settled(number, Some(WALL), Done::Stored)).to_vec())
}

/// The device had these already.
fn had<const N: usize>(numbers: [i64; N]) -> GatewayAction {
    GatewayAction::Settled(numbers.map(|number| settled(number, None, Done::Stored)).to_vec())
}

/// Row `number` of the store holds push `number`.
fn row(number: u64) -> Queued {
    Queued { seq: Seq(number as i64), dropped: 0, replaces: vec![], push: push(number) }
}

fn rows(numbers: std::ops::RangeInclusive<u64>) -> Vec<Queued> {
    numbers.map(row).collect()
}

/// The sequence of an app that is no channel.
fn sequence(app: &AppId) -> Sequence {
    Sequence::of(app, Urgency::Normal)
}

fn backlog(rows: Vec<Queued>, complete: bool) -> Backlog {
    Backlog { rows, complete, held: HeldBack::new(), until: None }
}

fn fetch(after: i64, limit: usize) -> GatewayAction {
    GatewayAction::Fetch(Wanted::all(Seq(after), limit))
}

fn ping(seq: u32, next_s: u32) -> ToServer {
    ToServer::Ping { seq, next_s, taking: Taking::default() }
}

fn hello(resume: Vec<MessageId>) -> Hello {
    Hello {
        version: VERSION,
        device: DeviceId::from_uuid(Uuid::from_u128(1)),
        secret: Secret::from_bytes([0; 32]),
        agent: "test".into(),
        enrolment_key: None,
        resume,
        next_s: 260,
        taking: Taking::default(),
    }
}

/// What is to be done; what is only to be counted has a test of its own.
fn actions(session: &mut Session) -> Vec<GatewayAction> {
    let counted = |action: &GatewayAction| matches!(action, GatewayAction::Answered(_));
    std::iter::from_fn(|| session.poll_action()).filter(|action| !counted(action)).collect()
}

fn resumed(resume: Vec<MessageId>) -> Session {
    let terms = Terms { region: Region(3), ka_max_s: 300, links: Vec::new() };
    let mut session = Session::open(Claim { hello: hello(resume) }, terms, false, START);
    actions(&mut session);
    session
}

/// A session that has been welcomed and waits for its first backlog.
fn session() -> Session {
    resumed(vec![])
}

/// A session whose store is empty.
fn idle() -> Session {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(vec![], true));
    assert_eq!(actions(&mut session), []);
    session
}

/// The pushes among these actions.
fn deliveries(actions: &[GatewayAction]) -> Vec<&Delivery> {
    let mut found = vec![];
    for action in actions {
        if let GatewayAction::Send(ToDevice::Push(delivery)) = action {
            found.push(&**delivery);
        }
    }
    found
}

/// The ids of the pushes among these actions.
fn pushed(actions: &[GatewayAction]) -> Vec<MessageId> {
    deliveries(actions).iter().map(|delivery| delivery.push.id).collect()
}

fn ids(numbers: std::ops::RangeInclusive<u64>) -> Vec<MessageId> {
    numbers.map(id).collect()
}

fn ack(numbers: std::ops::RangeInclusive<u64>) -> ToServer {
    ToServer::Ack { ids: ids(numbers) }
}

fn farewell(reason: Reason) -> Vec<GatewayAction> {
    vec![GatewayAction::Send(ToDevice::Bye(Bye::because(reason))), GatewayAction::Close]
}

fn later(seconds: u64) -> Moment {
    START.after(Duration::from_secs(seconds))
}

// The greeting.

#[test]
fn the_first_frame_must_be_a_hello() {
    let refused = Greeting.handle_frame(ping(1, 1)).map(|_| ());
    assert_eq!(refused, Err(Bye::because(Reason::Protocol)));
}

#[test]
fn an_older_version_is_refused_and_a_newer_one_taken() {
    let greet = |version| Greeting.handle_frame(ToServer::Hello(Hello { version, ..hello(vec![]) })).map(|_| ());
    assert_eq!(greet(VERSION - 1), Err(Bye::because(Reason::Version)));
    assert_eq!(greet(VERSION), Ok(()));
    assert_eq!(greet(VERSION + 1), Ok(()));
}

#[test]
fn a_resume_point_longer_than_the_window_is_refused() {
    let greet = |count| Greeting.handle_frame(ToServer::Hello(hello(ids(1..=count)))).map(|_| ());
    assert_eq!(greet(WINDOW as u64), Ok(()));
    assert_eq!(greet(WINDOW as u64 + 1), Err(Bye::because(Reason::Protocol)));
}

#[test]
fn a_session_opens_with_the_welcome_and_asks_for_what_waits() {
    let terms = Terms { region: Region(3), ka_max_s: 300, links: Vec::new() };
    let mut session = Session::open(Claim { hello: hello(vec![]) }, terms, true, START);
    let welcome = Welcome { version: VERSION, region: Region(3), enrolled: true, ka_max_s: 300, links: Vec::new() };
    let expected = [GatewayAction::Send(ToDevice::Welcome(welcome)), fetch(0, WINDOW)];
    assert_eq!(actions(&mut session), expected);
}

#[test]
fn a_repeated_hello_changes_nothing() {
    let mut session = idle();
    session.handle_frame(START, ToServer::Hello(hello(vec![])));
    assert_eq!(actions(&mut session), []);
    assert!(!session.is_closed());
}

// Pushes and their window.

#[test]
fn pushes_are_counted_from_one_without_a_gap_across_backlogs_and_offers() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(rows(1..=2), true));
    assert!(session.offer(START, WALL, push(100)));
    session.handle_wake();
    session.handle_backlog(START, WALL, backlog(rows(3..=3), true));
    let then = actions(&mut session);
    let counts: Vec<u64> = deliveries(&then).iter().map(|delivery| delivery.n).collect();
    assert_eq!(counts, [1, 2, 3, 4]);
}

#[test]
fn the_number_of_dropped_messages_travels_with_the_next_push() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(vec![Queued { dropped: 5, ..row(1) }], true));
    let delivery = Delivery { n: 1, dropped: 5, replaces: vec![], push: push(1) };
    assert_eq!(actions(&mut session), [GatewayAction::Send(ToDevice::Push(Box::new(delivery)))]);
}

#[test]
fn nothing_is_asked_for_while_the_window_is_full_and_acks_make_room() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(rows(1..=32), false));
    let sent = actions(&mut session);
    assert_eq!(pushed(&sent), ids(1..=32));
    assert_eq!(sent.len(), WINDOW, "no fetch");
    session.handle_frame(START, ack(1..=3));
    let expected = [acked([1, 2, 3]), fetch(32, 3)];
    assert_eq!(actions(&mut session), expected);
}

#[test]
fn a_store_that_answers_with_too_much_does_not_overrun_the_window() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(rows(1..=40), true));
    assert_eq!(pushed(&actions(&mut session)), ids(1..=32));
    session.handle_frame(START, ack(1..=32));
    let after_acks = actions(&mut session);
    assert_eq!(after_acks.last(), Some(&fetch(32, WINDOW)));
}

#[test]
fn an_offer_during_a_fetch_takes_its_room_from_the_backlog() {
    let mut session = session();
    assert!(session.offer(START, WALL, push(100)));
    session.handle_backlog(START, WALL, backlog(rows(1..=32), true));
    let expected: Vec<MessageId> = [100].into_iter().chain(1..=31).map(id).collect();
    assert_eq!(pushed(&actions(&mut session)), expected);
    session.handle_frame(START, ack(100..=100));
    assert_eq!(actions(&mut session), [fetch(31, 1)]);
}

#[test]
fn an_offer_is_refused_when_the_window_is_full() {
    let mut session = idle();
    assert!((1..=32).all(|number| session.offer(START, WALL, push(number))));
    assert!(!session.offer(START, WALL, push(33)));
    assert_eq!(pushed(&actions(&mut session)), ids(1..=32));
}

#[test]
fn an_acknowledged_offer_leaves_nothing_to_delete() {
    let mut session = idle();
    session.offer(START, WALL, push(1));
    actions(&mut session);
    session.handle_frame(START, ack(1..=1));
    assert_eq!(actions(&mut session), []);
}

#[test]
fn it_is_told_how_long_each_push_went_without_an_ack() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(rows(1..=1), true));
    assert!(session.offer(later(2), WALL, push(9)));
    actions(&mut session);
    session.handle_frame(later(5), ack(1..=9));
    let done: Vec<GatewayAction> = std::iter::from_fn(|| session.poll_action()).collect();
    let waits = [Duration::from_secs(5), Duration::from_secs(3)].to_vec();
    assert_eq!(done, [acked([1]), GatewayAction::Answered(waits)]);
    session.handle_frame(later(6), ack(1..=9));
    assert_eq!(session.poll_action(), None, "an ack that is repeated counts once");
}

#[test]
fn acks_of_pushes_that_are_not_on_their_way_do_nothing() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(rows(1..=1), true));
    actions(&mut session);
    session.handle_frame(START, ack(7..=9));
    assert_eq!(actions(&mut session), []);
    session.handle_frame(START, ack(1..=1));
    session.handle_frame(START, ack(1..=1));
    assert_eq!(actions(&mut session), [acked([1])]);
}

#[test]
fn a_wake_up_during_a_fetch_is_not_lost() {
    let mut session = session();
    session.handle_wake();
    session.handle_wake();
    assert_eq!(actions(&mut session), [], "one fetch at a time");
    session.handle_backlog(START, WALL, backlog(rows(1..=1), true));
    let then = actions(&mut session);
    assert_eq!(then.last(), Some(&fetch(1, WINDOW - 1)));
}

#[test]
fn a_wake_up_while_the_window_is_full_is_remembered() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(rows(1..=32), true));
    session.handle_wake();
    assert_eq!(actions(&mut session).len(), WINDOW);
    session.handle_frame(START, ack(1..=1));
    assert_eq!(actions(&mut session).last(), Some(&fetch(32, 1)));
}

#[test]
fn an_empty_store_is_asked_once_and_then_only_after_a_wake_up() {
    let mut session = idle();
    session.handle_frame(START, ping(1, 260));
    assert_eq!(actions(&mut session), [GatewayAction::Send(ToDevice::Pong { seq: 1 })]);
    session.handle_wake();
    assert_eq!(actions(&mut session), [fetch(0, WINDOW)]);
}

#[test]
fn what_the_device_has_already_is_deleted_and_not_sent_again() {
    let mut session = resumed(ids(1..=2));
    session.handle_backlog(START, WALL, backlog(rows(1..=3), true));
    let then = actions(&mut session);
    assert_eq!(pushed(&then), [id(3)]);
    assert_eq!(then.last(), Some(&had([1, 2])));
}

#[test]
fn acks_count_in_the_order_in_which_the_pushes_were_sent() {
    let mut session = resumed(ids(3..=4));
    session.handle_backlog(START, WALL, backlog(rows(1..=5), true));
    let then = actions(&mut session);
    assert_eq!(pushed(&then), [id(1), id(2), id(5)]);
    assert!(!then.iter().any(|action| matches!(action, GatewayAction::Settled(_))), "what is older is on its way");
    session.handle_frame(START, ack(2..=2));
    assert_eq!(actions(&mut session), []);
    session.handle_frame(START, ack(1..=1));
    let first_two = [1, 2].map(|number| settled(number, Some(WALL), Done::Stored));
    let had = [3, 4].map(|number| settled(number, None, Done::Stored));
    assert_eq!(actions(&mut session), [GatewayAction::Settled([first_two, had].concat())]);
    session.handle_frame(START, ack(5..=5));
    assert_eq!(actions(&mut session), [acked([5])]);
}

#[test]
fn what_the_device_does_not_keep_is_settled_in_its_place_with_the_reason() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(rows(1..=4), true));
    actions(&mut session);
    session.handle_frame(START, ToServer::NotKept { ids: ids(2..=2), why: NotKept::Expired });
    session.handle_frame(START, ToServer::NotKept { ids: ids(3..=3), why: NotKept::Unwanted });
    // The first word about a push counts.
    session.handle_frame(START, ack(3..=4));
    assert!(!actions(&mut session).iter().any(|action| matches!(action, GatewayAction::Settled(_))));
    session.handle_frame(START, ack(1..=1));
    let hows = [Done::Stored, Done::NotKept(NotKept::Expired), Done::NotKept(NotKept::Unwanted), Done::Stored];
    let all: Vec<Settled> = (1..).zip(hows).map(|(number, how)| settled(number, Some(WALL), how)).collect();
    assert!(actions(&mut session).contains(&GatewayAction::Settled(all)));
}

#[test]
fn what_is_shown_again_is_sent_unless_it_is_on_its_way() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(vec![row(1), row(3)], true));
    assert_eq!(pushed(&actions(&mut session)), [id(1), id(3)]);
    session.look_again(Seq(2));
    assert_eq!(actions(&mut session), [fetch(1, WINDOW - 2)]);
    session.handle_backlog(START, WALL, backlog(vec![row(2), row(3)], true));
    assert_eq!(pushed(&actions(&mut session)), [id(2)]);
    session.handle_wake();
    assert_eq!(actions(&mut session), [fetch(3, WINDOW - 3)]);
}

#[test]
fn a_session_knows_what_may_have_been_sent() {
    let mut session = resumed(ids(7..=7));
    assert!(session.may_have_sent(Seq(9), id(7)), "an earlier session has");
    assert!(!session.may_have_sent(Seq(1), id(1)));
    session.handle_backlog(START, WALL, backlog(rows(1..=2), true));
    assert!(session.may_have_sent(Seq(2), id(2)) && !session.may_have_sent(Seq(3), id(3)));
    let sent = |number| Sent { seq: Seq(number), id: id(number as u64), at_ms: Some(WALL) };
    assert_eq!(session.on_their_way(), [sent(1), sent(2)]);
    session.handle_frame(START, ack(1..=1));
    assert_eq!(session.on_their_way(), [sent(2)]);
}

#[test]
fn what_is_on_its_way_may_have_been_sent_although_the_session_looks_again() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(rows(2..=WINDOW as u64 + 1), false));
    // The window is full: it looks again when there is room.
    session.look_again(Seq(1));
    let pushed = pushed(&actions(&mut session));
    assert_eq!(pushed.len(), WINDOW);
    assert!(session.may_have_sent(Seq(2), id(2)) && session.may_have_sent(Seq(WINDOW as i64 + 1), id(33)));
    assert!(!session.may_have_sent(Seq(1), id(1)) && !session.may_have_sent(Seq(WINDOW as i64 + 2), id(34)));
}

#[test]
fn the_resume_point_holds_for_later_backlogs_as_long_as_it_is_met() {
    let mut session = resumed(ids(1..=3));
    session.handle_backlog(START, WALL, backlog(rows(1..=2), false));
    let then = actions(&mut session);
    assert_eq!(then, [had([1, 2]), fetch(2, WINDOW)]);
    session.handle_backlog(START, WALL, backlog(rows(3..=4), true));
    let then = actions(&mut session);
    assert_eq!(pushed(&then), [id(4)]);
    assert!(then.contains(&had([3])));
}

#[test]
fn the_resume_point_outlasts_a_window_that_was_full() {
    let mut session = resumed(ids(33..=33));
    for number in 1..=32 {
        assert!(session.offer(START, WALL, push(1_000 + number)));
    }
    session.handle_backlog(START, WALL, backlog(rows(32..=33), true));
    actions(&mut session);
    session.handle_frame(START, ack(1_001..=1_032));
    assert_eq!(actions(&mut session), [fetch(0, WINDOW)]);
    session.handle_backlog(START, WALL, backlog(rows(32..=33), true));
    assert_eq!(pushed(&actions(&mut session)), [id(32)]);
}

#[test]
fn an_expired_push_is_deleted_and_never_sent() {
    let mut session = session();
    let wall = push(1).expires_ms;
    let mut fresh = row(2);
    fresh.push.expires_ms = UnixMillis(wall.0 + 1);
    session.handle_backlog(START, wall, backlog(vec![row(1), fresh], true));
    let then = actions(&mut session);
    assert_eq!(pushed(&then), [id(2)]);
    assert!(then.contains(&GatewayAction::Expired(vec![Seq(1)])));
}

// Deadlines.

#[test]
fn a_push_without_ack_closes_the_session() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(rows(1..=2), true));
    actions(&mut session);
    assert_eq!(session.poll_timeout(), Some(START.after(ACK)));
    session.handle_timer(Moment(START.after(ACK).0 - 1));
    assert_eq!(actions(&mut session), []);
    session.handle_timer(START.after(ACK));
    assert_eq!(actions(&mut session), farewell(Reason::Unacknowledged));
}

#[test]
fn a_later_ack_does_not_excuse_the_oldest_push() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(rows(1..=2), true));
    session.handle_frame(later(19), ack(2..=2));
    assert_eq!(session.poll_timeout(), Some(START.after(ACK)));
}

#[test]
fn a_slow_device_that_works_its_way_through_the_window_is_not_cut_off() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(rows(1..=32), true));
    for number in 1..=32 {
        let now = later(number * 15);
        session.handle_timer(now);
        session.handle_frame(now, ack(number..=number));
    }
    assert!(!session.is_closed());
}

#[test]
fn with_everything_acknowledged_only_silence_is_timed() {
    let mut session = session();
    session.handle_backlog(START, WALL, backlog(rows(1..=2), true));
    session.handle_frame(later(1), ack(1..=2));
    assert_eq!(session.poll_timeout(), Some(later(1 + 260 + 60)));
}

#[test]
fn silence_closes_the_session_after_what_was_announced_and_a_grace() {
    let mut session = idle();
    session.handle_timer(later(260 + 59));
    assert!(!session.is_closed());
    session.handle_timer(later(260 + 60));
    assert_eq!(actions(&mut session), farewell(Reason::Silent));
}

#[test]
fn any_frame_puts_the_silence_off() {
    let mut session = idle();
    session.handle_frame(later(100), ack(1..=1));
    assert_eq!(session.poll_timeout(), Some(later(100 + 260 + 60)));
}

#[test]
fn a_ping_is_answered_and_announces_the_next_silence() {
    let mut session = idle();
    session.handle_frame(later(5), ping(9, 30));
    assert_eq!(actions(&mut session), [GatewayAction::Send(ToDevice::Pong { seq: 9 })]);
    assert_eq!(session.poll_timeout(), Some(later(5 + 30 + 60)));
    session.handle_frame(later(6), ack(1..=1));
    assert_eq!(session.poll_timeout(), Some(later(6 + 30 + 60)));
}

#[test]
fn nobody_may_announce_a_silence_without_end() {
    let mut session = idle();
    session.handle_frame(START, ping(1, u32::MAX));
    assert_eq!(session.poll_timeout(), Some(later(u64::from(SILENCE_MAX_S) + 60)));
}

// Requests, lists and ends.

#[test]
fn requests_are_passed_on_and_answered_with_their_number() {
    let mut session = idle();
    session.handle_frame(START, ToServer::Register { req: 1, app: app() });
    session.handle_frame(START, ToServer::Deregister { req: 2, app: app() });
    let outcome = Outcome { id: id(1), fate: Fate::Delivered, at_ms: WALL };
    session.handle_frame(START, ToServer::Outcomes { list: vec![outcome.clone()] });
    assert_eq!(
        actions(&mut session),
        [
            GatewayAction::Register { req: 1, app: app() },
            GatewayAction::Deregister { req: 2, app: app() },
            GatewayAction::Outcomes(vec![outcome]),
        ]
    );
    let reg_id = push(1).reg_id;
    session.registered(1, app(), Ok((reg_id, None)));
    session.registered(3, app(), Err(Refusal::TooMany));
    session.deregistered(2, app());
    session.unregistered(app());
    session.noted(vec![id(1)]);
    let expected = [
        ToDevice::Registered { req: 1, app: app(), reg_id, endpoint: None },
        ToDevice::Refused { req: 3, app: app(), refusal: Refusal::TooMany },
        ToDevice::Deregistered { req: 2, app: app() },
        ToDevice::Unregistered { app: app() },
        ToDevice::Noted { ids: vec![id(1)] },
    ];
    assert_eq!(actions(&mut session), expected.map(GatewayAction::Send));
}

#[test]
fn a_list_over_the_limit_ends_the_session() {
    let outcome = |number| Outcome { id: id(number), fate: Fate::Delivered, at_ms: WALL };
    let many = 1..=LIST_MAX as u64 + 1;
    for frame in [ack(many.clone()), ToServer::Outcomes { list: many.map(outcome).collect() }] {
        let mut session = idle();
        session.handle_frame(START, frame);
        assert_eq!(actions(&mut session), farewell(Reason::Protocol));
    }
}

#[test]
fn a_device_that_says_goodbye_is_not_answered() {
    let mut session = idle();
    session.handle_frame(START, ToServer::Bye(Bye::because(Reason::Shutdown)));
    assert_eq!(actions(&mut session), [GatewayAction::Close]);
    assert!(session.is_closed());
}

#[test]
fn a_goodbye_carries_the_wish_about_the_next_attempt() {
    let mut session = idle();
    let bye = Bye::until(Reason::Busy, 30);
    session.close(bye.clone());
    session.close(Bye::because(Reason::Shutdown));
    assert_eq!(actions(&mut session), [GatewayAction::Send(ToDevice::Bye(bye)), GatewayAction::Close]);
}

#[test]
fn nothing_comes_out_of_a_closed_session() {
    let mut session = session();
    session.close(Bye::because(Reason::Replaced));
    actions(&mut session);
    session.handle_backlog(START, WALL, backlog(rows(1..=2), false));
    session.handle_wake();
    session.handle_frame(START, ack(1..=2));
    session.handle_frame(START, ping(1, 1));
    session.handle_frame(START, ToServer::Register { req: 1, app: app() });
    session.registered(1, app(), Err(Refusal::UnknownApp));
    session.unregistered(app());
    session.noted(vec![id(1)]);
    session.handle_timer(later(1_000_000));
    assert!(!session.offer(START, WALL, push(3)));
    assert_eq!(actions(&mut session), []);
    assert_eq!(session.poll_timeout(), None);
}

// What the device does not want to be woken for.

const NORMAL: Taking = Taking { least: Urgency::Normal, idle: false };
const IDLE: Taking = Taking { least: Urgency::VeryLow, idle: true };

/// A session of a device that takes this, whose store had nothing.
fn taking(taking: Taking) -> Session {
    let terms = Terms { region: Region(3), ka_max_s: 300, links: Vec::new() };
    let mut session = Session::open(Claim { hello: Hello { taking, ..hello(vec![]) } }, terms, false, START);
    session.handle_backlog(START, WALL, backlog(vec![], true));
    actions(&mut session);
    session
}

/// What the session asks for, if it does.
fn asked(session: &mut Session) -> Option<Wanted> {
    let wanted = |action| if let GatewayAction::Fetch(wanted) = action { Some(wanted) } else { None };
    actions(session).into_iter().find_map(wanted)
}

#[test]
fn a_greeting_brings_all_that_the_device_takes_although_it_is_idle() {
    let terms = Terms { region: Region(3), ka_max_s: 300, links: Vec::new() };
    let hello = Hello { taking: Taking { least: Urgency::Low, idle: true }, ..hello(vec![]) };
    let mut session = Session::open(Claim { hello }, terms, false, START);
    let gate = Gate { least: Urgency::Low, quiet: false };
    assert_eq!(asked(&mut session), Some(Wanted { gate, ..Wanted::all(Seq(0), WINDOW) }));
    session.handle_backlog(START, WALL, backlog(vec![], true));
    session.handle_wake();
    assert_eq!(asked(&mut session).unwrap().gate, Gate { quiet: true, ..gate });
}

#[test]
fn what_was_held_back_is_asked_for_when_the_device_takes_more() {
    let mut session = taking(NORMAL);
    session.handle_wake();
    assert_eq!(asked(&mut session).unwrap().gate, Gate { least: Urgency::Normal, quiet: false });
    // Push 1 is held back, push 2 of another app goes.
    let held = vec![(sequence(&app()), Seq(1))];
    session.handle_backlog(START, WALL, Backlog { held: held.clone(), ..backlog(rows(2..=2), true) });
    assert_eq!(pushed(&actions(&mut session)), [id(2)]);
    let say = |session: &mut Session, taking| session.handle_frame(START, ToServer::Ping { seq: 1, next_s: 9, taking });
    say(&mut session, NORMAL);
    say(&mut session, Taking { least: Urgency::High, ..NORMAL });
    assert_eq!(asked(&mut session), None);
    say(&mut session, Taking { least: Urgency::Low, ..NORMAL });
    let wanted = asked(&mut session).unwrap();
    assert_eq!((wanted.after, wanted.held.clone(), wanted.limit), (Seq(2), held, WINDOW - 1));
    assert_eq!(wanted.gate.least, Urgency::Low);
}

#[test]
fn what_is_held_back_is_not_considered_sent() {
    let mut session = taking(NORMAL);
    session.handle_wake();
    actions(&mut session);
    let held = vec![(sequence(&app()), Seq(2))];
    session.handle_backlog(START, WALL, Backlog { held, ..backlog(vec![row(1), row(3)], true) });
    assert!(session.may_have_sent(Seq(1), id(1)) && session.may_have_sent(Seq(3), id(3)));
    assert!(!session.may_have_sent(Seq(2), id(2)));
}

#[test]
fn what_does_not_fit_the_window_is_asked_for_again_in_its_place() {
    let mut session = taking(NORMAL);
    session.handle_wake();
    actions(&mut session);
    for number in 1..=32 {
        assert!(session.offer(START, WALL, push(1_000 + number)));
    }
    let held = vec![(sequence(&samples::app("other")), Seq(1))];
    session.handle_backlog(START, WALL, Backlog { held, ..backlog(rows(2..=3), true) });
    actions(&mut session);
    session.handle_frame(START, ack(1_001..=1_001));
    let wanted = asked(&mut session).unwrap();
    assert_eq!((wanted.after, wanted.held, wanted.limit), (Seq(0), vec![], 1));
}

#[test]
fn any_frame_of_an_idle_device_brings_what_waits_for_it() {
    let ping = ToServer::Ping { seq: 1, next_s: 260, taking: IDLE };
    for frame in [ping, ack(9..=9), ToServer::Register { req: 1, app: app() }] {
        let mut session = taking(IDLE);
        session.handle_wake();
        assert!(asked(&mut session).unwrap().gate.quiet);
        let until = Some(UnixMillis(WALL.0 + 900_000));
        session.handle_backlog(START, WALL, Backlog { until, ..backlog(vec![], true) });
        assert_eq!(actions(&mut session), []);
        session.handle_frame(later(100), frame);
        assert!(!asked(&mut session).unwrap().gate.quiet);
        session.handle_backlog(later(100), WALL, backlog(rows(1..=1), true));
        assert_eq!(pushed(&actions(&mut session)), [id(1)]);
        session.handle_frame(later(101), ack(1..=1));
        assert_eq!(asked(&mut session), None, "nothing waits any more");
        session.handle_wake();
        assert!(asked(&mut session).unwrap().gate.quiet, "it is idle again");
    }
}

#[test]
fn what_waits_for_an_idle_device_waits_no_longer_than_the_store_says() {
    let mut session = taking(IDLE);
    session.handle_wake();
    actions(&mut session);
    let until = Some(UnixMillis(WALL.0 + 120_000));
    session.handle_backlog(START, WALL, Backlog { until, ..backlog(vec![], true) });
    assert_eq!(session.poll_timeout(), Some(later(120)));
    session.handle_timer(later(120));
    assert!(asked(&mut session).unwrap().gate.quiet, "only what has waited long enough goes");
    session.handle_backlog(later(120), UnixMillis(WALL.0 + 120_000), backlog(rows(1..=1), true));
    assert_eq!(pushed(&actions(&mut session)), [id(1)]);
    session.handle_frame(later(121), ack(1..=1));
    assert_eq!(session.poll_timeout(), Some(later(121 + 260 + 60)), "nothing else is timed");
}

#[test]
fn an_offer_is_made_to_an_idle_device_but_not_below_the_least() {
    let low = Push { urgency: Urgency::Low, ..push(1) };
    assert!(taking(IDLE).offer(START, WALL, low.clone()));
    assert!(!taking(NORMAL).offer(START, WALL, low));
    assert!(taking(NORMAL).offer(START, WALL, push(1)));
}

#[test]
fn what_is_shown_again_during_a_fetch_is_not_passed_over() {
    let mut session = session();
    session.look_again(Seq(2));
    session.handle_backlog(START, WALL, backlog(vec![row(1), row(3)], true));
    assert!(!session.may_have_sent(Seq(2), id(2)));
    assert_eq!(asked(&mut session), Some(Wanted::all(Seq(1), WINDOW - 2)));
}

#[test]
fn a_device_that_takes_more_gets_the_rest_with_that_word_although_it_stays_idle() {
    let mut session = taking(Taking { idle: true, ..NORMAL });
    session.handle_wake();
    actions(&mut session);
    // What is below the least waits for no time.
    let held = vec![(sequence(&app()), Seq(1))];
    session.handle_backlog(START, WALL, Backlog { held, ..backlog(vec![], true) });
    let taking = Taking { least: Urgency::Low, idle: true };
    session.handle_frame(START, ToServer::Ping { seq: 1, next_s: 9, taking });
    assert!(!asked(&mut session).unwrap().gate.quiet, "it is awake to say so");
}

#[test]
fn the_frame_that_makes_room_in_the_window_brings_along_what_waits_for_one() {
    let mut session = taking(IDLE);
    for number in 1..=32 {
        assert!(session.offer(START, WALL, push(1_000 + number)));
    }
    session.handle_wake();
    assert_eq!(asked(&mut session), None, "there is no room");
    session.handle_frame(START, ack(1_001..=1_032));
    assert!(!asked(&mut session).unwrap().gate.quiet);
}

#[test]
fn what_the_device_has_of_what_is_held_back_is_remembered() {
    let terms = Terms { region: Region(3), ka_max_s: 300, links: Vec::new() };
    let hello = Hello { taking: NORMAL, ..hello(vec![id(1)]) };
    let mut session = Session::open(Claim { hello }, terms, false, START);
    let held = vec![(sequence(&app()), Seq(1))];
    session.handle_backlog(START, WALL, Backlog { held, ..backlog(vec![], true) });
    actions(&mut session);
    let taking = Taking { least: Urgency::Low, ..NORMAL };
    session.handle_frame(START, ToServer::Ping { seq: 1, next_s: 9, taking });
    session.handle_backlog(START, WALL, backlog(rows(1..=1), true));
    assert_eq!(pushed(&actions(&mut session)), [], "it is not sent again");
}

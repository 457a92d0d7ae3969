//! Tests of the device's store, on real files.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::proto::frame::{Delivery, Fate, NotKept, Refusal, WINDOW};
use crate::proto::keepalive::Learned;
use crate::proto::message::Payload;
use crate::proto::pulse::NetworkKey;
use crate::proto::samples::{self, app};
use crate::proto::wishes::Wish;
use crate::proto::{MessageId, Push, RegId, Region, UnixMillis};
use crate::world;

const FAR: i64 = i64::MAX / 2;

struct Fixture {
    folder: tempfile::TempDir,
    limits: Limits,
    store: Store,
    credentials: Credentials,
}

impl Fixture {
    async fn new(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, credentials) = Store::open(&folder.path().join("agent.db"), limits).unwrap();
        let fixture = Self { folder, limits, store, credentials };
        fixture.register("chat").await;
        fixture
    }

    async fn register(&self, name: &str) {
        self.claim(name, 1000).await.unwrap();
        self.store.registered(app(name), reg_id(1), None).await.unwrap();
    }

    async fn claim(&self, name: &str, uid: u32) -> Option<AppRow> {
        let owner = Owner { uid, flatpak: None };
        let claim = Claim { app: app(name), owner, by_manifest: false, installed: None };
        self.store.claim(claim, |_| true).await.unwrap()
    }

    fn reopen(self) -> Self {
        let Self { folder, limits, store, credentials: before } = self;
        drop(store);
        let (store, credentials) = Store::open(&folder.path().join("agent.db"), limits).unwrap();
        assert_eq!(credentials.device, before.device);
        assert_eq!(credentials.secret, before.secret);
        Self { folder, limits, store, credentials }
    }

    async fn receive(&self, batch: &[Delivery]) -> Received {
        self.store.receive(batch.to_vec(), |_| true).await.unwrap()
    }

    /// The texts of all unread messages, each with its count of drops, as an app takes them.
    async fn take_all(&self, name: &str) -> Vec<(String, u32)> {
        let mut taken = Vec::new();
        while let Some(unread) = self.store.next_unread(app(name)).await.unwrap() {
            self.store.delivered(&unread).await.unwrap();
            let text = unread.push.payload.unwrap().as_text().unwrap().to_owned();
            taken.push((text, unread.dropped));
        }
        taken
    }

    async fn fates(&self) -> Vec<Fate> {
        self.store.outcomes().await.unwrap().into_iter().map(|outcome| outcome.fate).collect()
    }
}

fn reg_id(byte: u8) -> RegId {
    RegId::new(Region(0), 0, &[byte; 48])
}

fn delivery(name: &str, text: &str, expires_ms: i64) -> Delivery {
    let push = Push {
        reg_id: reg_id(1),
        app: app(name),
        payload: Some(Payload::text(text)),
        expires_ms: UnixMillis(expires_ms),
        ..samples::push(world::message_id())
    };
    Delivery { n: 1, dropped: 0, replaces: vec![], push }
}

fn texts(of: &[(&str, u32)]) -> Vec<(String, u32)> {
    of.iter().map(|(text, dropped)| ((*text).to_owned(), *dropped)).collect()
}

#[tokio::test]
async fn messages_are_taken_in_order_and_once_and_survive_a_restart() {
    let fixture = Fixture::new(Limits::default()).await;
    let batch: Vec<Delivery> = ["a", "b", "c"].map(|text| delivery("chat", text, FAR)).to_vec();
    let received = fixture.receive(&batch).await;
    assert_eq!((received.ids.len(), received.apps), (3, vec![app("chat")]));
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.count_unread(app("chat")).await.unwrap(), 3);
    assert_eq!(fixture.take_all("chat").await, texts(&[("a", 0), ("b", 0), ("c", 0)]));
    assert_eq!(fixture.take_all("chat").await, []);
    assert_eq!(fixture.fates().await, [Fate::Delivered; 3]);
}

/// One with a request id.
fn requested(request_id: &str, text: &str) -> Delivery {
    let delivery = delivery("chat", text, FAR);
    let push = Push { request_id: Some(request_id.into()), ..delivery.push };
    Delivery { push, ..delivery }
}

#[tokio::test]
async fn a_later_message_takes_the_place_of_what_is_unread_of_its_request_id() {
    let fixture = Fixture::new(Limits::default()).await;
    let other = requested("other", "other");
    let mut first = requested("score", "1:0");
    first.dropped = 3;
    fixture.receive(&[first, other, requested("score", "2:0")]).await;
    assert_eq!(fixture.take_all("chat").await, texts(&[("other", 0), ("2:0", 3)]));
    assert_eq!(fixture.fates().await, [Fate::Replaced, Fate::Delivered, Fate::Delivered]);
    // What the app has had is replaced by nothing.
    fixture.receive(&[requested("score", "3:0")]).await;
    assert_eq!(fixture.take_all("chat").await, texts(&[("3:0", 0)]));
}

#[tokio::test]
async fn of_a_message_and_what_replaces_it_on_its_way_the_app_is_given_one() {
    let fixture = Fixture::new(Limits::default()).await;
    let (first, second) = (requested("score", "1:0"), requested("score", "2:0"));
    let second = Delivery { replaces: vec![first.push.id], ..second };
    // The server has not heard that the first has arrived, and been given to the app.
    fixture.receive(std::slice::from_ref(&first)).await;
    assert_eq!(fixture.take_all("chat").await, texts(&[("1:0", 0)]));
    let received = fixture.receive(std::slice::from_ref(&second)).await;
    assert_eq!(received.ids, [second.push.id], "it is acknowledged all the same");
    assert_eq!(fixture.take_all("chat").await, []);
    assert_eq!(fixture.fates().await, [Fate::Delivered, Fate::TooLate]);
    // The other way round: the first comes late.
    let (first, second) = (requested("goal", "1"), requested("goal", "2"));
    let second = Delivery { replaces: vec![first.push.id], ..second };
    fixture.receive(&[second]).await;
    fixture.receive(&[first]).await;
    assert_eq!(fixture.take_all("chat").await, texts(&[("2", 0)]));
}

#[tokio::test]
async fn a_message_in_the_app_s_hands_is_replaced_only_if_the_app_does_not_take_it() {
    let fixture = Fixture::new(Limits::default()).await;
    for taken in [true, false] {
        fixture.receive(&[requested("score", "1:0")]).await;
        let in_hand = fixture.store.next_unread(app("chat")).await.unwrap().unwrap();
        fixture.receive(&[requested("score", "2:0"), requested("other", "other")]).await;
        if taken {
            fixture.store.delivered(&in_hand).await.unwrap();
        }
        let left: &[(&str, u32)] = if taken { &[("other", 0)] } else { &[("2:0", 0), ("other", 0)] };
        assert_eq!(fixture.take_all("chat").await, texts(left));
    }
}

#[tokio::test]
async fn what_happens_to_a_message_after_a_report_is_reported_as_well() {
    let fixture = Fixture::new(Limits::default()).await;
    fixture.store.receive(vec![asking("action=LAUNCH")], |_| false).await.unwrap();
    let pending = fixture.store.pending().await.unwrap();
    let unread = fixture.store.next_unread(app("chat")).await.unwrap().unwrap();
    let id = unread.push.id;
    fixture.store.started(vec![(pending[0].place, Some(id))], Hop::Launched, "how".into()).await.unwrap();
    assert_eq!(fixture.fates().await, [Fate::Launched]);
    fixture.store.delivered(&unread).await.unwrap();
    fixture.store.noted(vec![id]).await.unwrap();
    assert_eq!(fixture.fates().await, [Fate::Delivered]);
    fixture.store.noted(vec![id]).await.unwrap();
    assert_eq!(fixture.fates().await, []);
}

#[tokio::test]
async fn a_repeated_push_is_acknowledged_and_not_kept_again() {
    let fixture = Fixture::new(Limits::default()).await;
    let one = delivery("chat", "one", FAR);
    fixture.receive(&[one.clone(), one.clone()]).await;
    assert_eq!(fixture.take_all("chat").await.len(), 1);
    let fixture = fixture.reopen();
    let again = fixture.receive(std::slice::from_ref(&one)).await;
    assert_eq!((again.ids, again.apps), (vec![one.push.id], vec![]));
    assert_eq!(fixture.take_all("chat").await, []);
}

#[tokio::test]
async fn the_resume_point_is_the_last_window_of_ids() {
    let fixture = Fixture::new(Limits::default()).await;
    let batch: Vec<Delivery> = (0..WINDOW + 5).map(|n| delivery("chat", &n.to_string(), FAR)).collect();
    fixture.receive(&batch).await;
    let resume: BTreeSet<MessageId> = fixture.store.resume_point().await.unwrap().into_iter().collect();
    let expected: BTreeSet<MessageId> = batch[5..].iter().map(|delivery| delivery.push.id).collect();
    assert_eq!(resume, expected);
}

#[tokio::test]
async fn what_is_not_kept_is_never_acknowledged() {
    let fixture = Fixture::new(Limits::default()).await;
    let mut old = delivery("chat", "for an old regId", FAR);
    old.push.reg_id = reg_id(2);
    let batch = [delivery("chat", "kept", FAR), old, delivery("unknown", "x", FAR), delivery("chat", "late", 1)];
    let ids = batch.each_ref().map(|delivery| delivery.push.id);
    let not_kept = [(ids[1], NotKept::Unwanted), (ids[2], NotKept::Unwanted), (ids[3], NotKept::Expired)];
    let received = fixture.receive(&batch).await;
    assert_eq!((received.ids, received.not_kept), (vec![ids[0]], not_kept.to_vec()));
    assert_eq!((received.apps, received.unwanted), (vec![app("chat")], vec![app("chat"), app("unknown")]));
    // Its server learns it in place of an acknowledgement, as often as it sends the same.
    assert_eq!(fixture.fates().await, []);
    let again = fixture.receive(&batch).await;
    assert_eq!((again.ids, again.not_kept), (vec![ids[0]], not_kept.to_vec()));
    assert_eq!((again.apps, again.unwanted), (vec![], vec![]));
    assert_eq!(fixture.store.resume_point().await.unwrap(), [ids[0]]);
}

#[tokio::test]
async fn what_comes_while_registrations_are_made_anew_is_kept() {
    let fixture = Fixture::new(Limits::default()).await;
    fixture.store.renew("here", true).await.unwrap();
    let received = fixture.receive(&[delivery("chat", "from before", FAR)]).await;
    assert_eq!((received.apps, received.unwanted), (vec![app("chat")], Vec::new()));
    fixture.store.registered(app("chat"), reg_id(2), None).await.unwrap();
    let late = fixture.receive(&[delivery("chat", "too late", FAR)]).await;
    assert_eq!(late.not_kept.len(), 1);
}

#[tokio::test]
async fn nothing_is_given_to_an_app_after_its_expiry() {
    let fixture = Fixture::new(Limits::default()).await;
    let soon = world::now().0 + 150;
    let batch = [delivery("chat", "late", 1), delivery("chat", "soon", soon), delivery("chat", "good", FAR)];
    assert_eq!(fixture.receive(&batch).await.not_kept, [(batch[0].push.id, NotKept::Expired)]);
    assert_eq!(fixture.store.count_unread(app("chat")).await.unwrap(), 2);
    while world::now().0 <= soon {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.store.count_unread(app("chat")).await.unwrap(), 1);
    assert_eq!(fixture.take_all("chat").await, texts(&[("good", 0)]));
    assert_eq!(fixture.fates().await, [Fate::Expired, Fate::Delivered]);
}

#[tokio::test]
async fn over_the_count_the_oldest_go_and_the_app_is_told_once() {
    let fixture = Fixture::new(Limits { unread_messages: 3, ..Limits::default() }).await;
    let mut batch: Vec<Delivery> = (0..5).map(|n| delivery("chat", &n.to_string(), FAR)).collect();
    // The server had dropped four before the first of these.
    batch[0].dropped = 4;
    fixture.receive(&batch).await;
    assert_eq!(fixture.take_all("chat").await, texts(&[("2", 6), ("3", 0), ("4", 0)]));
    assert_eq!(fixture.fates().await.iter().filter(|fate| **fate == Fate::Dropped).count(), 2);
}

#[tokio::test]
async fn over_the_bytes_the_oldest_go_but_never_the_only_one() {
    let fixture = Fixture::new(Limits { unread_bytes: 2000, ..Limits::default() }).await;
    let big = "x".repeat(5000);
    fixture.receive(&[delivery("chat", "small", FAR), delivery("chat", &big, FAR)]).await;
    assert_eq!(fixture.take_all("chat").await, texts(&[(&big, 1)]));
}

#[tokio::test]
async fn an_app_belongs_to_the_user_who_claimed_it_first() {
    let fixture = Fixture::new(Limits { apps: 2, ..Limits::default() }).await;
    assert_eq!(fixture.claim("chat", 7).await.unwrap().owner.uid, 1000);
    assert_eq!(fixture.claim("mail", 7).await.unwrap().owner.uid, 7);
    assert_eq!(fixture.claim("third", 7).await, None);
}

#[tokio::test]
async fn wishes_and_regids_survive_a_restart() {
    let fixture = Fixture::new(Limits::default()).await;
    fixture.claim("mail", 1000).await.unwrap();
    fixture.store.wish(app("mail"), Some(Wish::Register)).await.unwrap();
    let fixture = fixture.reopen();
    let rows = fixture.store.apps().await.unwrap();
    assert_eq!((rows[0].reg_id, rows[0].wish), (Some(reg_id(1)), None));
    assert_eq!((rows[1].reg_id, rows[1].wish), (None, Some(Wish::Register)));
}

#[tokio::test]
async fn an_answer_fulfils_its_own_wish_and_no_newer_one() {
    let fixture = Fixture::new(Limits::default()).await;
    fixture.store.wish(app("chat"), Some(Wish::Deregister)).await.unwrap();
    fixture.store.registered(app("chat"), reg_id(2), None).await.unwrap();
    let row = fixture.store.app(app("chat")).await.unwrap().unwrap();
    assert_eq!((row.reg_id, row.wish), (Some(reg_id(2)), Some(Wish::Deregister)));
    fixture.store.deregistered(app("chat")).await.unwrap();
    let row = fixture.store.app(app("chat")).await.unwrap().unwrap();
    assert_eq!((row.reg_id, row.wish), (None, None));
}

#[tokio::test]
async fn a_server_that_forgot_the_device_is_asked_for_every_regid_again() {
    let fixture = Fixture::new(Limits::default()).await;
    fixture.register("leaving").await;
    fixture.store.wish(app("leaving"), Some(Wish::Deregister)).await.unwrap();
    assert_eq!(fixture.store.renew("here", true).await.unwrap(), [app("chat")]);
    let row = fixture.store.app(app("chat")).await.unwrap().unwrap();
    assert!(row.reg_id.is_some(), "what is on its way for it is still wanted");
    assert_eq!(row.wish, Some(Wish::Register));
    fixture.store.registration_refused(app("chat"), Refusal::UnknownApp).await.unwrap();
    let row = fixture.store.app(app("chat")).await.unwrap().unwrap();
    assert_eq!((row.reg_id, row.wish), (None, None));
}

#[tokio::test]
async fn only_a_server_that_may_not_know_the_registrations_is_asked_for_them_again() {
    let fixture = Fixture::new(Limits::default()).await;
    let renewed = async |gateway, enrolled| fixture.store.renew(gateway, enrolled).await.unwrap();
    assert_eq!(renewed("here", false).await, [], "they were made there, as far as anybody knows");
    assert_eq!(renewed("here", false).await, []);
    assert_eq!(renewed("there", false).await, [app("chat")]);
    assert_eq!(renewed("there", false).await, []);
    assert_eq!(renewed("there", true).await, [app("chat")], "it has forgotten the device");
    assert_eq!(renewed("here", false).await, [app("chat")], "what it knew are not those of now");
}

#[tokio::test]
async fn what_was_learned_of_a_network_is_kept_and_of_too_many_the_newest() {
    let fixture = Fixture::new(Limits::default()).await;
    let learned = |good| Learned { good_s: Some(good), ..Learned::default() };
    assert_eq!(fixture.store.memory(NetworkKey([0; 16])).await.unwrap(), None);
    for number in 0..4 {
        fixture.store.learn(NetworkKey([number; 16]), learned(100), 3).await.unwrap();
        fixture.store.learn(NetworkKey([number; 16]), learned(u32::from(number)), 3).await.unwrap();
    }
    let good = async |number| {
        fixture.store.memory(NetworkKey([number; 16])).await.unwrap().map(|memory| memory.learned.good_s)
    };
    let known = [good(0).await, good(1).await, good(2).await, good(3).await];
    assert_eq!(known.iter().flatten().count(), 3);
    assert_eq!(known[3], Some(Some(3)), "the newest is never forgotten");
    let memory = fixture.store.memory(NetworkKey([3; 16])).await.unwrap().unwrap();
    assert!(memory.age < Duration::from_secs(60), "{memory:?}");
}

#[tokio::test]
async fn outcomes_wait_until_the_server_has_noted_them() {
    let fixture = Fixture::new(Limits::default()).await;
    fixture.receive(&[delivery("chat", "a", FAR), delivery("chat", "b", FAR)]).await;
    fixture.take_all("chat").await;
    let told = fixture.store.outcomes().await.unwrap();
    assert_eq!(fixture.store.outcomes().await.unwrap(), told);
    fixture.store.noted(vec![told[0].id]).await.unwrap();
    assert_eq!(fixture.store.outcomes().await.unwrap(), told[1..]);
}

#[tokio::test]
async fn a_gateway_is_used_only_instead_of_the_one_that_named_it() {
    let fixture = Fixture::new(Limits::default()).await;
    fixture.store.set_gateway("wss://one", "wss://two".into()).await.unwrap();
    assert_eq!(fixture.store.gateway("wss://one").await.unwrap().as_deref(), Some("wss://two"));
    assert_eq!(fixture.store.gateway("wss://other").await.unwrap(), None);
}

/// A message for `chat` with this `message` string.
fn asking(message: &str) -> Delivery {
    let delivery = delivery("chat", message, FAR);
    Delivery { push: Push { message: Some(message.to_owned().into()), ..delivery.push }, ..delivery }
}

async fn badge(fixture: &Fixture) -> u16 {
    fixture.store.app(app("chat")).await.unwrap().unwrap().badge
}

#[tokio::test]
async fn message_badge_and_effect_are_one_step_and_happen_once() {
    let fixture = Fixture::new(Limits::default()).await;
    let alert = asking("action=ALERT&alertMessage=Hi&badgeOption=INCREASE&badgeNumber=2");
    let received = fixture.store.receive(vec![alert.clone()], |_| false).await.unwrap();
    assert_eq!(received.changes, Changes { badges: true, effects: true, outcomes: false });
    let fixture = fixture.reopen();
    let again = fixture.store.receive(vec![alert.clone()], |_| false).await.unwrap();
    assert_eq!((again.changes, badge(&fixture).await), (Changes::default(), 2));
    let pending = fixture.store.pending().await.unwrap();
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0].task, Task::Alert(Box::new(alert.push)));
}

#[tokio::test]
async fn what_a_connected_app_does_not_take_is_decided_about_when_it_goes() {
    let fixture = Fixture::new(Limits::default()).await;
    let batch = ["action=DISCARD", "action=ALERT", "action=LAUNCH&badgeOption=SET&badgeNumber=7"].map(asking);
    let received = fixture.store.receive(batch.to_vec(), |_| true).await.unwrap();
    assert_eq!((received.changes, badge(&fixture).await), (Changes::default(), 0));
    assert_eq!(fixture.store.left_over().await.unwrap(), [app("chat")]);
    // It is still there.
    let nothing = fixture.store.left(app("chat"), |_| Presence::Connected).await.unwrap();
    assert_eq!((nothing, fixture.store.left_over().await.unwrap().len()), (Changes::default(), 1));
    let changes = fixture.store.left(app("chat"), |_| Presence::Away).await.unwrap();
    assert_eq!(changes, Changes { badges: true, effects: true, outcomes: true });
    assert_eq!(fixture.fates().await, [Fate::Discarded]);
    assert_eq!(fixture.store.pending().await.unwrap().len(), 2);
    assert_eq!(fixture.store.left_over().await.unwrap(), []);
    let later = fixture.store.left(app("chat"), |_| Presence::Away).await.unwrap();
    assert_eq!((later, badge(&fixture).await), (Changes::default(), 7));
}

#[tokio::test]
async fn an_app_that_was_connected_is_known_to_the_next_run() {
    let fixture = Fixture::new(Limits::default()).await;
    fixture.store.came(app("chat")).await.unwrap();
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.connected_before().await.unwrap(), [app("chat")]);
    fixture.store.left(app("chat"), |_| Presence::Away).await.unwrap();
    assert_eq!(fixture.store.connected_before().await.unwrap(), []);
}

#[tokio::test]
async fn a_message_that_is_read_brings_about_nothing_more() {
    let fixture = Fixture::new(Limits::default()).await;
    fixture.store.receive(vec![asking("action=ALERT"), asking("action=LAUNCH")], |_| false).await.unwrap();
    fixture.take_all("chat").await;
    assert_eq!(fixture.store.pending().await.unwrap(), []);
}

#[tokio::test]
async fn a_message_that_has_expired_brings_about_nothing_more() {
    let fixture = Fixture::new(Limits::default()).await;
    fixture.store.receive(vec![asking("action=ALERT"), asking("action=LAUNCH")], |_| false).await.unwrap();
    assert_eq!(fixture.store.pending().await.unwrap().len(), 2);
    fixture.store.worker.write(|db| db.execute("UPDATE unread SET expires_ms = 1", [])).await.unwrap();
    assert_eq!(fixture.store.pending().await.unwrap(), []);
}

#[tokio::test]
async fn an_app_s_long_error_is_kept_in_brief() {
    let fixture = Fixture::new(Limits::default()).await;
    let one = asking("");
    fixture.receive(std::slice::from_ref(&one)).await;
    fixture.store.refused(one.push.id, "\u{e9}".repeat(1_000_000)).await.unwrap();
    let life = fixture.store.history(1).await.unwrap().remove(0);
    assert_eq!(life.hops[1].why.as_deref().map(str::len), Some(300));
}

#[tokio::test]
async fn an_alert_on_the_screen_goes_with_its_message_or_its_app_s_right() {
    let fixture = Fixture::new(Limits::default()).await;
    let one = asking("action=ALERT&alertMessage=Hi");
    fixture.store.receive(vec![one.clone()], |_| false).await.unwrap();
    let place = fixture.store.pending().await.unwrap()[0].place;
    let id = one.push.id;
    let alert = Shown { id, app: app("chat"), notification: 5, server: "s".into(), topic: None, more: 0 };
    fixture.store.alerted(alert.clone(), vec![(place, id)]).await.unwrap();
    assert_eq!(fixture.store.pending().await.unwrap(), []);
    assert_eq!(fixture.store.current_alerts().await.unwrap(), [(alert.clone(), one.push.clone())]);
    assert_eq!(fixture.store.alert_numbered("s", 5).await.unwrap().as_ref(), Some(&alert));
    let alerts = |on| SwitchTo { alerts: Some(on), ..SwitchTo::default() };
    fixture.store.switch(app("chat"), alerts(false)).await.unwrap();
    assert_eq!(fixture.store.alerts_over().await.unwrap(), std::slice::from_ref(&alert));
    fixture.store.switch(app("chat"), alerts(true)).await.unwrap();
    assert_eq!(fixture.store.alerts_over().await.unwrap(), []);
    let unread = fixture.store.next_unread(app("chat")).await.unwrap().unwrap();
    assert!(fixture.store.delivered(&unread).await.unwrap());
    assert_eq!(fixture.store.alerts_over().await.unwrap(), [alert]);
}

#[tokio::test]
async fn a_click_opens_its_app_once_even_if_the_message_has_been_read() {
    let fixture = Fixture::new(Limits::default()).await;
    let one = asking("action=ALERT");
    fixture.store.receive(vec![one.clone()], |_| false).await.unwrap();
    let place = fixture.store.pending().await.unwrap()[0].place;
    let id = one.push.id;
    let alert = Shown { id, app: app("chat"), notification: 5, server: "s".into(), topic: None, more: 0 };
    fixture.store.alerted(alert, vec![(place, id)]).await.unwrap();
    assert!(fixture.store.alert_clicked(id, Some("token".into())).await.unwrap());
    assert!(!fixture.store.alert_clicked(id, None).await.unwrap());
    fixture.take_all("chat").await;
    let pending = fixture.store.pending().await.unwrap();
    assert_eq!(pending[0].task, Task::Open { id, token: Some("token".into()) });
    fixture.store.started(vec![(pending[0].place, Some(id))], Hop::Launched, "by a test".into()).await.unwrap();
    assert_eq!(fixture.store.pending().await.unwrap(), []);
    let hops: Vec<String> = fixture.store.history(1).await.unwrap()[0].hops.iter().map(|hop| hop.hop.clone()).collect();
    assert_eq!(hops, ["received", "alerted", "opened", "delivered", "launched"]);
}

#[tokio::test]
async fn the_message_that_started_the_app_says_so_until_the_app_goes() {
    let fixture = Fixture::new(Limits::default()).await;
    let batch = [asking("action=LAUNCH"), asking("action=SILENT")];
    fixture.store.receive(batch.to_vec(), |_| false).await.unwrap();
    let launch = Launch::Notification(batch[0].push.id);
    fixture.store.launching(app("chat"), Some(launch)).await.unwrap();
    assert_eq!(fixture.store.app(app("chat")).await.unwrap().unwrap().launch, Some(launch));
    let first = fixture.store.next_unread(app("chat")).await.unwrap().unwrap();
    assert!(first.launched);
    fixture.store.delivered(&first).await.unwrap();
    assert!(!fixture.store.next_unread(app("chat")).await.unwrap().unwrap().launched);
    fixture.store.left(app("chat"), |_| Presence::Away).await.unwrap();
    assert_eq!(fixture.store.app(app("chat")).await.unwrap().unwrap().launch, None);
}

#[tokio::test]
async fn all_apps_together_have_a_limit_and_the_largest_makes_room() {
    let fixture = Fixture::new(Limits { total_messages: 3, ..Limits::default() }).await;
    fixture.register("mail").await;
    let big = "x".repeat(2000);
    let batch = [delivery("mail", "m", FAR), delivery("chat", &big, FAR), delivery("chat", "b", FAR)];
    fixture.receive(&batch).await;
    fixture.receive(&[delivery("mail", "n", FAR)]).await;
    assert_eq!(fixture.take_all("mail").await, texts(&[("m", 0), ("n", 0)]));
    assert_eq!(fixture.take_all("chat").await, texts(&[("b", 1)]));
}

#[tokio::test]
async fn no_message_waits_longer_than_the_device_lets_it() {
    let fixture = Fixture::new(Limits { unread_hours: 1, ..Limits::default() }).await;
    fixture.receive(&[delivery("chat", "long", FAR)]).await;
    let unread = fixture.store.next_unread(app("chat")).await.unwrap().unwrap();
    assert_eq!(unread.expires_ms.0 - unread.received_ms.0, 3_600_000);
}

#[tokio::test]
async fn a_disabled_app_is_deregistered_and_told_to_register_when_it_is_enabled() {
    let fixture = Fixture::new(Limits::default()).await;
    let enabled = |on| SwitchTo { enabled: Some(on), ..SwitchTo::default() };
    fixture.store.switch(app("chat"), enabled(false)).await.unwrap();
    assert_eq!(fixture.store.wishes().await.unwrap(), [(app("chat"), Wish::Deregister)]);
    // The server has not heard of it yet.
    let late = fixture.receive(&[delivery("chat", "late", FAR)]).await;
    assert_eq!(late.not_kept, [(late.not_kept[0].0, NotKept::Unwanted)]);
    fixture.store.deregistered(app("chat")).await.unwrap();
    fixture.store.switch(app("chat"), enabled(true)).await.unwrap();
    let pending = fixture.store.pending().await.unwrap();
    assert_eq!((pending.len(), &pending[0].task), (1, &Task::RegistrationChange));
}

#[tokio::test]
async fn an_uninstalled_app_is_forgotten_once_the_server_knows() {
    let fixture = Fixture::new(Limits::default()).await;
    fixture.receive(&[delivery("chat", "a", FAR)]).await;
    fixture.store.uninstalled(app("chat")).await.unwrap();
    assert_eq!(fixture.store.apps().await.unwrap(), []);
    assert_eq!(fixture.fates().await, [Fate::Unwanted]);
    assert_eq!(fixture.store.wishes().await.unwrap(), [(app("chat"), Wish::Deregister)]);
    // Installed again by somebody else, it is theirs.
    assert_eq!(fixture.claim("chat", 7).await.unwrap().owner.uid, 7);
    fixture.store.uninstalled(app("chat")).await.unwrap();
    fixture.store.deregistered(app("chat")).await.unwrap();
    assert_eq!(fixture.store.wishes().await.unwrap(), []);
    assert_eq!(fixture.claim("chat", 8).await.unwrap().owner.uid, 8);
}

#[tokio::test]
async fn a_badge_that_is_switched_off_is_nothing_and_stays_so() {
    let fixture = Fixture::new(Limits::default()).await;
    assert!(fixture.store.set_badge(app("chat"), 5000).await.unwrap());
    assert_eq!(badge(&fixture).await, 999);
    let off = SwitchTo { badge: Some(false), ..SwitchTo::default() };
    fixture.store.switch(app("chat"), off).await.unwrap();
    assert_eq!(badge(&fixture).await, 0);
    assert!(!fixture.store.set_badge(app("chat"), 5).await.unwrap());
}

#[tokio::test]
async fn the_history_has_the_last_messages_and_no_more() {
    let fixture = Fixture::new(Limits { unread_messages: 1000, ..Limits::default() }).await;
    let batch: Vec<Delivery> = (0..300).map(|n| delivery("chat", &n.to_string(), FAR)).collect();
    fixture.receive(&batch).await;
    let lives = fixture.store.history(u32::MAX).await.unwrap();
    assert_eq!(lives.len(), usize::try_from(history::MESSAGES_MAX).unwrap());
    assert_eq!(lives[0].id, batch[299].push.id);
    for _ in 0..50 {
        fixture.store.refused(batch[299].push.id, "it does not want it".into()).await.unwrap();
    }
    let hops = fixture.store.history(1).await.unwrap().remove(0).hops;
    assert_eq!((hops.len(), hops[0].hop.as_str(), hops[15].hop.as_str()), (16, "received", "refused"));
}

#[test]
fn a_store_of_the_first_version_is_taken_over_with_its_messages() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.db");
    let older = db::open(&path, &schema::MIGRATIONS[..1]).unwrap();
    let push = delivery("chat", "old", FAR).push;
    older.execute("INSERT INTO apps VALUES ('chat', 1000, NULL, NULL)", []).unwrap();
    let insert = "INSERT INTO unread (app, received_ms, expires_ms, dropped, body) VALUES ('chat', 1, ?1, 0, ?2)";
    older.execute(insert, rusqlite::params![FAR, serde_json::to_string(&push).unwrap()]).unwrap();
    drop(older);
    let (store, _) = Store::open(&path, Limits::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let changes = store.left(app("chat"), |_| Presence::Away).await.unwrap();
        assert_eq!(changes, Changes::default());
        let unread = store.next_unread(app("chat")).await.unwrap().unwrap();
        assert_eq!(unread.push, push);
        assert!(!store.delivered(&unread).await.unwrap());
        assert_eq!(store.next_unread(app("chat")).await.unwrap(), None);
    });
}

#[tokio::test]
async fn an_app_that_has_nothing_here_makes_room_for_another() {
    let fixture = Fixture::new(Limits { apps: 2, ..Limits::default() }).await;
    assert!(fixture.claim("idle", 7).await.is_some());
    let claim = |name: &str| Claim {
        app: app(name),
        owner: Owner { uid: 7, flatpak: None },
        by_manifest: false,
        installed: None,
    };
    // It is there: it stays.
    assert_eq!(fixture.store.claim(claim("new"), |_| true).await.unwrap(), None);
    assert!(fixture.store.claim(claim("new"), |_| false).await.unwrap().is_some());
    assert_eq!(fixture.store.app(app("idle")).await.unwrap(), None);
    // The registered one is not forgotten.
    assert!(fixture.store.app(app("chat")).await.unwrap().is_some());
}

#[tokio::test]
async fn the_reason_of_a_start_outlives_what_ended_before_it() {
    let fixture = Fixture::new(Limits::default()).await;
    let one = asking("action=LAUNCH");
    fixture.store.receive(vec![one.clone()], |_| false).await.unwrap();
    fixture.store.launching(app("chat"), Some(Launch::Notification(one.push.id))).await.unwrap();
    fixture.store.left(app("chat"), |_| Presence::Awaited).await.unwrap();
    assert!(fixture.store.next_unread(app("chat")).await.unwrap().unwrap().launched);
    fixture.store.left(app("chat"), |_| Presence::Away).await.unwrap();
    assert!(!fixture.store.next_unread(app("chat")).await.unwrap().unwrap().launched);
}

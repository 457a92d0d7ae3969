//! Tests of the device's store, on real files.

use std::collections::BTreeSet;

use super::*;
use crate::proto::Region;
use crate::proto::frame::{Fate, WINDOW};
use crate::proto::message::Payload;
use crate::proto::samples::{self, app};

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
        self.store.claim(app(name), 1000).await.unwrap().unwrap();
        self.store.registered(app(name), reg_id(1)).await.unwrap();
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
        self.store.receive(batch.to_vec()).await.unwrap()
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
    Delivery { n: 1, dropped: 0, push }
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
async fn what_is_for_no_registration_is_acknowledged_and_reported() {
    let fixture = Fixture::new(Limits::default()).await;
    let mut old = delivery("chat", "for an old regId", FAR);
    old.push.reg_id = reg_id(2);
    let received = fixture.receive(&[old, delivery("unknown", "x", FAR)]).await;
    assert_eq!((received.ids.len(), received.apps.len(), received.outcomes), (2, 0, true));
    assert_eq!(fixture.fates().await, [Fate::Unwanted; 2]);
}

#[tokio::test]
async fn nothing_is_given_to_an_app_after_its_expiry() {
    let fixture = Fixture::new(Limits::default()).await;
    let soon = world::now().0 + 150;
    let batch = [delivery("chat", "late", 1), delivery("chat", "soon", soon), delivery("chat", "good", FAR)];
    assert!(fixture.receive(&batch).await.outcomes);
    assert_eq!(fixture.store.count_unread(app("chat")).await.unwrap(), 2);
    while world::now().0 <= soon {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.store.count_unread(app("chat")).await.unwrap(), 1);
    assert_eq!(fixture.take_all("chat").await, texts(&[("good", 0)]));
    assert_eq!(fixture.fates().await, [Fate::Expired, Fate::Expired, Fate::Delivered]);
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
    assert_eq!(fixture.store.claim(app("chat"), 7).await.unwrap().unwrap().uid, 1000);
    assert_eq!(fixture.store.claim(app("mail"), 7).await.unwrap().unwrap().uid, 7);
    assert_eq!(fixture.store.claim(app("third"), 7).await.unwrap(), None);
}

#[tokio::test]
async fn wishes_and_regids_survive_a_restart() {
    let fixture = Fixture::new(Limits::default()).await;
    fixture.store.claim(app("mail"), 1000).await.unwrap();
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
    fixture.store.registered(app("chat"), reg_id(2)).await.unwrap();
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
    assert_eq!(fixture.store.renew_all().await.unwrap(), [app("chat")]);
    let row = fixture.store.app(app("chat")).await.unwrap().unwrap();
    assert_eq!((row.reg_id, row.wish), (None, Some(Wish::Register)));
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

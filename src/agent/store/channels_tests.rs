//! Registrations of apps that speak UnifiedPush, on a real file.

use super::*;
use crate::agent::store::SwitchTo;
use crate::proto::frame::Delivery;
use crate::proto::samples;
use crate::proto::{RegId, Region};

struct Fixture {
    _folder: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&folder.path().join("agent.db"), limits).unwrap();
        Self { _folder: folder, store }
    }

    async fn enter(&self, token: &str, change: impl FnOnce(&mut Enter)) -> Entered {
        let mut enter = Enter {
            token: token.parse().unwrap(),
            service: OwnedBusName::try_from("org.example.Mail").unwrap(),
            version: Version::V2,
            description: String::new(),
            sender: None,
            owner: Owner { uid: 1000, flatpak: None },
            installed: None,
            bus: None,
        };
        change(&mut enter);
        self.store.enter(enter, |_| false).await.unwrap()
    }

    /// A registration that has this endpoint; returns its channel.
    async fn registered(&self, token: &str, endpoint: &str) -> AppId {
        let app = channel(self.enter(token, |_| {}).await);
        self.store.registered(app.clone(), reg_id(), Some(endpoint.to_owned())).await.unwrap();
        app
    }

    async fn find(&self, token: &str) -> Option<Registration> {
        self.store.registration(token.parse().unwrap()).await.unwrap()
    }

    async fn waiting(&self) -> Vec<String> {
        let tokens = self.store.waiting_registrations().await.unwrap();
        tokens.iter().map(|(token, _)| token.as_str().to_owned()).collect()
    }

    async fn switch(&self, app: &AppId, on: bool) {
        let to = SwitchTo { enabled: Some(on), ..SwitchTo::default() };
        self.store.switch(app.clone(), to).await.unwrap().unwrap();
    }

    async fn receive(&self, app: &AppId, number: u64) {
        let mut push = samples::push(samples::message_id(number));
        (push.app, push.reg_id) = (app.clone(), reg_id());
        push.expires_ms = world::now().plus_minutes(60);
        let delivery = Delivery { n: number, push, dropped: 0, replaces: Vec::new() };
        assert_eq!(self.store.receive(vec![delivery], |_| false).await.unwrap().ids.len(), 1);
    }
}

fn reg_id() -> RegId {
    RegId::new(Region(0), 0, &[1; 48])
}

fn channel(entered: Entered) -> AppId {
    let Entered::Accepted { app, .. } = entered else { panic!("{entered:?}") };
    app
}

fn endpoint(of: &str) -> Option<News> {
    Some(News::NewEndpoint(of.to_owned()))
}

#[tokio::test]
async fn an_endpoint_is_news_until_it_was_told_since_the_last_registration() {
    let fixture = Fixture::new(Limits::default());
    let app = fixture.registered("a", "https://one").await;
    let first = fixture.find("a").await.unwrap();
    assert_eq!((first.news, fixture.waiting().await), (endpoint("https://one"), vec!["a".to_owned()]));
    // It registers again while it is being told.
    assert_eq!(channel(fixture.enter("a", |_| {}).await), app);
    fixture.store.endpoint_told(first.token, first.asked, "https://one".into()).await.unwrap();
    let second = fixture.find("a").await.unwrap();
    assert_eq!(second.news, endpoint("https://one"));
    fixture.store.endpoint_told(second.token, second.asked, "https://one".into()).await.unwrap();
    assert_eq!((fixture.find("a").await.unwrap().news, fixture.waiting().await), (None, Vec::new()));
    fixture.store.registered(app, reg_id(), Some("https://two".into())).await.unwrap();
    assert_eq!(fixture.find("a").await.unwrap().news, endpoint("https://two"));
}

#[tokio::test]
async fn an_endpoint_that_may_be_dead_is_no_news() {
    let fixture = Fixture::new(Limits::default());
    let app = fixture.registered("a", "https://one").await;
    assert_eq!(fixture.store.renew("here", true).await.unwrap(), std::slice::from_ref(&app));
    assert_eq!(fixture.find("a").await.unwrap().news, None);
    fixture.store.registration_refused(app.clone(), Refusal::TooMany).await.unwrap();
    assert_eq!(fixture.store.refused_channels().await.unwrap(), std::slice::from_ref(&app));
    assert_eq!(fixture.store.wishes().await.unwrap(), [(app.clone(), Wish::Register)]);
    fixture.store.registered(app, reg_id(), Some("https://two".into())).await.unwrap();
    assert!(fixture.store.refused_channels().await.unwrap().is_empty());
    assert_eq!(fixture.find("a").await.unwrap().news, endpoint("https://two"));
}

#[tokio::test]
async fn the_end_is_told_once_and_as_whose_doing_it_was() {
    let fixture = Fixture::new(Limits::default());
    let asked = fixture.registered("asked", "https://one").await;
    let revoked = fixture.registered("revoked", "https://two").await;
    fixture.store.leave(asked.clone()).await.unwrap();
    fixture.store.registration_lost(revoked.clone()).await.unwrap();
    // The server may end what the app has ended already.
    fixture.store.registration_lost(asked.clone()).await.unwrap();
    for (token, app, farewell) in [("asked", asked, Farewell::Asked), ("revoked", revoked, Farewell::Revoked)] {
        let registration = fixture.find(token).await.unwrap();
        assert_eq!(registration.news, Some(News::Unregistered(farewell)), "{token}");
        assert_eq!(fixture.store.app(app.clone()).await.unwrap(), None);
        fixture.store.farewell_said(registration.token, app).await.unwrap();
        assert_eq!(fixture.find(token).await, None);
    }
    assert_eq!(fixture.store.left_over().await.unwrap(), []);
}

#[tokio::test]
async fn a_farewell_to_an_older_registration_ends_no_newer_one() {
    let fixture = Fixture::new(Limits::default());
    let first = fixture.registered("a", "https://one").await;
    fixture.store.leave(first.clone()).await.unwrap();
    let second = fixture.registered("a", "https://two").await;
    assert_ne!(first, second);
    fixture.store.farewell_said("a".parse().unwrap(), first).await.unwrap();
    assert_eq!(fixture.find("a").await.unwrap().news, endpoint("https://two"));
}

#[tokio::test]
async fn what_the_user_switched_off_stays_off_whatever_the_app_does() {
    let fixture = Fixture::new(Limits::default());
    let app = fixture.registered("a", "https://one").await;
    fixture.switch(&app, false).await;
    assert_eq!(fixture.find("a").await.unwrap().news, Some(News::Unregistered(Farewell::Revoked)));
    fixture.store.farewell_said("a".parse().unwrap(), app.clone()).await.unwrap();
    fixture.store.deregistered(app.clone()).await.unwrap();
    fixture.store.leave(app.clone()).await.unwrap();
    for token in ["a", "b"] {
        assert_eq!(fixture.enter(token, |_| {}).await, Entered::Disabled, "{token}");
    }
    fixture.switch(&app, true).await;
    assert_eq!(fixture.store.wishes().await.unwrap(), [(app, Wish::Register)]);
    channel(fixture.enter("b", |_| {}).await);
}

#[tokio::test]
async fn another_key_takes_the_unread_messages_and_the_settings_with_it() {
    let fixture = Fixture::new(Limits::default());
    let old = fixture.registered("a", "https://one").await;
    fixture.receive(&old, 1).await;
    fixture.store.switch(old.clone(), SwitchTo { launch: Some(false), ..SwitchTo::default() }).await.unwrap();
    let entered = fixture.enter("a", |enter| enter.sender = Some(SenderHash([7; 32]))).await;
    let Entered::Accepted { app, register: true, replaced } = entered else { panic!("{entered:?}") };
    assert_eq!(replaced, Some(old.clone()));
    let unread = fixture.store.next_unread(app.clone()).await.unwrap().unwrap();
    assert_eq!((unread.push.id, &unread.push.app), (samples::message_id(1), &app));
    assert_eq!(fixture.store.next_unread(old.clone()).await.unwrap(), None);
    assert!(!fixture.find("a").await.unwrap().launch);
    let mut wishes = fixture.store.wishes().await.unwrap();
    wishes.sort_by_key(|(_, wish)| *wish == Wish::Deregister);
    assert_eq!(wishes, [(app, Wish::Register), (old, Wish::Deregister)]);
}

#[tokio::test]
async fn only_so_many_farewells_wait() {
    let fixture = Fixture::new(Limits { apps: 1000, channels_per_app: 1000, ..Limits::default() });
    for number in 0..=FAREWELLS_MAX {
        let app = fixture.registered(&number.to_string(), "https://one").await;
        fixture.store.leave(app).await.unwrap();
    }
    let waiting = fixture.waiting().await;
    assert_eq!((waiting.len(), waiting.first().map(String::as_str)), (FAREWELLS_MAX as usize, Some("1")));
}

#[tokio::test]
async fn apps_that_went_while_the_server_was_away_take_no_place_and_only_so_many_are_known() {
    let fixture = Fixture::new(Limits { apps: 2, ..Limits::default() });
    let mut first = None;
    for _ in 0..=FAREWELLS_MAX {
        let app = channel(fixture.enter("a", |_| {}).await);
        fixture.store.leave(app.clone()).await.unwrap();
        first.get_or_insert(app);
    }
    let wishes = fixture.store.wishes().await.unwrap();
    assert_eq!(wishes.len(), 128);
    assert!(wishes.iter().all(|(app, wish)| Some(app) != first.as_ref() && *wish == Wish::Deregister));
    channel(fixture.enter("b", |_| {}).await);
    channel(fixture.enter("c", |_| {}).await);
    assert_eq!(fixture.enter("d", |_| {}).await, Entered::TooMany);
}

#[tokio::test]
async fn what_was_registered_anew_meanwhile_is_not_ended() {
    let fixture = Fixture::new(Limits::default());
    let app = fixture.registered("a", "https://one").await;
    let called = fixture.find("a").await.unwrap();
    fixture.enter("a", |_| {}).await;
    assert!(!fixture.store.dismiss(app.clone(), Some(called.asked)).await.unwrap());
    let now = fixture.find("a").await.unwrap();
    assert!(now.enabled);
    assert!(fixture.store.dismiss(app, Some(now.asked)).await.unwrap());
    assert_eq!(fixture.find("a").await, None);
}

#[tokio::test]
async fn the_end_starts_no_app_that_may_not_be_started_or_asked_for_it() {
    let fixture = Fixture::new(Limits::default());
    for (token, asked, launch) in [("kept", false, false), ("asked", true, true), ("revoked", false, true)] {
        let app = fixture.registered(token, "https://one").await;
        let to = SwitchTo { launch: Some(launch), ..SwitchTo::default() };
        fixture.store.switch(app.clone(), to).await.unwrap();
        if asked {
            fixture.store.leave(app.clone()).await.unwrap();
        } else {
            fixture.store.uninstalled(app.clone()).await.unwrap();
        }
        // Once the server has heard of it the device knows no more of the app.
        fixture.store.deregistered(app).await.unwrap();
        assert_eq!(fixture.find(token).await.unwrap().launch, token == "revoked", "{token}");
    }
}

#[tokio::test]
async fn a_late_refusal_brings_back_nothing_that_has_ended() {
    let fixture = Fixture::new(Limits::default());
    let left = fixture.registered("left", "https://one").await;
    fixture.store.leave(left.clone()).await.unwrap();
    let off = fixture.registered("off", "https://two").await;
    fixture.switch(&off, false).await;
    fixture.store.farewell_said("off".parse().unwrap(), off.clone()).await.unwrap();
    for app in [&left, &off] {
        fixture.store.registration_refused(app.clone(), Refusal::TooMany).await.unwrap();
    }
    let mut wishes = fixture.store.wishes().await.unwrap();
    wishes.sort_by_key(|(app, _)| *app != left);
    assert_eq!(wishes, [(left, Wish::Deregister), (off, Wish::Deregister)]);
    assert!(fixture.store.refused_channels().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_nobody_serves_any_more_ends_and_what_is_switched_off_stays_so() {
    let fixture = Fixture::new(Limits::default());
    let off = fixture.registered("off", "https://one").await;
    fixture.switch(&off, false).await;
    fixture.store.deregistered(off).await.unwrap();
    let on =
        channel(fixture.enter("on", |enter| enter.service = OwnedBusName::try_from("org.example.Chat").unwrap()).await);
    fixture.store.registered(on.clone(), reg_id(), None).await.unwrap();
    assert_eq!(fixture.store.end_channels().await.unwrap(), 1);
    assert_eq!(fixture.store.end_channels().await.unwrap(), 0);
    assert_eq!(fixture.store.wishes().await.unwrap(), [(on, Wish::Deregister)]);
    assert_eq!(fixture.find("on").await.unwrap().news, Some(News::Unregistered(Farewell::Revoked)));
    assert_eq!(fixture.enter("off", |_| {}).await, Entered::Disabled);
}

#[tokio::test]
async fn a_message_that_is_given_up_is_dropped_with_its_reason() {
    let fixture = Fixture::new(Limits::default());
    let app = fixture.registered("a", "https://one").await;
    fixture.receive(&app, 1).await;
    let unread = fixture.store.next_unread(app.clone()).await.unwrap().unwrap();
    fixture.store.given_up(&unread, "it says no".into()).await.unwrap();
    assert_eq!(fixture.store.next_unread(app).await.unwrap(), None);
    let life = fixture.store.history(1).await.unwrap().remove(0);
    let last = life.hops.last().unwrap();
    assert_eq!((last.hop.as_str(), last.why.as_deref()), ("dropped", Some("it says no")));
}

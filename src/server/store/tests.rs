//! Tests of the store, each on a database file of its own.

use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::proto::RegId;
use crate::proto::message::Payload;
use crate::proto::samples;
use crate::server::config::Limits;

const REGION: Region = Region(3);
const ALL: usize = 1000;

/// A store in a folder that goes with it.
struct Fixture {
    store: Store,
    folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { store: open(&folder, limits), folder }
    }

    /// A fixture whose queues hold this many messages.
    fn holding(waiting_per_registration: u32) -> Self {
        Self::with(Limits { waiting_per_registration, ..Limits::default() })
    }

    /// The same folder, opened anew.
    fn reopened(self) -> Self {
        self.reopened_with(Limits::default())
    }

    fn reopened_with(self, limits: Limits) -> Self {
        drop(self.store);
        Self { store: open(&self.folder, limits), folder: self.folder }
    }

    /// Moves a message's expiry into the past.
    fn expire(&self, seq: Seq) {
        let beside = Connection::open(self.folder.path().join("server.db")).unwrap();
        assert_eq!(beside.execute("UPDATE messages SET expires_ms = 1 WHERE seq = ?1", [seq.0]).unwrap(), 1);
    }

    async fn add_app(&self, text: &str) -> AppId {
        assert!(self.store.add_app(app(text), "a secret of the app").await.unwrap());
        app(text)
    }

    /// Adds the app if it is missing, and registers it.
    async fn registration(&self, device: DeviceId, text: &str) -> Standing<'_> {
        self.store.add_app(app(text), "a secret of the app").await.unwrap();
        let generation = self.generation(device, text).await;
        let keys = self.store.key_ring(REGION).await.unwrap();
        let reg_id = keys.issue(device, &app(text), generation);
        Standing { store: &self.store, device, app: app(text), reg_id, to: keys.open(&reg_id).unwrap() }
    }

    async fn generation(&self, device: DeviceId, text: &str) -> u64 {
        match self.store.register(device, app(text)).await.unwrap() {
            Registered::As { generation, .. } => generation,
            refused @ (Registered::UnknownApp | Registered::TooMany) => panic!("not registered: {refused:?}"),
        }
    }
}

fn open(folder: &TempDir, limits: Limits) -> Store {
    Store::open(&folder.path().join("server.db"), limits).unwrap()
}

fn app(text: &str) -> AppId {
    text.parse().unwrap()
}

fn minutes(number: i64) -> UnixMillis {
    UnixMillis(world::now().0 + number * 60_000)
}

/// A registration as it was when its regId was issued.
struct Standing<'a> {
    store: &'a Store,
    device: DeviceId,
    app: AppId,
    reg_id: RegId,
    to: Opened,
}

impl Standing<'_> {
    fn message(&self, text: &str, expires_ms: UnixMillis) -> Incoming {
        let push = Push {
            reg_id: self.reg_id,
            app: self.app.clone(),
            payload: Some(Payload::text(text)),
            expires_ms,
            ..samples::push(world::message_id())
        };
        Incoming { to: self.to, push }
    }

    async fn accept(&self, text: &str) -> Accepted {
        self.accept_until(text, minutes(60)).await
    }

    async fn accept_until(&self, text: &str, expires_ms: UnixMillis) -> Accepted {
        self.store.accept(vec![self.message(text, expires_ms)]).await.unwrap()[0]
    }

    async fn stored(&self, texts: &[&str]) {
        for text in texts {
            assert_eq!(self.accept(text).await, Accepted::Stored);
        }
    }

    async fn rows(&self) -> Vec<Queued> {
        let (rows, complete) = self.store.backlog(self.device, Seq(0), ALL).await.unwrap();
        assert!(complete);
        rows
    }

    /// The texts that wait, each with the number of those dropped before it.
    async fn waiting(&self) -> Vec<(String, u32)> {
        self.rows().await.iter().map(|row| (text(row), row.dropped)).collect()
    }

    async fn is_registered(&self) -> bool {
        self.store.is_registered(self.to, self.app.clone()).await.unwrap()
    }
}

fn text(row: &Queued) -> String {
    row.push.payload.as_ref().and_then(Payload::as_text).unwrap().to_owned()
}

fn texts(rows: &[Queued]) -> Vec<String> {
    rows.iter().map(text).collect()
}

fn counted(expected: &[(&str, u32)]) -> Vec<(String, u32)> {
    expected.iter().map(|(text, dropped)| ((*text).to_owned(), *dropped)).collect()
}

fn secret(byte: u8) -> Secret {
    Secret::from_bytes([byte; 32])
}

#[tokio::test]
async fn an_app_is_known_by_its_secret_and_no_other() {
    let fixture = Fixture::new();
    let check = async |text: &str, secret: &str| fixture.store.check_app(app(text), secret).await.unwrap();
    assert_eq!(check("chat", "first").await, AppCheck::Unknown);
    assert!(fixture.store.add_app(app("chat"), "first").await.unwrap());
    assert_eq!(check("chat", "first").await, AppCheck::Known);
    assert_eq!(check("chat", "First").await, AppCheck::WrongSecret);
    assert_eq!(check("chat", "").await, AppCheck::WrongSecret);
    assert_eq!(check("mail", "first").await, AppCheck::Unknown);
}

#[tokio::test]
async fn adding_an_app_again_leaves_its_secret_alone() {
    let fixture = Fixture::new();
    assert!(fixture.store.add_app(app("chat"), "first").await.unwrap());
    assert!(!fixture.store.add_app(app("chat"), "second").await.unwrap());
    assert_eq!(fixture.store.check_app(app("chat"), "first").await.unwrap(), AppCheck::Known);
}

#[tokio::test]
async fn a_rotated_secret_replaces_the_old_one() {
    let fixture = Fixture::new();
    assert!(!fixture.store.set_app_secret(app("chat"), "second").await.unwrap());
    fixture.add_app("chat").await;
    assert!(fixture.store.set_app_secret(app("chat"), "second").await.unwrap());
    assert_eq!(fixture.store.check_app(app("chat"), "second").await.unwrap(), AppCheck::Known);
    assert_eq!(fixture.store.check_app(app("chat"), "a secret of the app").await.unwrap(), AppCheck::WrongSecret);
}

#[tokio::test]
async fn apps_are_listed_by_id_with_the_registrations_that_stand() {
    let fixture = Fixture::new();
    fixture.add_app("mail").await;
    let (one, two) = (world::device_id(), world::device_id());
    fixture.registration(one, "chat").await;
    fixture.registration(two, "chat").await;
    fixture.store.deregister(two, app("chat")).await.unwrap();
    let listed: Vec<(String, i64)> = fixture
        .store
        .list_apps()
        .await
        .unwrap()
        .iter()
        .map(|row| {
            assert!(row.created_ms <= world::now() && row.created_ms > minutes(-1));
            (row.app.to_string(), row.registrations)
        })
        .collect();
    assert_eq!(listed, [("chat".into(), 1), ("mail".into(), 0)]);
}

#[tokio::test]
async fn secrets_are_hashed_at_rest() {
    let fixture = Fixture::new();
    fixture.store.add_app(app("chat"), "this text is nowhere on disk").await.unwrap();
    let device = world::device_id();
    fixture.store.check_device(device, &secret(0xa7), "agent".into(), true).await.unwrap();
    for file in std::fs::read_dir(fixture.folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(!holds(b"this text is nowhere on disk") && !holds(&[0xa7; 32]));
    }
}

#[tokio::test]
async fn a_new_device_enrols_and_is_known_by_its_secret() {
    let fixture = Fixture::new();
    let device = world::device_id();
    let check = async |byte, may_enrol| {
        fixture.store.check_device(device, &secret(byte), "agent/1".into(), may_enrol).await.unwrap()
    };
    assert_eq!(check(1, false).await, DeviceCheck::Refused);
    assert_eq!(check(1, true).await, DeviceCheck::Enrolled);
    // Until it has a registration: it may not have heard that it was new.
    assert_eq!(check(1, false).await, DeviceCheck::Enrolled);
    fixture.registration(device, "chat").await;
    assert_eq!(check(1, true).await, DeviceCheck::Known);
    assert_eq!(check(1, false).await, DeviceCheck::Known);
    assert_eq!(check(2, true).await, DeviceCheck::WrongSecret);
    assert_eq!(check(2, false).await, DeviceCheck::WrongSecret);
}

#[tokio::test]
async fn of_two_connections_that_race_to_enrol_one_is_the_first() {
    let fixture = Fixture::new();
    for round in 0..20 {
        let device = world::device_id();
        let check = |byte| {
            let store = fixture.store.clone();
            async move { store.check_device(device, &secret(byte), "agent".into(), true).await.unwrap() }
        };
        let (one, two) = tokio::join!(check(1), check(1));
        assert_eq!([one, two], [DeviceCheck::Enrolled; 2], "round {round}");

        let device = world::device_id();
        let check = |byte| {
            let store = fixture.store.clone();
            async move { store.check_device(device, &secret(byte), "agent".into(), true).await.unwrap() }
        };
        let (one, two) = tokio::join!(check(1), check(2));
        assert!([one, two].contains(&DeviceCheck::Enrolled), "round {round}: {one:?} {two:?}");
        assert!([one, two].contains(&DeviceCheck::WrongSecret), "round {round}: {one:?} {two:?}");
    }
}

#[tokio::test]
async fn registering_again_changes_nothing() {
    let fixture = Fixture::new();
    let device = world::device_id();
    let first = fixture.registration(device, "chat").await;
    first.stored(&["one"]).await;
    let again = fixture.registration(device, "chat").await;
    assert_eq!(first.reg_id, again.reg_id);
    assert_eq!(again.waiting().await, counted(&[("one", 0)]));
}

#[tokio::test]
async fn a_registration_after_its_end_is_another() {
    let fixture = Fixture::new();
    fixture.add_app("chat").await;
    let device = world::device_id();
    for expected in 1..5 {
        assert_eq!(fixture.generation(device, "chat").await, expected);
        fixture.store.deregister(device, app("chat")).await.unwrap();
        // A repeated goodbye is harmless.
        fixture.store.deregister(device, app("chat")).await.unwrap();
    }
}

#[tokio::test]
async fn an_unknown_app_cannot_be_registered() {
    let fixture = Fixture::new();
    let device = world::device_id();
    assert_eq!(fixture.store.register(device, app("chat")).await.unwrap(), Registered::UnknownApp);
    assert!(fixture.store.list_apps().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_device_has_no_more_registrations_than_allowed() {
    let fixture = Fixture::with(Limits { registrations_per_device: 2, ..Limits::default() });
    for text in ["a", "b", "c"] {
        fixture.add_app(text).await;
    }
    let (device, other) = (world::device_id(), world::device_id());
    let register = async |text: &str| fixture.store.register(device, app(text)).await.unwrap();
    register("a").await;
    register("b").await;
    assert_eq!(register("c").await, Registered::TooMany);
    assert!(matches!(register("a").await, Registered::As { generation: 1, .. }));
    assert!(matches!(fixture.store.register(other, app("c")).await.unwrap(), Registered::As { .. }));
}

#[tokio::test]
async fn a_registration_that_ended_takes_no_place() {
    let fixture = Fixture::with(Limits { registrations_per_device: 1, ..Limits::default() });
    let device = world::device_id();
    for text in ["a", "b", "c"] {
        fixture.add_app(text).await;
        fixture.generation(device, text).await;
        fixture.store.deregister(device, app(text)).await.unwrap();
    }
    assert_eq!(fixture.generation(device, "a").await, 2);
    // Coming back takes a place as well.
    assert_eq!(fixture.store.register(device, app("b")).await.unwrap(), Registered::TooMany);
}

#[tokio::test]
async fn only_the_standing_generation_takes_messages() {
    let fixture = Fixture::new();
    let device = world::device_id();
    let first = fixture.registration(device, "chat").await;
    first.stored(&["for the first"]).await;
    fixture.store.deregister(device, app("chat")).await.unwrap();
    assert_eq!(first.accept("after the end").await, Accepted::NotRegistered);
    let second = fixture.registration(device, "chat").await;
    assert_eq!(first.accept("to the old one").await, Accepted::NotRegistered);
    assert!(!first.is_registered().await && second.is_registered().await);
    second.stored(&["for the second"]).await;
    assert_eq!(second.waiting().await, counted(&[("for the second", 0)]));
}

#[tokio::test]
async fn a_reg_id_is_good_for_its_own_app_alone() {
    let fixture = Fixture::new();
    let device = world::device_id();
    let chat = fixture.registration(device, "chat").await;
    let mail = fixture.registration(device, "mail").await;
    fixture.store.deregister(device, app("mail")).await.unwrap();
    assert!(!fixture.store.is_registered(chat.to, app("mail")).await.unwrap());
    let mut stray = mail.message("stray", minutes(1));
    stray.to = chat.to;
    assert_eq!(fixture.store.accept(vec![stray]).await.unwrap(), [Accepted::NotRegistered]);
    assert!(chat.rows().await.is_empty());
}

#[tokio::test]
async fn each_of_many_has_its_own_fate_in_order() {
    let fixture = Fixture::new();
    let device = world::device_id();
    let mail = fixture.registration(device, "mail").await;
    let chat = fixture.registration(device, "chat").await;
    fixture.store.deregister(device, app("mail")).await.unwrap();
    let all = vec![chat.message("one", minutes(1)), mail.message("two", minutes(1)), chat.message("three", minutes(1))];
    let fates = fixture.store.accept(all).await.unwrap();
    assert_eq!(fates, [Accepted::Stored, Accepted::NotRegistered, Accepted::Stored]);
    assert_eq!(texts(&chat.rows().await), ["one", "three"]);
    assert!(fixture.store.accept(vec![]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_device_reads_its_own_messages_of_all_apps_in_order() {
    let fixture = Fixture::new();
    let (device, other) = (world::device_id(), world::device_id());
    let (chat, mail) = (fixture.registration(device, "chat").await, fixture.registration(device, "mail").await);
    let strange = fixture.registration(other, "chat").await;
    chat.stored(&["one"]).await;
    strange.stored(&["not yours"]).await;
    mail.stored(&["two"]).await;
    chat.stored(&["three"]).await;
    assert_eq!(texts(&chat.rows().await), ["one", "two", "three"]);
    assert_eq!(texts(&strange.rows().await), ["not yours"]);
}

#[tokio::test]
async fn a_message_comes_out_as_it_went_in() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    let mut incoming = chat.message("{id:asdf&passwd:1234}", minutes(5));
    incoming.push.message = Some("action=ALERT&alertMessage=Hi\u{1}".to_owned().into());
    incoming.push.kind = Some(i64::MIN);
    let expected = incoming.push.clone();
    fixture.store.accept(vec![incoming]).await.unwrap();
    assert_eq!(chat.rows().await[0].push, expected);
}

#[tokio::test]
async fn a_backlog_is_read_in_windows() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    chat.stored(&["1", "2", "3", "4", "5"]).await;
    let read = async |after, limit| fixture.store.backlog(chat.device, after, limit).await.unwrap();
    let (first, complete) = read(Seq(0), 2).await;
    assert_eq!((texts(&first).join(" "), complete), ("1 2".to_owned(), false));
    let (second, complete) = read(first[1].seq, 2).await;
    assert_eq!((texts(&second).join(" "), complete), ("3 4".to_owned(), false));
    let (last, complete) = read(second[1].seq, 2).await;
    assert_eq!((texts(&last).join(" "), complete), ("5".to_owned(), true));
    let (none, complete) = read(last[0].seq, 2).await;
    assert!(none.is_empty() && complete);
    // Exactly as many as fit are all of them.
    assert!(read(Seq(0), 5).await.1 && !read(Seq(0), 4).await.1);
}

#[tokio::test]
async fn a_backlog_has_a_limit_of_bytes_and_always_moves_on() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    let large = "x".repeat(BACKLOG_BYTES / 4);
    let all: Vec<Incoming> = (0..10).map(|_| chat.message(&large, minutes(1))).collect();
    fixture.store.accept(all).await.unwrap();
    let (mut after, mut seen) = (Seq(0), 0);
    loop {
        let (rows, complete) = fixture.store.backlog(chat.device, after, ALL).await.unwrap();
        let bytes: usize = rows.iter().map(|row| text(row).len()).sum();
        assert!(!rows.is_empty() && bytes < BACKLOG_BYTES + large.len(), "{bytes}");
        seen += rows.len();
        after = rows.last().unwrap().seq;
        if complete {
            break;
        }
    }
    assert_eq!(seen, 10);
}

#[tokio::test]
async fn what_was_removed_waits_no_longer() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    chat.stored(&["1", "2", "3"]).await;
    let rows = chat.rows().await;
    fixture.store.remove(vec![rows[0].seq, rows[2].seq, Seq(9_999)]).await.unwrap();
    // The writer works in order: what is answered now comes after the removal.
    chat.stored(&["4"]).await;
    assert_eq!(texts(&chat.rows().await), ["2", "4"]);
}

#[tokio::test]
async fn a_place_in_the_order_is_never_given_twice() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    chat.stored(&["1"]).await;
    let first = chat.rows().await[0].seq;
    fixture.store.remove(vec![first]).await.unwrap();
    chat.stored(&["2"]).await;
    // A session that has read the first must find the second behind it.
    assert_eq!(texts(&fixture.store.backlog(chat.device, first, ALL).await.unwrap().0), ["2"]);
}

#[tokio::test]
async fn the_end_of_a_registration_removes_what_waits_for_it_and_no_more() {
    let fixture = Fixture::new();
    let (device, other) = (world::device_id(), world::device_id());
    let (chat, mail) = (fixture.registration(device, "chat").await, fixture.registration(device, "mail").await);
    let strange = fixture.registration(other, "chat").await;
    for registration in [&chat, &mail, &strange] {
        registration.stored(&["one", "two"]).await;
    }
    fixture.store.deregister(device, app("chat")).await.unwrap();
    assert!(mail.rows().await.iter().all(|row| row.push.app == mail.app) && mail.rows().await.len() == 2);
    assert_eq!(strange.rows().await.len(), 2);
    assert!(fixture.store.revoked(device).await.unwrap().is_empty());
}

#[tokio::test]
async fn removing_an_app_ends_its_registrations_until_each_device_knows() {
    let fixture = Fixture::new();
    let (device, other) = (world::device_id(), world::device_id());
    let (chat, mail) = (fixture.registration(device, "chat").await, fixture.registration(device, "mail").await);
    let elsewhere = fixture.registration(other, "chat").await;
    let gone = fixture.registration(world::device_id(), "chat").await;
    fixture.store.deregister(gone.device, app("chat")).await.unwrap();
    for registration in [&chat, &mail, &elsewhere] {
        registration.stored(&["one"]).await;
    }
    let mut told = fixture.store.remove_app(app("chat")).await.unwrap().unwrap();
    told.sort();
    let mut had = [device, other];
    had.sort();
    assert_eq!(told, had);
    assert_eq!(fixture.store.remove_app(app("chat")).await.unwrap(), None);

    assert_eq!(fixture.store.check_app(app("chat"), "a secret of the app").await.unwrap(), AppCheck::Unknown);
    assert_eq!(chat.accept("late").await, Accepted::NotRegistered);
    assert!(!chat.is_registered().await && mail.is_registered().await);
    assert_eq!(mail.rows().await.len(), 1);
    assert!(elsewhere.rows().await.is_empty());
    assert_eq!(fixture.store.revoked(device).await.unwrap(), [app("chat")]);
    assert_eq!(fixture.store.revoked(other).await.unwrap(), [app("chat")]);
    assert!(fixture.store.revoked(gone.device).await.unwrap().is_empty());
    assert_eq!(fixture.store.register(device, app("chat")).await.unwrap(), Registered::UnknownApp);

    fixture.store.deregister(device, app("chat")).await.unwrap();
    assert!(fixture.store.revoked(device).await.unwrap().is_empty());
    assert_eq!(fixture.store.revoked(other).await.unwrap(), [app("chat")]);
}

#[tokio::test]
async fn an_app_that_comes_back_has_new_registrations() {
    let fixture = Fixture::new();
    let old = fixture.registration(world::device_id(), "chat").await;
    fixture.store.remove_app(app("chat")).await.unwrap();
    fixture.add_app("chat").await;
    assert_eq!(old.accept("to the old one").await, Accepted::NotRegistered);
    let new = fixture.registration(old.device, "chat").await;
    assert_eq!(new.to.generation, 2);
    assert!(fixture.store.revoked(old.device).await.unwrap().is_empty());
    assert_eq!(old.accept("to the old one").await, Accepted::NotRegistered);
    assert_eq!(new.accept("to the new one").await, Accepted::Stored);
}

#[tokio::test]
async fn over_the_limit_the_oldest_goes_and_the_newest_says_how_many_went() {
    let fixture = Fixture::holding(3);
    let device = world::device_id();
    let (chat, mail) = (fixture.registration(device, "chat").await, fixture.registration(device, "mail").await);
    mail.stored(&["mail"]).await;
    chat.stored(&["1", "2", "3"]).await;
    assert_eq!(chat.waiting().await, counted(&[("mail", 0), ("1", 0), ("2", 0), ("3", 0)]));
    chat.stored(&["4"]).await;
    assert_eq!(chat.waiting().await, counted(&[("mail", 0), ("2", 0), ("3", 0), ("4", 1)]));
    chat.stored(&["5", "6"]).await;
    assert_eq!(chat.waiting().await, counted(&[("mail", 0), ("4", 1), ("5", 1), ("6", 1)]));
}

#[tokio::test]
async fn drops_that_a_device_was_told_of_are_not_told_again() {
    let fixture = Fixture::holding(2);
    let chat = fixture.registration(world::device_id(), "chat").await;
    chat.stored(&["1", "2", "3"]).await;
    assert_eq!(chat.waiting().await, counted(&[("2", 0), ("3", 1)]));
    let told = chat.rows().await.iter().map(|row| row.seq).collect();
    fixture.store.remove(told).await.unwrap();
    chat.stored(&["4", "5", "6"]).await;
    assert_eq!(chat.waiting().await, counted(&[("5", 0), ("6", 1)]));
}

#[tokio::test]
async fn many_at_once_leave_the_newest() {
    let fixture = Fixture::holding(2);
    let chat = fixture.registration(world::device_id(), "chat").await;
    let all: Vec<Incoming> = (1..=50).map(|number| chat.message(&number.to_string(), minutes(1))).collect();
    assert!(fixture.store.accept(all).await.unwrap().iter().all(|fate| *fate == Accepted::Stored));
    assert_eq!(chat.waiting().await, counted(&[("49", 24), ("50", 24)]));
}

#[tokio::test]
async fn what_has_expired_makes_room_first_and_counts_as_no_drop() {
    let fixture = Fixture::holding(3);
    let chat = fixture.registration(world::device_id(), "chat").await;
    chat.stored(&["1"]).await;
    chat.accept_until("expired", minutes(-1)).await;
    chat.stored(&["3", "4"]).await;
    assert_eq!(chat.waiting().await, counted(&[("1", 0), ("3", 0), ("4", 0)]));
    chat.stored(&["5"]).await;
    assert_eq!(chat.waiting().await, counted(&[("3", 0), ("4", 0), ("5", 1)]));
}

#[tokio::test]
async fn a_limit_that_was_lowered_holds_with_the_next_message() {
    let fixture = Fixture::new();
    let device = world::device_id();
    fixture.registration(device, "chat").await.stored(&["1", "2", "3", "4"]).await;
    let fixture = fixture.reopened_with(Limits { waiting_per_registration: 2, ..Limits::default() });
    let chat = fixture.registration(device, "chat").await;
    chat.stored(&["5"]).await;
    assert_eq!(chat.waiting().await, counted(&[("4", 0), ("5", 3)]));
}

#[tokio::test]
async fn what_has_expired_is_swept_away() {
    let fixture = Fixture::new();
    let device = world::device_id();
    let chat = fixture.registration(device, "chat").await;
    chat.stored(&["1"]).await;
    chat.accept_until("expired", minutes(-1)).await;
    chat.stored(&["3"]).await;
    assert_eq!(texts(&chat.rows().await), ["1", "expired", "3"]);
    // The first message after a start sweeps.
    let fixture = fixture.reopened();
    let chat = fixture.registration(device, "chat").await;
    chat.stored(&["4"]).await;
    assert_eq!(texts(&chat.rows().await), ["1", "3", "4"]);
}

#[tokio::test]
async fn a_count_of_drops_outlives_the_message_that_bore_it() {
    let fixture = Fixture::holding(2);
    let device = world::device_id();
    let chat = fixture.registration(device, "chat").await;
    chat.stored(&["1", "2", "3", "4"]).await;
    assert_eq!(chat.waiting().await, counted(&[("3", 1), ("4", 1)]));
    fixture.expire(chat.rows().await[0].seq);
    let fixture = fixture.reopened();
    let chat = fixture.registration(device, "chat").await;
    chat.stored(&["5"]).await;
    assert_eq!(chat.waiting().await, counted(&[("4", 2), ("5", 0)]));
}

#[tokio::test]
async fn a_sweep_that_left_something_is_soon_followed_by_another() {
    let many = Limits { waiting_per_registration: 10_000, ..Limits::default() };
    let fixture = Fixture::with(many);
    let device = world::device_id();
    let chat = fixture.registration(device, "chat").await;
    let expired = (0..sql::SWEEP + 1).map(|_| chat.message("expired", minutes(-1))).collect();
    fixture.store.accept(expired).await.unwrap();
    let fixture = fixture.reopened_with(many);
    let chat = fixture.registration(device, "chat").await;
    chat.stored(&["first"]).await;
    assert_eq!(texts(&chat.rows().await), ["expired", "first"]);
    let swept = async {
        while chat.rows().await.len() > 1 {
            fixture.store.accept(vec![]).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), swept).await.unwrap();
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let fixture = Fixture::new();
    let device = world::device_id();
    fixture.store.check_device(device, &secret(1), "agent".into(), true).await.unwrap();
    let chat = fixture.registration(device, "chat").await;
    let (reg_id, to) = (chat.reg_id, chat.to);
    chat.stored(&["1", "2"]).await;
    fixture.registration(device, "mail").await;
    fixture.store.remove_app(app("mail")).await.unwrap();
    let last = chat.rows().await[1].seq;

    let fixture = fixture.reopened();
    assert_eq!(fixture.store.check_app(app("chat"), "a secret of the app").await.unwrap(), AppCheck::Known);
    let known = fixture.store.check_device(device, &secret(1), "agent".into(), false).await.unwrap();
    assert_eq!(known, DeviceCheck::Known);
    assert_eq!(fixture.store.key_ring(REGION).await.unwrap().open(&reg_id), Some(to));
    assert_eq!(fixture.store.revoked(device).await.unwrap(), [app("mail")]);
    let chat = fixture.registration(device, "chat").await;
    assert_eq!(chat.reg_id, reg_id);
    chat.stored(&["3"]).await;
    assert_eq!(chat.waiting().await, counted(&[("1", 0), ("2", 0), ("3", 0)]));
    assert!(chat.rows().await[2].seq > last);
}

#[tokio::test]
async fn keys_are_made_once_and_a_rotation_is_seen() {
    let fixture = Fixture::new();
    let numbers =
        async |store: &Store| -> Vec<i64> { store.list_keys().await.unwrap().iter().map(|row| row.number).collect() };
    let first = numbers(&fixture.store).await;
    assert_eq!(first.len(), 1);
    let fixture = fixture.reopened();
    assert_eq!(numbers(&fixture.store).await, first);

    let device = world::device_id();
    let before = fixture.registration(device, "chat").await;
    // As the operator does it: from another process, beside this one.
    let beside = open(&fixture.folder, Limits::default());
    let rotated = beside.rotate_key().await.unwrap();
    assert!(rotated > first[0]);
    assert_eq!(numbers(&fixture.store).await, [rotated, first[0]]);
    assert_eq!(fixture.store.key_ring(REGION).await.unwrap().newest(), rotated);
    let registered = fixture.store.register(device, app("chat")).await.unwrap();
    assert_eq!(registered, Registered::As { generation: 1, newest_key: rotated });
    let after = fixture.registration(device, "chat").await;
    assert_ne!(before.reg_id, after.reg_id);
    assert_eq!(before.reg_id.shard(), after.reg_id.shard());
    assert_eq!(before.accept("to the old regId").await, Accepted::Stored);
    assert_eq!(after.accept("to the new regId").await, Accepted::Stored);
}

#[test]
fn processes_that_start_together_make_one_store() {
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let opened: Vec<Result<Store, DbError>> = std::thread::scope(|scope| {
            let open = || Store::open(&folder.path().join("server.db"), Limits::default());
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let stores: Vec<Store> = opened.into_iter().collect::<Result<_, _>>().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(stores[0].list_keys()).unwrap().len(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is sent and acknowledged: what waits is the newest of each registration in order,
    /// and what was dropped is counted exactly once.
    #[test]
    fn nothing_leaves_a_queue_without_being_counted(
        limit in 1_u32..5,
        steps in proptest::collection::vec((0_usize..2, 0_usize..4), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let fixture = Fixture::holding(limit);
            let device = world::device_id();
            let both = [fixture.registration(device, "a").await, fixture.registration(device, "b").await];
            let (mut sent, mut taken, mut last) = ([0_u32; 2], [0_u32; 2], [0_u32; 2]);
            for (which, take) in steps {
                sent[which] += 1;
                both[which].stored(&[&sent[which].to_string()]).await;
                // The device takes some of what waits, in order, as a session does.
                let rows: Vec<Queued> = both[0].rows().await.into_iter().take(take).collect();
                for row in &rows {
                    let place = usize::from(row.push.app == both[1].app);
                    taken[place] += 1 + row.dropped;
                    let number = text(row).parse().unwrap();
                    assert!(number > last[place]);
                    last[place] = number;
                }
                fixture.store.remove(rows.iter().map(|row| row.seq).collect()).await.unwrap();
            }
            // The writer works in order; an empty write is behind every removal.
            fixture.store.accept(vec![]).await.unwrap();
            for row in both[0].rows().await {
                let place = usize::from(row.push.app == both[1].app);
                taken[place] += 1 + row.dropped;
            }
            assert_eq!(sent, taken);
        });
    }
}

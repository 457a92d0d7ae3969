//! Tests of the store, each on a database file of its own.

use proptest::prelude::*;
use tempfile::TempDir;

use super::delayed::{LetGo, Page, Selection, State};
use super::receipts::Callback;
use super::*;
use crate::proto::backlog::{Gate, Sequence};
use crate::proto::frame::{Fate, NotKept, Outcome};
use crate::proto::gateway::Queued;
use crate::proto::message::Payload;
use crate::proto::samples;
use crate::proto::{Channel, RegId, Secret};
use crate::server::config::Limits;

const REGION: Region = Region(3);
const ALL: usize = 1000;

/// A store in a folder that goes with it.
struct Fixture {
    store: Store,
    folder: TempDir,
}

impl Fixture {
    /// What nobody waits for is on disk.
    async fn written(&self) {
        self.store.writer.read_behind(|_| Ok(())).await.unwrap();
    }

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
        match self.store.register(device, app(text), Over::Link).await.unwrap() {
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
        Incoming { to: self.to, push, release_ms: None }
    }

    /// As `message`, with this request id and a receipt.
    fn request(&self, request_id: &str, text: &str) -> Incoming {
        let Incoming { to, push, release_ms } = self.message(text, minutes(60));
        Incoming { to, push: Push { request_id: Some(request_id.into()), receipt: true, ..push }, release_ms }
    }

    /// Stores it; returns its id.
    async fn requested(&self, request_id: &str, text: &str) -> MessageId {
        self.stored_as(self.request(request_id, text)).await
    }

    async fn stored_as(&self, incoming: Incoming) -> MessageId {
        let id = incoming.push.id;
        assert_eq!(self.store.accept(vec![incoming]).await.unwrap(), [Accepted::Stored]);
        id
    }

    /// What became of a message: its steps.
    async fn steps(&self, id: MessageId) -> Vec<String> {
        let history = self.store.message(self.app.clone(), id).await.unwrap().unwrap();
        history.steps.into_iter().map(|step| step.step).collect()
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
        let Backlog { rows, complete, .. } = self.store.backlog(self.device, Wanted::all(Seq(0), ALL)).await.unwrap();
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

/// Acknowledgements of what a session has just sent.
/// Their devices have stored what is at these places.
fn acks(places: impl IntoIterator<Item = Seq>) -> Vec<Settled> {
    let sent = |seq| Sent { seq, id: samples::message_id(0), at_ms: Some(world::now()) };
    places.into_iter().map(|seq| Settled { sent: sent(seq), how: Done::Stored }).collect()
}

/// A device does not keep this message.
fn not_kept(row: &Queued, why: NotKept) -> Vec<Settled> {
    let sent = Sent { seq: row.seq, id: row.push.id, at_ms: Some(world::now()) };
    vec![Settled { sent, how: Done::NotKept(why) }]
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
async fn a_secret_that_is_rotated_without_a_grace_is_refused_at_once() {
    let fixture = Fixture::new();
    let now = world::now();
    assert!(!fixture.store.set_app_secret(app("chat"), "second", now).await.unwrap());
    fixture.add_app("chat").await;
    assert!(fixture.store.set_app_secret(app("chat"), "second", now).await.unwrap());
    assert_eq!(fixture.store.check_app(app("chat"), "second").await.unwrap(), AppCheck::Known);
    assert_eq!(fixture.store.check_app(app("chat"), "a secret of the app").await.unwrap(), AppCheck::WrongSecret);
    assert_eq!(fixture.store.list_apps().await.unwrap()[0].old_secret_until, None);
}

#[tokio::test]
async fn only_the_two_newest_secrets_work_and_the_older_only_in_its_grace() {
    let fixture = Fixture::new();
    assert!(fixture.store.add_app(app("chat"), "first").await.unwrap());
    let check = async |secret: &str| fixture.store.check_app(app("chat"), secret).await.unwrap();
    let until = minutes(60);
    assert!(fixture.store.set_app_secret(app("chat"), "second", until).await.unwrap());
    assert_eq!(fixture.store.list_apps().await.unwrap()[0].old_secret_until, Some(until));
    assert_eq!([check("first").await, check("second").await], [AppCheck::Known; 2]);
    assert_eq!(check("third").await, AppCheck::WrongSecret);
    assert!(fixture.store.set_app_secret(app("chat"), "third", until).await.unwrap());
    assert_eq!(check("first").await, AppCheck::WrongSecret);
    assert_eq!([check("second").await, check("third").await], [AppCheck::Known; 2]);
    // A rotation without a grace ends that of the one before as well.
    assert!(fixture.store.set_app_secret(app("chat"), "fourth", world::now()).await.unwrap());
    assert_eq!([check("second").await, check("third").await], [AppCheck::WrongSecret; 2]);
    assert_eq!(check("fourth").await, AppCheck::Known);
}

#[test]
fn a_grace_ends_on_the_millisecond() {
    let folder = tempfile::tempdir().unwrap();
    let db = db::open(&folder.path().join("t.db"), sql::MIGRATIONS).unwrap();
    sql::add_app(&db, &app("chat"), b"first", UnixMillis(1)).unwrap();
    sql::set_app_secret(&db, &app("chat"), b"second", UnixMillis(1000)).unwrap();
    let old_at = |now| sql::app_secrets(&db, &app("chat"), UnixMillis(now)).unwrap().unwrap().old;
    let listed_at = |now| sql::list_apps(&db, UnixMillis(now)).unwrap()[0].old_secret_until;
    assert_eq!((old_at(999).as_deref(), listed_at(999)), (Some(&b"first"[..]), Some(UnixMillis(1000))));
    assert_eq!((old_at(1000), listed_at(1000)), (None, None));
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

/// Sets when a device was seen, as if it had been so.
fn set_seen(fixture: &Fixture, device: DeviceId, seen_ms: UnixMillis) {
    let beside = Connection::open(fixture.folder.path().join("server.db")).unwrap();
    let changed = beside.execute("UPDATE devices SET seen_ms = ?2 WHERE device = ?1", (device.as_bytes(), seen_ms.0));
    assert_eq!(changed.unwrap(), 1);
}

fn days(number: i64) -> UnixMillis {
    minutes(number * 24 * 60)
}

#[tokio::test]
async fn a_device_that_stayed_away_is_forgotten_for_good() {
    let fixture = Fixture::with(Limits { device_days: 10, ..Limits::default() });
    let (away, here) = (world::device_id(), world::device_id());
    let check = async |device| fixture.store.check_device(device, &secret(1), "a".into(), true).await.unwrap();
    for device in [away, here] {
        assert_eq!(check(device).await, DeviceCheck::Enrolled);
    }
    let (old, other) = (fixture.registration(away, "chat").await, fixture.registration(here, "chat").await);
    old.stored(&["waits"]).await;
    other.stored(&["waits too"]).await;
    set_seen(&fixture, away, days(-9));
    set_seen(&fixture, here, days(-9));
    assert_eq!(fixture.store.forget_devices().await.unwrap(), (0, true));
    set_seen(&fixture, away, days(-10));
    assert_eq!(fixture.store.forget_devices().await.unwrap(), (1, true));
    assert_eq!(old.accept("too late").await, Accepted::NotRegistered);
    assert!(old.rows().await.is_empty());
    assert_eq!(other.waiting().await, counted(&[("waits too", 0)]));

    // It comes back: enrolled, and told so until it has registered something since.
    assert_eq!([check(away).await, check(away).await], [DeviceCheck::Enrolled; 2]);
    let new = fixture.registration(away, "chat").await;
    assert_eq!(check(away).await, DeviceCheck::Known);
    assert_eq!((new.accept("new").await, old.accept("old").await), (Accepted::Stored, Accepted::NotRegistered));
}

#[tokio::test]
async fn a_device_that_stayed_away_is_forgotten_even_if_nobody_has_looked() {
    let fixture = Fixture::with(Limits { device_days: 10, ..Limits::default() });
    let device = world::device_id();
    let check = async |may_enrol| fixture.store.check_device(device, &secret(1), "a".into(), may_enrol).await.unwrap();
    check(true).await;
    let old = fixture.registration(device, "chat").await;
    old.stored(&["waits"]).await;
    assert_eq!(check(false).await, DeviceCheck::Known);
    set_seen(&fixture, device, days(-11));
    assert_eq!(check(false).await, DeviceCheck::Refused);
    assert_eq!(check(true).await, DeviceCheck::Enrolled);
    assert!(!old.is_registered().await && old.rows().await.is_empty());
}

#[tokio::test]
async fn a_device_is_seen_once_a_day() {
    let fixture = Fixture::new();
    let device = world::device_id();
    let check = async || fixture.store.check_device(device, &secret(1), "a".into(), true).await.unwrap();
    check().await;
    let seen = async || {
        // A write comes after those that nobody has waited for.
        let row = fixture.store.writer.write(move |db| sql::devices::find(db, device)).await.unwrap();
        row.unwrap().seen_ms
    };
    let nearly_a_day = UnixMillis(days(-1).0 + 60_000);
    set_seen(&fixture, device, nearly_a_day);
    check().await;
    assert_eq!(seen().await, nearly_a_day);
    // A clock that was wrong is not believed.
    for wrong in [days(-1), days(100)] {
        set_seen(&fixture, device, wrong);
        check().await;
        assert!(seen().await > days(-1) && seen().await <= world::now());
    }
}

#[test]
fn devices_are_forgotten_in_steps_and_one_that_comes_back_meanwhile_hears_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let db = db::open(&folder.path().join("t.db"), sql::MIGRATIONS).unwrap();
    let (step, many) = (i64::try_from(sql::devices::STEP).unwrap(), world::device_id());
    let enrol = |device, at| sql::devices::enrol(&db, device, b"hash", "a", UnixMillis(at), UnixMillis(0)).unwrap();
    enrol(many, 1);
    sql::make_missing_keys(&db, UnixMillis(1)).unwrap();
    sql::add_app(&db, &app("chat"), b"hash", UnixMillis(1)).unwrap();
    registrations::register(&db, many, &app("chat"), Over::Link, 10, UnixMillis(1)).unwrap();
    for seq in 0..step + 5 {
        let (id, none) = (world::message_id(), None::<String>);
        db.execute(sql::INSERT, (seq, many.as_bytes(), "chat", 9, "{}", id.as_bytes(), none, [], 0, 2, 0)).unwrap();
    }
    for _ in 0..step {
        enrol(world::device_id(), 2);
    }
    let count =
        |table: &str| -> i64 { db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap() };
    let forget = || sql::devices::forget_step(&db, UnixMillis(2), UnixMillis(3)).unwrap();
    assert_eq!((forget(), count("messages"), count("devices")), ((0, false), 5, step + 1));
    let half_gone = sql::devices::find(&db, many).unwrap().unwrap();
    assert!(half_gone.fresh && registrations::revoked(&db, many).unwrap().is_empty());
    let (forgotten, done) = forget();
    assert!(!done && forgotten > 1 && count("devices") == step + 1 - i64::try_from(forgotten).unwrap());
    assert_eq!((count("messages"), forget().1, count("devices")), (0, true, 0));
    assert_eq!(count("registrations"), 1, "the generation is remembered");
    enrol(many, 4);
    let again = registrations::register(&db, many, &app("chat"), Over::Link, 10, UnixMillis(4)).unwrap();
    assert!(matches!(again, Registered::As { generation: 2, .. }), "{again:?}");
}

#[tokio::test]
async fn no_more_waits_for_an_app_than_its_quota_and_others_go_on() {
    let fixture = Fixture::with(Limits { waiting_per_app: 3, ..Limits::default() });
    let (one, two) = (world::device_id(), world::device_id());
    let (chat, chat_too) = (fixture.registration(one, "chat").await, fixture.registration(two, "chat").await);
    let mail = fixture.registration(one, "mail").await;
    chat.stored(&["a", "b"]).await;
    let both = vec![chat.message("c", minutes(60)), chat_too.message("d", minutes(60))];
    assert_eq!(fixture.store.accept(both).await.unwrap(), [Accepted::Stored, Accepted::OverQuota]);
    mail.stored(&["a", "b", "c"]).await;
    fixture.store.count_waiting().await.unwrap();
    assert_eq!(chat_too.accept("e").await, Accepted::OverQuota);

    // What was taken away is seen by the next count.
    fixture.store.settle(acks([chat.rows().await[0].seq])).await.unwrap();
    assert_eq!(chat_too.accept("f").await, Accepted::OverQuota);
    fixture.store.count_waiting().await.unwrap();
    chat_too.stored(&["g"]).await;
    assert_eq!(chat_too.accept("h").await, Accepted::OverQuota);
    // A message that found no registration takes no place.
    fixture.store.deregister(one, app("mail")).await.unwrap();
    fixture.store.count_waiting().await.unwrap();
    for _ in 0..3 {
        assert_eq!(mail.accept("x").await, Accepted::NotRegistered);
    }
    fixture.registration(one, "mail").await.stored(&["a", "b", "c"]).await;
}

#[tokio::test]
async fn receipts_that_nobody_takes_use_up_their_apps_quota() {
    let fixture = Fixture::with(Limits { waiting_per_app: 2, ..Limits::default() });
    let chat = fixture.registration(world::device_id(), "chat").await;
    let callback = Callback { url: "http://127.0.0.1:1/".into(), key: b"key".to_vec() };
    assert!(fixture.store.set_callback(app("chat"), Some(callback)).await.unwrap());
    chat.requested("1", "a").await;
    chat.requested("2", "b").await;
    fixture.store.settle(acks(chat.rows().await.iter().map(|row| row.seq))).await.unwrap();
    fixture.written().await;
    assert_eq!(fixture.store.apps_with_receipts().await.unwrap(), [app("chat")]);
    fixture.store.count_waiting().await.unwrap();
    assert_eq!(chat.accept("c").await, Accepted::OverQuota);
    let batch = fixture.store.receipts(app("chat")).await.unwrap().unwrap();
    fixture.store.told(app("chat"), batch.last).await.unwrap();
    fixture.store.count_waiting().await.unwrap();
    chat.stored(&["d"]).await;
}

#[tokio::test]
async fn a_store_over_its_quota_takes_nothing_until_something_has_gone() {
    let limits = Limits { store_megabytes: 1, waiting_per_registration: 10_000, ..Limits::default() };
    let fixture = Fixture::with(limits);
    let chat = fixture.registration(world::device_id(), "chat").await;
    let large = "x".repeat(10_000);
    let mut stored = 0;
    while chat.accept(&large).await == Accepted::Stored {
        stored += 1;
        assert!(stored < 200, "two megabytes are in a store of one");
    }
    assert!(stored > 50, "only {stored}");
    assert_eq!(chat.accept("small").await, Accepted::OverQuota);
    let Backlog { rows, .. } = fixture.store.backlog(chat.device, Wanted::all(Seq(0), 20)).await.unwrap();
    fixture.store.settle(acks(rows.iter().map(|row| row.seq))).await.unwrap();
    chat.stored(&["small"]).await;
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
    assert_eq!(fixture.store.register(device, app("chat"), Over::Link).await.unwrap(), Registered::UnknownApp);
    assert!(fixture.store.list_apps().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_device_has_no_more_registrations_than_allowed() {
    let fixture = Fixture::with(Limits { registrations_per_device: 2, ..Limits::default() });
    for text in ["a", "b", "c"] {
        fixture.add_app(text).await;
    }
    let (device, other) = (world::device_id(), world::device_id());
    let register = async |text: &str| fixture.store.register(device, app(text), Over::Link).await.unwrap();
    register("a").await;
    register("b").await;
    assert_eq!(register("c").await, Registered::TooMany);
    assert!(matches!(register("a").await, Registered::As { generation: 1, .. }));
    assert!(matches!(fixture.store.register(other, app("c"), Over::Link).await.unwrap(), Registered::As { .. }));
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
    assert_eq!(fixture.store.register(device, app("b"), Over::Link).await.unwrap(), Registered::TooMany);
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
    let read = async |after, limit| {
        let backlog = fixture.store.backlog(chat.device, Wanted::all(after, limit)).await.unwrap();
        (backlog.rows, backlog.complete)
    };
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
        let Backlog { rows, complete, .. } = fixture.store.backlog(chat.device, Wanted::all(after, ALL)).await.unwrap();
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
async fn what_may_not_go_waits_with_its_place_and_a_later_one_takes_it_along() {
    let fixture = Fixture::new();
    let device = world::device_id();
    let (chat, news) = (fixture.registration(device, "chat").await, fixture.registration(device, "news").await);
    let store = async |to: &Standing<'_>, text: &str, urgency| {
        let mut incoming = to.message(text, minutes(60));
        incoming.push.urgency = urgency;
        assert_eq!(fixture.store.accept(vec![incoming]).await.unwrap(), [Accepted::Stored]);
    };
    store(&chat, "1", Urgency::Low).await;
    store(&news, "2", Urgency::High).await;
    store(&chat, "3", Urgency::VeryLow).await;
    let all = chat.rows().await;
    let low = Gate { least: Urgency::Low, quiet: true };
    let wanted = |gate| Wanted { gate, ..Wanted::all(Seq(0), ALL) };
    let backlog = fixture.store.backlog(device, wanted(low)).await.unwrap();
    assert_eq!((texts(&backlog.rows), backlog.complete), (vec!["2".to_owned()], true));
    assert_eq!(backlog.held, [(Sequence::of(&chat.app, Urgency::Normal), all[0].seq)]);
    let until = backlog.until.unwrap().0 - world::now().0;
    assert!((14 * 60_000..=15 * 60_000).contains(&until), "{until}");

    let awake = Gate { quiet: false, ..low };
    let next = Wanted { after: all[1].seq, held: backlog.held, ..wanted(awake) };
    let backlog = fixture.store.backlog(device, next.clone()).await.unwrap();
    assert_eq!((texts(&backlog.rows), backlog.until), (vec!["1".to_owned()], None));
    assert_eq!(backlog.held, [(Sequence::of(&chat.app, Urgency::Normal), all[2].seq)]);
    store(&chat, "4", Urgency::Normal).await;
    let next = Wanted { held: backlog.held, ..next };
    let backlog = fixture.store.backlog(device, next).await.unwrap();
    assert_eq!(texts(&backlog.rows), ["3", "4"]);
}

#[tokio::test]
async fn a_chosen_backlog_has_a_limit_of_bytes_too() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    let large = "x".repeat(BACKLOG_BYTES / 4);
    let all: Vec<Incoming> = (0..10).map(|_| chat.message(&large, minutes(1))).collect();
    fixture.store.accept(all).await.unwrap();
    let gate = Gate { least: Urgency::Normal, quiet: true };
    let (mut wanted, mut seen) = (Wanted { gate, ..Wanted::all(Seq(0), ALL) }, 0);
    loop {
        let backlog = fixture.store.backlog(chat.device, wanted.clone()).await.unwrap();
        seen += backlog.rows.len();
        wanted.after = backlog.rows.last().unwrap().seq;
        if backlog.complete {
            break;
        }
        assert_eq!(backlog.held, [(Sequence::of(&chat.app, Urgency::Normal), Seq(wanted.after.0 + 1))]);
    }
    assert_eq!(seen, 10);
}

#[tokio::test]
async fn what_was_removed_waits_no_longer() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    chat.stored(&["1", "2", "3"]).await;
    let rows = chat.rows().await;
    fixture.store.settle(acks([rows[0].seq, rows[2].seq, Seq(9_999)])).await.unwrap();
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
    fixture.store.settle(acks([first])).await.unwrap();
    chat.stored(&["2"]).await;
    // A session that has read the first must find the second behind it.
    assert_eq!(texts(&fixture.store.backlog(chat.device, Wanted::all(first, ALL)).await.unwrap().rows), ["2"]);
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
    assert_eq!(fixture.store.register(device, app("chat"), Over::Link).await.unwrap(), Registered::UnknownApp);

    fixture.store.deregister(device, app("chat")).await.unwrap();
    assert!(fixture.store.revoked(device).await.unwrap().is_empty());
    assert_eq!(fixture.store.revoked(other).await.unwrap(), [app("chat")]);
}

#[tokio::test]
async fn an_app_that_is_removed_leaves_no_history_for_ever() {
    let fixture = Fixture::with(Limits { history_messages: 0, ..Limits::default() });
    let chat = fixture.registration(world::device_id(), "chat").await;
    let waits = chat.requested("1", "waits").await;
    let delayed = chat.stored_as(Incoming { release_ms: Some(minutes(1)), ..chat.request("2", "later") }).await;
    fixture.store.remove_app(app("chat")).await.unwrap();
    for id in [waits, delayed] {
        assert_eq!(chat.steps(id).await, ["accepted", "stored", "unregistered"]);
    }
    assert!(fixture.store.trim_history().await.unwrap());
    for id in [waits, delayed] {
        assert_eq!(fixture.store.message(app("chat"), id).await.unwrap(), None);
    }
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
    let told = acks(chat.rows().await.iter().map(|row| row.seq));
    fixture.store.settle(told).await.unwrap();
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
    assert!(fixture.store.sweep().await.unwrap());
    assert_eq!(texts(&chat.rows().await), ["1", "3"]);
}

#[tokio::test]
async fn a_count_of_drops_outlives_the_message_that_bore_it() {
    let fixture = Fixture::holding(2);
    let device = world::device_id();
    let chat = fixture.registration(device, "chat").await;
    chat.stored(&["1", "2", "3", "4"]).await;
    assert_eq!(chat.waiting().await, counted(&[("3", 1), ("4", 1)]));
    fixture.expire(chat.rows().await[0].seq);
    fixture.store.sweep().await.unwrap();
    assert_eq!(chat.waiting().await, counted(&[("4", 2)]));
}

#[tokio::test]
async fn a_sweep_says_whether_it_left_something() {
    let many = Limits { waiting_per_registration: 10_000, ..Limits::default() };
    let fixture = Fixture::with(many);
    let chat = fixture.registration(world::device_id(), "chat").await;
    let expired = (0..sql::SWEEP + 1).map(|_| chat.message("expired", minutes(-1))).collect();
    fixture.store.accept(expired).await.unwrap();
    chat.stored(&["first"]).await;
    assert!(!fixture.store.sweep().await.unwrap());
    assert_eq!(texts(&chat.rows().await), ["expired", "first"]);
    assert!(fixture.store.sweep().await.unwrap());
    assert_eq!(texts(&chat.rows().await), ["first"]);
}

#[tokio::test]
async fn a_later_message_takes_the_place_of_one_of_its_request_id() {
    let fixture = Fixture::holding(2);
    let device = world::device_id();
    let (chat, mail) = (fixture.registration(device, "chat").await, fixture.registration(device, "mail").await);
    let elsewhere = fixture.registration(world::device_id(), "chat").await;
    chat.stored(&["0", "1"]).await;
    let first = chat.requested("score", "1:0").await;
    mail.requested("score", "mail").await;
    elsewhere.requested("score", "elsewhere").await;
    let second = chat.requested("score", "2:0").await;
    let rows: Vec<Queued> = chat.rows().await.into_iter().filter(|row| row.push.app == chat.app).collect();
    // "0" was dropped for the first, and the second stands for that now.
    assert_eq!(rows.iter().map(|row| (text(row), row.dropped)).collect::<Vec<_>>(), counted(&[("1", 0), ("2:0", 1)]));
    assert_eq!((rows[1].replaces.clone(), rows[1].push.id), (vec![first], second));
    let third = chat.requested("score", "3:0").await;
    let rows = chat.rows().await;
    let last = rows.iter().find(|row| row.push.id == third).unwrap();
    assert_eq!(last.replaces, [first, second], "either may be on its way");
    assert_eq!(chat.steps(first).await, ["accepted", "stored", "replaced"]);
    assert_eq!((mail.rows().await.len(), elsewhere.rows().await.len()), (3, 1));
}

#[tokio::test]
async fn a_message_that_the_device_has_is_replaced_by_nothing_that_comes_later() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    let first = chat.requested("score", "1:0").await;
    let place = chat.rows().await[0].seq;
    let second = chat.requested("score", "2:0").await;
    assert_eq!(chat.rows().await[0].replaces, [first]);
    // The first was on its way, and is acknowledged now.
    fixture
        .store
        .settle(vec![Settled { sent: Sent { seq: place, id: first, at_ms: None }, how: Done::Stored }])
        .await
        .unwrap();
    fixture.store.accept(vec![]).await.unwrap();
    assert_eq!(chat.rows().await[0].replaces, [first], "the second was to take its place all the same");
    chat.requested("score", "3:0").await;
    assert_eq!(chat.rows().await[0].replaces, [second]);
}

#[tokio::test]
async fn of_very_many_replaced_messages_those_are_known_that_may_be_on_their_way() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    let mut all = Vec::new();
    for number in 0..100 {
        all.push(chat.requested("score", &number.to_string()).await);
        if number == 40 {
            let sent = Sent { seq: Seq(0), id: all[40], at_ms: Some(world::now()) };
            fixture.store.sent(vec![sent]).await.unwrap();
        }
    }
    let replaces = &chat.rows().await[0].replaces;
    assert_eq!((replaces.len(), &replaces[0]), (64, &all[40]));
    assert_eq!(replaces[1..32], all[..31]);
    assert_eq!(replaces.last(), Some(&all[98]));
}

#[tokio::test]
async fn a_delayed_message_waits_for_its_time() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    let delayed = |at| Incoming { release_ms: Some(at), ..chat.request("later", "later") };
    let id = chat.stored_as(delayed(minutes(1))).await;
    chat.stored(&["now"]).await;
    assert_eq!(fixture.store.release().await.unwrap(), (vec![], true));
    assert_eq!(texts(&chat.rows().await), ["now"]);
    let sooner = chat.stored_as(delayed(minutes(-1))).await;
    assert_eq!(fixture.store.release().await.unwrap(), (vec![chat.device], true));
    assert_eq!(texts(&chat.rows().await), ["now", "later"]);
    assert_eq!(chat.rows().await[1].push.id, sooner);
    assert_eq!(chat.steps(id).await, ["accepted", "stored", "replaced"]);
    // What came with the same request id before it was released goes as well.
    chat.requested("other", "other").await;
    let other = Incoming { release_ms: Some(minutes(-1)), ..chat.request("other", "newer") };
    chat.stored_as(other).await;
    assert_eq!(texts(&chat.rows().await), ["now", "later"]);
    fixture.store.release().await.unwrap();
    assert_eq!(texts(&chat.rows().await), ["now", "later", "newer"]);
}

#[tokio::test]
async fn a_count_of_drops_outlives_a_message_that_a_delayed_one_replaces() {
    let fixture = Fixture::holding(2);
    let chat = fixture.registration(world::device_id(), "chat").await;
    chat.stored(&["1", "2"]).await;
    chat.requested("score", "3").await;
    assert_eq!(chat.waiting().await, counted(&[("2", 0), ("3", 1)]));
    chat.stored_as(Incoming { release_ms: Some(minutes(1)), ..chat.request("score", "later") }).await;
    assert_eq!(chat.waiting().await, counted(&[("2", 1)]));
}

#[tokio::test]
async fn too_many_delayed_messages_are_refused_and_a_registration_takes_its_own_along() {
    let fixture = Fixture::holding(2);
    let chat = fixture.registration(world::device_id(), "chat").await;
    let delayed = |id| Incoming { release_ms: Some(minutes(-1)), ..chat.request(id, "later") };
    let all = vec![delayed("1"), delayed("2"), delayed("3")];
    assert_eq!(fixture.store.accept(all).await.unwrap(), [Accepted::Stored, Accepted::Stored, Accepted::TooMany]);
    fixture.store.deregister(chat.device, chat.app.clone()).await.unwrap();
    assert_eq!(fixture.store.release().await.unwrap(), (vec![], true));
}

#[tokio::test]
async fn what_waits_or_is_delayed_can_be_taken_back() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    let other = fixture.registration(world::device_id(), "chat").await;
    let waiting = chat.requested("offer", "waits").await;
    let delayed = other.stored_as(Incoming { release_ms: Some(minutes(1)), ..other.request("offer", "later") }).await;
    let held = fixture.store.hold(app("chat"), Selection::Request("offer".into(), None), None).await.unwrap();
    let states: Vec<State> = held.candidates.iter().map(|candidate| candidate.state).collect();
    let [State::Cancelled, State::Held(seq, id)] = states.as_slice() else { panic!("{states:?}") };
    assert_eq!(*id, waiting);
    // Nobody begins to send it, but it is there.
    assert!(chat.rows().await.is_empty());
    assert_eq!(fixture.store.let_go(*seq, false).await.unwrap(), LetGo::Back);
    assert_eq!(texts(&chat.rows().await), ["waits"]);
    fixture.store.hold(app("chat"), Selection::Message(waiting), None).await.unwrap();
    assert_eq!(fixture.store.let_go(*seq, true).await.unwrap(), LetGo::Removed);
    assert_eq!(fixture.store.let_go(*seq, true).await.unwrap(), LetGo::Gone);
    for (of, id) in [(&chat, waiting), (&other, delayed)] {
        assert!(of.rows().await.is_empty());
        assert_eq!(of.steps(id).await, ["accepted", "stored", "cancelled"]);
    }
    assert_eq!(fixture.store.hold(app("mail"), Selection::Message(waiting), None).await.unwrap(), Page::default());
}

#[tokio::test]
async fn what_is_taken_back_from_some_stays_with_the_others() {
    let fixture = Fixture::new();
    let one = fixture.registration(world::device_id(), "chat").await;
    let other = fixture.registration(world::device_id(), "chat").await;
    for registration in [&one, &other] {
        registration.stored_as(Incoming { release_ms: Some(minutes(-1)), ..registration.request("offer", "o") }).await;
    }
    let selection = |to: &Standing<'_>| Selection::Request("offer".into(), Some([to.reg_id].into()));
    let states = |page: Page| page.candidates.iter().map(|one| (one.reg_id, one.state)).collect::<Vec<_>>();
    let page = fixture.store.hold(app("chat"), selection(&one), None).await.unwrap();
    assert_eq!(states(page), [(one.reg_id, State::Cancelled)]);
    assert_eq!(fixture.store.release().await.unwrap(), (vec![other.device], true));
    let nobody = Selection::Request("offer".into(), Some([].into()));
    assert_eq!(fixture.store.hold(app("chat"), nobody, None).await.unwrap(), Page::default());
    assert_eq!(texts(&other.rows().await), ["o"]);
}

#[tokio::test]
async fn everything_of_a_request_is_found_however_many_recipients_it_has() {
    let fixture = Fixture::with(Limits { waiting_per_registration: 5000, ..Limits::default() });
    let oldest = fixture.registration(world::device_id(), "chat").await;
    oldest.requested("offer", "oldest").await;
    let other = fixture.registration(world::device_id(), "chat").await;
    let many = (0..history::FOUND_MAX + 1).map(|_| other.request("offer", "again")).collect();
    fixture.store.accept(many).await.unwrap();
    let selection = Selection::Request("offer".into(), None);
    let first = fixture.store.hold(app("chat"), selection.clone(), None).await.unwrap();
    assert_eq!((first.candidates.len(), first.candidates[0].reg_id), (1, other.reg_id));
    let second = fixture.store.hold(app("chat"), selection, first.before).await.unwrap();
    assert_eq!(second.candidates.iter().map(|one| one.reg_id).collect::<Vec<_>>(), [other.reg_id, oldest.reg_id]);
    assert_eq!((second.candidates[0].state, second.before), (State::Gone, None));
    assert!(matches!(second.candidates[1].state, State::Held(..)));
}

#[tokio::test]
async fn what_was_sent_cannot_be_taken_back() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    let id = chat.requested("offer", "sent").await;
    let seq = chat.rows().await[0].seq;
    fixture.store.hold(chat.app.clone(), Selection::Message(id), None).await.unwrap();
    // The session that sent it ends while it is held.
    fixture.store.sent(vec![Sent { seq, id, at_ms: Some(world::now()) }]).await.unwrap();
    assert_eq!(fixture.store.let_go(seq, true).await.unwrap(), LetGo::Back);
    let again = fixture.store.hold(chat.app.clone(), Selection::Message(id), None).await.unwrap();
    assert_eq!(again.candidates[0].state, State::Gone);
    assert_eq!(texts(&chat.rows().await), ["sent"]);
    assert_eq!(chat.steps(id).await, ["accepted", "stored", "sent"]);
}

#[tokio::test]
async fn a_restart_forgets_what_was_held_and_knows_of_a_crash() {
    let fixture = Fixture::new();
    let device = world::device_id();
    let chat = fixture.registration(device, "chat").await;
    let id = chat.requested("offer", "held").await;
    let seq = chat.rows().await[0].seq;
    fixture.store.hold(chat.app.clone(), Selection::Message(id), None).await.unwrap();
    let mut fixture = fixture.reopened();
    fixture.store.begin().await.unwrap();
    assert!(fixture.store.crashed_after(seq) && !fixture.store.crashed_after(Seq(seq.0 + 1)));
    assert_eq!(fixture.registration(device, "chat").await.rows().await.len(), 1);
    fixture.store.end().await.unwrap();
    let mut fixture = fixture.reopened();
    fixture.store.begin().await.unwrap();
    assert!(!fixture.store.crashed_after(seq));
}

#[tokio::test]
async fn receipts_are_made_with_what_they_tell_and_kept_until_they_are_told() {
    let fixture = Fixture::holding(3);
    let device = world::device_id();
    let chat = fixture.registration(device, "chat").await;
    chat.requested("nobody asks", "0").await;
    fixture.store.settle(acks([chat.rows().await[0].seq])).await.unwrap();
    let callback = Callback { url: "http://127.0.0.1:1/".into(), key: b"key".to_vec() };
    assert!(fixture.store.set_callback(app("chat"), Some(callback)).await.unwrap());

    chat.stored(&["without a receipt"]).await;
    chat.requested("has it", "1").await;
    chat.requested("expires", "2").await;
    let rows = chat.rows().await;
    fixture.store.settle(acks([rows[0].seq, rows[1].seq])).await.unwrap();
    // A second time says nothing.
    fixture.store.settle(acks([rows[1].seq])).await.unwrap();
    fixture.expire(rows[2].seq);
    fixture.store.sweep().await.unwrap();
    for request_id in ["too many", "replaced", "replaced", "3", "4"] {
        chat.requested(request_id, "").await;
    }
    fixture.store.deregister(device, app("chat")).await.unwrap();

    assert_eq!(fixture.store.apps_with_receipts().await.unwrap(), [app("chat")]);
    let batch = fixture.store.receipts(app("chat")).await.unwrap().unwrap();
    let told: Vec<(String, u64)> = batch.receipts.iter().map(|text| told(text)).collect();
    let expected =
        [("has it", 1000), ("expires", 1002), ("too many", 1001), ("replaced", 1001), ("3", 1001), ("4", 1001)];
    assert_eq!(told, expected.map(|(request_id, code)| (request_id.to_owned(), code)));
    let fixture = fixture.reopened();
    assert_eq!(fixture.store.receipts(app("chat")).await.unwrap().unwrap().receipts, batch.receipts);
    fixture.store.told(app("chat"), batch.last).await.unwrap();
    assert!(fixture.store.receipts(app("chat")).await.unwrap().is_none());
    assert_eq!(fixture.store.apps_with_receipts().await.unwrap(), []);
}

#[tokio::test]
async fn what_a_device_does_not_keep_has_ended_and_its_receipt_says_so() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    let callback = Callback { url: "http://127.0.0.1:1/".into(), key: b"key".to_vec() };
    fixture.store.set_callback(app("chat"), Some(callback)).await.unwrap();
    let foreign = chat.requested("foreign", "").await;
    let late = chat.requested("late", "").await;
    let kept = chat.requested("kept", "").await;
    let rows = chat.rows().await;
    // A second time says nothing.
    for _ in 0..2 {
        fixture.store.settle(not_kept(&rows[0], NotKept::Unwanted)).await.unwrap();
        fixture.store.settle(not_kept(&rows[1], NotKept::Expired)).await.unwrap();
        fixture.store.settle(acks([rows[2].seq])).await.unwrap();
    }
    fixture.written().await;
    assert_eq!(chat.steps(foreign).await, ["accepted", "stored", "sent", "unwanted"]);
    assert_eq!(chat.steps(late).await, ["accepted", "stored", "sent", "expired"]);
    assert_eq!(chat.steps(kept).await, ["accepted", "stored", "sent", "acknowledged"]);
    assert_eq!(chat.rows().await, []);
    let batch = fixture.store.receipts(app("chat")).await.unwrap().unwrap();
    let told: Vec<(String, u64)> = batch.receipts.iter().map(|text| told(text)).collect();
    assert_eq!(told, [("foreign", 1001), ("late", 1002), ("kept", 1000)].map(|(id, code)| (id.to_owned(), code)));
}

#[tokio::test]
async fn whoever_tells_receipts_is_told_of_those_that_are_made_and_of_nothing_else() {
    use futures_util::FutureExt;
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    let made = async || {
        fixture.written().await;
        fixture.store.receipts_made().now_or_never().is_some()
    };
    chat.requested("nobody asks", "").await;
    fixture.store.settle(acks([chat.rows().await[0].seq])).await.unwrap();
    assert!(!made().await);
    let callback = Callback { url: "http://127.0.0.1:1/".into(), key: b"key".to_vec() };
    fixture.store.set_callback(app("chat"), Some(callback)).await.unwrap();
    chat.requested("stored", "").await;
    chat.requested("expires", "").await;
    assert!(!made().await);
    let rows = chat.rows().await;
    fixture.store.settle(acks([rows[0].seq])).await.unwrap();
    assert!(made().await);
    assert!(!made().await);
    fixture.store.expire(vec![rows[1].seq]).await.unwrap();
    assert!(made().await);
}

#[tokio::test]
async fn drops_that_a_device_was_not_told_of_go_to_another_message() {
    let fixture = Fixture::holding(2);
    let chat = fixture.registration(world::device_id(), "chat").await;
    chat.stored(&["1", "2", "3"]).await;
    let rows = chat.rows().await;
    chat.stored(&["4"]).await;
    // The device has thrown away the one that spoke of the first two.
    fixture.store.settle(not_kept(&rows[1], NotKept::Expired)).await.unwrap();
    fixture.written().await;
    assert_eq!(chat.waiting().await, counted(&[("4", 2)]));
}

/// Request id and status of a receipt.
fn told(text: &str) -> (String, u64) {
    let receipt: serde_json::Value = serde_json::from_str(text).unwrap();
    (receipt["requestID"].as_str().unwrap().to_owned(), receipt["statusCode"].as_u64().unwrap())
}

#[tokio::test]
async fn a_history_tells_every_step_and_only_the_device_adds_its_own() {
    let fixture = Fixture::new();
    let chat = fixture.registration(world::device_id(), "chat").await;
    let id = chat.requested("1", "text").await;
    fixture.store.settle(acks([chat.rows().await[0].seq])).await.unwrap();
    let outcome = |fate| Outcome { id, fate, at_ms: UnixMillis(1) };
    let all = vec![outcome(Fate::Alerted), outcome(Fate::Launched), outcome(Fate::Replaced), outcome(Fate::Delivered)];
    fixture.store.outcomes(world::device_id(), all.clone()).await.unwrap();
    assert_eq!(chat.steps(id).await, ["accepted", "stored", "sent", "acknowledged"]);
    fixture.store.outcomes(chat.device, all).await.unwrap();
    fixture.store.outcomes(chat.device, vec![outcome(Fate::Expired)]).await.unwrap();
    let steps = ["accepted", "stored", "sent", "acknowledged", "alerted", "launched", "delivered"];
    assert_eq!(chat.steps(id).await, steps);
    let found = fixture.store.messages(chat.app.clone(), "1".into()).await.unwrap();
    assert_eq!(found.iter().map(|history| history.id).collect::<Vec<_>>(), [id]);
    assert_eq!(fixture.store.message(app("mail"), id).await.unwrap(), None);
}

#[tokio::test]
async fn old_history_goes_but_not_that_of_what_waits() {
    let limits = Limits { history_hours: 1_000_000, history_messages: 2, ..Limits::default() };
    let (fixture, device) = (Fixture::with(limits), world::device_id());
    let chat = fixture.registration(device, "chat").await;
    let waits = chat.requested("waits", "").await;
    let mut ended = Vec::new();
    for number in 0..4 {
        ended.push(chat.requested(&number.to_string(), "").await);
    }
    let rows = chat.rows().await;
    fixture.store.settle(acks(rows[1..].iter().map(|row| row.seq))).await.unwrap();
    // The writer works in order; an empty write is behind it.
    fixture.store.accept(vec![]).await.unwrap();
    assert!(fixture.store.trim_history().await.unwrap());
    let known = async |id| fixture.store.message(chat.app.clone(), id).await.unwrap().is_some();
    assert!(known(waits).await);
    let left = [known(ended[0]).await, known(ended[1]).await, known(ended[2]).await, known(ended[3]).await];
    assert_eq!(left, [false, false, false, true], "two are remembered, and one of them waits");
    // All were accepted long ago.
    let fixture = fixture.reopened_with(Limits { history_hours: 1, ..limits });
    fixture.store.trim_history().await.unwrap();
    let known = async |id| fixture.store.message(app("chat"), id).await.unwrap().is_some();
    assert!(known(waits).await && !known(ended[3]).await);
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
    let registered = fixture.store.register(device, app("chat"), Over::Link).await.unwrap();
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
                fixture.store.settle(acks(rows.iter().map(|row| row.seq))).await.unwrap();
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

#[tokio::test]
async fn messages_of_an_earlier_schema_keep_their_urgency() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.db");
    let before = db::open(&path, &sql::MIGRATIONS[..5]).unwrap();
    let device = world::device_id();
    let bodies = [Urgency::VeryLow, Urgency::Low, Urgency::Normal, Urgency::High].map(|urgency| {
        let push = Push { urgency, ..samples::push(world::message_id()) };
        sql::body_of(&push).unwrap()
    });
    for (seq, body) in (1..).zip(bodies) {
        let insert = "INSERT INTO messages (seq, device, app, expires_ms, body) VALUES (?1, ?2, 'chat', 9, ?3)";
        before.execute(insert, (seq, device.as_bytes(), body)).unwrap();
    }
    drop(before);
    let store = Store::open(&path, Limits::default()).unwrap();
    // From the most urgent on: each takes all before it along.
    for (place, least) in [1, 2, 3, 4].into_iter().zip(Urgency::ALL).rev() {
        let gate = Gate { least, quiet: true };
        let backlog = store.backlog(device, Wanted { gate, ..Wanted::all(Seq(0), ALL) }).await.unwrap();
        assert_eq!(backlog.rows.last().map(|row| row.seq), Some(Seq(place)));
        store.writer.write(move |db| db.execute("DELETE FROM messages WHERE seq = ?1", [place])).await.unwrap();
    }
}

#[test]
fn channels_that_ended_long_ago_are_forgotten_and_their_endpoints_stay_dead() {
    let folder = tempfile::tempdir().unwrap();
    let db = db::open(&folder.path().join("t.db"), sql::MIGRATIONS).unwrap();
    sql::make_missing_keys(&db, UnixMillis(1)).unwrap();
    sql::add_app(&db, &app("chat"), b"hash", UnixMillis(1)).unwrap();
    let device = world::device_id();
    let channel = |byte| Channel { id: [byte; 16], sender: None }.app();
    let register =
        |app: &AppId, now| match registrations::register(&db, device, app, Over::Link, 10, UnixMillis(now)).unwrap() {
            Registered::As { generation, .. } => generation,
            other @ (Registered::UnknownApp | Registered::TooMany) => panic!("{other:?}"),
        };
    let apps = [app("chat"), channel(1), channel(2), channel(3)];
    let first: Vec<u64> = apps.iter().map(|app| register(app, 100)).collect();
    assert_eq!(first, [1, 100, 100, 100]);
    for (app, at) in [(&apps[0], 200), (&apps[1], 200), (&apps[2], 300)] {
        registrations::deregister(&db, device, app, UnixMillis(at)).unwrap();
    }
    assert!(registrations::forget_ended_channels(&db, UnixMillis(300)).unwrap());
    let left = db.query_row("SELECT count(*) FROM registrations", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(left, 3, "all but the one that ended before");
    assert_eq!([register(&apps[0], 400), register(&apps[1], 400), register(&apps[2], 300)], [2, 400, 300]);
    assert_eq!(register(&apps[3], 400), 100, "it stands");
}

//! Tests of what senders of Web Push are told, each on a database file of its own. Rows of RFC 8030's checklist
//! are in the names.

use futures_util::FutureExt;
use tempfile::TempDir;

use super::*;
use crate::proto::channel::{SenderHash, SenderKey};
use crate::proto::frame::NotKept;
use crate::proto::gateway::{Done, Queued, Sent, Seq, Settled, Wanted};
use crate::proto::message::{CollapseKey, Payload};
use crate::proto::{AppId, Channel, DeviceId, MessageId, Push, RegId, Region, samples};
use crate::server::config::Limits;
use crate::server::regid::Opened;
use crate::server::store::Over;
use crate::server::store::delayed::{LetGo, Selection, State};
use crate::server::store::receipts::Callback;
use crate::server::store::senders::KeySet;
use crate::server::store::sql::backup;
use crate::server::store::{Accepted, Incoming, Registered};

/// A store, and a channel of a device.
struct Scene {
    store: Store,
    folder: TempDir,
    device: DeviceId,
    app: AppId,
    to: Opened,
    reg_id: RegId,
    link: ReceiptsId,
}

impl Scene {
    async fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("server.db"), limits).unwrap();
        let device = world::device_id();
        let app = Channel { id: [7; 16], sender: Some(SenderHash([8; 32])) }.app();
        let Registered::As { generation, .. } = store.register(device, app.clone(), Over::Link).await.unwrap() else {
            panic!("not registered");
        };
        let keys = store.key_ring(Region(3)).await.unwrap();
        let reg_id = keys.issue(device, &app, generation);
        let to = keys.open(&reg_id).unwrap();
        Self { store, folder, device, app, to, reg_id, link: world::receipts_id() }
    }

    async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    fn push(&self, name: &str) -> Push {
        Push {
            reg_id: self.reg_id,
            app: self.app.clone(),
            payload: Some(Payload::text(name)),
            expires_ms: world::now().plus_minutes(60),
            receipts_to: Some(ReceiptsTo { link: self.link, sender: None, message: name.to_owned() }),
            ..samples::push(world::message_id())
        }
    }

    async fn stored(&self, push: Push) -> MessageId {
        let id = push.id;
        let incoming = Incoming { to: self.to, push, release_ms: None };
        assert_eq!(self.store.accept(vec![incoming]).await.unwrap(), [Accepted::Stored]);
        id
    }

    async fn sent(&self, name: &str) -> MessageId {
        self.stored(self.push(name)).await
    }

    async fn rows(&self) -> Vec<Queued> {
        self.store.backlog(self.device, Wanted::all(Seq(0), 1000)).await.unwrap().rows
    }

    async fn settle(&self, row: &Queued, how: Done) {
        let sent = Sent { seq: row.seq, id: row.push.id, at_ms: Some(world::now()) };
        self.store.settle(vec![Settled { sent, how }]).await.unwrap();
    }

    /// Has the device store all that waits.
    async fn ack_all(&self) {
        for row in self.rows().await {
            self.settle(&row, Done::Stored).await;
        }
    }

    /// What there is to tell: messages and statuses.
    async fn told(&self) -> Vec<(String, u16)> {
        self.written().await;
        let found = self.store.confirmations(self.link, 0).await.unwrap().unwrap();
        found.into_iter().map(|one| (one.message, one.status)).collect()
    }

    /// What nobody waits for is on disk.
    async fn written(&self) {
        self.store.writer.read_behind(|_| Ok(())).await.unwrap();
    }

    fn beside(&self, statement: &str) {
        let db = Connection::open(self.folder.path().join("server.db")).unwrap();
        db.execute_batch(statement).unwrap();
    }
}

fn all(names: &[&str], status: u16) -> Vec<(String, u16)> {
    names.iter().map(|name| ((*name).to_owned(), status)).collect()
}

#[tokio::test]
async fn a5_a_receipt_is_204_on_ack_and_410_when_given_up() {
    let scene = Scene::with(Limits { waiting_per_registration: 2, ..Limits::default() }).await;
    scene.stored(Push { receipts_to: None, ..scene.push("nobody asks") }).await;
    scene.sent("has it").await;
    let rows = scene.rows().await;
    for row in &rows {
        scene.settle(row, Done::Stored).await;
    }
    // A second time says nothing.
    scene.settle(&rows[1], Done::Stored).await;
    assert_eq!(scene.told().await, all(&["has it"], 204));

    for (name, why) in [("unwanted", NotKept::Unwanted), ("too late there", NotKept::Expired)] {
        scene.sent(name).await;
        scene.settle(&scene.rows().await[0], Done::NotKept(why)).await;
    }
    scene.sent("expires").await;
    scene.beside("UPDATE messages SET expires_ms = 1");
    scene.store.sweep().await.unwrap();
    scene.sent("expires on its way").await;
    scene.store.expire(vec![scene.rows().await[0].seq]).await.unwrap();
    for name in ["too many", "unregistered 1", "unregistered 2"] {
        scene.sent(name).await;
    }
    scene.store.deregister(scene.device, scene.app.clone()).await.unwrap();
    let given_up =
        ["unwanted", "too late there", "expires", "expires on its way", "too many", "unregistered 1", "unregistered 2"];
    assert_eq!(scene.told().await[1..], all(&given_up, 410));
}

#[tokio::test]
async fn a5_what_waits_for_a_device_that_is_forgotten_is_given_up() {
    let scene = Scene::new().await;
    scene.store.check_device(scene.device, &world::secret(), "agent".into(), true).await.unwrap();
    scene.sent("forgotten").await;
    scene.beside("UPDATE devices SET seen_ms = 1");
    assert_eq!(scene.store.forget_devices().await.unwrap(), (1, true));
    assert_eq!(scene.told().await, all(&["forgotten"], 410));
}

#[tokio::test]
async fn s10_a_message_that_is_replaced_has_no_receipt_and_neither_has_its_late_ack() {
    let scene = Scene::new().await;
    let of_request = |name| Push { request_id: Some("score".into()), ..scene.push(name) };
    scene.stored(of_request("older")).await;
    let older = scene.rows().await.remove(0);
    scene.stored(of_request("newer")).await;
    scene.settle(&older, Done::Stored).await;
    assert_eq!(scene.told().await, []);
    scene.ack_all().await;
    assert_eq!(scene.told().await, all(&["newer"], 204));
}

#[tokio::test]
async fn a7_a_message_that_is_taken_back_has_no_receipt() {
    let scene = Scene::new().await;
    let id = scene.sent("taken back").await;
    let page = scene.store.hold(scene.app.clone(), Selection::Message(id), None).await.unwrap();
    let State::Held(seq, _) = page.candidates[0].state else { panic!("{page:?}") };
    assert_eq!(scene.store.let_go(seq, true).await.unwrap(), LetGo::Removed);
    assert_eq!((scene.told().await, scene.rows().await), (vec![], vec![]));
}

#[tokio::test]
async fn s9_neither_topic_nor_subscription_reach_the_device() {
    let scene = Scene::new().await;
    let topic = CollapseKey::try_from("score".to_owned()).unwrap();
    scene.stored(Push { collapse_key: Some(topic), ..scene.push("secret") }).await;
    let rows = scene.rows().await;
    let sent = serde_json::to_string(&rows[0].push).unwrap();
    for secret in ["collapse_key", "score", "receipts_to", &scene.link.to_string()] {
        assert!(!sent.contains(secret), "{sent}");
    }
}

#[tokio::test]
async fn what_was_told_is_told_again_until_it_was_taken_also_over_a_restart() {
    let scene = Scene::new().await;
    for name in ["1", "2", "3"] {
        scene.sent(name).await;
    }
    scene.ack_all().await;
    assert_eq!(scene.told().await, all(&["1", "2", "3"], 204));
    let found = scene.store.confirmations(scene.link, 0).await.unwrap().unwrap();
    let after = scene.store.confirmations(scene.link, found[0].place).await.unwrap().unwrap();
    assert_eq!(after, found[1..]);
    scene.store.confirmed(scene.link, found[1].place).await.unwrap();
    // Another's are not touched.
    scene.store.confirmed(world::receipts_id(), i64::MAX).await.unwrap();
    assert_eq!(scene.told().await, all(&["3"], 204));

    let store = Store::open(&scene.folder.path().join("server.db"), Limits::default()).unwrap();
    let scene = Scene { store, ..scene };
    assert_eq!(scene.told().await, all(&["3"], 204));
    scene.store.confirmed(scene.link, found[2].place).await.unwrap();
    scene.sent("4").await;
    scene.ack_all().await;
    scene.written().await;
    // A place is never used again: a sender would take what is new for what it has.
    let later = scene.store.confirmations(scene.link, found[2].place).await.unwrap().unwrap();
    assert_eq!(later.len(), 1);
}

#[tokio::test]
async fn places_go_on_behind_those_that_were_told_since_a_backup() {
    let scene = Scene::new().await;
    scene.sent("told").await;
    scene.ack_all().await;
    scene.written().await;
    let before = scene.store.last_confirmation().await.unwrap();
    scene.store.writer.write(|db| backup::restored(db, world::now())).await.unwrap();
    scene.sent("after it was restored").await;
    scene.ack_all().await;
    scene.written().await;
    assert!(scene.store.last_confirmation().await.unwrap() > before + 1_000_000_000);
}

#[tokio::test]
async fn of_one_subscription_the_oldest_go_over_the_limit_and_no_other_is_touched() {
    let scene = Scene::with(Limits { receipts_per_link: 2, ..Limits::default() }).await;
    let other = world::receipts_id();
    let to_other = ReceiptsTo { link: other, sender: None, message: "other".into() };
    scene.stored(Push { receipts_to: Some(to_other), ..scene.push("") }).await;
    for name in ["1", "2", "3", "4"] {
        scene.sent(name).await;
    }
    scene.ack_all().await;
    assert_eq!(scene.told().await, all(&["3", "4"], 204));
    assert_eq!(scene.store.confirmations(other, 0).await.unwrap().unwrap().len(), 1);
}

#[tokio::test]
async fn of_a_subscription_that_has_ended_nothing_is_told_or_kept() {
    let scene = Scene::with(Limits { expiry_minutes: 1, ..Limits::default() }).await;
    scene.sent("before").await;
    scene.ack_all().await;
    scene.sent("on its way").await;
    assert!(!scene.store.has_link_ended(scene.link).await.unwrap());
    assert!(scene.store.end_link(scene.link).await.unwrap());
    assert!(!scene.store.end_link(scene.link).await.unwrap());
    scene.ack_all().await;
    scene.written().await;
    assert_eq!(scene.store.confirmations(scene.link, 0).await.unwrap(), None);
    assert_eq!(scene.store.confirmed_after(0).await.unwrap(), []);
    // It is remembered for as long as a message may name it, and no longer.
    assert!(scene.store.trim_confirmations().await.unwrap());
    assert!(scene.store.has_link_ended(scene.link).await.unwrap());
    scene.beside("UPDATE ended_links SET ended_ms = ended_ms - 60001");
    scene.store.trim_confirmations().await.unwrap();
    assert!(!scene.store.has_link_ended(scene.link).await.unwrap());
}

#[tokio::test]
async fn what_nobody_asks_for_in_time_is_forgotten_and_so_is_what_is_over_the_limit() {
    let scene = Scene::with(Limits { history_messages: 2, receipt_hours: 1, ..Limits::default() }).await;
    for name in ["1", "2", "3"] {
        scene.sent(name).await;
    }
    scene.ack_all().await;
    assert_eq!(scene.told().await.len(), 3);
    scene.store.trim_confirmations().await.unwrap();
    assert_eq!(scene.told().await, all(&["2", "3"], 204));
    scene.beside("UPDATE confirmations SET made_ms = made_ms - 3600001 WHERE message = '2'");
    scene.store.trim_confirmations().await.unwrap();
    assert_eq!(scene.told().await, all(&["3"], 204));
    assert!(scene.store.trim_confirmations().await.unwrap());
}

#[tokio::test]
async fn who_waits_hears_of_confirmations_and_of_nothing_else() {
    let scene = Scene::new().await;
    let made = async || {
        scene.written().await;
        scene.store.confirmations_made().now_or_never().is_some()
    };
    scene.stored(Push { receipts_to: None, ..scene.push("nobody asks") }).await;
    scene.ack_all().await;
    assert!(!made().await);
    let last = scene.store.last_confirmation().await.unwrap();
    scene.sent("asked").await;
    assert!(!made().await);
    scene.ack_all().await;
    assert!(made().await);
    assert!(!made().await);
    let found = scene.store.confirmed_after(last).await.unwrap();
    assert_eq!(found.iter().map(|(_, link)| *link).collect::<Vec<_>>(), [scene.link]);
    assert_eq!(scene.store.confirmed_after(found[0].0).await.unwrap(), []);
}

#[tokio::test]
async fn a6_the_app_of_the_sender_s_key_is_told_in_its_callback_without_the_reg_id() {
    let scene = Scene::new().await;
    let chat: AppId = "chat".parse().unwrap();
    scene.store.add_app(chat.clone(), "a secret of the app").await.unwrap();
    let key = key(1);
    let set = async |key| scene.store.set_vapid_key(chat.clone(), key).await.unwrap();
    set(Some(key)).await;
    let to_app = |name: &str| {
        let (sender, message) = (Some(key.hash()), format!("https://push/wp/m/{name}"));
        let to = ReceiptsTo { link: scene.link, sender, message };
        Push { receipts_to: Some(to), request_id: Some(Push::named("k", name)), ..scene.push(name) }
    };
    // Without a callback the subscription alone is told.
    scene.stored(to_app("1")).await;
    scene.ack_all().await;
    let callback = Callback { url: "http://127.0.0.1:1/".into(), key: b"key".to_vec() };
    scene.store.set_callback(chat.clone(), Some(callback)).await.unwrap();
    scene.stored(to_app("2")).await;
    scene.ack_all().await;
    scene.stored(to_app("3")).await;
    scene.store.deregister(scene.device, scene.app.clone()).await.unwrap();
    assert_eq!(scene.told().await.len(), 3);
    assert_eq!(scene.store.apps_with_receipts().await.unwrap(), std::slice::from_ref(&chat));
    let batch = scene.store.receipts(chat.clone()).await.unwrap().unwrap();
    let told: Vec<serde_json::Value> = batch.receipts.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    let shown = |at: usize| {
        let one = &told[at];
        (one["message"].as_str().unwrap(), one["status"].as_u64().unwrap(), one["statusCode"].as_u64().unwrap())
    };
    assert_eq!(told.len(), 2);
    assert_eq!(told.iter().map(|one| one["requestID"].clone()).collect::<Vec<_>>(), ["2", "3"]);
    assert_eq!(shown(0), ("https://push/wp/m/2", 204, 1000));
    assert_eq!(shown(1), ("https://push/wp/m/3", 410, 1001));
    assert!(told.iter().all(|one| one.get("regID").is_none()));
}

/// A key like no other.
fn key(byte: u8) -> SenderKey {
    use base64::Engine as _;
    let mut point = [byte; SenderKey::LEN];
    point[0] = 4;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(point).parse().unwrap()
}

#[tokio::test]
async fn a6_a_key_that_is_the_app_s_no_longer_has_its_callback_told_nothing_more() {
    let scene = Scene::new().await;
    let chat: AppId = "chat".parse().unwrap();
    scene.store.add_app(chat.clone(), "a secret of the app").await.unwrap();
    let callback = Callback { url: "http://127.0.0.1:1/".into(), key: b"key".to_vec() };
    scene.store.set_callback(chat.clone(), Some(callback)).await.unwrap();
    scene.store.set_vapid_key(chat.clone(), Some(key(1))).await.unwrap();
    let to = ReceiptsTo { link: scene.link, sender: Some(key(1).hash()), message: "https://push/wp/m/1".into() };
    scene.stored(Push { receipts_to: Some(to), ..scene.push("1") }).await;
    scene.store.set_vapid_key(chat.clone(), None).await.unwrap();
    scene.ack_all().await;
    assert_eq!(scene.told().await.len(), 1);
    assert_eq!(scene.store.apps_with_receipts().await.unwrap(), []);
}

#[tokio::test]
async fn a_key_is_one_app_s_at_a_time() {
    let scene = Scene::new().await;
    let [chat, mail]: [AppId; 2] = ["chat", "mail"].map(|name| name.parse().unwrap());
    let set = async |app: &AppId, key| scene.store.set_vapid_key(app.clone(), key).await.unwrap();
    let of = async |key: SenderKey| scene.store.app_of_sender(key.hash()).await.unwrap();
    assert_eq!(set(&chat, Some(key(1))).await, KeySet::NoApp);
    for app in [&chat, &mail] {
        scene.store.add_app(app.clone(), "a secret of the app").await.unwrap();
    }
    assert_eq!(set(&chat, Some(key(1))).await, KeySet::Done);
    assert_eq!(set(&chat, Some(key(1))).await, KeySet::Done);
    assert_eq!(set(&mail, Some(key(1))).await, KeySet::Taken(chat.clone()));
    assert_eq!((of(key(1)).await, of(key(2)).await), (Some(chat.clone()), None));
    assert_eq!(set(&chat, Some(key(2))).await, KeySet::Done);
    assert_eq!((of(key(1)).await, of(key(2)).await), (None, Some(chat.clone())));
    assert_eq!(set(&chat, None).await, KeySet::Done);
    assert_eq!(of(key(2)).await, None);
    // Who is removed takes the key along.
    assert_eq!(set(&mail, Some(key(2))).await, KeySet::Done);
    scene.store.remove_app(mail).await.unwrap();
    assert_eq!((of(key(2)).await, set(&chat, Some(key(2))).await), (None, KeySet::Done));
}

#[tokio::test]
async fn a8_a_message_is_there_as_long_as_it_waits() {
    let scene = Scene::new().await;
    let pending = async |id| scene.store.pending(scene.app.clone(), id).await.unwrap();
    let sent = scene.push("waits");
    let id = scene.stored(sent.clone()).await;
    assert_eq!(pending(id).await, Some(sent));
    assert_eq!(scene.store.pending("chat".parse().unwrap(), id).await.unwrap(), None);
    assert_eq!(pending(world::message_id()).await, None);
    scene.ack_all().await;
    scene.written().await;
    assert_eq!(pending(id).await, None);
    let late = scene.sent("late").await;
    scene.beside("UPDATE messages SET expires_ms = 1");
    assert_eq!(pending(late).await, None);
}

//! Promises 1 to 3 against SIGKILL: what was answered 1000 arrives at the app, once, in order,
//! whatever dies meanwhile. The app lives on, as apps do, and connects again when the agent is back.

#![cfg(all(feature = "agent", feature = "server"))]

#[path = "common/broker.rs"]
mod broker;
mod common;
#[path = "common/device.rs"]
mod device;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bellwire::http::HttpClient;
use broker::Broker;
use common::{App, DEADLINE, Server};
use device::{Device, DeviceApp, Manners, Message, NAME, codes, post, request, within};
use futures_util::StreamExt;
use tokio::sync::watch;

const APP: &str = "org.example.Chat";
const SENDERS: usize = 8;
const POSTS: usize = 1000;
/// Nothing may be dropped here, however long the queues become.
const SERVER_LIMITS: &str = "[limits]\nwaiting-per-registration = 2000";
const AGENT_LIMITS: &str = "[limits]\nunread-messages = 2000";

/// A post that was tried: sender, number, attempt.
type Attempt = (usize, usize, usize);

fn data((sender, number, attempt): Attempt) -> String {
    format!("{sender}/{number}/{attempt}")
}

fn attempt(data: &str) -> Attempt {
    let parts: Vec<usize> = data.split('/').map(|part| part.parse().expect("a number")).collect();
    (parts[0], parts[1], parts[2])
}

/// Application servers that post without pause, each one after the other.
#[derive(Clone)]
struct Senders {
    http: HttpClient,
    url: String,
    credentials: [(&'static str, String); 2],
    reg_id: String,
    answered: Arc<Mutex<BTreeSet<Attempt>>>,
    count: Arc<watch::Sender<usize>>,
    /// Grows with each start of the server.
    starts: watch::Receiver<usize>,
}

impl Senders {
    /// Posts until each number was answered 1000. What was not answered is posted anew.
    async fn run(mut self, sender: usize) {
        for number in 0..POSTS / SENDERS {
            let mut tries = 0;
            loop {
                let starts = *self.starts.borrow_and_update();
                if self.try_once((sender, number, tries)).await {
                    break;
                }
                tries += 1;
                let restarted = self.starts.wait_for(|now| *now > starts);
                // A connection may still break on the server's way up, with no further start to wait for.
                let _ = tokio::time::timeout(Duration::from_millis(500), restarted).await;
            }
        }
    }

    async fn try_once(&self, attempt: Attempt) -> bool {
        let body = request(self.reg_id.clone(), &data(attempt), &data(attempt)).to_string();
        let headers: Vec<(&str, &str)> = self.credentials.iter().map(|(name, value)| (*name, &**value)).collect();
        let Ok((_, answer)) = self.http.post(&self.url, &headers, body).await else { return false };
        let Ok(answer) = serde_json::from_slice::<serde_json::Value>(&answer) else { return false };
        let accepted = answer["results"][0]["statusCode"] == 1000;
        if accepted {
            self.answered.lock().expect("no sender panics").insert(attempt);
            self.count.send_modify(|count| *count += 1);
        }
        accepted
    }
}

/// Connects the app again whenever an agent comes onto the bus.
async fn keep_connected(app: Arc<DeviceApp>) {
    let dbus = zbus::fdo::DBusProxy::new(&app.bus).await.expect("the bus runs");
    let mut owners = dbus.receive_name_owner_changed_with_args(&[(0, NAME)]).await.expect("the bus has signals");
    while let Some(signal) = owners.next().await {
        if signal.args().expect("its arguments").new_owner().is_some() {
            // The agent may be killed again before it answers.
            let _ = app.connect(&[]).await;
        }
    }
}

enum Blow {
    Server,
    Agent,
    Both,
}

/// When something is killed: after so many answers and so many arrivals.
const BLOWS: [(Blow, usize, usize); 6] = [
    (Blow::Server, 100, 0),
    (Blow::Agent, 200, 150),
    (Blow::Server, 400, 0),
    (Blow::Agent, 500, 400),
    (Blow::Both, 700, 500),
    (Blow::Agent, 900, 800),
];
const AGENT_KILLS: usize = 4;

async fn chaos(
    mut server: Server,
    mut device: Device,
    mut broker: Option<Broker>,
    mut answered: watch::Receiver<usize>,
    mut arrived: watch::Receiver<usize>,
    starts: watch::Sender<usize>,
) -> (Server, Device, Option<Broker>) {
    for (blow, after_answers, after_arrivals) in BLOWS {
        within("enough answers", answered.wait_for(|count| *count >= after_answers)).await.expect("senders run");
        within("enough arrivals", arrived.wait_for(|count| *count >= after_arrivals)).await.expect("the app runs");
        if matches!(blow, Blow::Server | Blow::Both) {
            server.kill();
        }
        if matches!(blow, Blow::Agent | Blow::Both) {
            device.kill_agent();
            device.restart_agent();
            if let Some(broker) = &mut broker {
                broker.kill();
                broker.start();
            }
        }
        if matches!(blow, Blow::Server | Blow::Both) {
            server.restart();
            starts.send_modify(|starts| *starts += 1);
        }
        match &broker {
            Some(broker) => device.until_over("mqtt://", || broker.log()).await,
            None => device.until_online().await,
        }
    }
    (server, device, broker)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_arrives_once_and_in_order_whatever_is_killed() {
    let server = Server::start("00", SERVER_LIMITS);
    let device = Device::start(&server.gateway, AGENT_LIMITS);
    survive(server, device, None).await;
}

#[cfg(feature = "mqtt")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_arrives_over_a_broker_too_which_is_killed_as_well() {
    let mut broker = Broker::new();
    let server = Server::start("00", &format!("{}{SERVER_LIMITS}", broker.settings()));
    let device = Device::start(&server.gateway, &format!("{}\n{AGENT_LIMITS}", broker::PREFER));
    device.until_online().await;
    broker.sync(&server);
    broker.start();
    survive(server, device, Some(broker)).await;
}

/// Posts a thousand times while one after the other is killed, and judges what arrives.
async fn survive(server: Server, device: Device, broker: Option<Broker>) {
    let App { id, secret } = server.app_add(APP);
    let (app, mut inbox) = device.app(APP).await.split();
    let app = Arc::new(app);
    let keeper = tokio::spawn(keep_connected(Arc::clone(&app)));

    let (starts_in, starts) = watch::channel(0);
    let (count, answered_count) = watch::channel(0);
    let (arrivals, arrived_count) = watch::channel(0);
    let senders = Senders {
        http: HttpClient::new(&bellwire::tls::client(None).expect("the system's certificates")),
        url: format!("{}/spp/pns/api/push", server.api),
        credentials: [("appID", id.clone()), ("appSecret", secret.clone())],
        reg_id: app.reg_id.clone(),
        answered: Arc::default(),
        count: Arc::new(count),
        starts,
    };
    let answered = Arc::clone(&senders.answered);
    let posting: Vec<_> = (0..SENDERS).map(|sender| tokio::spawn(senders.clone().run(sender))).collect();
    let chaos = tokio::spawn(chaos(server, device, broker, answered_count, arrived_count, starts_in));
    let receiving = tokio::spawn(async move {
        let mut arrived: Vec<Message> = Vec::new();
        while arrived.last().is_none_or(|last| last.data() != "the end") {
            arrived.push(within("a message", inbox.recv()).await.expect("the app runs"));
            arrivals.send_replace(arrived.len());
        }
        arrived
    });
    for sender in posting {
        sender.await.expect("senders end");
    }
    let (server, device, _broker) = chaos.await.expect("everything is up again");
    let last = post(&server, &App { id, secret }, &request(app.reg_id.clone(), "end", "the end"));
    assert_eq!(codes(&last), [1000], "{last:?}");
    let mut arrived = receiving.await.unwrap_or_else(|error| panic!("{error}\n{}{}", server.log(), device.log()));
    arrived.pop();
    keeper.abort();
    judge(&answered.lock().expect("no sender panics"), &arrived);
}

fn judge(answered: &BTreeSet<Attempt>, arrived: &[Message]) {
    assert_eq!(answered.len(), POSTS);
    let attempts: Vec<Attempt> = arrived.iter().map(|message| attempt(&message.data())).collect();
    let missing: Vec<_> = answered.difference(&attempts.iter().copied().collect()).copied().collect();
    assert!(missing.is_empty(), "answered 1000 and never arrived: {missing:?}");

    // The app has a message once. The one that it was handed when the agent was killed may come
    // again; it says so.
    let mut times = BTreeMap::<&str, usize>::new();
    let mut firsts = BTreeMap::<usize, Vec<Attempt>>::new();
    for (message, attempt) in arrived.iter().zip(&attempts) {
        assert!(!message.members.contains_key("dropped"), "{message:?}");
        let seen = times.entry(&message.id).or_default();
        *seen += 1;
        match *seen {
            1 => firsts.entry(attempt.0).or_default().push(*attempt),
            _ => assert!(message.members.contains_key("again"), "unmarked a second time: {message:?}"),
        }
    }
    let again = arrived.iter().filter(|message| message.members.contains_key("again")).count();
    assert!(again <= AGENT_KILLS, "{again} messages are marked as handed over before");
    let distinct: BTreeSet<&Attempt> = attempts.iter().collect();
    assert_eq!(times.len(), distinct.len(), "a post became two messages");
    for first in firsts.values() {
        assert!(first.is_sorted(), "a sender's messages arrived in another order: {first:?}");
    }
    println!("{} ids in {} calls, {again} marked", times.len(), arrived.len());
}

#[tokio::test]
async fn a_device_acknowledges_nothing_before_it_is_on_its_disk() {
    let server = Server::start("00", "");
    let credentials = server.app_add(APP);
    let mut device = Device::start(&server.gateway, "");
    let mut app = device.app(APP).await;
    // Somebody else writes to the agent's database, so that it cannot.
    let database = rusqlite::Connection::open(device.folder.path().join("state/agent.db")).expect("a database");
    database.execute_batch("BEGIN IMMEDIATE").expect("the agent writes nothing now");
    assert_eq!(codes(&post(&server, &credentials, &request(app.reg_id.clone(), "1", "kept"))), [1000]);
    // It has the message when it begins to wait for its store, and answers nobody then.
    let started = Instant::now();
    while app.call_within::<String>(Duration::from_millis(300), "GetRegistrationId", &APP).await.is_some() {
        assert!(started.elapsed() < DEADLINE, "the agent does not try to store");
    }
    device.kill_agent();
    database.execute_batch("ROLLBACK").expect("the transaction is ours");
    device.restart_agent();
    app.connect(&[]).await.expect("the app may connect");
    assert_eq!(app.next().await.data(), "kept");
}

#[tokio::test]
async fn a_message_without_an_answer_comes_again_and_says_so() {
    let server = Server::start("00", "");
    let credentials = server.app_add(APP);
    let mut device = Device::start(&server.gateway, "");
    let mut app = device.app(APP).await;
    app.behave(Manners::Ignore);
    for data in ["first", "second"] {
        assert_eq!(codes(&post(&server, &credentials, &request(app.reg_id.clone(), data, data))), [1000]);
    }
    let ignored = app.next().await;
    assert!(ignored.data() == "first" && !ignored.members.contains_key("again"), "{ignored:?}");
    device.kill_agent();
    device.restart_agent();
    // The app of before is on the bus still, and the agent has forgotten its connection.
    app.behave(Manners::Take);
    app.connect(&[]).await.expect("the app may connect");
    let (first, second) = (app.next().await, app.next().await);
    assert_eq!((first.id, first.members.contains_key("again")), (ignored.id, true));
    assert_eq!((second.data().as_str(), second.members.contains_key("again")), ("second", false));

    app.behave(Manners::Refuse);
    assert_eq!(codes(&post(&server, &credentials, &request(app.reg_id.clone(), "third", "third"))), [1000]);
    let refused = app.next().await;
    app.behave(Manners::Take);
    assert_eq!(app.call::<u32>("RequestUnread", &APP).await.expect("an answer"), 1);
    let third = app.next().await;
    assert_eq!((third.id, third.members.contains_key("again")), (refused.id, true));
}

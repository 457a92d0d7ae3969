//! The server as a client of an MQTT broker that carries frames between it and devices. A session over a
//! broker is the same as one over a socket of its own; here links are opened and ended, and what comes in
//! is passed to the link it is for.
//!
//! Greetings are shared by all servers that are connected with the same root; everything else goes to the
//! server that has greeted. When the broker is lost, so are all links over it: the devices greet again, and
//! the store sends what they have not acknowledged.

pub mod command;
pub mod mosquitto;
pub mod rights;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::daemon::{Exit, Fatal};
use crate::link::LinkError;
use crate::link::dial::{self, Dialling};
use crate::link::mqtt::GREETING_MS;
use crate::link::mqtt::client::{Arrived, Client, Event, Inbox, Login, Terms, Will};
use crate::link::mqtt::links::Links;
use crate::link::mqtt::topics::{self, FromDevice, LinkName, Tag};
use crate::link::proxy::Proxies;
use crate::link::url::{Gateway, Root};
use crate::proto::Moment;
use crate::proto::backoff::Backoff;
use crate::proto::frame::{Bye, Frame, Reason, TO_SERVER_MAX, ToDevice};
use crate::tls;
use crate::world;

use super::Server;
use super::config::Mqtt;
use super::gateway::{self, BUSY_RETRY_S, RESTART_S};

/// Greetings that wait for their turn.
const GREETINGS: usize = 1024;
/// What has come in and waits to be passed on.
const ARRIVALS: usize = 256;
/// How long the connection may be silent, so that devices hear soon of a server that is lost.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The longest wait before the broker is tried again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The least seconds over which devices spread when this server is lost: nobody then knows how many they are.
const LOST_WINDOW_S: u32 = 30;
/// How long connecting may take altogether.
const CONNECT: Duration = Duration::from_secs(30);
/// How long a greeting may wait for its turn: its device tries another link then.
const PATIENCE: Duration = Duration::from_millis(GREETING_MS.unsigned_abs());
/// How long the goodbye may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// The task that is the broker's client.
pub struct Broker {
    task: JoinHandle<()>,
    end: oneshot::Sender<()>,
}

impl Broker {
    /// Starts it, if the configuration names a broker.
    pub fn start(server: &Arc<Server>) -> Result<Option<Self>, Fatal> {
        let config = &server.config.mqtt;
        let (Some(url), root) = (config.broker.clone(), config.root()) else { return Ok(None) };
        let tls = tls::client(config.ca.as_deref()).map_err(Fatal::of(Exit::Config))?;
        let dialling = Dialling {
            tls,
            plain_text: config.allow_plain_text,
            from: None,
            ends: Arc::default(),
            proxies: Proxies::none(),
        };
        let (end, ended) = oneshot::channel();
        let this = Attendant { server: Arc::clone(server), url, root, dialling };
        Ok(Some(Self { task: tokio::spawn(this.run(ended)), end }))
    }

    /// Says goodbye to the broker. The sessions must have ended.
    pub async fn end(self) {
        // A task that has ended needs no word.
        let _ = self.end.send(());
        let _ = tokio::time::timeout(FAREWELL, self.task).await;
    }
}

/// What it takes to connect.
struct Attendant {
    server: Arc<Server>,
    url: Gateway,
    root: Root,
    dialling: Dialling,
}

/// A greeting, and when it came.
type Waiting = (LinkName, Arrived, Moment);

/// A connection, with the links over it.
struct Connection {
    client: Client,
    inbox: Inbox,
    links: Arc<Links>,
    greetings: mpsc::Sender<Waiting>,
    name: Tag,
}

impl Attendant {
    async fn run(self, mut end: oneshot::Receiver<()>) {
        let mut backoff = Backoff::up_to(LONGEST_WAIT);
        let mut told = false;
        loop {
            let connected = tokio::select! {
                connected = self.connect_in_time() => connected,
                _ = &mut end => return,
            };
            let why = match connected {
                Ok(mut connection) => {
                    info!(broker = %self.url, "connected to the broker");
                    (backoff, told) = (Backoff::up_to(LONGEST_WAIT), false);
                    self.connected(true);
                    let lost = tokio::select! {
                        why = self.serve(&mut connection) => Some(why),
                        _ = &mut end => None,
                    };
                    self.connected(false);
                    connection.links.clear();
                    let Some(why) = lost else { return connection.leave().await };
                    why
                }
                Err(why) => why,
            };
            // Once: a broker that stays away fills no log.
            match std::mem::replace(&mut told, true) {
                false => warn!(broker = %self.url, "not connected to the broker, which is tried again: {why}"),
                true => debug!("the broker is tried again: {why}"),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next(world::luck())) => {}
                _ = &mut end => return,
            }
        }
    }

    fn connected(&self, is: bool) {
        self.server.metrics.broker_connected.store(is, Ordering::Relaxed);
    }

    async fn connect_in_time(&self) -> Result<Connection, LinkError> {
        let late = |_| LinkError::Broken(format!("it does not answer within {} s", CONNECT.as_secs()));
        tokio::time::timeout(CONNECT, self.connect()).await.map_err(late)?
    }

    /// A connection on which this server has what devices say.
    async fn connect(&self) -> Result<Connection, LinkError> {
        let Mqtt { user, password, .. } = &self.server.config.mqtt;
        let (name, password) = (Tag::random(), password.clone().unwrap_or_default());
        let window_s = self.server.config.gateway.reconnect_window_s.max(LOST_WINDOW_S);
        let bye = Bye { window_s: Some(window_s), ..Bye::until(Reason::Shutdown, RESTART_S) };
        let terms = Terms {
            login: Login { id: format!("{user}-{name}"), user: user.clone(), password: password.clone() },
            keep_alive: KEEP_ALIVE,
            will: Will { topic: topics::end_of_server(&self.root, &name), text: ToDevice::Bye(bye).encode() },
            frame_max: TO_SERVER_MAX,
            receive_max: u16::MAX,
            needs_reader: false,
        };
        let stream = dial::stream(&self.url, &self.dialling).await?;
        let (client, inbox) = Client::connect(stream, terms, ARRIVALS).await?;
        client.subscribe(topics::for_server(&self.root, &name, &topics::group(&password))).await?;
        let links = Arc::new(Links::new(self.root.clone(), name.clone(), client.outbox()));
        let (greetings, greeted) = mpsc::channel(GREETINGS);
        tokio::spawn(greet_all(Arc::clone(&self.server), Arc::clone(&links), greeted));
        let mut connection = Connection { client, inbox, links, greetings, name };
        // Greetings may come before the word that they will.
        while let Event::Arrived(arrived) = connection.next().await? {
            self.pass(&connection, arrived);
        }
        Ok(connection)
    }

    /// Passes on what comes in, until nothing does.
    async fn serve(&self, connection: &mut Connection) -> LinkError {
        loop {
            match connection.next().await {
                Ok(Event::Arrived(arrived)) => self.pass(connection, arrived),
                Ok(Event::Granted) => {}
                Err(why) => return why,
            }
        }
    }

    fn pass(&self, connection: &Connection, arrived: Arrived) {
        match topics::from_device(&self.root, &arrived.topic) {
            Some(FromDevice::Hello(name)) => {
                connection.links.expect(name.clone());
                if let Err(refused) = connection.greetings.try_send((name, arrived, self.server.clock.now())) {
                    let (name, ..) = refused.into_inner();
                    connection.links.lose(&name);
                    connection.links.refuse(name, Bye::until(Reason::Busy, BUSY_RETRY_S));
                }
            }
            Some(FromDevice::Up(name, server)) if server == connection.name => connection.links.pass(name, arrived),
            Some(FromDevice::Gone(name)) => connection.links.lose(&name),
            Some(FromDevice::Up(..)) | None => debug!("a publication on a topic of nobody"),
        }
    }
}

impl Connection {
    async fn next(&mut self) -> Result<Event, LinkError> {
        self.inbox.recv().await.unwrap_or(Err(LinkError::Closed))
    }

    /// Sends what the last sessions have said, and the goodbye.
    async fn leave(self) {
        let Self { client, mut inbox, links, greetings, .. } = self;
        drop((links, greetings));
        // What devices still say is let go, as the goodbye is behind it.
        tokio::join!(client.close(), async { while inbox.recv().await.is_some() {} });
    }
}

/// Takes one greeting after the other, as fast as devices are admitted.
async fn greet_all(server: Arc<Server>, links: Arc<Links>, mut greeted: mpsc::Receiver<Waiting>) {
    let places = Arc::new(Semaphore::new(server.config.gateway.handshakes));
    while let Some((name, hello, came)) = greeted.recv().await {
        server.admission.next().await;
        // Nobody closes it.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let late = server.clock.now().since(came) > PATIENCE;
        if !links.is_expected(&name) || late {
            debug!(device = %name.device, "a greeting was read too late");
            continue;
        }
        let (server, device) = (Arc::clone(&server), name.device);
        let link = links.open(name, hello);
        tokio::spawn(async move {
            gateway::shake(&server, gateway::converse_over(Arc::clone(&server), link, Some(device))).await;
            drop(place);
        });
    }
}

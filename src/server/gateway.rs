//! Where devices connect: accepts links, proves who is there, and carries out what a session's
//! state machine decides.
//!
//! The handshake runs in a task of its own, so that the one which lives as long as the connection
//! holds little memory. Nothing a device does is logged above debug.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum_server::tls_rustls::RustlsConfig;
use governor::clock::{Clock, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::daemon::Stop;
use crate::db::DbError;
use crate::link::{Link, LinkError, Socket};
use crate::proto::frame::{Bye, Frame, Reason, TO_SERVER_MAX, ToDevice, ToServer};
use crate::proto::gateway::{Claim, Done, GatewayAction, Greeting, HELLO, Seq, Session, Terms};
use crate::proto::{AppId, DeviceId, Moment, UnixMillis};
use crate::world;

use super::Server;
use super::config::Gateway;
use super::metrics::Handshake;
use super::registry::{Line, Signals};
use super::store::devices::SEEN_EVERY_MS;
use super::store::history::News;
use super::store::{DeviceCheck, Over};

/// How long a goodbye may take to be sent.
const FAREWELL: Duration = Duration::from_secs(5);
/// What devices are asked to wait when the server ends, before they come back one after the other.
pub const RESTART_S: u32 = 1;
/// What a device is asked to wait when the server cannot serve it.
pub const BUSY_RETRY_S: u32 = 30;
/// A session that lasts longer is noted again, so that its device is not forgotten.
const SEEN_EVERY: Duration = Duration::from_millis(SEEN_EVERY_MS.unsigned_abs());
/// The pause after the system refused another connection (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Accepts devices until the stop comes.
pub async fn serve(server: Arc<Server>, listener: TcpListener, tls: Option<RustlsConfig>, mut stop: Stop) {
    let door = Arc::new(Mutex::new(listener));
    let mut greeters = JoinSet::new();
    for _ in 0..server.config.gateway.handshakes {
        greeters.spawn(greeter(Arc::clone(&server), Arc::clone(&door), tls.clone()));
    }
    stop.wait().await;
    // Dropping the set ends the handshakes that are under way; their devices come back.
}

/// Takes one connection after the other through its handshake. While all greeters are at work,
/// further connections wait in the kernel's queue. A handshake needs much memory for a moment: as
/// greeters live on, it is not taken from between the memory of sessions, which would leave holes.
async fn greeter(server: Arc<Server>, door: Arc<Mutex<TcpListener>>, tls: Option<RustlsConfig>) {
    loop {
        let accepted = accept(&server, &door).await;
        match accepted {
            Ok((stream, _)) => {
                let tls = tls.as_ref().map(|tls| TlsAcceptor::from(tls.get_inner()));
                shake(&server, welcome(Arc::clone(&server), stream, tls)).await;
            }
            Err(error) => {
                debug!("a connection could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The next connection, when it is time for one.
async fn accept(server: &Server, door: &Mutex<TcpListener>) -> std::io::Result<(TcpStream, SocketAddr)> {
    let door = door.lock().await;
    let accepted = door.accept().await?;
    server.admission.next().await;
    Ok(accepted)
}

type Pace = RateLimiter<NotKeyed, InMemoryState, MonotonicClock, NoOpMiddleware<Instant>>;

/// How many handshakes begin in a second, over whatever link.
pub struct Admission(Option<Pace>);

impl Admission {
    /// So many, a tenth of them at once; 0 for no limit.
    pub fn new(per_second: u32) -> Self {
        let pace = |per_second: NonZeroU32| {
            let burst = NonZeroU32::new(per_second.get() / 10).unwrap_or(NonZeroU32::MIN);
            RateLimiter::direct_with_clock(Quota::per_second(per_second).allow_burst(burst), MonotonicClock)
        };
        Self(NonZeroU32::new(per_second).map(pace))
    }

    /// Waits until it is time for another one.
    pub async fn next(&self) {
        while let Some(Err(until)) = self.0.as_ref().map(|pace| pace.check()) {
            tokio::time::sleep(until.wait_time_from(MonotonicClock.now())).await;
        }
    }
}

/// Carries a handshake out, and counts how it ended.
pub async fn shake(server: &Server, handshake: impl Future<Output = Result<Handshake, LinkError>>) {
    let end = match tokio::time::timeout(HELLO, handshake).await {
        Ok(Ok(end)) => end,
        Ok(Err(error)) => {
            debug!("a connection ended before its session began: {error}");
            Handshake::Broken
        }
        Err(_) => {
            debug!("a connection did not greet in time");
            Handshake::Timeout
        }
    };
    server.metrics.handshake(end);
}

async fn welcome(server: Arc<Server>, stream: TcpStream, tls: Option<TlsAcceptor>) -> Result<Handshake, LinkError> {
    match tls {
        Some(tls) => greet(server, encrypt(tls, stream).await?).await,
        None => {
            stream.set_nodelay(true).map_err(|error| LinkError::Broken(error.to_string()))?;
            greet(server, stream).await
        }
    }
}

async fn encrypt(tls: TlsAcceptor, stream: TcpStream) -> Result<tokio_rustls::server::TlsStream<TcpStream>, LinkError> {
    let broken = |error: std::io::Error| LinkError::Broken(error.to_string());
    stream.set_nodelay(true).map_err(broken)?;
    tls.accept(stream).await.map_err(broken)
}

async fn greet<S>(server: Arc<Server>, stream: S) -> Result<Handshake, LinkError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    converse_over(server, Socket::accept(stream, TO_SERVER_MAX).await?, None).await
}

/// Takes the greeting from a link, and begins a session over it. `known` is the device that the link
/// is known to be of.
pub async fn converse_over<L>(server: Arc<Server>, mut link: L, known: Option<DeviceId>) -> Result<Handshake, LinkError>
where
    L: Link + 'static,
{
    let claim = match link.next::<ToServer>().await {
        Ok(frame) => Greeting.handle_frame(frame),
        Err(LinkError::Frame(error)) => {
            debug!("the first frame was none: {error}");
            Err(Bye::because(Reason::Protocol))
        }
        Err(error) => return Err(error),
    };
    let proven = match claim {
        Ok(claim) if known.is_some_and(|known| known != claim.hello.device) => Err(Bye::because(Reason::BadSecret)),
        Ok(claim) => prove(&server, claim).await,
        Err(bye) => Err(bye),
    };
    let farewell = match (proven, &server.config.gateway.move_to) {
        (Ok(_), Some(gateway)) => (Handshake::Redirected, ToDevice::Redirect { gateway: gateway.clone() }),
        (Ok((claim, enrolled)), None) => {
            begin(server, link, claim, enrolled);
            return Ok(if enrolled { Handshake::Enrolled } else { Handshake::Known });
        }
        (Err(bye), _) => {
            debug!("a device was turned away: {}", bye.reason);
            (turned_away(bye.reason), ToDevice::Bye(bye))
        }
    };
    link.queue(&farewell.1)?;
    link.close().await?;
    Ok(farewell.0)
}

fn turned_away(reason: Reason) -> Handshake {
    match reason {
        Reason::BadSecret => Handshake::BadSecret,
        Reason::EnrolmentRefused => Handshake::EnrolmentRefused,
        Reason::Version => Handshake::Version,
        Reason::Busy | Reason::Shutdown => Handshake::Busy,
        Reason::Protocol | Reason::Replaced | Reason::Silent | Reason::Unacknowledged => Handshake::Protocol,
    }
}

/// Checks who says hello; the flag says that the device was unknown.
async fn prove(server: &Server, claim: Claim) -> Result<(Claim, bool), Bye> {
    let hello = &claim.hello;
    let may_enrol = match &server.config.gateway.enrolment_key {
        Some(key) => hello.enrolment_key.as_deref().is_some_and(|given| super::same_secret(given, key)),
        None => true,
    };
    let agent: String = hello.agent.chars().filter(|c| !c.is_control()).take(64).collect();
    match server.store.check_device(hello.device, &hello.secret, agent, may_enrol).await {
        Ok(known @ (DeviceCheck::Known | DeviceCheck::Enrolled)) => {
            note_for_broker(server, &claim).await;
            Ok((claim, known == DeviceCheck::Enrolled))
        }
        Ok(DeviceCheck::WrongSecret) => Err(Bye::because(Reason::BadSecret)),
        Ok(DeviceCheck::Refused) => Err(Bye::because(Reason::EnrolmentRefused)),
        Err(error) => Err(busy(&error)),
    }
}

/// A broker that reads a file can let a device in once its password has been seen here.
async fn note_for_broker(server: &Server, claim: &Claim) {
    #[cfg(feature = "mqtt")]
    if server.config.mqtt.broker.is_some() {
        let device = claim.hello.device;
        let hash = || super::broker::mosquitto::hash(&hex::encode(claim.hello.secret.reveal()));
        if let Err(error) = server.store.note_broker_hash(device, hash).await {
            debug!(%device, "the broker is to know the device after its next greeting: {error}");
        }
    }
    #[cfg(not(feature = "mqtt"))]
    let _ = (server, claim);
}

fn busy(error: &DbError) -> Bye {
    debug!("a device is asked to come back later: {error}");
    Bye::until(Reason::Busy, BUSY_RETRY_S)
}

/// Starts the task that lives as long as the connection.
fn begin<L: Link + 'static>(server: Arc<Server>, link: L, claim: Claim, enrolled: bool) {
    let device = claim.hello.device;
    let Gateway { ka_max_s, links, .. } = &server.config.gateway;
    let links = links.iter().map(ToString::to_string).collect();
    let terms = Terms { region: server.config.region, ka_max_s: *ka_max_s, links };
    let (line, replaced) = server.registry.enter(device);
    // One that has left has noted what it sent.
    let older = if replaced { server.store.last_seq() } else { Seq(0) };
    let now = server.clock.now();
    let session = Session::open(claim, terms, enrolled, now);
    line.note(session.taking());
    debug!(%device, enrolled, "a session began");
    // Boxed, because a future holds what it is given twice: as it came and as it is used.
    let see_again = now.after(SEEN_EVERY);
    tokio::spawn(converse(Box::new(Conversation { server, link, session, device, line, older, see_again })));
}

/// A session with its link.
struct Conversation<L> {
    server: Arc<Server>,
    link: L,
    session: Session,
    device: DeviceId,
    line: Arc<Line>,
    /// Up to this place an earlier session may have sent messages and not noted it.
    older: Seq,
    /// When the next sign of life is noted.
    see_again: Moment,
}

/// What woke a conversation.
enum Event {
    Frame(Result<ToServer, LinkError>),
    Signals(Signals),
    Timer,
}

// Whatever takes more than a moment is boxed: the future of an idle conversation stays small.
async fn converse<L: Link>(mut this: Box<Conversation<L>>) {
    let mut result = Box::pin(this.announce_revoked()).await;
    while result.is_ok() && !this.session.is_closed() {
        let event = this.next_event().await;
        result = Box::pin(this.handle(event)).await;
    }
    match result {
        Ok(()) => {
            // The goodbye is on its way or the peer is gone; either way nobody waits for long.
            let _ = tokio::time::timeout(FAREWELL, Box::pin(this.link.close())).await;
            debug!(device = %this.device, "a session ended");
        }
        Err(error) => debug!(device = %this.device, "a session broke: {error}"),
    }
    // Before it leaves: whoever then finds no session finds in the store what this one has sent.
    let sent = this.session.on_their_way();
    if !sent.is_empty()
        && let Err(error) = Box::pin(this.server.store.sent(sent)).await
    {
        debug!(device = %this.device, "it was not noted what was sent: {error}");
    }
    this.server.registry.leave(this.device, &this.line);
}

impl<L: Link> Conversation<L> {
    async fn next_event(&mut self) -> Event {
        tokio::select! {
            frame = self.link.next() => Event::Frame(frame),
            signals = self.line.signals() => Event::Signals(signals),
            () = self.server.clock.sleep_until(self.session.poll_timeout()) => Event::Timer,
        }
    }

    async fn handle(&mut self, event: Event) -> Result<(), LinkError> {
        let now = self.server.clock.now();
        match event {
            Event::Frame(Ok(frame)) => {
                self.note_life(now).await;
                self.session.handle_frame(now, frame);
                self.line.note(self.session.taking());
            }
            Event::Frame(Err(LinkError::Frame(error))) => {
                debug!(device = %self.device, "{error}");
                self.session.close(Bye::because(Reason::Protocol));
            }
            Event::Frame(Err(error)) => return Err(error),
            Event::Signals(signals) => {
                let revoked = signals.revoked;
                self.handle_signals(signals);
                if revoked {
                    return self.announce_revoked().await;
                }
            }
            Event::Timer => self.session.handle_timer(now),
        }
        self.act().await
    }

    /// A device with a session greets no more: what it says counts instead, once a day.
    async fn note_life(&mut self, now: Moment) {
        if now < self.see_again {
            return;
        }
        self.see_again = now.after(SEEN_EVERY);
        if let Err(error) = self.server.store.saw(self.device).await {
            debug!(device = %self.device, "it is noted tomorrow that the device is here: {error}");
        }
    }

    fn handle_signals(&mut self, signals: Signals) {
        let now = self.server.clock.now();
        if signals.replaced {
            return self.session.close(Bye::because(Reason::Replaced));
        }
        if let Some(window_s) = signals.drain {
            return self.session.close(Bye { window_s: Some(window_s), ..Bye::until(Reason::Shutdown, RESTART_S) });
        }
        for push in signals.offers {
            if !push.expired(world::now()) {
                self.session.offer(now, world::now(), push);
            }
        }
        for (seq, id, answer) in signals.questions {
            // What is older an earlier session may have sent, which may not have noted it yet.
            let sent_before = seq <= self.older || self.server.store.crashed_after(seq);
            let _ = answer.send(sent_before || self.session.may_have_sent(seq, id));
        }
        if let Some(seq) = signals.look_again {
            self.session.look_again(seq);
        }
        if signals.wake {
            self.session.handle_wake();
        }
    }

    async fn announce_revoked(&mut self) -> Result<(), LinkError> {
        match self.server.store.revoked(self.device).await {
            Ok(apps) => apps.into_iter().for_each(|app| self.session.unregistered(app)),
            Err(error) => self.session.close(busy(&error)),
        }
        self.act().await
    }

    /// Carries out what the session has decided.
    async fn act(&mut self) -> Result<(), LinkError> {
        while let Some(action) = self.session.poll_action() {
            if let Err(error) = self.carry_out(action).await? {
                self.session.close(busy(&error));
            }
        }
        Ok(())
    }

    async fn carry_out(&mut self, action: GatewayAction) -> Result<Result<(), DbError>, LinkError> {
        let store = &self.server.store;
        Ok(match action {
            GatewayAction::Send(frame) => {
                if let ToDevice::Push(delivery) = &frame {
                    self.server.metrics.sent(since(delivery.push.accepted_ms));
                }
                self.link.queue(&frame)?;
                Ok(())
            }
            GatewayAction::Fetch(wanted) => match store.backlog(self.device, wanted).await {
                Ok(backlog) => {
                    self.session.handle_backlog(self.server.clock.now(), world::now(), backlog);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            GatewayAction::Settled(all) => {
                for settled in &all {
                    if let Done::NotKept(why) = settled.how {
                        self.server.metrics.not_kept(why);
                    }
                }
                store.settle(all).await
            }
            GatewayAction::Answered(waits) => {
                self.server.metrics.acknowledged(&waits);
                Ok(())
            }
            GatewayAction::Expired(seqs) => store.expire(seqs).await,
            GatewayAction::Register { req, app } => self.register(req, app).await,
            GatewayAction::Deregister { req, app } => {
                let done = store.deregister(self.device, app.clone()).await;
                if done.is_ok() {
                    self.session.deregistered(req, app);
                }
                done
            }
            GatewayAction::Outcomes(list) => {
                let ids = list.iter().map(|outcome| outcome.id).collect();
                match store.outcomes(self.device, list).await {
                    Ok(news) => {
                        for News { fate, accepted_ms, acked_ms } in news {
                            self.server.metrics.outcome(fate, since(accepted_ms), acked_ms.map(since));
                        }
                        self.session.noted(ids);
                    }
                    // The device tells them again; its messages are not to wait for history.
                    Err(error) => debug!(device = %self.device, "outcomes are not noted: {error}"),
                }
                Ok(())
            }
            // The loop sees that the session is closed.
            GatewayAction::Close => Ok(()),
        })
    }

    async fn register(&mut self, req: u32, app: AppId) -> Result<(), DbError> {
        let result = self.server.register(self.device, &app, Over::Link).await?;
        self.session.registered(req, app, result.map(|issued| (issued.reg_id, issued.endpoint)));
        Ok(())
    }
}

/// How long ago that was; nothing, if the clock was set back since.
fn since(earlier: UnixMillis) -> Duration {
    Duration::from_millis(u64::try_from(world::now().0.saturating_sub(earlier.0)).unwrap_or(0))
}

// Both directions have to hold the largest frame they allow.
const _: () = assert!(ToServer::MAX == TO_SERVER_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Secret;
    use crate::proto::frame::{Hello, TO_DEVICE_MAX, VERSION};
    use crate::proto::gateway::Sent;
    use crate::proto::urgency::Taking;
    use crate::server::samples::Stage;
    use crate::server::store::delayed::{LetGo, Selection, State};

    /// A device that is there, in a session that has seen what waits.
    async fn connected(server: &Arc<Server>, hello: Hello) -> Socket<tokio::io::DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (socket, device) = tokio::join!(
            Socket::accept(ours, TO_SERVER_MAX),
            Socket::connect(theirs, "ws://localhost/", TO_DEVICE_MAX)
        );
        begin(Arc::clone(server), socket.unwrap(), Claim { hello }, false);
        let mut device = device.unwrap();
        device.queue(&ToServer::Ping { seq: 1, next_s: 60, taking: Taking::default() }).unwrap();
        while !matches!(device.next().await.unwrap(), ToDevice::Pong { .. }) {}
        device
    }

    #[tokio::test]
    async fn what_a_device_has_from_an_earlier_session_is_not_taken_back() {
        let stage = Stage::new().await;
        let Stage { server, device, app, .. } = &stage;
        let id = stage.accept(stage.push("1"), None).await;

        // Its sender takes it back in the moment in which the device comes, which has it already: the
        // session that has sent it notes that as it ends.
        let held = server.store.hold(app.clone(), Selection::Message(id), None).await.unwrap();
        let [candidate] = held.candidates.as_slice() else { panic!("{held:?}") };
        let State::Held(seq, _) = candidate.state else { panic!("{candidate:?}") };
        server.store.sent(vec![Sent { seq, id, at_ms: Some(world::now()) }]).await.unwrap();
        let hello = Hello {
            version: VERSION,
            device: *device,
            secret: Secret::from_bytes([0; 32]),
            agent: "test".into(),
            enrolment_key: None,
            resume: vec![id],
            next_s: 60,
            taking: Taking::default(),
        };
        let first = connected(server, hello.clone()).await;
        let may_be_sent = server.registry.was_sent(*device, seq, id).unwrap().await.unwrap();
        assert_eq!(server.store.let_go(seq, !may_be_sent).await.unwrap(), LetGo::Back);

        // A session that is replaced may not have noted it yet.
        let _second = connected(server, hello).await;
        assert!(server.registry.was_sent(*device, seq, id).unwrap().await.unwrap());
        drop(first);
    }
}

//! Bellwire: push for devices. One daemon on the device holds one connection for every app; one
//! server takes notifications from application servers and gets them there, stored until they
//! expire. This page is the map of the code.
//!
//! # Rooms
//!
//! Imports point one way: `bin` → [`agent`] | [`server`] | [`cli`] → [`link`], [`db`], [`daemon`],
//! [`config`], … → [`proto`]. The two halves never import each other; the tool may use both.
//!
//! | room | what it is for |
//! |---|---|
//! | [`proto`] | what is said between device and server, and when. Pure: time and luck are arguments |
//! | [`link`] | frames over a WebSocket or MQTT, from either end; how a device dials |
//! | [`agent`] | the device half, `bellwired`: connection, the machine's signals, store, plan, D-Bus, delivery, effects |
//! | [`server`] | the server half, `bellwire-server`: sender APIs, store, gateway, regions, administration |
//! | [`cli`] | the tool, `bellwire`: one file a command |
//! | [`db`] | SQLite as both halves use it: one writing thread, commits shared by all who wait |
//! | [`config`] | how configuration files are read and refused; each half has its keys in a `config` of its own |
//! | [`daemon`], [`supervisor`] | logging, signals, exit codes; what systemd is told |
//! | [`tls`], [`http`] | TLS settings for both directions; a client for POST |
//! | [`world`] | the only place where the clock is read and dice are rolled |
//!
//! # The way of a message
//!
//! From the POST of an application server to the app, with the functions that it passes:
//!
//! 1. **The door.** `push` in [`server::doors::tizen`] checks the sender
//!    ([`check_app`](server::store::Store::check_app)), and `request::parse` makes the body into
//!    validated contents. For each recipient `route` opens the regId with
//!    [`KeyRing::open`](server::regid::KeyRing::open), which reads no database; a recipient of
//!    another region goes there with [`Regions::post`](server::regions::Regions::post).
//! 2. **The server's disk.** `accept` makes each a [`Push`](proto::Push) and calls
//!    [`Store::accept`](server::store::Store::accept), which returns after the fsync that
//!    [`Worker::write`](db::Worker::write) shares among all who wait. Only then does it wake the
//!    device's session ([`Registry::wake`](server::registry::Registry::wake)) and answer 1000.
//! 3. **The session.** `converse` in [`server::gateway`] has the socket of one device and its
//!    [`Session`](proto::gateway::Session), which decides. A wake-up makes it ask for a
//!    [`Fetch`](proto::gateway::GatewayAction::Fetch); what
//!    [`Store::backlog`](server::store::Store::backlog) then reads of what may go becomes frames
//!    ([`handle_backlog`](proto::gateway::Session::handle_backlog)), as many as fit the window.
//! 4. **The wire.** A [`ToDevice::Push`](proto::frame::ToDevice::Push), as JSON, over a
//!    [`Link`](link::Link): a WebSocket of the device's own, or a broker's topic.
//! 5. **The device's disk.** [`agent::connection::run`] has the other end and a
//!    [`Device`](proto::device::Device), which decides. What it wants
//!    [stored](proto::device::DeviceAction::Store) goes in batches to
//!    [`Store::receive`](agent::store::Store::receive), where duplicates end and
//!    [`plan`](agent::plan::plan) says what becomes of each: the message, its badge and its effects
//!    are one transaction. After the fsync
//!    [`handle_stored`](proto::device::Device::handle_stored) sends the
//!    [`Ack`](proto::frame::ToServer::Ack), and [`Apps::ring`](agent::apps::Apps::ring) rings at
//!    the app. The server drops its copy and notes the sender's receipt
//!    ([`Store::settle`](server::store::Store::settle)), which [`server::receipts`] tells.
//! 6. **The app.** [`Courier::serve`](agent::deliver::Courier::serve) takes the oldest
//!    [unread](agent::store::Store::next_unread) message and calls `org.bellwire.App1.Message`. The
//!    app's reply is the delivery: [`settle`](agent::deliver::Courier::settle) removes the message
//!    and notes its [outcome](proto::frame::Outcome), which the server is told.
//! 7. **If the app is away**, the [`Performer`](agent::effects::Performer) takes what is
//!    [pending](agent::store::Store::pending), as much of it as is [`due`](agent::pace::due), shows
//!    [alerts](agent::effects::screen) and [starts](agent::effects::launch) the app, and notes how
//!    that went. A started app connects, and step 6 follows.
//!
//! # What always holds
//!
//! * **Disk before wire, both ways.** No 1000 and no `Ack` before the fsync: [`db`] answers a write
//!   after its commit, and a `Device` cannot acknowledge what was not `handle_stored`.
//! * **At least once on every hop, once to the app.** The server sends again what was not
//!   acknowledged; the device's store knows the ids it has seen.
//! * **In order, and never after its expiry.** Both stores number what they take; the expiry travels
//!   with the message and is looked at on reading, on storing and before the app.
//! * **An effect is on record before it is asked for**, in a form that makes asking again the same:
//!   the number of a notification, the name of a unit, the birth of a process
//!   ([`agent::effects`]).
//! * **The store is the only queue.** A wake-up is a hint, never the message. Whoever commits wakes
//!   afterwards; whoever begins a session enters the registry first and reads afterwards. One of
//!   the two sees the other.
//! * **Everything that can grow has a named limit.** Over it the oldest message goes and the app is
//!   told how many; a connection's queues are bounded channels and windows.
//! * **A dead peer holds nobody up.** A task for each connection, a lane for each app, a deadline
//!   for each wait. No lock is held over an await but an app's lane.
//! * **Nobody reads or sends what is not theirs.** A regId is sealed and grants only sending; D-Bus
//!   callers are who the bus and the kernel say they are
//!   ([`agent::identity`]); the server stores secrets hashed, and nothing prints one.
//! * **Plain text on loopback only**, unless a setting says otherwise
//!   ([`check_plain_text`](config::check_plain_text), [`dial`](link::dial())).
//! * **A newer session replaces the older**, and a late goodbye cannot remove the newer
//!   ([`server::registry`], [`agent::apps`]).
//! * **A peer's bytes never panic us**, and make us neither log nor hold more than the limits say.
//!
//! # Where to start reading
//!
//! | to change | start at | and mind |
//! |---|---|---|
//! | a frame or its members | [`proto::frame`] | its frozen samples, [`VERSION`](proto::frame::VERSION), `man/bellwire-protocol.7` |
//! | when a device connects, pings, gives up | [`proto::device`], [`proto::backoff`] | the simulation of both halves in `proto/simulation.rs` |
//! | how long a connection may be silent | [`proto::keepalive`], [`proto::pulse`] | fourteen days of an idle device in `proto/idle.rs`, beside the study's table |
//! | what the machine says of network, power and sleep | [`agent::system`] | nobody of whom it hears is needed: `tests/system.rs`; `tests/netns.rs` changes the network |
//! | what a session sends and when it ends | [`proto::gateway`] | the same |
//! | what a device is woken for, and what is held back | [`proto::urgency`], [`proto::backlog`] | the store reads what they choose in one moment: `server/store/sql/backlog.rs`; `tests/urgency.rs` |
//! | how frames travel | [`link`], `server/broker`, `man/bellwire-mqtt.7` | nothing may depend on what carries them: `tests/mqtt.rs` |
//! | a sender API | [`server::doors`]; a new one beside [`tizen`](server::doors::tizen) | it has no queue and no model of its own |
//! | a path of the HTTP API | [`server::api`] | `#[utoipa::path]` documents it; `make test-api` judges it |
//! | what is counted | [`server::metrics`] | no label that grows; `man/bellwire-server-api.7` has each |
//! | what the server remembers | [`server::store`] | SQL stays in its `sql.rs`; a migration is only ever added |
//! | what a device remembers | [`agent::store`] | the same |
//! | what apps see | [`agent::bus`] and `dbus/*.xml` | the XML is the contract, `man/org.bellwire.Push.7` its explanation; `examples/app.*` call all of it |
//! | how a message gets to an app | [`agent::deliver`], [`agent::apps`] | one at a time, in order, no app waits for another |
//! | what apps that speak UnifiedPush see | `agent::unifiedpush`, [`agent::store::channels`] | a registration is a channel, and that is an app; how an app may answer is one table, `patience.rs`: `tests/unifiedpush.rs` |
//! | what a message does beside being delivered | [`agent::plan`], `tests/truth-table.txt` | it decides and does nothing; the table is run end to end too |
//! | alerts, starts of apps, badges | [`agent::effects`] | the power may go at any line: `tests/faults.rs` |
//! | who may be an app | [`agent::identity`], [`agent::installed`] | `tests/identity.rs` |
//! | which link a device uses, and what is in between | [`agent::routes`], [`link::proxy`] | a link that fails is followed by the next: `tests/proxy.rs`, with a real proxy |
//! | a configuration key | `config.rs` of the [`server`](server::config) or [`agent`](agent::config) | `examples/*.toml` and the page in `man/` are tested against it |
//! | a command of the tool | [`cli`] | `--json`, exit codes in [`daemon::Exit`] |
//! | administration | [`server::manage`] | [`server::admin`] and [`server::api::admin`] only parse and show |
//! | what an operator types | `man/bellwire-server-setup.7` | `tests/operator.rs` types all of it |
//! | backup and restore | [`server::backup`] | old file or new, never half of one: `tests/backup.rs` |
//! | how fast senders may be, how much may wait | [`server::rates`], `server/store/quota.rs` | it is asked before the store is touched, or counts beside it |
//! | whose turn it is at the store | [`server::turns`] | the last table of `bellwire bench` |
//! | who is forgotten, and when | [`server::store::devices`], [`server::upkeep`] | a generation is never used again: `tests/forgotten.rs` |
//! | what becomes of messages that are sent again, delayed or taken back | [`server::store::delayed`], [`server::withdraw`], `replace` in both stores | `tests/requests.rs` |
//! | what senders are told afterwards | [`server::receipts`], [`server::store::history`] | each in the transaction that ends the message: `tests/receipts.rs` |
//! | Web Push: what a sender may say, who it is, how it is refused | [`server::doors::webpush`]: `request`, `vapid`, `error` | an endpoint opens without the store; rows of the checklist are tests: `tests/webpush.rs`, `tests/senders.rs` |
//! | the Matrix gateway | [`server::doors::matrix`] | a push key is rejected only if it can never work |
//! | what senders of Web Push are told | [`server::doors::webpush::receipts`], [`server::store::confirmations`], [`server::waiters`] | what waits for it is only hinted at: `tests/confirmations.rs` |
//! | what systemd hears, and what a SIGHUP changes | [`supervisor`], [`agent::reload`], [`server::reload`], [`server::supervised`] | nothing may depend on whether anybody listens: `tests/supervised.rs` |
//! | units, the bus's rules, packages | `systemd/`, `dbus/`, `packaging/install.sh`, which has each file once | `tests/units.rs`, `tests/policy.rs`, `tests/install.rs`; `make test-systemd` boots them, `make test-packages` installs them |
//! | how large a device's program is, and what it is built for | `cross/README.md`, `cross/budget` | 32 bits: `make test-arm`, with stores of 2040 |
//!
//! The pure rooms are the place to begin: [`proto::device`] and [`proto::gateway`] say all there is
//! to say about a session, and nothing in them needs a socket to be tried.

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(all(feature = "agent", feature = "server"))]
pub mod cli;
#[cfg(any(feature = "agent", feature = "server"))]
pub mod config;
pub mod daemon;
pub mod db;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "ws")]
pub mod link;
pub mod proto;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "ws")]
pub mod supervisor;
pub mod tls;
pub mod world;

#[cfg(feature = "agent")]
pub use agent::main as agent_main;
#[cfg(all(feature = "agent", feature = "server"))]
pub use cli::main as tool_main;
#[cfg(feature = "server")]
pub use server::admin::main as server_main;

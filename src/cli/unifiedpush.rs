//! `bellwire unifiedpush`: the apps that speak UnifiedPush, and a test of the whole way to one of them.
//!
//! The test is an app and an application server at once: it registers by its unique name, as a settings page
//! does, sends itself an encrypted and signed message through the push server, and opens what arrives.
//! Nothing of it stays behind.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use web_push_native::p256::ecdsa::signature::Signer;
use web_push_native::p256::ecdsa::{Signature, SigningKey};
use web_push_native::p256::{NonZeroScalar, SecretKey};
use web_push_native::{Auth, decrypt, encrypt};
use zbus::fdo::IntrospectableProxy;
use zbus::{Connection, ObjectPath, OwnedVariant, Variant, interface, proxy};

use super::Output;
use super::bus::{self, BusName, fatal, to_json};
use super::status::{describe_client, manager};
use crate::agent::unifiedpush::{NAME, PATH};
use crate::daemon::{Exit, Fatal};
use crate::http::HttpClient;
use crate::proto::channel::server_of;
use crate::tls;
use crate::world;

/// Where apps have their object.
const CONNECTOR: &str = "/org/unifiedpush/Connector";
/// Seconds for which the message is kept if the device is offline.
const TTL_S: u64 = 60;
/// Seconds for which the message's signature is good.
const SIGNED_S: i64 = 3600;

/// What `unifiedpush test` is told on the command line.
#[derive(Debug, clap::Args)]
pub struct TestArgs {
    /// Certificates that authenticate the push server (PEM); the system's if absent
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Seconds that each step may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// The distributor's name on the bus
    #[arg(long, value_name = "NAME", default_value = NAME)]
    distributor: String,
}

/// What apps call, in the version with dictionaries.
#[proxy(interface = "org.unifiedpush.Distributor2", default_path = "/org/unifiedpush/Distributor")]
trait Distributor {
    /// Wants an endpoint.
    fn register(&self, args: HashMap<&str, Variant<'_>>) -> zbus::Result<HashMap<String, OwnedVariant>>;
    /// Wants it no longer.
    fn unregister(&self, args: HashMap<&str, Variant<'_>>) -> zbus::Result<HashMap<String, OwnedVariant>>;
}

/// What the distributor tells an app.
#[derive(Debug)]
enum Told {
    Endpoint(String),
    Message(Vec<u8>),
    Unregistered,
}

impl Told {
    fn name(&self) -> &'static str {
        match self {
            Self::Endpoint(_) => "NewEndpoint",
            Self::Message(_) => "Message",
            Self::Unregistered => "Unregistered",
        }
    }
}

/// The test as an app.
struct Connector {
    token: String,
    told: mpsc::Sender<Told>,
}

type Members = HashMap<String, OwnedVariant>;

impl Connector {
    async fn pass_on(&self, args: &Members, told: Option<Told>) -> zbus::fdo::Result<Members> {
        if member(args, "token").as_deref() != Some(&self.token) {
            return Err(zbus::fdo::Error::InvalidArgs("this is not the token".into()));
        }
        let told = told.ok_or_else(|| zbus::fdo::Error::InvalidArgs("a member is missing".into()))?;
        // Nobody waits for it if the test has ended.
        let _ = self.told.send(told).await;
        let id = args.get("id").map(|id| ("id".to_owned(), id.clone()));
        Ok(id.into_iter().collect())
    }
}

#[interface(name = "org.unifiedpush.Connector2")]
impl Connector {
    async fn message(&self, args: Members) -> zbus::fdo::Result<Members> {
        let bytes = args.get("message").and_then(|bytes| Vec::<u8>::try_from(bytes.clone()).ok());
        self.pass_on(&args, bytes.map(Told::Message)).await
    }

    async fn new_endpoint(&self, args: Members) -> zbus::fdo::Result<Members> {
        let endpoint = member(&args, "endpoint");
        self.pass_on(&args, endpoint.map(Told::Endpoint)).await
    }

    async fn unregistered(&self, args: Members) -> zbus::fdo::Result<Members> {
        self.pass_on(&args, Some(Told::Unregistered)).await
    }
}

fn member(args: &Members, name: &str) -> Option<String> {
    args.get(name).and_then(|value| String::try_from(value.clone()).ok())
}

/// Lists the apps that have registered by UnifiedPush.
pub async fn list(bus_name: &BusName, output: Output) -> Result<(), Fatal> {
    let rows = manager(bus_name).await?.list_apps().await.map_err(fatal)?;
    let apps: Vec<_> = rows.iter().map(to_json).filter(|row| row.contains_key("service")).collect();
    output.print(&json!({ "apps": apps }), || match apps.is_empty() {
        true => "no app has registered by UnifiedPush".to_owned(),
        false => apps.iter().map(line).collect::<Vec<_>>().join("\n"),
    });
    Ok(())
}

fn line(row: &serde_json::Map<String, Value>) -> String {
    let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let endpoint = Some(text("endpoint")).filter(|origin| !origin.is_empty());
    format!(
        "{}  {}  {}  unread {}  {}",
        describe_client(row).unwrap_or_default(),
        text("state"),
        endpoint.unwrap_or_else(|| "no endpoint yet".to_owned()),
        row.get("unread").cloned().unwrap_or_default(),
        text("app"),
    )
}

/// Tries the whole way.
pub async fn test(bus_name: &BusName, args: TestArgs, output: Output) -> Result<(), Fatal> {
    let trust = tls::client(args.ca.as_deref()).map_err(Fatal::of(Exit::Config))?;
    let token = hex::encode(world::random_bytes::<16>());
    let (told, inbox) = mpsc::channel(4);
    let connector = Connector { token: token.clone(), told };
    let bus = bus::open_with(bus_name, ObjectPath::from_static_str_unchecked(CONNECTOR), connector).await?;
    let steps = Steps { output, inbox, timeout: Duration::from_secs(args.timeout) };
    Trial { bus, steps, token, http: HttpClient::new(&trust), keys: Keys::new() }.run(&args.distributor).await
}

/// Waits for steps and shows them.
struct Steps {
    output: Output,
    inbox: mpsc::Receiver<Told>,
    timeout: Duration,
}

impl Steps {
    fn show(&self, step: &str, begun: Instant, what: &str) {
        let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let value = json!({ "step": step, "ms": ms, "text": what });
        self.output.print(&value, || format!("{step:<12} {ms:>6} ms  {what}"));
    }

    /// The next thing that the distributor tells.
    async fn next(&mut self, waiting_for: &str) -> Result<Told, Fatal> {
        let seconds = self.timeout.as_secs();
        match tokio::time::timeout(self.timeout, self.inbox.recv()).await {
            Ok(Some(told)) => Ok(told),
            Ok(None) => Err(Fatal::new(Exit::Unavailable, "the connection to the bus is lost")),
            Err(_) => {
                let why = format!("{waiting_for} did not come within {seconds} s; `bellwire status` may say why");
                Err(Fatal::new(Exit::Failure, why))
            }
        }
    }
}

/// The keys of an app and of its application server.
struct Keys {
    app: SecretKey,
    auth: [u8; 16],
    server: SigningKey,
}

impl Keys {
    fn new() -> Self {
        Self { app: random_key(), auth: world::random_bytes(), server: SigningKey::from(random_key()) }
    }

    /// The application server's public key.
    fn vapid(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.server.verifying_key().to_encoded_point(false).as_bytes())
    }

    /// The header that signs a message to this endpoint (RFC 8292).
    fn authorization(&self, endpoint: &str) -> String {
        let claims = json!({ "aud": server_of(endpoint), "exp": world::now().0 / 1000 + SIGNED_S });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({ "typ": "JWT", "alg": "ES256" })), part(&claims));
        let signature: Signature = self.server.sign(signed.as_bytes());
        format!("vapid t={signed}.{}, k={}", URL_SAFE_NO_PAD.encode(signature.to_bytes()), self.vapid())
    }
}

/// A private key. Nearly all of 32 random bytes are one.
fn random_key() -> SecretKey {
    loop {
        let scalar = NonZeroScalar::try_from(world::random_bytes::<32>().as_slice());
        if let Ok(scalar) = scalar {
            return SecretKey::from(scalar);
        }
    }
}

struct Trial {
    bus: Connection,
    steps: Steps,
    token: String,
    http: HttpClient,
    keys: Keys,
}

impl Trial {
    async fn run(mut self, name: &str) -> Result<(), Fatal> {
        self.look(name).await?;
        let distributor =
            DistributorProxy::builder(&self.bus).destination(name.to_owned()).build().await.map_err(fatal)?;
        let endpoint = self.register(&distributor).await?;
        let done = self.send_and_receive(&endpoint).await;
        // Whatever became of it, nothing stays behind.
        let ended = self.unregister(&distributor).await;
        done.and(ended)
    }

    /// Whether there is a distributor, and what it speaks.
    async fn look(&self, name: &str) -> Result<(), Fatal> {
        let begun = Instant::now();
        let object = IntrospectableProxy::builder(&self.bus).destination(name.to_owned());
        let object = object.path(PATH).build().await.map_err(fatal)?;
        let text = object.introspect().await.map_err(|error| fatal(error.into()))?;
        if !text.contains("org.unifiedpush.Distributor2") {
            return Err(Fatal::new(Exit::Failure, format!("{name} does not speak org.unifiedpush.Distributor2")));
        }
        self.steps.show("distributor", begun, &format!("{name} is on the bus"));
        Ok(())
    }

    async fn register(&mut self, distributor: &DistributorProxy<'_>) -> Result<String, Fatal> {
        let begun = Instant::now();
        let service = self.bus.unique_name().map(ToString::to_string).unwrap_or_default();
        let members = HashMap::from([
            ("service", Variant::from(service.clone())),
            ("token", Variant::from(self.token.clone())),
            ("description", Variant::from("Test of the way to this device")),
            ("vapid", Variant::from(self.keys.vapid())),
        ]);
        let answer = distributor.register(members).await.map_err(fatal)?;
        if member(&answer, "success").as_deref() != Some("REGISTRATION_SUCCEEDED") {
            let reason = member(&answer, "reason").unwrap_or_else(|| "no reason was given".to_owned());
            return Err(Fatal::new(Exit::Failure, format!("the distributor refused the registration: {reason}")));
        }
        self.steps.show("register", begun, &format!("the distributor has registered {service}"));
        match self.steps.next("an endpoint").await? {
            Told::Endpoint(endpoint) => {
                // The rest of it is secret.
                let server = server_of(&endpoint).unwrap_or("none that can be told");
                self.steps.show("endpoint", begun, &format!("the push server is {server}"));
                Ok(endpoint)
            }
            other @ (Told::Message(_) | Told::Unregistered) => Err(out_of_turn(&other)),
        }
    }

    async fn send_and_receive(&mut self, endpoint: &str) -> Result<(), Fatal> {
        let (begun, sent) = (Instant::now(), world::random_bytes::<32>().to_vec());
        let auth = Auth::from(self.keys.auth);
        let body = encrypt(sent.clone(), &self.keys.app.public_key(), &auth).map_err(Fatal::of(Exit::Software))?;
        let (ttl, length) = (TTL_S.to_string(), body.len());
        let authorization = self.keys.authorization(endpoint);
        let headers = [
            ("ttl", ttl.as_str()),
            ("urgency", "high"),
            ("content-encoding", "aes128gcm"),
            ("content-type", "application/octet-stream"),
            ("authorization", &authorization),
        ];
        let answer = self.http.post(endpoint, &headers, body).await;
        let (status, answer) = answer
            .map_err(|error| Fatal::new(Exit::Unavailable, format!("the push server was not reached: {error}")))?;
        if status != StatusCode::CREATED {
            let why = serde_json::from_slice::<Value>(&answer).unwrap_or_default();
            let why = why["message"].as_str().unwrap_or("no reason was given").to_owned();
            return Err(Fatal::new(Exit::Failure, format!("the push server answered {status}: {why}")));
        }
        self.steps.show("send", begun, &format!("the push server has stored {length} encrypted bytes"));
        let came = match self.steps.next("the message").await? {
            Told::Message(came) => came,
            other @ (Told::Endpoint(_) | Told::Unregistered) => return Err(out_of_turn(&other)),
        };
        let opened = decrypt(came, &self.keys.app, &auth)
            .map_err(|error| Fatal::new(Exit::Failure, format!("what arrived cannot be opened: {error}")))?;
        if opened != sent {
            return Err(Fatal::new(Exit::Failure, "what arrived is not what was sent"));
        }
        self.steps.show("receive", begun, "the message arrived and opens to what was sent");
        Ok(())
    }

    async fn unregister(&mut self, distributor: &DistributorProxy<'_>) -> Result<(), Fatal> {
        let begun = Instant::now();
        distributor.unregister(HashMap::from([("token", Variant::from(self.token.clone()))])).await.map_err(fatal)?;
        match self.steps.next("the end of the registration").await? {
            Told::Unregistered => {
                self.steps.show("unregister", begun, "the registration has ended");
                Ok(())
            }
            other @ (Told::Endpoint(_) | Told::Message(_)) => Err(out_of_turn(&other)),
        }
    }
}

fn out_of_turn(told: &Told) -> Fatal {
    Fatal::new(Exit::Failure, format!("the distributor called {} out of turn", told.name()))
}

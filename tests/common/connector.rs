//! An app that speaks UnifiedPush, scripted: it sees every call as it came over the bus, and answers as
//! the test says.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use tokio::sync::mpsc;
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream, OwnedVariant, Variant};

use crate::device::{Device, within};

pub const DISTRIBUTOR: &str = "org.unifiedpush.Distributor.bellwire";
pub const DISTRIBUTOR_PATH: &str = "/org/unifiedpush/Distributor";
pub const CONNECTOR_PATH: &str = "/org/unifiedpush/Connector";

/// The version of the interfaces that an app speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// What an app was called with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Message { token: String, bytes: Vec<u8>, id: String },
    NewEndpoint { token: String, endpoint: String },
    Unregistered { token: String },
}

/// How an app answers a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// As the specification has it.
    Take,
    /// With nothing, where there should be a dictionary.
    Empty,
    /// With this error.
    Error(&'static str),
    /// Never.
    Silence,
    /// When the test says so.
    Late,
}

/// The app.
pub struct Connector {
    pub bus: Connection,
    pub service: String,
    pub version: Version,
    calls: mpsc::UnboundedReceiver<(String, Call)>,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug)]
struct Script {
    next: VecDeque<Reply>,
    then: Reply,
    path: &'static str,
    /// A call that is to be answered yet.
    late: Option<Message>,
}

impl Connector {
    /// An app that is called and answers before it has its name on the bus.
    pub async fn start(device: &Device, service: &str, version: Version) -> Self {
        let this = Self::without_name(device, service, version).await;
        this.bus.request_name(service).await.expect("the name is free");
        this
    }

    /// The same with the unique name of its connection only.
    pub async fn guest(device: &Device, version: Version) -> Self {
        let mut this = Self::without_name(device, "", version).await;
        this.service = this.bus.unique_name().expect("the bus gave one").to_string();
        this
    }

    /// The same without its name.
    pub async fn without_name(device: &Device, service: &str, version: Version) -> Self {
        let bus = device.connect().await;
        let script =
            Arc::new(Mutex::new(Script { next: VecDeque::new(), then: Reply::Take, path: CONNECTOR_PATH, late: None }));
        let (sender, calls) = mpsc::unbounded_channel();
        tokio::spawn(answer_all(MessageStream::from(&bus), bus.clone(), sender, Arc::clone(&script)));
        Self { bus, service: service.to_owned(), version, calls, script }
    }

    /// How the next calls are answered, and those after them.
    pub fn replies(&self, next: &[Reply], then: Reply) {
        let mut script = lock(&self.script);
        (script.next, script.then) = (next.iter().copied().collect(), then);
    }

    /// From now on the object is here and nowhere else.
    pub fn export_at(&self, path: &'static str) {
        lock(&self.script).path = path;
    }

    /// Answers the last call that was to be answered late.
    pub async fn answer_late(&self) {
        let call = lock(&self.script).late.take().expect("there is one");
        self.bus.reply(&call.header(), &()).await.expect("the bus runs");
    }

    /// The next call.
    pub async fn next(&mut self) -> Call {
        within("a call of the app", self.calls.recv()).await.expect("the app runs").1
    }

    /// The next call, with the interface that it was made on.
    pub async fn next_on(&mut self) -> (String, Call) {
        within("a call of the app", self.calls.recv()).await.expect("the app runs")
    }

    /// The next call, which tells an endpoint for this token.
    pub async fn endpoint(&mut self, of: &str) -> String {
        let call = self.next().await;
        let Call::NewEndpoint { token, endpoint } = &call else { panic!("no endpoint: {call:?}") };
        assert_eq!(token, of);
        endpoint.clone()
    }

    /// The next call, which hands over a message.
    pub async fn message(&mut self) -> Vec<u8> {
        let call = self.next().await;
        let Call::Message { bytes, .. } = call else { panic!("no message: {call:?}") };
        bytes
    }

    /// Calls that have come already.
    pub fn try_next(&mut self) -> Option<Call> {
        self.calls.try_recv().ok().map(|(_, call)| call)
    }

    /// Registers; `Err` is the reason why not.
    pub async fn register(&self, token: &str) -> Result<(), String> {
        self.register_with(token, &[]).await
    }

    /// The same with these further arguments.
    pub async fn register_with(&self, token: &str, more: &[(&str, &str)]) -> Result<(), String> {
        let (result, reason) = match self.version {
            Version::V1 => {
                let description = more.iter().find(|(name, _)| *name == "description").map_or("", |(_, text)| text);
                self.call("Register", &(self.service.as_str(), token, description)).await.expect("an answer")
            }
            Version::V2 => {
                let given = [("service", self.service.as_str()), ("token", token)];
                let arguments: HashMap<&str, Variant<'_>> =
                    given.iter().chain(more).map(|(name, text)| (*name, Variant::from(*text))).collect();
                let answer: HashMap<String, String> =
                    texts(self.call("Register", &arguments).await.expect("an answer"));
                (answer["success"].clone(), answer.get("reason").cloned().unwrap_or_default())
            }
        };
        match result.as_str() {
            "REGISTRATION_SUCCEEDED" => Ok(()),
            "REGISTRATION_FAILED" => Err(reason),
            other => panic!("no result of UnifiedPush: {other}"),
        }
    }

    /// Ends a registration.
    pub async fn unregister(&self, token: &str) {
        match self.version {
            Version::V1 => self.call::<()>("Unregister", &token).await.expect("an answer"),
            Version::V2 => {
                let answer: HashMap<String, OwnedVariant> = self
                    .call("Unregister", &HashMap::from([("token", Variant::from(token))]))
                    .await
                    .expect("an answer");
                assert!(answer.is_empty(), "{answer:?}");
            }
        }
    }

    /// Calls the distributor.
    pub async fn call<R: serde::de::DeserializeOwned + zbus::Type>(
        &self,
        method: &str,
        arguments: &(impl serde::Serialize + zbus::DynamicType),
    ) -> zbus::Result<R> {
        let interface = match self.version {
            Version::V1 => "org.unifiedpush.Distributor1",
            Version::V2 => "org.unifiedpush.Distributor2",
        };
        let call = self.bus.call_method(Some(DISTRIBUTOR), DISTRIBUTOR_PATH, Some(interface), method, arguments);
        within(method, call).await?.body().deserialize()
    }

    /// Leaves the bus, and what it was called with stays to be looked at.
    pub async fn leave(self) {
        let Self { bus, .. } = self;
        bus.close().await.expect("the bus runs");
    }
}

fn texts(members: HashMap<String, OwnedVariant>) -> HashMap<String, String> {
    members.into_iter().map(|(name, value)| (name, String::try_from(value).expect("a text"))).collect()
}

async fn answer_all(
    mut messages: MessageStream,
    bus: Connection,
    calls: mpsc::UnboundedSender<(String, Call)>,
    script: Arc<Mutex<Script>>,
) {
    while let Some(Ok(message)) = messages.next().await {
        if message.message_type() == Type::MethodCall {
            answer_one(&message, &bus, &calls, &script).await;
        }
    }
}

async fn answer_one(
    message: &Message,
    bus: &Connection,
    calls: &mpsc::UnboundedSender<(String, Call)>,
    script: &Mutex<Script>,
) {
    let header = message.header();
    let (interface, member) = (header.interface().expect("one").to_string(), header.member().expect("one").to_string());
    if header.path().is_some_and(|path| path.as_str() != lock(script).path) {
        let unknown = "org.freedesktop.DBus.Error.UnknownObject";
        let _ = bus.reply_error(&header, unknown, &"there is nothing here").await;
        return;
    }
    let (call, id) = parse(&interface, &member, message);
    let reply = {
        let mut script = lock(script);
        script.next.pop_front().unwrap_or(script.then)
    };
    let v1 = interface.ends_with('1');
    let _ = match reply {
        Reply::Take if !v1 => {
            let members: HashMap<&str, Variant<'_>> = id.iter().map(|id| ("id", Variant::from(id.as_str()))).collect();
            bus.reply(&header, &members).await
        }
        Reply::Take | Reply::Empty => bus.reply(&header, &()).await,
        Reply::Error(name) => bus.reply_error(&header, name, &"as the test has it").await,
        Reply::Silence => Ok(()),
        Reply::Late => {
            lock(script).late = Some(message.clone());
            Ok(())
        }
    };
    // Told after the answer, so that the app may leave once it knows of the call. The test may have ended.
    let _ = calls.send((interface, call));
}

fn parse(interface: &str, member: &str, message: &Message) -> (Call, Option<String>) {
    let body = message.body();
    if interface == "org.unifiedpush.Connector1" {
        let call = match member {
            "Message" => {
                let (token, bytes, id) = body.deserialize().expect("(s, ay, s)");
                Call::Message { token, bytes, id }
            }
            "NewEndpoint" => {
                let (token, endpoint) = body.deserialize().expect("(s, s)");
                Call::NewEndpoint { token, endpoint }
            }
            "Unregistered" => Call::Unregistered { token: body.deserialize().expect("(s)") },
            other => panic!("Connector1 has no {other}"),
        };
        return (call, None);
    }
    assert_eq!(interface, "org.unifiedpush.Connector2");
    let mut members: HashMap<String, OwnedVariant> = body.deserialize().expect("(a{sv})");
    let mut text = |name: &str| String::try_from(members.remove(name).expect(name)).expect("a text");
    let token = text("token");
    let call = match member {
        "Message" => {
            let id = text("id");
            let bytes = Vec::try_from(members.remove("message").expect("message")).expect("bytes");
            Call::Message { token, bytes, id }
        }
        "NewEndpoint" => Call::NewEndpoint { token, endpoint: text("endpoint") },
        "Unregistered" => Call::Unregistered { token },
        other => panic!("Connector2 has no {other}"),
    };
    assert!(members.is_empty(), "beyond the specification: {members:?}");
    let id = match &call {
        Call::Message { id, .. } => Some(id.clone()),
        Call::NewEndpoint { .. } | Call::Unregistered { .. } => None,
    };
    (call, id)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

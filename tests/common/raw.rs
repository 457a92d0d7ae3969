//! A device that is a WebSocket and the words of bellwire-protocol(7), and an application server that is
//! curl and a key: for tests of what stands between the two.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::{SinkExt, StreamExt};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use ring::{digest, digest::SHA256};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::common::{Answer, DEADLINE, Server, curl};

/// Random bytes.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("a random source");
    bytes
}

/// A device in a session.
pub struct RawDevice {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: String,
    socket: WebSocketStream<TcpStream>,
    req: u64,
}

impl RawDevice {
    /// A new device.
    pub async fn enrol(server: &Server) -> Self {
        Self::greet(server, hex::encode(random::<16>()), hex::encode(random::<32>()), json!({})).await.0
    }

    /// The same device in a new session, with these members in its greeting.
    pub async fn again(self, server: &Server, members: Value) -> Self {
        drop(self.socket);
        Self::greet(server, self.id, self.secret, members).await.0
    }

    /// The same device in a new session, and how it was welcomed.
    pub async fn welcomed(self, server: &Server) -> (Self, Value) {
        drop(self.socket);
        Self::greet(server, self.id, self.secret, json!({})).await
    }

    async fn greet(server: &Server, id: String, secret: String, members: Value) -> (Self, Value) {
        let address = server.gateway.strip_prefix("ws://").expect("a plain gateway");
        let stream = TcpStream::connect(address).await.expect("the gateway listens");
        let (socket, _) = tokio_tungstenite::client_async(&server.gateway, stream).await.expect("a handshake");
        let mut device = Self { id, secret, socket, req: 0 };
        let mut hello =
            json!({ "version": 1, "device": device.id, "secret": device.secret, "agent": "test", "next_s": 300 });
        hello.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
        device.say(json!({ "hello": hello })).await;
        let welcome = device.until("welcome").await;
        (device, welcome)
    }

    /// Sends a frame.
    pub async fn say(&mut self, frame: Value) {
        self.socket.send(Message::text(frame.to_string())).await.expect("the session stands");
    }

    /// The next frame.
    pub async fn next(&mut self) -> Value {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.socket.next()).await.expect("a frame in time");
            match message.expect("the session stands").expect("a good message") {
                Message::Text(text) => return serde_json::from_str(&text).expect("frames are JSON"),
                Message::Close(_) => panic!("the server has closed the session"),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// The members of the next frame of this name; others before it are passed over.
    pub async fn until(&mut self, name: &str) -> Value {
        loop {
            if let Some(members) = self.next().await.get(name) {
                return members.clone();
            }
        }
    }

    /// Whether a push comes before the answer to a ping.
    pub async fn has_push(&mut self) -> bool {
        self.say(json!({ "ping": { "seq": 7, "next_s": 300 } })).await;
        loop {
            let frame = self.next().await;
            if frame.get("push").is_some() {
                return true;
            }
            if frame.get("pong").is_some() {
                return false;
            }
        }
    }

    /// The next push, acknowledged.
    pub async fn take(&mut self) -> Value {
        let push = self.until("push").await["push"].clone();
        self.ack(&push).await;
        push
    }

    /// Acknowledges a push.
    pub async fn ack(&mut self, push: &Value) {
        self.say(json!({ "ack": { "ids": [push["id"]] } })).await;
    }

    /// Registers a new channel, which only this sender may send to if there is one; returns its app and its
    /// endpoint.
    pub async fn channel(&mut self, sender: Option<&RawSender>) -> (String, String) {
        let id = URL_SAFE_NO_PAD.encode(random::<16>());
        let app = match sender {
            Some(sender) => format!("webpush:{id}:{}", sender.hash()),
            None => format!("webpush:{id}"),
        };
        self.req += 1;
        self.say(json!({ "register": { "req": self.req, "app": app } })).await;
        let registered = self.until("registered").await;
        (app, registered["endpoint"].as_str().expect("an endpoint").to_owned())
    }

    /// Ends the registration of this app.
    pub async fn deregister(&mut self, app: &str) {
        self.req += 1;
        self.say(json!({ "deregister": { "req": self.req, "app": app } })).await;
        self.until("deregistered").await;
    }
}

/// The bytes that came with a push.
pub fn bytes(push: &Value) -> Vec<u8> {
    use base64::engine::general_purpose::STANDARD;
    match (push["payload"]["text"].as_str(), push["payload"]["base64"].as_str()) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(text)) => STANDARD.decode(text).expect("base64"),
        (Some(_), Some(_)) | (None, None) => panic!("no payload: {push}"),
    }
}

/// An application server with a VAPID key.
pub struct RawSender(EcdsaKeyPair);

impl RawSender {
    /// One with a new key.
    pub fn new() -> Self {
        let (random, kind) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let document = EcdsaKeyPair::generate_pkcs8(kind, &random).expect("a key");
        Self(EcdsaKeyPair::from_pkcs8(kind, document.as_ref(), &random).expect("a key"))
    }

    /// Its public key, the point.
    pub fn point(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// Its public key as it is shown.
    pub fn key(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.point())
    }

    fn hash(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest::digest(&SHA256, self.point()))
    }

    /// The header that it signs its messages to this endpoint with.
    pub fn authorization(&self, endpoint: &str) -> String {
        let origin: Vec<&str> = endpoint.splitn(4, '/').collect();
        let soon = std::time::SystemTime::now() + Duration::from_secs(3600);
        let exp = soon.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let claims = json!({ "aud": origin[..3].join("/"), "exp": exp, "sub": "mailto:push@example.org" });
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(json!({ "typ": "JWT", "alg": "ES256" })), part(claims));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("Authorization: vapid t={signed}.{}, k={}", URL_SAFE_NO_PAD.encode(signature), self.key())
    }
}

/// Posts a body to an endpoint, with these headers.
pub fn send(endpoint: &str, headers: &[&str], body: &[u8]) -> Answer {
    let mut arguments = vec!["--data-binary", "@-", "--header", "Content-Type:"];
    headers.iter().for_each(|header| arguments.extend(["--header", header]));
    arguments.push(endpoint);
    curl(&arguments, body)
}

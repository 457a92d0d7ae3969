//! TLS on both ports of a server, and devices that are sent from one gateway to another.

#![cfg(all(feature = "agent", feature = "server"))]

#[path = "common/certificate.rs"]
mod certificate;
mod common;
#[path = "common/device.rs"]
mod device;

use std::path::Path;
use std::process::Command;

use certificate::Certificate;
use common::{Server, curl};
use device::{Device, within};
use serde_json::Value;

const APP: &str = "org.example.Chat";

fn trusting(chain: &Path) -> String {
    format!("ca = {chain:?}\n")
}

async fn until_status(device: &Device, wanted: impl Fn(&Value) -> bool) -> Value {
    within("the wanted status", async {
        loop {
            let told = device.tool(&["--json", "status"]);
            let status: Value = serde_json::from_slice(&told.stdout).expect("the tool prints JSON");
            if wanted(&status["link"]) {
                return status["link"].clone();
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_notification_travels_encrypted_from_sender_to_device() {
    let certificate = Certificate::make();
    let server = Server::start("00", &certificate.settings());
    assert!(server.api.starts_with("https://") && server.gateway.starts_with("wss://"));
    let credentials = server.app_add(APP);
    let device = Device::start(&server.gateway, &trusting(&certificate.chain));
    let mut app = device.app(APP).await;
    let url = format!("{}/spp/pns/api/push", server.api);
    let (id, secret) = (format!("appID: {}", credentials.id), format!("appSecret: {}", credentials.secret));
    let body = device::request(app.reg_id.clone(), "1", "over TLS").to_string();
    let chain = certificate.chain.to_string_lossy();
    let answer = curl(&["--cacert", &chain, "-H", &id, "-H", &secret, "--data-binary", "@-", &url], body.as_bytes());
    assert_eq!(answer.json()["results"][0]["statusCode"], 1000, "{answer:?}");
    assert_eq!(app.next().await.data(), "over TLS");
    assert_eq!(until_status(&device, |link| link["state"] == "online").await["encrypted"], true);
}

#[test]
fn the_listener_of_operators_has_a_certificate_of_its_own() {
    let (certificate, own) = (Certificate::make(), Certificate::make());
    let listen =
        format!("[admin]\nlisten = \"127.0.0.1:0\"\ntls = {{ certificate = {:?}, key = {:?} }}", own.chain, own.key);
    let server = Server::start("00", &format!("{}{listen}", certificate.settings()));
    let log = server.log();
    let url = log.split_whitespace().find_map(|word| word.strip_prefix("admin=")).expect("it says where");
    assert!(url.starts_with("https://"), "{url}");
    let made = server.admin(&["--json", "token", "add"]);
    let made: Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let token = format!("Authorization: Bearer {}", made["token"].as_str().expect("a text"));
    let chain = own.chain.to_string_lossy();
    let answer = curl(&["--cacert", &chain, "-H", &token, &format!("{url}/v1/admin/status")], b"");
    assert_eq!((answer.status, &answer.json()["region"]), (200, &Value::from("00")), "{answer:?}");
}

#[tokio::test]
async fn a_device_that_does_not_trust_the_certificate_says_so() {
    let (certificate, other) = (Certificate::make(), Certificate::make());
    let server = Server::start("00", &certificate.settings());
    let device = Device::start(&server.gateway, &trusting(&other.chain));
    let link = until_status(&device, |link| link["state"] == "waiting").await;
    let why = link["why"].as_str().expect("a reason");
    assert!(why.contains("certificate"), "{why}");
}

#[tokio::test]
async fn a_device_moves_to_the_gateway_it_is_sent_to_and_stays_there() {
    let new = Server::start("00", "");
    let old = Server::start("00", &format!("[gateway]\nmove-to = {:?}\n", new.gateway));
    let mut device = Device::start(&old.gateway, "");
    let moved = async |device: &Device| {
        let link = until_status(device, |link| link["state"] == "online").await;
        assert_eq!(link["gateway"], new.gateway.as_str());
    };
    moved(&device).await;
    drop(old);
    device.kill_agent();
    device.restart_agent();
    moved(&device).await;
}

#[tokio::test]
async fn a_device_that_was_sent_to_nowhere_comes_back_when_the_mistake_is_taken_back() {
    let mut server = Server::start("00", "[gateway]\nmove-to = \"ws://127.0.0.1:1\"\n");
    let device = Device::start(&server.gateway, "");
    until_status(&device, |link| link["gateway"] == "ws://127.0.0.1:1" && link["failures"].as_u64() > Some(1)).await;
    server.settings = String::new();
    server.restart();
    let link = until_status(&device, |link| link["state"] == "online").await;
    assert_eq!(link["gateway"], server.gateway.as_str());
}

#[tokio::test]
async fn an_encrypted_gateway_cannot_send_a_device_to_an_unencrypted_one() {
    let certificate = Certificate::make();
    let plain = Server::start("00", "");
    let settings = certificate.settings().replace("[gateway]", &format!("[gateway]\nmove-to = {:?}", plain.gateway));
    let server = Server::start("00", &settings);
    let device = Device::start(&server.gateway, &trusting(&certificate.chain));
    let link = until_status(&device, |link| link["failures"].as_u64() > Some(1)).await;
    assert_eq!(link["gateway"], server.gateway.as_str());
}

/// Why the device is not online at this gateway.
async fn refused(gateway: &str, settings: &str) -> String {
    let device = Device::start(gateway, settings);
    let link = until_status(&device, |link| link["state"] == "waiting").await;
    link["why"].as_str().expect("a sentence").to_owned()
}

#[tokio::test]
async fn a_gateway_that_is_not_whom_it_should_be_is_refused_and_status_says_why() {
    let good = Certificate::make();
    let other = Certificate::make();
    let foreign = Certificate::make_for("DNS:elsewhere.example.org", &["openssl"]);
    let expired = Certificate::make_for("DNS:localhost,IP:127.0.0.1", &["faketime", "-f", "-10d", "openssl"]);
    let wrong = [
        ("of another name", &foreign, trusting(&foreign.chain), "is for another name"),
        ("expired", &expired, trusting(&expired.chain), "has expired"),
        (
            "of an authority that the device does not trust",
            &good,
            trusting(&other.chain),
            "is not signed by an authority",
        ),
        ("that it has signed itself", &good, String::new(), "is not signed by an authority"),
    ];
    for (what, certificate, settings, why) in wrong {
        let server = Server::start("00", &certificate.settings());
        let told = refused(&server.gateway, &settings).await;
        assert!(told.contains(why) && told.contains(&server.gateway), "a certificate {what}: {told}");
    }
    let server = Server::start("00", &good.settings());
    Device::start(&server.gateway, &trusting(&good.chain)).until_online().await;
}

#[tokio::test]
async fn plain_text_to_another_machine_is_refused_unless_it_is_allowed() {
    // An address for documentation: nobody has it.
    let gateway = "ws://192.0.2.1:5223";
    let told = refused(gateway, "").await;
    assert!(told.contains("is unencrypted and not on this machine"), "{told}");
    let device = Device::start(gateway, "allow-plain-text = true");
    // It is tried, whatever this machine's network makes of it.
    let tried = |link: &Value| match link["why"].as_str() {
        Some(why) => !why.contains("is unencrypted"),
        None => link["state"] == "connecting",
    };
    until_status(&device, tried).await;
}

/// The pin of a certificate's key, as the manual says to make it.
fn pin(certificate: &Path) -> String {
    let script = r#"openssl x509 -in "$1" -pubkey -noout | openssl pkey -pubin -outform DER |
                    openssl dgst -sha256 -binary | base64"#;
    let made = Command::new("sh").args(["-c", script, "sh"]).arg(certificate).output().expect("sh runs");
    format!("sha256//{}", String::from_utf8(made.stdout).expect("base64").trim())
}

#[tokio::test]
async fn a_pinned_key_is_asked_for_beside_the_authority() {
    let (good, other) = (Certificate::make(), Certificate::make());
    let server = Server::start("00", &good.settings());
    let pinned = |keys: &[&Certificate]| {
        let pins: Vec<String> = keys.iter().map(|key| pin(&key.chain)).collect();
        format!("{}pins = {pins:?}\n", trusting(&good.chain))
    };
    Device::start(&server.gateway, &pinned(&[&other, &good])).until_online().await;
    let told = refused(&server.gateway, &pinned(&[&other])).await;
    assert!(told.contains("none of its keys is among `pins`"), "{told}");
    // A pin alone makes nobody trusted.
    let told = refused(&server.gateway, &format!("pins = [{:?}]\n", pin(&good.chain))).await;
    assert!(told.contains("is not signed by an authority"), "{told}");
}

#[tokio::test]
async fn a_gateway_may_ask_devices_for_a_certificate() {
    let (gateway, device, stranger) = (Certificate::make(), Certificate::make(), Certificate::make());
    let server = Server::start("00", &format!("{}client-ca = {:?}\n", gateway.settings(), device.chain));
    let showing = |shown: &Certificate| {
        let files = format!("{{ certificate = {:?}, key = {:?} }}", shown.chain, shown.key);
        format!("{}client-certificate = {files}\n", trusting(&gateway.chain))
    };
    Device::start(&server.gateway, &showing(&device)).until_online().await;
    let told = refused(&server.gateway, &trusting(&gateway.chain)).await;
    assert!(told.contains("it wants a certificate of this device"), "{told}");
    let told = refused(&server.gateway, &showing(&stranger)).await;
    assert!(told.contains("received fatal alert"), "{told}");
}

/// openssl as a server of one version of TLS.
struct OldServer {
    child: std::process::Child,
    port: u16,
}

impl OldServer {
    fn start(certificate: &Certificate, version: &str) -> Self {
        // Taken and given back: openssl takes no port of the kernel's choice.
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let mut openssl = Command::new("openssl");
        openssl.args(["s_server", "-quiet", "-accept", &format!("127.0.0.1:{port}"), version]);
        openssl.args(["-cipher", "ALL:@SECLEVEL=0", "-cert"]).arg(&certificate.chain).arg("-key").arg(&certificate.key);
        let child = openssl.stdin(std::process::Stdio::piped()).spawn().expect("openssl runs");
        Self { child, port }
    }
}

impl Drop for OldServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_gateway_that_speaks_tls_1_1_is_refused() {
    let certificate = Certificate::make();
    let old = OldServer::start(&certificate, "-tls1_1");
    let device = Device::start(&format!("wss://127.0.0.1:{}", old.port), &trusting(&certificate.chain));
    // It may have listened too late for the first attempt.
    let why = "it speaks no version of TLS from 1.2 on";
    until_status(&device, |link| link["why"].as_str().is_some_and(|told| told.contains(why))).await;
    // The same program with a version of today is at least spoken to.
    let new = OldServer::start(&certificate, "-tls1_3");
    let device = Device::start(&format!("wss://127.0.0.1:{}", new.port), &trusting(&certificate.chain));
    until_status(&device, |link| link["state"] == "connecting").await;
}

//! Devices in networks that let them out through a proxy only, or to the port of the web only: the built
//! programs, and tinyproxy.

#![cfg(all(feature = "agent", feature = "server"))]

#[path = "common/certificate.rs"]
mod certificate;
mod common;
#[path = "common/device.rs"]
mod device;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use certificate::Certificate;
use common::{Server, until};
use device::{Device, codes, post, request};
use serde_json::Value;
use tempfile::TempDir;

const APP: &str = "org.example.Chat";
/// A name that the proxy knows and nobody else.
const NAME: &str = "push.example.test";

/// tinyproxy, on a machine that has another file of hosts. Dropping it stops it.
struct Tinyproxy {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Tinyproxy {
    /// A proxy with these further settings.
    fn start(settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let (hosts, config) = (folder.path().join("hosts"), folder.path().join("tinyproxy.conf"));
        std::fs::write(&hosts, format!("127.0.0.1 {NAME}\n")).expect("the folder is ours");
        let text = format!("Listen 127.0.0.1\nPort {port}\nTimeout 600\nLogLevel Info\n{settings}\n");
        std::fs::write(&config, text).expect("the folder is ours");
        let mut command = Command::new("bwrap");
        command.args(["--die-with-parent", "--dev-bind", "/", "/", "--ro-bind"]).arg(hosts).arg("/etc/hosts");
        command.args(["tinyproxy", "-d", "-c"]).arg(config).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child =
            command.spawn().expect("tinyproxy and bwrap are missing: apt-get install tinyproxy-bin bubblewrap");
        let mut log = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let ready = log.by_ref().map_while(Result::ok).any(|line| line.contains("Accepting connections"));
        assert!(ready, "tinyproxy did not start");
        std::thread::spawn(move || log.for_each(drop));
        Self { child, port, _folder: folder }
    }
}

impl Drop for Tinyproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Taken and given back: neither tinyproxy nor a URL takes a port of the kernel's choice.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

fn port(url: &str) -> &str {
    url.rsplit(':').next().expect("a URL has a port")
}

async fn until_status(device: &Device, wanted: impl Fn(&Value) -> bool) -> Value {
    until(async || {
        let told = device.tool(&["--json", "status"]);
        let status: Value = serde_json::from_slice(&told.stdout).expect("the tool prints JSON");
        let link = &status["link"];
        if wanted(link) { Ok(link.clone()) } else { Err(format!("{link}\n{}", device.log())) }
    })
    .await
}

/// Why the device is not online.
async fn why(device: &Device) -> String {
    let link = until_status(device, |link| link["state"] == "waiting").await;
    link["why"].as_str().expect("a sentence").to_owned()
}

/// A server whose certificate has the name, the gateway by that name, and what a device needs to trust it.
fn server() -> (Server, String, String, Certificate) {
    let certificate = Certificate::make_for(&format!("DNS:{NAME},DNS:localhost"), &["openssl"]);
    let server = Server::start("00", &format!("[gateway]\n{}", certificate.tls()));
    let gateway = format!("wss://{NAME}:{}", port(&server.gateway));
    let trust = format!("ca = {:?}\n", certificate.chain);
    (server, gateway, trust, certificate)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gets_its_messages_through_a_proxy_that_alone_knows_the_gateway_s_name() {
    let (server, gateway, trust, _certificate) = server();
    let sender = server.app_add(APP);
    let proxy = Tinyproxy::start("BasicAuth me pass");
    let url = format!("http://me:p%61ss@127.0.0.1:{}", proxy.port);
    let device = Device::start(&gateway, &format!("{trust}proxy = {url:?}"));
    let mut app = device.app(APP).await;
    assert_eq!(codes(&post(&server, &sender, &request(app.reg_id.clone(), "1", "hello"))), [1000]);
    assert_eq!(app.next().await.data(), "hello");
    let link = until_status(&device, |link| link["state"] == "online").await;
    assert_eq!(link["proxy"], format!("http://127.0.0.1:{}", proxy.port));
    assert!(!device.log().contains("ss@") && !link.to_string().contains("ss@"));
    drop(proxy);
    let link = until_status(&device, |link| link["state"] == "waiting" && link["failures"].as_u64() > Some(0)).await;
    let why = link["why"].as_str().expect("a sentence");
    assert!(why.contains("the proxy http://127.0.0.1:") || why.contains("closed"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_names_a_proxy_and_what_needs_none() {
    let (_server, gateway, trust, _certificate) = server();
    let proxy = Tinyproxy::start("");
    let url = format!("http://127.0.0.1:{}", proxy.port);
    let mut device = Device::start(&gateway, &trust);
    device.restart_agent_with(&[("https_proxy", &url)]);
    device.until_online().await;
    device.restart_agent_with(&[("https_proxy", &url), ("NO_PROXY", ".example.test")]);
    let why = why(&device).await;
    assert!(!why.contains("proxy") && why.contains(&gateway), "{why}");
    device.restart_agent_with(&[("ALL_PROXY", "socks5://127.0.0.1:1")]);
    assert!(device.log().contains("ALL_PROXY in the environment names no proxy"), "{}", device.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_what_a_proxy_answered_and_never_its_password() {
    let (_server, gateway, trust, _certificate) = server();
    let asking = Tinyproxy::start("BasicAuth me secret");
    let closed = Tinyproxy::start("ConnectPort 1");
    let nobody = free_port();
    for (user, port, told) in [
        ("me:wrong-secret@", asking.port, "wants another user and password: it answered 401 Unauthorized".to_owned()),
        ("", asking.port, "wants another user and password: it answered 407 Proxy Authentication Required".to_owned()),
        ("", closed.port, format!("does not connect to {gateway}: it answered 403 Forbidden")),
        ("me:wrong-secret@", nobody, "Connection refused".to_owned()),
    ] {
        let device = Device::start(&gateway, &format!("{trust}proxy = \"http://{user}127.0.0.1:{port}\""));
        let why = why(&device).await;
        assert!(why.contains(&format!("the proxy http://127.0.0.1:{port}")) && why.contains(&told), "{why}");
        assert!(!why.contains("wrong-secret") && !device.log().contains("wrong-secret"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_connects_to_the_web_only_leads_to_the_fallback_port() {
    let (server, _, trust, _certificate) = server();
    let fallback = port(&server.gateway);
    let proxy = Tinyproxy::start(&format!("ConnectPort {fallback}"));
    let settings = format!("{trust}proxy = \"http://127.0.0.1:{}\"\nfallback-port = {fallback}", proxy.port);
    let device = Device::start(&format!("wss://{NAME}"), &settings);
    device.until_online().await;
    let link = until_status(&device, |link| link["state"] == "online").await;
    assert_eq!(link["gateway"], format!("wss://{NAME}:{fallback}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_is_reached_at_the_usual_port_the_other_one_is_tried_and_kept() {
    let (mut server, _, trust, _certificate) = server();
    let fallback = port(&server.gateway).to_owned();
    let device = Device::start("wss://localhost", &format!("{trust}fallback-port = {fallback}"));
    let usual = until_status(&device, |link| link["state"] == "waiting").await;
    assert_eq!(usual["gateway"], "wss://localhost:5223");
    device.until_online().await;
    let here = format!("wss://localhost:{fallback}");
    assert_eq!(until_status(&device, |link| link["state"] == "online").await["gateway"], here);
    // It comes back there first.
    server.restart();
    until_status(&device, |link| link["connects_today"].as_u64() > Some(1) && link["state"] == "online").await;
    let log = device.log();
    let tried = log.lines().filter(|line| line.contains("not connected to wss://localhost:5223"));
    assert!(tried.count() <= 2, "{log}");
}

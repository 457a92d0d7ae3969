//! Two regions with a device each: a request may mix regIds of both, and a region that is down or
//! talks nonsense fails its own recipients only.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::io::{Read, Write};
use std::net::TcpListener;

use common::{App, Server};
use device::{Device, DeviceApp, codes, post, request};
use serde_json::json;

const APP: &str = "org.example.Chat";

/// Region 03, and region 00 that knows it and further regions.
struct World {
    near: Server,
    far: Server,
    app: App,
}

impl World {
    fn start(more_regions: &str) -> Self {
        let far = Server::start("03", "");
        let near = Server::start("00", &format!("[regions]\n\"03\" = {:?}\n{more_regions}", far.api));
        let app = near.app_add(APP);
        let secret = near.folder.path().join("secret");
        std::fs::write(&secret, &app.secret).expect("the folder is ours");
        let added = far.admin(&["app", "add", APP, "--secret-file", &secret.to_string_lossy()]);
        assert!(added.status.success(), "{added:?}");
        Self { near, far, app }
    }
}

fn unknown(prefix: &str) -> String {
    format!("{prefix}{}", "5c".repeat(49))
}

#[tokio::test]
async fn a_mixed_multicast_reaches_both_and_a_region_that_is_down_fails_alone() {
    let mut world = World::start("");
    let devices = [Device::start(&world.near.gateway, ""), Device::start(&world.far.gateway, "")];
    let mut apps = [devices[0].app(APP).await, devices[1].app(APP).await];
    assert!(apps[0].reg_id.starts_with("00") && apps[1].reg_id.starts_with("03"));
    let both = json!([apps[0].reg_id, apps[1].reg_id]);

    let answer = post(&world.near, &world.app, &request(both.clone(), "1", "to both"));
    assert_eq!((answer.status, codes(&answer)), (200, vec![1000, 1000]), "{answer:?}");
    for app in &mut apps {
        let message = app.next().await;
        assert_eq!((message.data().as_str(), message.text("request_id").as_deref()), ("to both", Some("1")));
    }

    world.far.kill();
    let answer = post(&world.near, &world.app, &request(both.clone(), "2", "03 is down"));
    assert_eq!((answer.status, codes(&answer)), (200, vec![1000, 3015]), "{answer:?}");
    assert_eq!(apps[0].next().await.data(), "03 is down");
    let answer = post(&world.near, &world.app, &request(apps[1].reg_id.clone(), "3", "nobody is there"));
    assert_eq!((answer.status, codes(&answer)), (503, vec![3015]), "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    let log = world.near.log();
    let why = log.lines().filter(|line| line.contains("another region does not answer") && line.contains("region=03"));
    assert_eq!(why.count(), 1, "once for both requests:\n{log}");

    world.far.restart();
    devices[1].until_online().await;
    let answer = post(&world.near, &world.app, &request(both, "4", "03 is back"));
    assert_eq!(codes(&answer), [1000, 1000], "{answer:?}");
    for app in &mut apps {
        assert_eq!(app.next().await.data(), "03 is back");
    }
}

#[tokio::test]
async fn what_is_taken_back_is_taken_back_in_every_region() {
    let mut world = World::start("");
    let mut devices = [Device::start(&world.near.gateway, ""), Device::start(&world.far.gateway, "")];
    let apps = [devices[0].app(APP).await, devices[1].app(APP).await];
    for device in &mut devices {
        device.stop_agent();
    }
    let both = json!([apps[0].reg_id, apps[1].reg_id]);
    for request_id in ["1", "2", "3"] {
        assert_eq!(codes(&post(&world.near, &world.app, &request(both.clone(), request_id, "x"))), [1000, 1000]);
    }
    let cancel = |what| post(&world.near, &world.app, &what);
    let all = cancel(json!({ "cancel": "1" }));
    expect_order(&all, &[(&apps[0].reg_id, "1", 1000), (&apps[1].reg_id, "1", 1000)]);
    let far = cancel(json!({ "cancel": "2", "regID": [apps[1].reg_id, apps[0].reg_id] }));
    expect_order(&far, &[(&apps[1].reg_id, "2", 1000), (&apps[0].reg_id, "2", 1000)]);
    assert_eq!(codes(&cancel(json!({ "cancel": "2", "regID": both }))), [3014, 3014]);
    world.far.kill();
    assert_eq!(codes(&cancel(json!({ "cancel": "3", "regID": both }))), [1000, 3015]);
}

/// Whom a result is about, what it says, and that nobody else is in the answer.
fn expect_order(answer: &common::Answer, expected: &[(&str, &str, u64)]) {
    let answer = answer.json();
    let results = answer["results"].as_array().expect("results");
    let seen: Vec<(&str, &str, u64)> = results
        .iter()
        .map(|one| (one["regID"].as_str(), one["requestID"].as_str(), one["statusCode"].as_u64()))
        .map(|(reg_id, request, code)| (reg_id.expect("text"), request.expect("text"), code.expect("a number")))
        .collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn answers_keep_the_order_of_the_request() {
    let world = World::start("");
    let devices = [Device::start(&world.near.gateway, ""), Device::start(&world.far.gateway, "")];
    let mut apps: Vec<DeviceApp> = Vec::new();
    for device in &devices {
        apps.push(device.app(APP).await);
    }
    let (near, far) = (apps[0].reg_id.clone(), apps[1].reg_id.clone());
    let (no_such, forged_near, forged_far) = (unknown("77"), unknown("00"), unknown("03"));
    let messages = json!({ "messages": [
        { "regID": [far, near, no_such, far], "requestID": "a", "appData": "a" },
        { "regID": forged_near, "requestID": "b", "appData": "b" },
        { "regID": [near, forged_far], "requestID": "c", "appData": "c" },
        { "regID": far, "requestID": "d" },
        { "regID": [far, near], "requestID": "e", "appData": "e" },
    ]});
    expect_order(
        &post(&world.near, &world.app, &messages),
        &[
            (&far, "a", 1000),
            (&near, "a", 1000),
            (&no_such, "a", 3008),
            (&far, "a", 1000),
            (&forged_near, "b", 3008),
            (&near, "c", 1000),
            (&forged_far, "c", 3008),
            (&far, "d", 3007),
            (&far, "e", 1000),
            (&near, "e", 1000),
        ],
    );
    assert_eq!(apps[0].next_data(3).await, ["a", "c", "e"]);
    // Named twice, it has the request once.
    assert_eq!(apps[1].next_data(2).await, ["a", "e"]);
}

#[tokio::test]
async fn a_region_that_talks_nonsense_or_nothing_counts_as_down() {
    let nonsense = foreign_server(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"results\":1");
    let too_few = foreign_server(b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"results\":[]}");
    let no_http = foreign_server(b"\x00\x01\x02\x03");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent_url = format!("http://{}", silent.local_addr().expect("an address"));
    let regions = format!("\"04\" = {nonsense:?}\n\"05\" = {too_few:?}\n\"06\" = {no_http:?}\n\"07\" = {silent_url:?}");
    let world = World::start(&regions);
    let device = Device::start(&world.near.gateway, "");
    let mut app = device.app(APP).await;
    let recipients = json!([unknown("04"), unknown("05"), app.reg_id, unknown("06"), unknown("07")]);
    let answer = post(&world.near, &world.app, &request(recipients, "1", "to the living"));
    assert_eq!((answer.status, codes(&answer)), (200, vec![3015, 3015, 1000, 3015, 3015]), "{answer:?}");
    assert_eq!(app.next().await.data(), "to the living");
}

/// A server that answers every request with these bytes; it ends with the test.
fn foreign_server(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // The request is one of a few hundred bytes; whatever goes wrong is the sender's to see.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
        }
    });
    url
}

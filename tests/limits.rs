//! Limits of the server as senders meet them: too fast, or too much at once. Whoever is not over a
//! limit goes on.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use common::{Answer, Server, so};
use device::{Device, codes, post, request};
use serde_json::json;

fn retry_after(answer: &Answer) -> u64 {
    answer.header("retry-after").and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
}

#[tokio::test]
async fn a_device_over_its_rate_is_refused_and_another_is_not() {
    let server = Server::start("00", "[limits]\ndevice-messages-per-minute = 2\ndevice-messages-per-hour = 1000");
    let app = server.app_add("chat");
    let (one, two) = (Device::start(&server.gateway, ""), Device::start(&server.gateway, ""));
    one.until_online().await;
    two.until_online().await;
    let (mut here, mut there) = (one.app("chat").await, two.app("chat").await);
    let both = json!([here.reg_id, there.reg_id]);
    let single = |data: &str| request(here.reg_id.as_str(), data, data);

    assert_eq!(codes(&post(&server, &app, &single("a"))), [1000]);
    assert_eq!(codes(&post(&server, &app, &single("b"))), [1000]);
    let refused = post(&server, &app, &single("c"));
    assert_eq!((refused.status, codes(&refused)), (429, vec![3013]));
    assert_eq!(refused.json()["results"][0]["regID"], json!(here.reg_id));
    assert!((1..=30).contains(&retry_after(&refused)), "{refused:?}");
    let detail = refused.header("bellwire-detail").unwrap_or_default();
    assert!(detail.contains("[limits] device-messages-per-minute = 2"), "{detail}");

    let mixed = post(&server, &app, &request(both.clone(), "d", "d"));
    assert_eq!((mixed.status, codes(&mixed)), (200, vec![3013, 1000]));
    assert_eq!(codes(&post(&server, &app, &request(there.reg_id.as_str(), "e", "e"))), [1000]);
    let refused = post(&server, &app, &request(both, "f", "f"));
    assert_eq!((refused.status, codes(&refused)), (429, vec![3013; 2]));
    // What was refused is nowhere.
    assert_eq!(here.next_data(2).await, ["a", "b"]);
    assert_eq!(there.next_data(2).await, ["d", "e"]);
    assert!(here.try_next().is_none() && there.try_next().is_none());
}

#[tokio::test]
async fn an_app_over_its_rate_is_refused_whole_and_another_is_not() {
    // Ten at once.
    let server = Server::start("00", "[limits]\napp-messages-per-second = 1");
    let (chat, mail) = (server.app_add("chat"), server.app_add("mail"));
    let nobody = |count: usize| request(vec![format!("00{}", "5c".repeat(49)); count], "1", "x");
    let taken = post(&server, &chat, &nobody(10));
    assert_eq!((taken.status, codes(&taken)), (200, vec![3008; 10]));
    let refused = post(&server, &chat, &nobody(2));
    assert_eq!((refused.status, codes(&refused)), (429, vec![3013]));
    assert_eq!(refused.json()["results"][0]["regID"], json!(""));
    assert!((1..=2).contains(&retry_after(&refused)), "{refused:?}");
    let detail = refused.header("bellwire-detail").unwrap_or_default();
    assert!(detail.contains("[limits] app-messages-per-second = 1"), "{detail}");
    assert_eq!(post(&server, &mail, &nobody(10)).status, 200);
    // After the time that was told it is taken.
    let wait = std::time::Duration::from_secs(retry_after(&refused));
    let started = std::time::Instant::now();
    common::until(async || {
        let answer = post(&server, &chat, &nobody(2));
        so(answer.status == 200, || format!("{answer:?} after {:?}, told {wait:?}", started.elapsed()))
    })
    .await;
}

#[tokio::test]
async fn an_app_over_its_quota_is_refused_and_another_is_not() {
    let server = Server::start("00", "[limits]\nwaiting-per-app = 2");
    let (chat, mail) = (server.app_add("chat"), server.app_add("mail"));
    let mut device = Device::start(&server.gateway, "");
    device.until_online().await;
    let (for_chat, for_mail) = (device.app("chat").await.reg_id, device.app("mail").await.reg_id);
    device.stop_agent();
    let send = |app, reg_id: &str| post(&server, app, &request(reg_id, "1", "x"));
    for _ in 0..2 {
        assert_eq!(codes(&send(&chat, &for_chat)), [1000]);
    }
    for _ in 0..3 {
        let refused = send(&chat, &for_chat);
        assert_eq!((refused.status, codes(&refused), retry_after(&refused)), (503, vec![3013], 30));
    }
    assert_eq!(codes(&send(&mail, &for_mail)), [1000]);
    let lines = server.log().lines().filter(|line| line.contains("`waiting-per-app`")).count();
    assert_eq!(lines, 1, "{}", server.log());
}

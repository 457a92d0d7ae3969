//! What a sender asks to be told of a message (RFC 8030, section 5.1), for the door that takes it.
//!
//! Nothing is stored for a new subscription: its URL says which it is. One that the sender repeats is the
//! same one, so that what is told of many messages comes together. A message that is sent again by the same name
//! has the same one again: the answer to the first may have been lost.

use axum::http::{HeaderMap, HeaderValue};

use super::error::{Kind, Refused};
use super::tokens::{receipts_of_url, receipts_url};
use super::unavailable;
use super::wishes::{RECEIPT, receipt_link, wants_receipt};
use crate::proto::channel::SenderHash;
use crate::proto::message::ReceiptsTo;
use crate::proto::{AppId, Push, ReceiptsId};
use crate::server::Server;
use crate::server::origin::Origin;
use crate::world;

/// A wish to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    link: ReceiptsId,
    url: String,
    app: Option<AppId>,
}

/// Whether and where the sender of this message, who has proven this key, wants to be told. Not to be asked for
/// a message that is delivered now or never: of these nothing is promised.
pub async fn ask(
    server: &Server,
    origin: &Origin,
    headers: &HeaderMap,
    sender: Option<SenderHash>,
    push: &Push,
) -> Result<Option<Asked>, Refused> {
    if !wants_receipt(headers) {
        return Ok(None);
    }
    let (link, url) = match receipt_link(headers) {
        Some(url) => (known_link(server, url).await?, url.to_owned()),
        None => new_link(server, origin, push),
    };
    let app = match sender {
        Some(sender) => server.store.app_of_sender(sender).await.map_err(unavailable)?,
        None => None,
    };
    Ok(Some(Asked { link, url, app }))
}

async fn known_link(server: &Server, url: &str) -> Result<ReceiptsId, Refused> {
    let no_link = || {
        let why = "the header link names no subscription of receipts of this server, or one that has ended";
        Refused::new(Kind::Header, why)
    };
    let link = receipts_of_url(&server.keys(), url).ok_or_else(no_link)?;
    match server.store.has_link_ended(link).await.map_err(unavailable)? {
        true => Err(no_link()),
        false => Ok(link),
    }
}

fn new_link(server: &Server, origin: &Origin, push: &Push) -> (ReceiptsId, String) {
    let keys = server.keys();
    let link = match push.taken_once_by() {
        Some(name) => keys.receipts_of(&push.app, name),
        None => world::receipts_id(),
    };
    (link, receipts_url(origin, &keys, link))
}

impl Asked {
    /// For the message of this URL.
    pub fn about(self, message: String) -> ReceiptsTo {
        ReceiptsTo { link: self.link, app: self.app, message }
    }

    /// The answer's header Link.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&format!("<{}>; rel=\"{RECEIPT}\"", self.url)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::channel::SenderKey;
    use crate::server::samples::Stage;
    use axum::http::header::LINK;

    use super::super::wishes::PREFER;
    use crate::proto::message::Door;

    fn origin() -> Origin {
        "https://push.example.org".parse().unwrap()
    }

    fn headers(all: &[(axum::http::HeaderName, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[tokio::test]
    async fn a4_a_link_that_is_repeated_is_the_same_and_one_that_does_not_open_is_refused() {
        let stage = Stage::new().await;
        let push = stage.push("1");
        let ask = async |all: &[(axum::http::HeaderName, &str)]| {
            ask(&stage.server, &origin(), &headers(all), None, &push).await
        };
        assert_eq!(ask(&[]).await.unwrap(), None);
        let first = ask(&[(PREFER, "respond-async")]).await.unwrap().unwrap();
        let other = ask(&[(PREFER, "respond-async")]).await.unwrap().unwrap();
        assert_ne!(first.link, other.link);
        let link = first.header().unwrap();
        let again = [(PREFER, "respond-async"), (LINK, link.to_str().unwrap())];
        assert_eq!(ask(&again).await.unwrap(), Some(first.clone()));
        // The server seals with another key by now, and the sender's link is the same.
        stage.server.store.rotate_key().await.unwrap();
        stage.server.register(stage.device, &stage.app).await.unwrap().unwrap();
        assert_eq!(ask(&again).await.unwrap(), Some(first.clone()));
        for bad in ["<https://push.example.org/wp/r/AAAA>", "<https://push.example.org/>"] {
            let bad = format!("{bad}; rel=\"{RECEIPT}\"");
            assert_eq!(ask(&[(PREFER, "respond-async"), (LINK, &bad)]).await.unwrap_err().kind(), Kind::Header);
        }
        assert!(stage.server.store.end_link(first.link).await.unwrap());
        assert_eq!(ask(&again).await.unwrap_err().kind(), Kind::Header);
    }

    #[tokio::test]
    async fn what_is_sent_again_by_the_same_name_is_told_at_the_same_place() {
        let stage = Stage::new().await;
        let wish = headers(&[(PREFER, "respond-async")]);
        let link = async |name: &str| {
            let push = Push { door: Door::WebPush, ..stage.push(name) };
            ask(&stage.server, &origin(), &wish, None, &push).await.unwrap().unwrap().link
        };
        let first = link("1").await;
        assert_eq!(link("1").await, first);
        assert_ne!(link("2").await, first);
    }

    #[tokio::test]
    async fn the_app_of_the_sender_s_key_is_told_too() {
        let stage = Stage::new().await;
        let mut point = [7; SenderKey::LEN];
        point[0] = 4;
        let key: SenderKey = {
            use base64::Engine as _;
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(point).parse().unwrap()
        };
        let wish = headers(&[(PREFER, "respond-async")]);
        let push = stage.push("1");
        let asked = async || ask(&stage.server, &origin(), &wish, Some(key.hash()), &push).await.unwrap().unwrap();
        assert_eq!(asked().await.app, None);
        stage.server.store.set_vapid_key(stage.app.clone(), Some(key)).await.unwrap();
        let to = asked().await.about("https://push.example.org/wp/m/x".into());
        assert_eq!(to.app, Some(stage.app.clone()));
    }
}

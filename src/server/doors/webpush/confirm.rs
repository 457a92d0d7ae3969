//! What a sender asks to be told of a message (RFC 8030, section 5.1), for the door that takes it.
//!
//! Nothing is stored for a new subscription: its URL says which it is. One that the sender repeats is the
//! same one, so that what is told of many messages comes together.

use axum::http::{HeaderMap, HeaderValue};

use super::headers::{RECEIPT, receipt_link, wants_receipt};
use super::tokens::{receipts_of_url, receipts_url};
use crate::db::DbError;
use crate::proto::channel::SenderHash;
use crate::proto::message::ReceiptsTo;
use crate::proto::{AppId, ReceiptsId};
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

/// Why a wish is not granted.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Tell the sender: 400.
    #[error("the header Link names no subscription of receipts of this server, or one that has ended")]
    Link,
    /// Try again later.
    #[error(transparent)]
    Store(#[from] DbError),
}

/// Whether and where the sender of these headers, who has proven this key, wants to be told. Not to be asked for
/// a message that is delivered now or never: of these nothing is promised.
pub async fn ask(
    server: &Server,
    origin: &Origin,
    headers: &HeaderMap,
    sender: Option<SenderHash>,
) -> Result<Option<Asked>, Refused> {
    if !wants_receipt(headers) {
        return Ok(None);
    }
    let (link, url) = match receipt_link(headers) {
        Some(url) => (known_link(server, url).await?, url.to_owned()),
        None => new_link(server, origin),
    };
    let app = match sender {
        Some(sender) => server.store.app_of_sender(sender).await?,
        None => None,
    };
    Ok(Some(Asked { link, url, app }))
}

async fn known_link(server: &Server, url: &str) -> Result<ReceiptsId, Refused> {
    let link = receipts_of_url(&server.keys(), url).ok_or(Refused::Link)?;
    match server.store.has_link_ended(link).await? {
        true => Err(Refused::Link),
        false => Ok(link),
    }
}

fn new_link(server: &Server, origin: &Origin) -> (ReceiptsId, String) {
    let link = world::receipts_id();
    (link, receipts_url(origin, &server.keys(), link))
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

    use super::super::headers::PREFER;

    fn origin() -> Origin {
        "https://push.example.org".parse().unwrap()
    }

    fn headers(all: &[(axum::http::HeaderName, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[tokio::test]
    async fn a4_a_link_that_is_repeated_is_the_same_and_one_that_does_not_open_is_refused() {
        let stage = Stage::new().await;
        let ask =
            async |all: &[(axum::http::HeaderName, &str)]| ask(&stage.server, &origin(), &headers(all), None).await;
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
            assert!(matches!(ask(&[(PREFER, "respond-async"), (LINK, &bad)]).await, Err(Refused::Link)));
        }
        assert!(stage.server.store.end_link(first.link).await.unwrap());
        assert!(matches!(ask(&again).await, Err(Refused::Link)));
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
        let asked = async || ask(&stage.server, &origin(), &wish, Some(key.hash())).await.unwrap().unwrap();
        assert_eq!(asked().await.app, None);
        stage.server.store.set_vapid_key(stage.app.clone(), Some(key)).await.unwrap();
        let to = asked().await.about("https://push.example.org/wp/m/x".into());
        assert_eq!(to.app, Some(stage.app.clone()));
    }
}

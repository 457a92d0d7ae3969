//! What a sender asks to be told of a message (RFC 8030, section 5.1), for the door that takes it.
//!
//! Nothing is stored for a new subscription: its URL says which it is. One that the sender repeats is the
//! same one, so that what is told of many messages comes together.

use axum::http::{HeaderMap, HeaderValue};

use super::error::{Kind, Refused};
use super::tokens::{receipts_of_url, receipts_url};
use super::unavailable;
use super::wishes::{RECEIPT, receipt_link, wants_receipt};
use crate::proto::ReceiptsId;
use crate::server::Server;
use crate::server::origin::Origin;
use crate::server::regid::KeyRing;
use crate::world;

/// Whether and where the sender of a message wants to be told. Not to be asked for a message that is delivered
/// now or never: of these nothing is promised.
pub async fn ask(server: &Server, headers: &HeaderMap) -> Result<Option<ReceiptsId>, Refused> {
    if !wants_receipt(headers) {
        return Ok(None);
    }
    let link = match receipt_link(headers) {
        Some(url) => known_link(server, url).await?,
        None => world::receipts_id(),
    };
    Ok(Some(link))
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

/// The answer's header Link.
pub fn header(origin: &Origin, keys: &KeyRing, link: ReceiptsId) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("<{}>; rel=\"{RECEIPT}\"", receipts_url(origin, keys, link))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::samples::Stage;
    use crate::server::store::Over;
    use axum::http::header::LINK;

    use super::super::wishes::PREFER;

    fn headers(all: &[(axum::http::HeaderName, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[tokio::test]
    async fn a4_a_link_that_is_repeated_is_the_same_and_one_that_does_not_open_is_refused() {
        let stage = Stage::new().await;
        let origin: Origin = "https://push.example.org".parse().unwrap();
        let ask = async |all: &[(axum::http::HeaderName, &str)]| ask(&stage.server, &headers(all)).await;
        assert_eq!(ask(&[]).await.unwrap(), None);
        let first = ask(&[(PREFER, "respond-async")]).await.unwrap().unwrap();
        let other = ask(&[(PREFER, "respond-async")]).await.unwrap().unwrap();
        assert_ne!(first, other);
        let link = header(&origin, &stage.server.keys(), first).unwrap();
        let again = [(PREFER, "respond-async"), (LINK, link.to_str().unwrap())];
        assert_eq!(ask(&again).await.unwrap(), Some(first));
        // The server seals with another key by now, and the sender's link is the same.
        stage.server.store.rotate_key().await.unwrap();
        stage.server.register(stage.device, &stage.app, Over::Link).await.unwrap().unwrap();
        assert_eq!(ask(&again).await.unwrap(), Some(first));
        for bad in ["<https://push.example.org/wp/r/AAAA>", "<https://push.example.org/>"] {
            let bad = format!("{bad}; rel=\"{RECEIPT}\"");
            assert_eq!(ask(&[(PREFER, "respond-async"), (LINK, &bad)]).await.unwrap_err().kind(), Kind::Header);
        }
        assert!(stage.server.store.end_link(first).await.unwrap());
        assert_eq!(ask(&again).await.unwrap_err().kind(), Kind::Header);
    }
}

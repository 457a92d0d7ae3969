//! Tells application servers what became of their messages.
//!
//! Each app has a lane: its receipts go out one batch after the other, in the order in which they
//! were made, until the app's server has taken them. A server that does not answer holds up its own
//! app only. What was taken but not noted as such before the power went is told again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use ring::hmac;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use super::Server;
use super::store::receipts::{Batch, Callback};
use crate::daemon::Stop;
use crate::db::DbError;
use crate::proto::backoff::Backoff;
use crate::proto::{AppId, UnixMillis};
use crate::world;

/// Signs a batch: `t=SECONDS,v1=HEX`, HEX being HMAC-SHA256 with the app's callback key over
/// `SECONDS.BODY`.
pub const SIGNATURE: &str = "bellwire-signature";
/// Most batches that are on their way together.
const POSTS: usize = 64;
/// The pause after the store failed.
const STORE_RETRY: Duration = Duration::from_secs(30);

/// Runs as long as the server.
pub async fn run(server: Arc<Server>, mut stop: Stop) {
    let posts = Arc::new(Semaphore::new(POSTS));
    let (mut lanes, mut busy) = (JoinSet::new(), HashSet::new());
    loop {
        match server.store.apps_with_receipts().await {
            Ok(apps) => {
                for app in apps {
                    if busy.insert(app.clone()) {
                        lanes.spawn(lane(Arc::clone(&server), app, Arc::clone(&posts)));
                    }
                }
            }
            // The writer has said what is wrong; the next receipt tries again.
            Err(error) => debug!("receipts could not be read: {error}"),
        }
        tokio::select! {
            () = server.store.receipts_made() => {}
            // It may have been given more since it last looked.
            Some(ended) = lanes.join_next() => drop(ended.map(|app| busy.remove(&app))),
            // What is not told now is told by the next run.
            () = stop.wait() => return,
        }
    }
}

/// Tells the app's server until there is nothing left; returns the app.
async fn lane(server: Arc<Server>, app: AppId, posts: Arc<Semaphore>) -> AppId {
    let mut backoff = Backoff::default();
    loop {
        match server.store.receipts(app.clone()).await {
            Ok(Some(batch)) => match tell(&server, &app, &batch, &posts, &mut backoff).await {
                Ok(()) => {}
                Err(error) => rest(&error).await,
            },
            Ok(None) => return app,
            Err(error) => rest(&error).await,
        }
    }
}

async fn rest(error: &DbError) {
    error!("receipts could not be kept: {error}");
    tokio::time::sleep(STORE_RETRY).await;
}

/// Tells one batch, or waits for the next attempt.
async fn tell(
    server: &Server,
    app: &AppId,
    batch: &Batch,
    posts: &Semaphore,
    backoff: &mut Backoff,
) -> Result<(), DbError> {
    let oldest = UnixMillis(world::now().0 - i64::from(server.config.limits.receipt_hours) * 3_600_000);
    if batch.oldest_ms < oldest {
        warn!(%app, "receipts were not told for {} h and are given up", server.config.limits.receipt_hours);
        return server.store.give_up_receipts(app.clone(), oldest).await;
    }
    let posted = {
        // The semaphore is never closed.
        let _turn = posts.acquire().await;
        post(server, app, batch).await
    };
    match posted {
        Ok(()) => {
            if backoff.failures() > 0 {
                info!(%app, "receipts are told again");
            }
            backoff.reset();
            crate::daemon::fault_point("told");
            server.store.told(app.clone(), batch.last).await
        }
        Err(why) => {
            // Once for each series: the first one tells the operator, the others would fill the log.
            match backoff.failures() {
                0 => warn!(%app, "receipts cannot be told: {why}"),
                _ => debug!(%app, "receipts cannot be told: {why}"),
            }
            tokio::time::sleep(backoff.next(world::luck())).await;
            Ok(())
        }
    }
}

async fn post(server: &Server, app: &AppId, batch: &Batch) -> Result<(), String> {
    let body = body(app, &batch.receipts);
    let signature = sign(&batch.callback, world::now(), &body);
    match server.callbacks.tell(&batch.callback.url, &[(SIGNATURE, &signature)], body).await {
        Ok(status) if status.is_success() => Ok(()),
        Ok(StatusCode::GONE) => Err("its callback answers 410 Gone; see `bellwire-server app callback`".into()),
        Ok(status) => Err(format!("its callback answers {status}")),
        Err(error) => Err(error.to_string()),
    }
}

/// The text of a batch.
fn body(app: &AppId, receipts: &[String]) -> String {
    // Ids of apps need no escaping, and each receipt is JSON already.
    format!(r#"{{"appID":"{app}","receipts":[{}]}}"#, receipts.join(","))
}

fn sign(callback: &Callback, now: UnixMillis, body: &str) -> String {
    let seconds = now.0 / 1000;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &callback.key);
    let tag = hmac::sign(&key, format!("{seconds}.{body}").as_bytes());
    format!("t={seconds},v1={}", hex::encode(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_json_and_its_signature_that_of_the_manual() {
        let callback = Callback { url: String::new(), key: b"key".to_vec() };
        let body = body(&"chat".parse().unwrap(), &[r#"{"a":1}"#.into(), r#"{"b":2}"#.into()]);
        assert_eq!(body, r#"{"appID":"chat","receipts":[{"a":1},{"b":2}]}"#);
        // printf '1700000000.text' | openssl dgst -sha256 -hmac key
        let signature = sign(&callback, UnixMillis(1_700_000_000_999), "text");
        assert_eq!(signature, "t=1700000000,v1=1c51f5d1c13ab1b0b74bb4b1f57781969b151667c4dabacbcb8f6ae3db75bda5");
    }
}

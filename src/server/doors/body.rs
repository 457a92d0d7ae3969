//! Reading a request's body, within a limit of bytes and time.

use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt;

/// Bytes of a body over the limit that are read and thrown away.
const DISCARDED: usize = 8 * 1024 * 1024;
/// How long a sender may take to send its body.
const BODY: Duration = Duration::from_secs(30);

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// It is longer than the limit.
    #[error("the body is too long")]
    TooLong,
    /// It ended before its end, or its chunks make no sense.
    #[error("the body broke off or is badly chunked")]
    Broken,
    /// It took too long to come.
    #[error("the body did not arrive in time")]
    Late,
}

/// Reads a body of at most `limit` bytes. The rest of a longer one is thrown away up to
/// `DISCARDED`: a sender that is still writing when the connection closes may miss the answer.
pub async fn read(body: Body, limit: usize) -> Result<Vec<u8>, Unread> {
    tokio::time::timeout(BODY, read_all(body, limit)).await.unwrap_or(Err(Unread::Late))
}

async fn read_all(body: Body, limit: usize) -> Result<Vec<u8>, Unread> {
    let (mut chunks, mut kept, mut length) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Unread::Broken)?;
        length += chunk.len();
        if length <= limit {
            kept.extend_from_slice(&chunk);
        } else if length > limit + DISCARDED {
            break;
        }
    }
    if length > limit { Err(Unread::TooLong) } else { Ok(kept) }
}

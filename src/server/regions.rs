//! The other regions: where their API is, and how a request is passed on to it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

use hyper::body::Bytes;
use tracing::{debug, warn};

use crate::http::{HttpClient, HttpError};
use crate::proto::Region;
use crate::world;

/// The log has no more than one line in this time for each region that does not answer.
const LINE_MS: i64 = 60_000;

/// The other regions by their prefix.
#[derive(Debug)]
pub struct Regions {
    client: HttpClient,
    remotes: BTreeMap<Region, Remote>,
}

/// Another region.
#[derive(Debug)]
struct Remote {
    /// Its API, without a slash at the end.
    url: String,
    /// When the log last had a line about it.
    logged_ms: AtomicI64,
}

impl Regions {
    /// The regions at these base URLs.
    pub fn new(client: HttpClient, urls: BTreeMap<Region, String>) -> Self {
        let remote = |url: String| Remote { url: url.trim_end_matches('/').to_owned(), logged_ms: AtomicI64::new(0) };
        Self { client, remotes: urls.into_iter().map(|(region, url)| (region, remote(url))).collect() }
    }

    /// Whether requests for this region can be passed on.
    pub fn knows(&self, region: Region) -> bool {
        self.remotes.contains_key(&region)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = Region> {
        self.remotes.keys().copied()
    }

    /// Posts `body` to `path` of the region's API; `None` if there is no answer.
    pub async fn post(
        &self,
        region: Region,
        path: &str,
        headers: &[(&'static str, String)],
        body: String,
    ) -> Option<Bytes> {
        let remote = self.remotes.get(&region)?;
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        match self.client.post(&format!("{}{path}", remote.url), &headers, body).await {
            Ok((_, answer)) => Some(answer),
            Err(error) => {
                remote.log(region, &error);
                None
            }
        }
    }
}

impl Remote {
    /// For the operator, who may have given it a wrong address or certificate; senders cannot fill the log.
    fn log(&self, region: Region, error: &HttpError) {
        let (now, last) = (world::now().0, self.logged_ms.load(Ordering::Relaxed));
        // A clock that was set back must not silence it. Of several at once one has its line.
        let due = !(last..last + LINE_MS).contains(&now);
        match due && self.logged_ms.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            true => warn!(%region, url = self.url, "another region does not answer, its recipients get 3015: {error}"),
            false => debug!(%region, "another region does not answer: {error}"),
        }
    }
}

//! The other regions: where their API is, and how a request is passed on to it.

use std::collections::BTreeMap;

use hyper::body::Bytes;
use tracing::debug;

use crate::http::HttpClient;
use crate::proto::Region;

/// The other regions by their prefix.
#[derive(Debug)]
pub struct Regions {
    client: HttpClient,
    urls: BTreeMap<Region, String>,
}

impl Regions {
    /// The regions at these base URLs.
    pub fn new(client: HttpClient, urls: BTreeMap<Region, String>) -> Self {
        let trim = |url: String| url.trim_end_matches('/').to_owned();
        Self { client, urls: urls.into_iter().map(|(region, url)| (region, trim(url))).collect() }
    }

    /// Whether requests for this region can be passed on.
    pub fn knows(&self, region: Region) -> bool {
        self.urls.contains_key(&region)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = Region> {
        self.urls.keys().copied()
    }

    /// Posts `body` to `path` of the region's API; `None` if there is no answer.
    pub async fn post(
        &self,
        region: Region,
        path: &str,
        headers: &[(&'static str, String)],
        body: String,
    ) -> Option<Bytes> {
        let url = format!("{}{path}", self.urls.get(&region)?);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        match self.client.post(&url, &headers, body).await {
            Ok((_, answer)) => Some(answer),
            Err(error) => {
                debug!(%region, "another region does not answer: {error}");
                None
            }
        }
    }
}

//! The Web Push door: RFC 8030, 8291 and 8292.

/// The path of all endpoints; the secret part follows.
pub const ENDPOINTS: &str = "/wp/";

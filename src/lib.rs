//! Bellwire: push for devices.
#[cfg(any(feature = "agent", feature = "server"))]
pub mod config;
pub mod daemon;
pub mod db;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "ws")]
pub mod link;
pub mod proto;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "ws")]
pub mod tls;
pub mod world;

#[cfg(feature = "server")]
pub use server::admin::main as server_main;

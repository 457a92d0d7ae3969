//! Bellwire: push for devices.
#[cfg(feature = "agent")]
pub mod agent;
#[cfg(all(feature = "agent", feature = "server"))]
pub mod cli;
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

#[cfg(feature = "agent")]
pub use agent::main as agent_main;
#[cfg(all(feature = "agent", feature = "server"))]
pub use cli::main as tool_main;
#[cfg(feature = "server")]
pub use server::admin::main as server_main;

//! Bellwire: push for devices.
pub mod proto;

//! Tests of the device's store.

//! What the objects on the bus tell the task that serves the apps.
//!
//! A ring is a hint and no more: what is to be done is in the store.

use std::collections::HashSet;
use std::sync::Mutex;

use tokio::sync::Notify;

use crate::agent::store::channels::Token;
use crate::daemon::lock;

/// Rings for registrations about which their apps have called.
#[derive(Debug, Default)]
pub struct Bell {
    /// At most as many as there are registrations: they are taken whenever the store is looked at.
    called: Mutex<HashSet<Token>>,
    guests: Notify,
}

/// How a postman is woken before it would wake by itself.
#[derive(Debug, Default)]
pub struct Ring {
    /// The app has called: it is there and in order.
    pub called: Notify,
    /// What it has or may do is not what it was, or there is nothing for it any more.
    pub changed: Notify,
}

impl Bell {
    /// The app has called about this registration.
    pub fn ring(&self, token: Token) {
        lock(&self.called).insert(token);
    }

    /// The registrations about which apps have called since this was last asked.
    pub fn take(&self) -> HashSet<Token> {
        std::mem::take(&mut *lock(&self.called))
    }

    /// An app without a name of its own has registered.
    pub fn guest(&self) {
        self.guests.notify_one();
    }

    /// Waits until one has.
    pub async fn guest_came(&self) {
        self.guests.notified().await;
    }
}

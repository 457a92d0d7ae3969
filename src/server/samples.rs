//! A server without listeners, and a device that has its app: for tests of what stands between the
//! two.

use std::sync::Arc;

use tempfile::TempDir;

use super::Server;
use super::config::ServerConfig;
use super::store::{Accepted, Incoming, Over};
use crate::proto::{AppId, DeviceId, MessageId, Push, RegId, UnixMillis, samples};
use crate::world;

/// The secret of every app.
pub const SECRET: &str = "secret";

/// The server with its folder, the device, and the registration of the app "chat" on it.
pub struct Stage {
    pub server: Arc<Server>,
    pub device: DeviceId,
    pub app: AppId,
    pub reg_id: RegId,
    _folder: TempDir,
}

impl Stage {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = ServerConfig { state_folder: folder.path().to_owned(), ..ServerConfig::default() };
        let server = Server::open(config).await.unwrap();
        let (device, app): (_, AppId) = (world::device_id(), "chat".parse().unwrap());
        server.store.add_app(app.clone(), SECRET).await.unwrap();
        let reg_id = server.register(device, &app, Over::Link).await.unwrap().unwrap().reg_id;
        Self { server: Arc::new(server), device, app, reg_id, _folder: folder }
    }

    /// The same after a crash.
    pub async fn crashed(self) -> Self {
        let server = Server::open(self.server.config.clone()).await.unwrap();
        Self { server: Arc::new(server), ..self }
    }

    /// A push for the registration that lives for a minute.
    pub fn push(&self, request_id: &str) -> Push {
        Push {
            reg_id: self.reg_id,
            app: self.app.clone(),
            request_id: Some(request_id.to_owned()),
            expires_ms: UnixMillis(world::now().0 + 60_000),
            ..samples::push(world::message_id())
        }
    }

    /// Has the store take it, to be released at that time; returns its id.
    pub async fn accept(&self, push: Push, release_ms: Option<UnixMillis>) -> MessageId {
        let id = push.id;
        let incoming = Incoming { to: self.server.keys().open(&self.reg_id).unwrap(), release_ms, push };
        assert_eq!(self.server.store.accept(vec![incoming]).await.unwrap(), [Accepted::Stored]);
        id
    }
}

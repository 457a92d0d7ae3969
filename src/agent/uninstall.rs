//! Notices when apps are installed and uninstalled.
//!
//! An app of which files were here, a manifest, a desktop file or a bus's activation file, and of
//! which none is left was uninstalled: its messages go, and its registration ends, so that whoever
//! sends to it is told.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tracing::{error, info, warn};

use super::bus::{Shared, activatable_names};
use super::store::AppRow;

/// The silence after the last change of a folder: packages are replaced file by file.
const SETTLED: Duration = Duration::from_secs(3);

/// How long that is waited for, whatever goes on changing.
const LONGEST: Duration = Duration::from_secs(30);

/// Runs as long as the daemon.
pub async fn run(shared: Arc<Shared>, bus: zbus::Connection) {
    loop {
        // Watched before it is looked at: what changes meanwhile is seen by one of the two.
        let changes = watch(&shared.installed.folders());
        shared.installed.reload();
        end_uninstalled(&shared, &bus).await;
        let changed = match changes {
            Ok(changes) => until_settled(changes).await,
            Err(error) => Err(error),
        };
        if let Err(error) = changed {
            return warn!("apps that are uninstalled are noticed at the next start: {error}");
        }
    }
}

async fn end_uninstalled(shared: &Shared, bus: &zbus::Connection) {
    if shared.installed.is_unsure() {
        // The log says which manifest is to be mended; until then no app loses its messages.
        return;
    }
    let apps = match shared.store.apps().await {
        Ok(apps) => apps,
        Err(error) => return error!("the store failed: {error}"),
    };
    // A bus that does not answer knows of no app.
    if activatable_names(bus).await.is_err() {
        return;
    }
    for row in apps {
        let Some(seen) = &row.installed else { continue };
        if is_gone(Path::new(seen)) && file_of(shared, bus, &row).await.is_none() {
            end(shared, row).await;
        }
    }
}

/// Whether a file that was here is not any more. With its folder gone, which may be a disk that is
/// not mounted yet, nobody knows.
fn is_gone(file: &Path) -> bool {
    file.as_os_str().is_empty() || (!file.exists() && file.parent().is_some_and(Path::is_dir))
}

/// A file of the app that is still here. A channel's app goes by its name on the bus.
async fn file_of(shared: &Shared, bus: &zbus::Connection, row: &AppRow) -> Option<String> {
    match &row.client {
        Some(client) => shared.profile_of_service(bus, &client.service, &row.owner).await?.file,
        None => shared.profile(bus, &row.app).await.file,
    }
}

async fn end(shared: &Shared, row: AppRow) {
    info!(app = %row.app, "the app was uninstalled");
    let (app, is_channel) = (row.app.clone(), row.client.is_some());
    let ended = match shared.forget(row).await {
        // There is nobody any more who could be told.
        Ok(()) if is_channel => shared.store.dismiss(app, None).await.map(drop),
        other => other,
    };
    if let Err(error) = ended {
        error!("the store failed: {error}");
    }
}

/// The folders' changes; those above a folder that is not there yet, for its own.
fn watch(folders: &[PathBuf]) -> std::io::Result<EventStream<[u8; 4096]>> {
    let inotify = Inotify::init()?;
    let comes = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF | WatchMask::ONLYDIR;
    let changes = comes | WatchMask::DELETE | WatchMask::MOVED_FROM | WatchMask::CLOSE_WRITE;
    for folder in folders {
        let there = folder.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        // One that is watched for two folders is watched for the changes of both.
        let mask = if there == folder { changes } else { comes } | WatchMask::MASK_ADD;
        match inotify.watches().add(there, mask) {
            Ok(_) => {}
            // Not for us to look at, or gone in this moment.
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    inotify.into_event_stream([0; 4096])
}

/// Waits for a change, and then until nothing has changed for a while.
async fn until_settled(mut changes: EventStream<[u8; 4096]>) -> std::io::Result<()> {
    let ended = || std::io::Error::from(ErrorKind::UnexpectedEof);
    changes.next().await.ok_or_else(ended)??;
    let quiet = async {
        while let Ok(more) = tokio::time::timeout(SETTLED, changes.next()).await {
            more.ok_or_else(ended)??;
        }
        Ok(())
    };
    // Files that change all the time do not hide the others.
    tokio::time::timeout(LONGEST, quiet).await.unwrap_or(Ok(()))
}

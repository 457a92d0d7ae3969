//! Copies of the store: `bellwire-server backup` and `bellwire-server restore`.
//!
//! A backup is one file that SQLite writes beside a running server, as the database was at one moment. A
//! restore puts such a file in the database's place. Both write a file of another name first, and give
//! it its name when it is whole and on disk: wherever the power goes, there is the old file or the new
//! one, never half of one.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rusqlite::{Connection, ErrorCode};

use crate::daemon::{self, Exit, Fatal, fault_point};
use crate::db::{self, DbError};
use crate::world;

use super::config::ServerConfig;
use super::store::sql;

/// How often the bar moves.
const LOOK: Duration = Duration::from_millis(100);
/// What is read and written at once, in bytes.
const PIECE: usize = 1 << 20;

/// What a restore has done.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The schema of the copy, before it was brought up to date.
    pub schema: i64,
    /// Where the database is kept that was there before, if there was one.
    pub kept: Option<PathBuf>,
    /// What is in the database now.
    pub contents: sql::backup::Contents,
}

/// Writes the database as it is now into `file`; returns the file's bytes. The file must be new, or
/// `force` replaces it. `quiet` shows no bar.
pub fn backup(config: &ServerConfig, file: &Path, force: bool, quiet: bool) -> Result<u64, Fatal> {
    let (database, file) = (config.database(), absolute(file)?);
    if !database.exists() {
        return Err(Fatal::new(Exit::IoErr, format!("there is no database {} yet", database.display())));
    }
    if file.exists() && !force {
        return Err(Fatal::new(Exit::Failure, format!("{} is there already; --force replaces it", file.display())));
    }
    let _store = daemon::share_file(&config.state_folder, "server.db")?;
    let source = db::open_reader(&database)?;
    let bytes = sql::used_bytes(&source).map_err(DbError::from)?;
    let (path, partial) = begin_partial(&file)?;
    write_copy(source, &path, &bar(bytes, quiet))?;
    partial.sync_all().map_err(in_file(&path))?;
    fault_point("backup-written");
    std::fs::rename(&path, &file).map_err(in_file(&file))?;
    sync_folder_of(&file)?;
    fault_point("backup-named");
    Ok(partial.metadata().map_err(in_file(&file))?.len())
}

/// Puts a backup in the database's place, while no server runs there. Devices are told to register
/// anew when they greet: what they have may be newer than the backup.
pub fn restore(config: &ServerConfig, file: &Path, quiet: bool) -> Result<Restored, Fatal> {
    let (database, file) = (config.database(), absolute(file)?);
    daemon::private_folder(&config.state_folder)?;
    let _server = daemon::lock_folder(&config.state_folder, "bellwire-server")?;
    let _store = daemon::replace_file(&config.state_folder, "server.db")?;
    let copy = with_suffix(&database, ".restoring");
    let placed = copy_in(&file, &copy, quiet).and_then(|()| put_in_place(&file, &copy, &database));
    if placed.is_err() {
        // What is left of it is in the way of nobody; the failure is what matters.
        let _ = remove_database(&copy);
    }
    placed
}

fn put_in_place(file: &Path, copy: &Path, database: &Path) -> Result<Restored, Fatal> {
    let schema = examine(copy, file)?;
    let contents = prepare(copy)?;
    File::open(copy).and_then(|copy| copy.sync_all()).map_err(in_file(copy))?;
    fault_point("restore-copied");
    let kept = keep_present(database)?;
    fault_point("restore-kept");
    std::fs::rename(copy, database).map_err(in_file(database))?;
    sync_folder_of(database)?;
    fault_point("restore-placed");
    Ok(Restored { schema, kept, contents })
}

/// Checks that a file is a sound database of this server; returns its schema's version. `shown` is
/// what it is called in errors.
fn examine(path: &Path, shown: &Path) -> Result<i64, Fatal> {
    let wrong = |what: String| Fatal::new(Exit::DataErr, format!("{}: {what}", shown.display()));
    let seen = db::inspect(path, sql::MIGRATIONS.len()).map_err(|error| wrong(error.to_string()))?;
    if seen.application != sql::APPLICATION {
        return Err(wrong("it is no database of a bellwire-server".into()));
    }
    match seen.damage {
        Some(damage) => Err(wrong(format!("it is damaged: {damage}"))),
        None => Ok(seen.schema),
    }
}

/// A file for the copy beside its last name, empty, private, and ours alone while it is open.
fn begin_partial(file: &Path) -> Result<(PathBuf, File), Fatal> {
    let path = with_suffix(file, ".partial");
    let partial = private_file(&path).map_err(in_file(&path))?;
    let busy = || Fatal::new(Exit::Unavailable, format!("another backup is writing {}", path.display()));
    partial.try_lock().map_err(|_| busy())?;
    // The one that had the lock may have given the file its name meanwhile.
    let same = std::fs::metadata(&path).and_then(|there| Ok(there.ino() == partial.metadata()?.ino()));
    if !same.unwrap_or(false) {
        return Err(busy());
    }
    // An attempt that was cut off has left this behind.
    partial.set_len(0).map_err(in_file(&path))?;
    remove_if_there(&with_suffix(&path, "-journal"))?;
    Ok((path, partial))
}

/// Lets SQLite write the copy, and shows how far it is.
fn write_copy(source: Connection, path: &Path, bar: &ProgressBar) -> Result<(), DbError> {
    let name = path.to_str().ok_or_else(|| DbError::Open(path.to_owned(), "its name is not UTF-8".into()))?;
    let result = std::thread::scope(|scope| {
        let writing = scope.spawn(move || source.execute("VACUUM INTO ?1", [name]).map(drop));
        while !writing.is_finished() {
            bar.set_position(std::fs::metadata(path).map_or(0, |file| file.len()));
            std::thread::sleep(LOOK);
        }
        writing.join()
    });
    bar.finish_and_clear();
    match result {
        Ok(written) => written.map_err(DbError::from),
        Err(_) => Err(DbError::Stopped),
    }
}

/// Copies a backup to where it is examined and prepared.
fn copy_in(file: &Path, copy: &Path, quiet: bool) -> Result<(), Fatal> {
    let log = with_suffix(file, "-wal");
    if std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        return Err(Fatal::new(
            Exit::DataErr,
            format!("{} is in use and no backup: part of it is in {}", file.display(), log.display()),
        ));
    }
    remove_database(copy)?;
    let mut from = File::open(file).map_err(in_file(file))?;
    let bar = bar(from.metadata().map_err(in_file(file))?.len(), quiet);
    let mut to = private_file(copy).map_err(in_file(copy))?;
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece).map_err(in_file(file))? {
            0 => break,
            length => to.write_all(&piece[..length]).map_err(in_file(copy))?,
        }
        bar.inc(PIECE as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Brings the copy's schema up to date and notes that it was restored, all in the one file.
fn prepare(copy: &Path) -> Result<sql::backup::Contents, DbError> {
    let db = db::open(copy, sql::MIGRATIONS)?;
    let step = db.unchecked_transaction()?;
    sql::backup::restored(&step, world::now())?;
    let contents = sql::backup::contents(&step)?;
    step.commit()?;
    db::into_one_file(&db)?;
    Ok(contents)
}

/// Keeps the database that is there as `server.db.before-restore`, beside its place: until the copy
/// takes the place it is the database.
fn keep_present(database: &Path) -> Result<Option<PathBuf>, Fatal> {
    if !database.exists() {
        return Ok(None);
    }
    let (kept, new) = (with_suffix(database, ".before-restore"), with_suffix(database, ".before-restore.new"));
    remove_if_there(&with_suffix(&kept, "-wal"))?;
    if let Err(error) = merge(database)? {
        eprintln!("bellwire-server: {}: it is kept as it is: {error}", database.display());
    }
    remove_if_there(&new)?;
    std::fs::hard_link(database, &new).map_err(in_file(&new))?;
    std::fs::rename(&new, &kept).map_err(in_file(&kept))?;
    // Only a damaged database still has a log. It goes with what it belongs to: with the copy it would
    // be a mixture of both.
    let log = with_suffix(database, "-wal");
    if log.exists() {
        std::fs::rename(&log, with_suffix(&kept, "-wal")).map_err(in_file(&log))?;
    }
    remove_if_there(&with_suffix(database, "-shm"))?;
    sync_folder_of(database)?;
    Ok(Some(kept))
}

/// Puts everything into the one file. An error says that it is too damaged for that; whatever else
/// prevents it ends the restore.
fn merge(database: &Path) -> Result<Result<(), rusqlite::Error>, Fatal> {
    let merged = Connection::open(database).and_then(|db| db::into_one_file(&db));
    match merged.as_ref().err().and_then(rusqlite::Error::sqlite_error_code) {
        None | Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Ok(merged),
        Some(_) => Err(Fatal::new(Exit::IoErr, format!("{}: {:?}", database.display(), merged))),
    }
}

fn private_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn remove_database(path: &Path) -> Result<(), Fatal> {
    ["", "-wal", "-shm", "-journal"].iter().try_for_each(|suffix| remove_if_there(&with_suffix(path, suffix)))
}

fn remove_if_there(path: &Path) -> Result<(), Fatal> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(in_file(path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync_folder_of(path: &Path) -> Result<(), Fatal> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(in_file(folder))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn absolute(path: &Path) -> Result<PathBuf, Fatal> {
    std::path::absolute(path).map_err(in_file(path))
}

fn in_file(path: &Path) -> impl Fn(std::io::Error) -> Fatal {
    let path = path.to_owned();
    move |error| Fatal::new(Exit::IoErr, format!("{}: {error}", path.display()))
}

/// A bar on standard error, if that is a terminal and a bar is wanted.
fn bar(bytes: u64, quiet: bool) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(bytes) };
    let form = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {eta} left");
    bar.with_style(form.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

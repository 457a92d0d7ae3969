//! SQLite as both halves use it: one file, one thread that owns the connection, and commits that
//! serve everybody who is waiting.
//!
//! A job is a closure over the connection. Writes that are waiting together share one transaction
//! and one fsync, at most [`BATCH`] of them or what arrives within [`BATCH_TIME`]; each is answered
//! after the commit, never before. A write that fails undoes itself alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use crate::daemon::{Exit, Fatal};

/// Most jobs that one commit serves.
pub const BATCH: usize = 256;
/// The longest time over which jobs are gathered for one commit.
pub const BATCH_TIME: Duration = Duration::from_millis(2);
/// Most jobs that may wait for the thread; further callers wait for a place.
const WAITING: usize = 1024;
/// How long to wait for another process that is writing.
const BUSY: Duration = Duration::from_secs(10);
/// The pause between two attempts where SQLite does not wait by itself.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// The oldest SQLite that serves, as it numbers its versions: rusqlite asks no more of it. What is
/// compiled in is newer, a library of the system may not be.
const OLDEST_SQLITE: i32 = 3_045_003;
/// What a reader keeps of the database, in SQLite's way of saying KiB; the system caches the rest.
const READER_CACHE_KIB: i32 = -256;

/// Why the store could not do what it was asked to.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DbError {
    /// Tell the operator; try again later.
    #[error("the disk is full")]
    Full,
    /// Tell the operator; try again later.
    #[error("the database or its folder is read-only")]
    ReadOnly,
    /// Tell the operator: the folder is missing or may not be used.
    #[error("the database {0} cannot be opened: {1}")]
    Open(PathBuf, String),
    /// Tell the operator: an older program was started on newer data.
    #[error("the database {0} was written by a newer version of Bellwire (schema {1}, this program knows {2})")]
    TooNew(PathBuf, i64, usize),
    /// Tell the operator: the program is linked with a library of the system that does not serve.
    #[error("the SQLite of this system is of version {0}, and 3.45.3 or later is needed")]
    OldLibrary(String),
    /// Tell the operator; try again later.
    #[error("the database failed: {0}")]
    Failed(String),
    /// The program is ending.
    #[error("the store has stopped")]
    Stopped,
}

impl From<rusqlite::Error> for DbError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::ReadOnly) => Self::ReadOnly,
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<DbError> for Fatal {
    fn from(error: DbError) -> Self {
        let exit = match error {
            // Starting again does not help: another program or another store does, or another library.
            DbError::TooNew(..) => Exit::DataErr,
            DbError::OldLibrary(_) => Exit::Config,
            DbError::Full | DbError::ReadOnly | DbError::Open(..) | DbError::Failed(_) | DbError::Stopped => {
                Exit::IoErr
            }
        };
        Self::new(exit, error)
    }
}

/// Opens or makes the database, durable at every commit, and brings its schema up to date:
/// `migrations[n]` takes version `n` to `n + 1`.
pub fn open(path: &Path, migrations: &[&str]) -> Result<Connection, DbError> {
    check_library(rusqlite::version_number(), rusqlite::version())?;
    let cannot = cannot_open(path);
    let mut connection = Connection::open(path).map_err(cannot)?;
    // SQLite opens what it may not write to for reading; a store that cannot store is none.
    if connection.is_readonly(rusqlite::MAIN_DB).map_err(cannot)? {
        return Err(DbError::Open(path.to_owned(), "it or its folder is read-only".into()));
    }
    configure(&connection).map_err(cannot)?;
    let version = version_of(&connection).map_err(cannot)?;
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    if done > migrations.len() {
        return Err(DbError::TooNew(path.to_owned(), version, migrations.len()));
    }
    for (number, migration) in migrations.iter().enumerate().skip(done) {
        let step = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have done it while this one waited for its turn.
        if version_of(&step)? > i64::try_from(number).unwrap_or(i64::MAX) {
            continue;
        }
        step.execute_batch(migration)?;
        step.pragma_update(None, "user_version", i64::try_from(number + 1).unwrap_or(i64::MAX))?;
        step.commit()?;
    }
    Ok(connection)
}

fn version_of(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// What a database file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The version of its schema.
    pub schema: i64,
    /// What made it.
    pub application: i64,
    /// The first thing that is wrong with it, if anything is.
    pub damage: Option<String>,
}

/// Reads all of a database and changes nothing. `known` is the newest schema that this program knows.
pub fn inspect(path: &Path, known: usize) -> Result<Inspected, DbError> {
    let db = open_reader(path)?;
    let cannot = cannot_open(path);
    let schema = version_of(&db).map_err(cannot)?;
    if usize::try_from(schema).unwrap_or(usize::MAX) > known {
        return Err(DbError::TooNew(path.to_owned(), schema, known));
    }
    let application = db.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(cannot)?;
    let first: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(cannot)?;
    let damage = (first != "ok").then(|| first.lines().collect::<Vec<_>>().join(" "));
    Ok(Inspected { schema, application, damage })
}

/// Before a file is touched: what an older SQLite makes of it nobody has tried.
fn check_library(number: i32, version: &str) -> Result<(), DbError> {
    if number < OLDEST_SQLITE { Err(DbError::OldLibrary(version.to_owned())) } else { Ok(()) }
}

/// Why the database there cannot be used.
fn cannot_open(path: &Path) -> impl Fn(rusqlite::Error) -> DbError + Copy {
    move |error| {
        let why = match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt) => format!("it is damaged: {error}"),
            _ => error.to_string(),
        };
        DbError::Open(path.to_owned(), why)
    }
}

/// Puts everything into the one file, and ends the write-ahead log. Nobody else may use it.
pub fn into_one_file(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(BUSY)?;
    db.pragma_update(None, "journal_mode", "DELETE")
}

/// Opens an existing database to read from it beside its writer.
pub fn open_reader(path: &Path) -> Result<Connection, DbError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    check_library(rusqlite::version_number(), rusqlite::version())?;
    let cannot = cannot_open(path);
    let connection = Connection::open_with_flags(path, flags).map_err(cannot)?;
    connection.busy_timeout(BUSY).map_err(cannot)?;
    connection.pragma_update(None, "cache_size", READER_CACHE_KIB).map_err(cannot)?;
    plan_once(&connection).map_err(cannot)?;
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    log_ahead(connection)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.set_prepared_statement_cache_capacity(64);
    plan_once(connection)
}

/// Keeps SQLite from preparing a statement anew for every value that is bound to it, as it does
/// when it is built with STAT4: half of a reader's time, for plans that are always the same.
fn plan_once(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Sets the write-ahead log. The first time, SQLite needs the file for itself and does not wait for
/// another process that does the same.
fn log_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let started = Instant::now();
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && started.elapsed() < BUSY => {
                std::thread::sleep(BUSY_PAUSE);
            }
            done => return done,
        }
    }
}

/// Tells the caller, once it is known whether the batch was committed.
type Answer = Box<dyn FnOnce(Result<(), DbError>) + Send>;
/// Does the work, or, given an error instead of a connection, passes that on.
type Work = Box<dyn FnOnce(Result<&Connection, DbError>) -> Option<Done> + Send>;

/// Work that waits for its commit.
struct Done {
    answer: Answer,
    failed: Option<DbError>,
}

/// What the thread of a [`Worker`] says of its commits to whoever watches it.
#[derive(Clone, Copy, Debug)]
pub enum Commit<'a> {
    /// A batch of writes begins.
    Begins,
    /// It has ended.
    Ends {
        /// How many writes were in it.
        writes: usize,
        /// How long it took.
        took: Duration,
        /// How long the disk took of it.
        sync: Duration,
        /// Why nothing of it stands, if so.
        error: Option<&'a DbError>,
    },
}

enum Job {
    Read(Work),
    Write(Work),
    /// A read that comes after the writes before it.
    Look(Work),
}

/// The thread that owns a connection. Clones share it; it ends when the last clone is gone and
/// every job is done.
#[derive(Clone, Debug)]
pub struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Hands the connection to a new thread of this name.
    pub fn start(name: &str, connection: Connection) -> std::io::Result<Self> {
        Self::start_watched(name, connection, |_| {})
    }

    /// The same, and tells `watch` of each commit, in the thread that does the work.
    pub fn start_watched<W>(name: &str, connection: Connection, watch: W) -> std::io::Result<Self>
    where
        W: FnMut(Commit<'_>) + Send + 'static,
    {
        let (jobs, queue) = mpsc::channel(WAITING);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&connection, queue, watch))?;
        Ok(Self { jobs })
    }

    /// Changes the database; returns when the change is on disk.
    pub async fn write<T, F>(&self, change: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let change = move |connection: &Connection| undo_if_failed(connection, change);
        self.run(Job::Write, change).await?.await.unwrap_or(Err(DbError::Stopped))
    }

    /// Queues a change without waiting for the disk. What becomes of it, nobody learns: only for
    /// changes that are repeated if they are lost.
    pub async fn write_later<F>(&self, change: F) -> Result<(), DbError>
    where
        F: FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
    {
        let change = move |connection: &Connection| undo_if_failed(connection, change);
        self.run(Job::Write, change).await.map(drop)
    }

    /// Reads from the database.
    pub async fn read<T, F>(&self, query: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.run(Job::Read, query).await?.await.unwrap_or(Err(DbError::Stopped))
    }

    /// Reads from the database what was queued to be written before, if that could be written.
    pub async fn read_behind<T, F>(&self, query: F) -> Result<T, DbError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.run(Job::Look, query).await?.await.unwrap_or(Err(DbError::Stopped))
    }

    async fn run<T, F>(&self, kind: fn(Work) -> Job, work: F) -> Result<oneshot::Receiver<Result<T, DbError>>, DbError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let work = Box::new(move |connection: Result<&Connection, DbError>| {
            // The caller may have gone before it is told; the change stands all the same.
            let result = match connection {
                Ok(connection) => work(connection).map_err(DbError::from),
                Err(error) => {
                    let _ = reply.send(Err(error));
                    return None;
                }
            };
            let failed = result.as_ref().err().cloned();
            // Its own failure says more than that of the batch.
            let answer = move |committed: Result<(), DbError>| {
                let _ = reply.send(result.and_then(|value| committed.map(|()| value)));
            };
            Some(Done { answer: Box::new(answer), failed })
        });
        self.jobs.send(kind(work)).await.map_err(|_| DbError::Stopped)?;
        Ok(answer)
    }
}

/// Runs the change in a savepoint, so that its failure leaves the rest of the batch alone.
fn undo_if_failed<T>(
    connection: &Connection,
    change: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    connection.prepare_cached("SAVEPOINT job")?.execute([])?;
    let result = change(connection);
    if result.is_err() {
        // A failing disk makes SQLite undo the whole transaction by itself, savepoints and all.
        let undone = connection.execute_batch("ROLLBACK TO job; RELEASE job");
        if undone.is_err() && !connection.is_autocommit() {
            let _ = connection.execute_batch("ROLLBACK");
        }
        return result;
    }
    connection.prepare_cached("RELEASE job")?.execute([])?;
    result
}

fn work(connection: &Connection, mut queue: mpsc::Receiver<Job>, mut watch: impl FnMut(Commit<'_>)) {
    let mut failing = false;
    while let Some(first) = queue.blocking_recv() {
        let started = Instant::now();
        let mut batch = vec![first];
        while batch.len() < BATCH && started.elapsed() < BATCH_TIME {
            match queue.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        let (mut writes, mut looks) = (Vec::new(), Vec::new());
        for job in batch {
            match job {
                Job::Read(work) => answer(work, connection),
                Job::Write(work) => writes.push(work),
                Job::Look(work) => looks.push(work),
            }
        }
        if !writes.is_empty() {
            let (begun, count) = (Instant::now(), writes.len());
            watch(Commit::Begins);
            let (result, sync) = serve(connection, writes);
            watch(Commit::Ends { writes: count, took: begun.elapsed(), sync, error: result.as_ref().err() });
            report(&result, &mut failing);
        }
        looks.into_iter().for_each(|work| answer(work, connection));
    }
}

/// Reads, and answers at once: a read sees what is on disk, waits for no commit and fails with none.
fn answer(work: Work, connection: &Connection) {
    if let Some(Done { answer, .. }) = work(Ok(connection)) {
        answer(Ok(()));
    }
}

/// Logs when commits begin to fail and when they work again, however many there are in between.
fn report(result: &Result<(), DbError>, failing: &mut bool) {
    match result {
        Err(error) if !*failing => tracing::error!("nothing can be stored: {error}"),
        Ok(()) if *failing => tracing::info!("storing works again"),
        Err(_) | Ok(()) => {}
    }
    *failing = result.is_err();
}

/// Does the work of a batch in one transaction, and answers. Returns how long the disk took.
fn serve(connection: &Connection, batch: Vec<Work>) -> (Result<(), DbError>, Duration) {
    if let Err(error) = connection.execute_batch("BEGIN IMMEDIATE") {
        let error = DbError::from(error);
        // Told why not, work has nothing to wait for.
        batch.into_iter().for_each(|work| drop(work(Err(error.clone()))));
        return (Err(error), Duration::ZERO);
    }
    let (mut answers, mut undone) = (Vec::new(), None);
    for work in batch {
        let done = match &undone {
            Some(error) => work(Err(DbError::clone(error))),
            None => work(Ok(connection)),
        };
        let Some(Done { answer, failed }) = done else { continue };
        answers.push(answer);
        // What followed outside the transaction would stand although it is called a failure.
        if undone.is_none() && connection.is_autocommit() {
            undone = Some(failed.unwrap_or_else(|| DbError::Failed("the transaction was undone".into())));
        }
    }
    let begun = Instant::now();
    let committed = match undone {
        Some(error) => Err(error),
        None => commit(connection),
    };
    let sync = begun.elapsed();
    for answer in answers {
        answer(committed.clone());
    }
    (committed, sync)
}

fn commit(connection: &Connection) -> Result<(), DbError> {
    let result = connection.execute_batch("COMMIT").map_err(DbError::from);
    if !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        tracing::error!("a failed transaction could not be undone: {error}");
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &[&str] = &["CREATE TABLE t (x INTEGER PRIMARY KEY CHECK (x > 0)) STRICT"];

    fn worker(folder: &Path) -> Worker {
        Worker::start("test", open(&folder.join("t.db"), SCHEMA).unwrap()).unwrap()
    }

    async fn count(worker: &Worker) -> i64 {
        worker.read(|db| db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))).await.unwrap()
    }

    #[tokio::test]
    async fn what_was_answered_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let worker = worker(folder.path());
        worker.write(|db| db.execute("INSERT INTO t VALUES (1)", [])).await.unwrap();
        let other = open_reader(&folder.path().join("t.db")).unwrap();
        let seen: i64 = other.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(seen, 1);
    }

    #[test]
    fn a_library_that_is_too_old_is_named() {
        let refused = check_library(3_040_001, "3.40.1").unwrap_err().to_string();
        assert_eq!(refused, "the SQLite of this system is of version 3.40.1, and 3.45.3 or later is needed");
        assert!(check_library(OLDEST_SQLITE, "3.45.3").is_ok());
        assert!(check_library(rusqlite::version_number(), rusqlite::version()).is_ok());
    }

    #[tokio::test]
    async fn a_failing_write_leaves_its_neighbours_alone() {
        let folder = tempfile::tempdir().unwrap();
        let worker = worker(folder.path());
        let write = |x: i64| worker.write(move |db| db.execute("INSERT INTO t VALUES (?1)", [x]));
        let (good, bad, later) = tokio::join!(write(1), write(-1), write(2));
        assert!(good.is_ok() && bad.is_err() && later.is_ok());
        assert_eq!(count(&worker).await, 2);
    }

    #[tokio::test]
    async fn a_write_of_two_parts_is_undone_whole() {
        let folder = tempfile::tempdir().unwrap();
        let worker = worker(folder.path());
        let result = worker
            .write(|db| {
                db.execute("INSERT INTO t VALUES (5)", [])?;
                db.execute("INSERT INTO t VALUES (-5)", [])
            })
            .await;
        assert!(result.is_err());
        assert_eq!(count(&worker).await, 0);
    }

    #[tokio::test]
    async fn a_full_disk_is_named_and_what_was_refused_did_not_happen() {
        let folder = tempfile::tempdir().unwrap();
        let schema = &["CREATE TABLE t (x BLOB NOT NULL) STRICT"];
        let worker = Worker::start("test", open(&folder.path().join("t.db"), schema).unwrap()).unwrap();
        // SQLite's own limit stands for the disk's.
        let limit = |db: &Connection| db.query_row("PRAGMA max_page_count = 20", [], |row| row.get::<_, i64>(0));
        assert_eq!(worker.read(limit).await.unwrap(), 20);
        let write = |length: usize| worker.write(move |db| db.execute("INSERT INTO t VALUES (?1)", [vec![7; length]]));
        // While the gate is closed, the others gather.
        let (started, running) = oneshot::channel();
        let (open_gate, opened) = std::sync::mpsc::channel::<()>();
        let gate = worker.read(move |_| Ok((started.send(()), opened.recv())));
        let gathered = async {
            running.await.unwrap();
            let read = worker.read(|db| db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)));
            tokio::join!(biased; write(1), write(1_000_000), read, write(2), async { open_gate.send(()).unwrap() })
        };
        let (_, (before, large, read, after, ())) = tokio::join!(gate, gathered);
        assert_eq!(read.unwrap(), 0, "a read fails with nobody's write");
        for (name, result) in [("before", before), ("large", large), ("after", after)] {
            assert!(matches!(result, Err(DbError::Full)), "{name}: {result:?}");
        }
        assert_eq!(count(&worker).await, 0);
        write(3).await.unwrap();
        assert_eq!(count(&worker).await, 1);
    }

    #[tokio::test]
    async fn a_look_sees_what_was_to_be_written_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let worker = worker(folder.path());
        for number in 1..100 {
            worker.write_later(move |db| db.execute("INSERT INTO t VALUES (?1)", [number]).map(drop)).await.unwrap();
            let look = worker.read_behind(|db| db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)));
            assert_eq!(look.await.unwrap(), number);
        }
    }

    #[test]
    fn newer_data_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        open(&path, SCHEMA).unwrap().pragma_update(None, "user_version", 9).unwrap();
        assert!(matches!(open(&path, SCHEMA), Err(DbError::TooNew(_, 9, 1))));
    }

    #[test]
    fn a_file_is_inspected_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        let db = open(&path, SCHEMA).unwrap();
        db.execute_batch(
            "INSERT INTO t WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 20000) SELECT x FROM n",
        )
        .unwrap();
        db.pragma_update(None, "application_id", 7).unwrap();
        into_one_file(&db).unwrap();
        drop(db);
        assert!(!folder.path().join("t.db-wal").exists());
        let mut bytes = std::fs::read(&path).unwrap();
        assert_eq!(inspect(&path, 1).unwrap(), Inspected { schema: 1, application: 7, damage: None });
        assert!(matches!(inspect(&path, 0), Err(DbError::TooNew(_, 1, 0))));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        // A page of the table that is none.
        bytes[4 * 4096..5 * 4096].fill(0xff);
        std::fs::write(&path, &bytes).unwrap();
        assert!(inspect(&path, 1).unwrap().damage.is_some());
        std::fs::write(&path, b"something else, long enough to be no database at all").unwrap();
        assert!(inspect(&path, 1).is_err());
        assert!(inspect(&folder.path().join("none.db"), 1).is_err());
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = open(Path::new("/nonexistent/t.db"), SCHEMA).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/t.db"), "{error}");
    }
}

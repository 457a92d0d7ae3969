//! The limits of this machine: what SQLite alone and HTTP alone can do.

use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::post;
use rusqlite::Connection;
use serde_json::{Value, json};

use super::load::{self, Senders, body};
use super::{APP, BenchArgs, SECRET, devices};
use crate::cli::lab::Lab;
use crate::daemon::{Exit, Fatal};
use crate::db;
use crate::server::doors::tizen::PATH;
use crate::server::store::sql;
use crate::world;

/// How long each limit is measured.
const TIME: Duration = Duration::from_secs(3);

/// Rows a second in batched commits, and posts a second to a handler that does nothing.
pub async fn measure(lab: &Lab, args: &BenchArgs) -> Result<Value, Fatal> {
    Ok(json!({
        "inserts_64_per_s": rows(lab, 64, false)?,
        "inserts_256_per_s": rows(lab, 256, false)?,
        "lives_64_per_s": rows(lab, 64, true)?,
        "lives_256_per_s": rows(lab, 256, true)?,
        "http_per_s": http(args).await?,
    }))
}

/// The server's rows through the server's schema, `batch` of them a commit. With `whole_life` each
/// row is also put into a device's database and then deleted, in commits as large: what a message
/// that arrives costs the disk altogether.
fn rows(lab: &Lab, batch: i64, whole_life: bool) -> Result<f64, Fatal> {
    let open = |name: &str, schema| {
        let path = lab.path(&format!("raw-{name}-{batch}-{whole_life}.db"));
        db::open(&path, schema).map_err(Fatal::of(Exit::IoErr))
    };
    let (server, device) = (open("server", sql::MIGRATIONS)?, open("device", devices::SCHEMA)?);
    let owners: Vec<_> = (0..200).map(|_| world::device_id()).collect();
    let row = body("00".repeat(50).as_str()).to_string().repeat(2);
    let (started, mut seq) = (Instant::now(), 0_i64);
    while started.elapsed() < TIME {
        let these = seq + 1..=seq + batch;
        in_one_commit(&server, these.clone(), sql::INSERT, |seq| {
            let owner = owners[usize::try_from(seq).unwrap_or(0) % owners.len()];
            let (id, replaces) = (*world::message_id().as_bytes(), [0_u8; 0]);
            (seq, *owner.as_bytes(), APP, i64::MAX, &row, id, format!("{seq:07}"), replaces, 0, 2, 0)
        })?;
        if whole_life {
            in_one_commit(&device, these.clone(), devices::INSERT, |_| (*world::message_id().as_bytes(), &row))?;
            in_one_commit(&server, these, "DELETE FROM messages WHERE seq = ?1", |seq| (seq,))?;
        }
        seq += batch;
    }
    Ok(seq as f64 / started.elapsed().as_secs_f64())
}

fn in_one_commit<P: rusqlite::Params>(
    database: &Connection,
    seqs: std::ops::RangeInclusive<i64>,
    statement: &str,
    values: impl Fn(i64) -> P,
) -> Result<(), Fatal> {
    let write = || {
        database.execute_batch("BEGIN IMMEDIATE")?;
        for seq in seqs {
            database.prepare_cached(statement)?.execute(values(seq))?;
        }
        database.execute_batch("COMMIT")
    };
    write().map_err(|error: rusqlite::Error| Fatal::new(Exit::IoErr, error))
}

async fn http(args: &BenchArgs) -> Result<f64, Fatal> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(Fatal::of(Exit::Unavailable))?;
    listener.set_nonblocking(true).map_err(Fatal::of(Exit::Unavailable))?;
    let address = listener.local_addr().map_err(Fatal::of(Exit::Unavailable))?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Fatal::of(Exit::Software))?;
    let service = Router::new().route(PATH, post(async || load::EMPTY_ANSWER)).into_make_service();
    runtime.spawn(async move {
        if let Ok(server) = axum_server::from_tcp(listener) {
            // It ends with the runtime.
            let _ = server.serve(service).await;
        }
    });
    let senders = Senders::new(&format!("http://{address}"), (APP, SECRET), args.senders)?;
    let posted = senders.post_for(TIME, None, |_| body("00")).await?;
    runtime.shutdown_background();
    Ok(posted.requests as f64 / TIME.as_secs_f64())
}

//! The limits of this machine: what SQLite alone and HTTP alone can do.

use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::post;
use rusqlite::params;
use serde_json::{Value, json};

use super::BenchArgs;
use super::load::{self, Senders, body};
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
        "commits_64_per_s": commits(lab, 64)?,
        "commits_256_per_s": commits(lab, 256)?,
        "http_per_s": http(args).await?,
    }))
}

/// The server's rows through the server's schema, `batch` of them a commit.
fn commits(lab: &Lab, batch: i64) -> Result<f64, Fatal> {
    let fatal = |error: rusqlite::Error| Fatal::new(Exit::IoErr, error);
    let path = lab.path(&format!("raw-{batch}.db"));
    let database = db::open(&path, sql::MIGRATIONS).map_err(Fatal::of(Exit::IoErr))?;
    let devices: Vec<_> = (0..200).map(|_| world::device_id()).collect();
    let row = body("00".repeat(50).as_str()).to_string().repeat(2);
    let started = Instant::now();
    let mut seq = 0_i64;
    while started.elapsed() < TIME {
        database.execute_batch("BEGIN IMMEDIATE").map_err(fatal)?;
        for _ in 0..batch {
            seq += 1;
            let device = devices[usize::try_from(seq).unwrap_or(0) % devices.len()];
            let mut insert = database.prepare_cached(sql::INSERT).map_err(fatal)?;
            insert.execute(params![seq, device.as_bytes(), super::APP, i64::MAX, row]).map_err(fatal)?;
        }
        database.execute_batch("COMMIT").map_err(fatal)?;
    }
    Ok(seq as f64 / started.elapsed().as_secs_f64())
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
    let senders = Senders::new(&format!("http://{address}"), args.senders)?;
    let posted = senders.post_for(TIME, None, |_| body("00")).await?;
    runtime.shutdown_background();
    Ok(posted.requests as f64 / TIME.as_secs_f64())
}

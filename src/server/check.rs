//! `bellwire-server check`: whether configuration, certificates and database can be used, and what would be
//! served. It changes nothing.

use serde_json::json;

use crate::config::TlsFiles;
use crate::daemon::{Exit, Fatal};
use crate::db;
use crate::proto::UnixMillis;
use crate::world;

use super::admin::{DAY_MS, print};
use super::config::ServerConfig;
use super::reload::Certificates;
use super::store::sql;

/// Checks all of it, and says what it found.
pub fn run(config: &ServerConfig, json: bool) -> Result<(), Fatal> {
    Certificates::read(config)?;
    let mut certificates = Vec::new();
    for files in [&config.api.tls, &config.gateway.tls, &config.admin.tls].into_iter().flatten() {
        certificates.push((&files.certificate, check_expiry(files)?));
    }
    let schema = check_database(config)?;
    let regions: Vec<String> = config.regions.keys().map(ToString::to_string).collect();
    let expiries: Vec<serde_json::Value> =
        certificates.iter().map(|(file, expires)| json!({ "file": file, "expires_ms": expires })).collect();
    let table = json!({ "region": config.region, "api": config.api.listen, "gateway": config.gateway.listen,
                        "admin": config.admin.listen, "state_folder": config.state_folder, "regions": regions, "database": config.database(),
                        "schema": schema, "certificates": expiries });
    print(json, &table, || {
        let scheme = |name: &str, tls: bool| if tls { format!("{name}s") } else { name.to_owned() };
        let (admin, admin_tls) = match config.admin.listen {
            Some(listen) => (listen, config.admin.tls.is_some()),
            None => (config.api.listen, config.api.tls.is_some()),
        };
        let mut lines = vec![format!(
            "region {}, API on {}://{}, gateway on {}://{}, admin API on {}://{admin}, state in {}, other regions: {}",
            config.region,
            scheme("http", config.api.tls.is_some()),
            config.api.listen,
            scheme("ws", config.gateway.tls.is_some()),
            config.gateway.listen,
            scheme("http", admin_tls),
            config.state_folder.display(),
            if regions.is_empty() { "none".to_owned() } else { regions.join(", ") }
        )];
        lines.extend(certificates.iter().map(|(file, expires)| {
            format!("certificate {}: expires in {} days", file.display(), (expires.0 - world::now().0) / DAY_MS)
        }));
        lines.push(match schema {
            Some(schema) => format!("database {}: schema {schema}, sound", config.database().display()),
            None => format!("database {}: not there yet", config.database().display()),
        });
        lines.join("\n")
    });
    Ok(())
}

/// When a listener's certificate expires, if it has not.
fn check_expiry(files: &TlsFiles) -> Result<UnixMillis, Fatal> {
    let expires = crate::tls::expiry(files).map_err(Fatal::of(Exit::Config))?;
    if expires <= world::now() {
        let days = (world::now().0 - expires.0) / DAY_MS;
        let file = files.certificate.display();
        return Err(Fatal::new(Exit::Config, format!("the certificate {file} has expired {days} days ago")));
    }
    Ok(expires)
}

/// The version of the database's schema, if there is a database and it is sound.
fn check_database(config: &ServerConfig) -> Result<Option<i64>, Fatal> {
    let path = config.database();
    if !path.exists() {
        return Ok(None);
    }
    let seen = db::inspect(&path, sql::MIGRATIONS.len())?;
    match seen.damage {
        Some(damage) => Err(Fatal::new(Exit::IoErr, format!("the database {} is damaged: {damage}", path.display()))),
        None => Ok(Some(seen.schema)),
    }
}

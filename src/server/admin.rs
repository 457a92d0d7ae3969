//! `bellwire-server`: the command line of the server, and what its subcommands do.
//!
//! Administration works on the database itself, beside a running server as well as without one.
//! A secret is printed once, when it is made, and is kept only as a hash.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Parser, Subcommand};
use serde_json::{Value, json};

use crate::config::TlsFiles;
use crate::daemon::{self, Exit, Fatal, Stop};
use crate::db::{self, DbError};
use crate::proto::{AppId, UnixMillis};
use crate::world;

use super::backup;
use super::config::ServerConfig;
use super::store::receipts::Callback;
use super::store::sql::{self, backup::Contents};
use super::store::{AppRow, Store};
use super::{Listeners, run};

/// The shortest secret that an operator may choose, in characters.
const SECRET_MIN: usize = 16;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// The push server: takes notifications from application servers and gets them to devices.
#[derive(Debug, Parser)]
#[command(
    name = "bellwire-server",
    version,
    after_help = "\
Without a command it serves until SIGTERM. Exit status: 0 done, 1 the answer is no, 64 wrong usage,
65 wrong input, 69 address or state folder in use, 74 the store or a file cannot be used, 78 wrong configuration.

See also bellwire-server.toml(5), bellwire-tizen(7), bellwire-protocol(7)."
)]
pub struct Args {
    /// Configuration file [default: /etc/bellwire/server.toml, if there is one]
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON, for scripts
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve (the default)
    Run,
    /// Check configuration, certificates and database, and say what would be served
    ///
    /// Nothing is changed. All of the database is read, beside a running server as well. Exit status: 78
    /// if the configuration or a certificate cannot be used or has expired, 74 if the database is
    /// damaged or of a newer version.
    Check,
    /// The apps that may be sent to
    #[command(subcommand)]
    App(AppCommand),
    /// The keys that seal regIds
    #[command(subcommand)]
    Key(KeyCommand),
    /// Write the database into a file, beside a running server as well
    ///
    /// The file is the database as it was at one moment: everything that was answered 1000 before the
    /// command began is in it. It gets its name when it is whole and on disk, and only its owner may
    /// read it: it holds the keys of the regIds. While it is written the server goes on, and its log
    /// beside the database (server.db-wal) grows by what is stored meanwhile.
    Backup {
        /// The file; it must be new
        file: PathBuf,
        /// Replace the file if it is there
        #[arg(long)]
        force: bool,
    },
    /// Put a backup in the place of the database, while no server runs there
    ///
    /// The file is copied, checked and brought up to date first; then it takes the place of the
    /// database at once. The database that was there is kept as server.db.before-restore, and can be
    /// restored likewise. Devices are told to register their apps anew when they next connect, because
    /// they may have registrations that the backup lacks. RegIds that were issued since the backup are
    /// dead for good; those that ended since then stand until their devices say otherwise.
    Restore {
        /// A file that `backup` has written
        file: PathBuf,
    },
    /// Print completions for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of this program into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum AppCommand {
    /// Add an app and print its id and secret
    Add {
        /// Its id [default: 16 random hex digits]
        id: Option<AppId>,
        /// Read its secret from this file, `-` for standard input [default: a random one]
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
    },
    /// List the apps
    List,
    /// Give an app another secret and print it; the old one works on for a grace
    Rotate {
        /// Its id
        id: AppId,
        /// Hours for which the old secret goes on working, 0 for none [default: `secret-grace-hours`]
        #[arg(long, value_name = "HOURS")]
        grace: Option<u32>,
        /// Read the secret from this file, `-` for standard input [default: a random one]
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
    },
    /// Say where an app's receipts go, and print the key that signs them; or that they go nowhere
    Callback {
        /// Its id
        id: AppId,
        /// The URL that takes them by POST: https://, or http:// on this machine
        #[arg(required_unless_present = "none", conflicts_with = "none")]
        url: Option<String>,
        /// No receipts any more; those that wait are dropped
        #[arg(long)]
        none: bool,
        /// Read the key from this file, `-` for standard input [default: a random one]
        #[arg(long, value_name = "FILE", conflicts_with = "none")]
        key_file: Option<PathBuf>,
    },
    /// Remove an app, end its registrations and drop what waits for it
    Remove {
        /// Its id
        id: AppId,
    },
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// List the keys
    List,
    /// Make a new key for regIds issued from now on; those issued before stay good
    Rotate,
}

/// The program.
pub fn main() -> ExitCode {
    match daemon::arguments::<Args>() {
        Ok(args) => daemon::finish("bellwire-server", dispatch(args)),
        Err(code) => code,
    }
}

fn dispatch(args: Args) -> Result<(), Fatal> {
    match args.command {
        Some(Command::Completions { shell }) => {
            daemon::print_completions::<Args>(shell);
            return Ok(());
        }
        Some(Command::Man { folder }) => return daemon::write_manual::<Args>(&folder),
        _ => {}
    }
    let config = ServerConfig::load(args.config.as_deref()).map_err(Fatal::of(Exit::Config))?;
    match args.command {
        None | Some(Command::Run) => serve(config),
        Some(Command::Check) => check(&config, args.json),
        Some(Command::App(command)) => administer(&config, async |store| app(&config, store, command, args.json).await),
        Some(Command::Key(command)) => administer(&config, async |store| key(store, command, args.json).await),
        Some(Command::Backup { file, force }) => back_up(&config, &file, force, args.json),
        Some(Command::Restore { file }) => restore(&config, &file, args.json),
        // Handled above, where no configuration is needed.
        Some(Command::Completions { .. } | Command::Man { .. }) => Ok(()),
    }
}

fn serve(config: ServerConfig) -> Result<(), Fatal> {
    daemon::start_logging(config.log, config.log_format);
    daemon::raise_file_limit();
    daemon::private_folder(&config.state_folder)?;
    let _mine = daemon::lock_folder(&config.state_folder, "bellwire-server")?;
    let _store = daemon::share_file(&config.state_folder, "server.db")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Fatal::of(Exit::Software))?;
    let listeners = Listeners::bind(&config)?;
    runtime.block_on(async {
        let stop = Stop::on_signals().map_err(Fatal::of(Exit::Software))?;
        run(config, listeners, stop).await
    })
}

fn administer(config: &ServerConfig, work: impl AsyncFnOnce(&Store) -> Result<(), Fatal>) -> Result<(), Fatal> {
    daemon::private_folder(&config.state_folder)?;
    // Beside a running server, but not while its database is replaced.
    let _store = daemon::share_file(&config.state_folder, "server.db")?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(Fatal::of(Exit::Software))?;
    runtime.block_on(async {
        let store = Store::open(&config.database(), config.limits).map_err(database)?;
        work(&store).await
    })
}

fn database(error: DbError) -> Fatal {
    Fatal::new(Exit::IoErr, error)
}

fn check(config: &ServerConfig, json: bool) -> Result<(), Fatal> {
    let mut certificates = Vec::new();
    for files in [&config.api.tls, &config.gateway.tls].into_iter().flatten() {
        crate::tls::server(files).map_err(Fatal::of(Exit::Config))?;
        certificates.push((&files.certificate, check_expiry(files)?));
    }
    crate::tls::client(config.regions_ca.as_deref()).map_err(Fatal::of(Exit::Config))?;
    let schema = check_database(config)?;
    let regions: Vec<String> = config.regions.keys().map(ToString::to_string).collect();
    let expiries: Vec<Value> =
        certificates.iter().map(|(file, expires)| json!({ "file": file, "expires_ms": expires })).collect();
    let table = json!({ "region": config.region, "api": config.api.listen, "gateway": config.gateway.listen,
                        "state_folder": config.state_folder, "regions": regions, "database": config.database(),
                        "schema": schema, "certificates": expiries });
    print(json, &table, || {
        let scheme = |name: &str, tls: bool| if tls { format!("{name}s") } else { name.to_owned() };
        let mut lines = vec![format!(
            "region {}, API on {}://{}, gateway on {}://{}, state in {}, other regions: {}",
            config.region,
            scheme("http", config.api.tls.is_some()),
            config.api.listen,
            scheme("ws", config.gateway.tls.is_some()),
            config.gateway.listen,
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
    let seen = db::inspect(&path, sql::MIGRATIONS.len()).map_err(database)?;
    match seen.damage {
        Some(damage) => Err(Fatal::new(Exit::IoErr, format!("the database {} is damaged: {damage}", path.display()))),
        None => Ok(Some(seen.schema)),
    }
}

fn back_up(config: &ServerConfig, file: &Path, force: bool, json: bool) -> Result<(), Fatal> {
    let bytes = backup::backup(config, file, force, json)?;
    print(json, &json!({ "file": file, "bytes": bytes }), || format!("wrote {} ({bytes} bytes)", file.display()));
    Ok(())
}

fn restore(config: &ServerConfig, file: &Path, json: bool) -> Result<(), Fatal> {
    let done = backup::restore(config, file, json)?;
    let Contents { apps, devices, messages } = done.contents;
    let table = json!({ "database": config.database(), "schema": done.schema, "kept": done.kept, "apps": apps,
                        "devices": devices, "messages": messages });
    print(json, &table, || {
        let kept = done.kept.map_or_else(String::new, |kept| format!("; the one before is {}", kept.display()));
        let database = config.database();
        format!(
            "{} has {apps} apps, {devices} devices and {messages} waiting messages{kept}\n\
             Devices register anew when they next connect.",
            database.display()
        )
    });
    Ok(())
}

async fn app(config: &ServerConfig, store: &Store, command: AppCommand, json: bool) -> Result<(), Fatal> {
    match command {
        AppCommand::Add { id, secret_file } => {
            let id = id.map_or_else(random_app_id, Ok)?;
            let secret = choose_secret(secret_file.as_deref())?;
            if !store.add_app(id.clone(), &secret).await.map_err(database)? {
                return Err(Fatal::new(Exit::Failure, format!("there is an app {id} already; see `app list`")));
            }
            print_credentials(json, &id, &secret);
        }
        AppCommand::Rotate { id, grace, secret_file } => {
            let secret = choose_secret(secret_file.as_deref())?;
            let hours = grace.unwrap_or(config.limits.secret_grace_hours);
            let grace_until = world::now().plus_minutes(hours.saturating_mul(60));
            if !store.set_app_secret(id.clone(), &secret, grace_until).await.map_err(database)? {
                return Err(no_such_app(&id));
            }
            print_rotated(json, &id, &secret, (hours > 0).then_some((hours, grace_until)));
        }
        AppCommand::Callback { id, url, key_file, .. } => callback(config, store, id, url, key_file, json).await?,
        AppCommand::Remove { id } => {
            if !store.remove_app(id.clone()).await.map_err(database)? {
                return Err(no_such_app(&id));
            }
            print(json, &json!({ "removed": id }), || format!("removed {id}"));
        }
        AppCommand::List => {
            let apps = store.list_apps().await.map_err(database)?;
            let rows: Vec<Value> = apps
                .iter()
                .map(|row| {
                    json!({ "appID": row.app, "registrations": row.registrations, "created_ms": row.created_ms,
                            "old_secret_until_ms": row.old_secret_until })
                })
                .collect();
            print(json, &json!({ "apps": rows }), || match apps.is_empty() {
                true => "no apps; add one with `bellwire-server app add`".to_owned(),
                false => apps
                    .iter()
                    .map(|row| format!("{:<36} {:>9} registrations{}", row.app, row.registrations, grace_left(row)))
                    .collect::<Vec<_>>()
                    .join("\n"),
            });
        }
    }
    Ok(())
}

async fn callback(
    config: &ServerConfig,
    store: &Store,
    id: AppId,
    url: Option<String>,
    key_file: Option<PathBuf>,
    json: bool,
) -> Result<(), Fatal> {
    let Some(url) = url else {
        if !store.set_callback(id.clone(), None).await.map_err(database)? {
            return Err(no_such_app(&id));
        }
        print(json, &json!({ "appID": id, "callback": null }), || format!("receipts of {id} go nowhere"));
        return Ok(());
    };
    config.check_url("the callback", "regIds and request ids", &url).map_err(Fatal::of(Exit::DataErr))?;
    let key = choose_secret(key_file.as_deref())?;
    let callback = Callback { url: url.clone(), key: key.clone().into_bytes() };
    if !store.set_callback(id.clone(), Some(callback)).await.map_err(database)? {
        return Err(no_such_app(&id));
    }
    print(json, &json!({ "appID": id, "callback": url, "key": key }), || {
        format!("appID:    {id}\ncallback: {url}\nkey:      {key}\n(the key is not shown again)")
    });
    Ok(())
}

async fn key(store: &Store, command: KeyCommand, json: bool) -> Result<(), Fatal> {
    match command {
        KeyCommand::Rotate => {
            let number = store.rotate_key().await.map_err(database)?;
            print(json, &json!({ "number": number }), || format!("key {number} seals regIds from now on"));
        }
        KeyCommand::List => {
            let keys = store.list_keys().await.map_err(database)?;
            let rows: Vec<Value> = keys
                .iter()
                .enumerate()
                .map(|(place, row)| json!({ "number": row.number, "created_ms": row.created_ms, "in_use": place == 0 }))
                .collect();
            print(json, &json!({ "keys": rows }), || {
                let line = |(place, number, made): (usize, i64, UnixMillis)| {
                    let role = if place == 0 { "seals and opens" } else { "opens" };
                    format!("key {number:<4} {role:<16} made {} days ago", (world::now().0 - made.0) / DAY_MS)
                };
                let lines: Vec<String> =
                    keys.iter().enumerate().map(|(place, row)| line((place, row.number, row.created_ms))).collect();
                lines.join("\n")
            });
        }
    }
    Ok(())
}

fn no_such_app(id: &AppId) -> Fatal {
    Fatal::new(Exit::Failure, format!("there is no app {id}; see `app list`"))
}

fn print_credentials(json: bool, id: &AppId, secret: &str) {
    print(json, &json!({ "appID": id, "appSecret": secret }), || {
        format!("appID:     {id}\nappSecret: {secret}\n(the secret is not shown again)")
    });
}

/// The new secret, and how long the old one has left: hours, and until when.
fn print_rotated(json: bool, id: &AppId, secret: &str, grace: Option<(u32, UnixMillis)>) {
    let until = grace.map(|(_, until)| until);
    print(json, &json!({ "appID": id, "appSecret": secret, "old_secret_until_ms": until }), || {
        let old = match grace {
            Some((hours, _)) => format!("the old one works for {hours} more hours, the one before it no longer"),
            None => "the old one is refused from now on".to_owned(),
        };
        format!("appID:     {id}\nappSecret: {secret}\n(the secret is not shown again; {old})")
    });
}

/// For a list: how long the secret before the present one works on.
fn grace_left(row: &AppRow) -> String {
    let minutes = |until: UnixMillis| (until.0 - world::now().0).max(0) / 60_000;
    row.old_secret_until.map_or_else(String::new, |until| {
        format!(", its old secret works for {} h {} min", minutes(until) / 60, minutes(until) % 60)
    })
}

fn print(json: bool, value: &Value, text: impl FnOnce() -> String) {
    daemon::say(&if json { value.to_string() } else { text() });
}

fn random_app_id() -> Result<AppId, Fatal> {
    hex::encode(world::random_bytes::<8>()).parse().map_err(Fatal::of(Exit::Software))
}

/// The operator's secret, or one of 160 random bits in the form that Tizen's have.
fn choose_secret(file: Option<&Path>) -> Result<String, Fatal> {
    let Some(file) = file else { return Ok(STANDARD.encode(world::random_bytes::<20>())) };
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text).map(|_| text),
        false => std::fs::read_to_string(file),
    };
    let text = read.map_err(|error| Fatal::new(Exit::IoErr, format!("{}: {error}", file.display())))?;
    let secret = text.trim();
    if secret.len() < SECRET_MIN || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Fatal::new(
            Exit::DataErr,
            format!("{}: a secret has at least {SECRET_MIN} printable ASCII characters without spaces", file.display()),
        ));
    }
    Ok(secret.to_owned())
}

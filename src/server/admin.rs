//! `bellwire-server`: the command line of the server, and what its subcommands do.
//!
//! Administration works on the database itself, beside a running server as well as without one.
//! A secret is printed once, when it is made, and is kept only as a hash.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;
use serde_json::json;

use crate::daemon::{self, Exit, Fatal, Reload, Stop};
use crate::proto::channel::SenderKey;
use crate::proto::{AppId, UnixMillis};
use crate::world;

use super::config::ServerConfig;
use super::manage::{self, Credentials, Refused, Removed, Rotated, SharedSecret, TokenName};
use super::reload::Settings;
use super::store::Store;
use super::store::sql::backup::Contents;
use super::{Listeners, api, run};
use super::{backup, check};

/// Milliseconds of a day.
pub const DAY_MS: i64 = 24 * 3600 * 1000;

/// The push server: takes notifications from application servers and gets them to devices.
#[derive(Debug, Parser)]
#[command(
    name = "bellwire-server",
    version,
    after_help = "\
Without a command it serves until SIGTERM. On SIGHUP it reads its configuration and its certificates again.
Sockets that systemd has opened for its addresses are taken; others it opens itself.

Run by root, the commands app, key, token, backup and restore act as the owner of the state folder: files that
they are given have to be that user's to read or write.

Exit status: 0 done, 1 the answer is no, 64 wrong usage, 65 wrong input or a store of a newer version, 69 address
or state folder in use, 74 the store or a file cannot be used, 77 the owner of the state folder cannot be acted
for, 78 wrong configuration.

See also bellwire-server-setup(7), bellwire-server.toml(5), bellwire-server-api(7), bellwire-tizen(7),
bellwire-webpush(7), bellwire-protocol(7)."
)]
pub struct Args {
    /// Configuration file [default: server.toml of $CREDENTIALS_DIRECTORY or /etc/bellwire, if there is one]
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
    /// damaged, 65 if it is of a newer version.
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
    /// What an MQTT broker needs to carry frames
    #[cfg(feature = "mqtt")]
    #[command(subcommand)]
    Mqtt(super::broker::command::MqttCommand),
    /// The tokens of the admin API and the metrics
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print the OpenAPI document of the HTTP API
    Openapi,
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
    ///
    /// Each region tells what becomes of messages to its own devices: say it in every one, with the same
    /// key. bellwire-tizen(7) has what is posted there, and bellwire-server-setup(7) a receiver.
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
    /// Say by which VAPID key an app sends Web Push messages: its callback is told of these too
    ///
    /// Of those for which the sender has asked to be told. bellwire-webpush(7) has what is posted to the
    /// callback, which `app callback` sets.
    VapidKey {
        /// Its id
        id: AppId,
        /// The public key: 65 bytes in base64url
        #[arg(required_unless_present = "none", conflicts_with = "none")]
        key: Option<SenderKey>,
        /// By none any more
        #[arg(long)]
        none: bool,
    },
    /// Remove an app, end its registrations and drop what waits for it
    Remove {
        /// Its id
        id: AppId,
    },
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print it
    Add {
        /// Its name, for list and remove [default: 8 random hex digits]
        name: Option<TokenName>,
    },
    /// List the tokens by name
    List,
    /// Remove a token; it is refused from now on
    Remove {
        /// Its name
        name: TokenName,
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
        Some(Command::Openapi) => {
            daemon::say(&api::document_text());
            return Ok(());
        }
        _ => {}
    }
    if matches!(args.command, None | Some(Command::Run)) {
        return serve(args.config);
    }
    let config =
        ServerConfig::load(args.config.or_else(ServerConfig::usual).as_deref()).map_err(Fatal::of(Exit::Config))?;
    match args.command {
        Some(Command::Check) => check::run(&config, args.json),
        Some(Command::App(command)) => administer(&config, async |store| app(&config, store, command, args.json).await),
        Some(Command::Key(command)) => administer(&config, async |store| key(store, command, args.json).await),
        Some(Command::Token(command)) => administer(&config, async |store| token(store, command, args.json).await),
        #[cfg(feature = "mqtt")]
        Some(Command::Mqtt(command)) => {
            // Root writes files of the broker, whoever's they are.
            with_store(&config, async |store| command.run(store, &config.mqtt, args.json).await)
        }
        Some(Command::Backup { file, force }) => back_up(&config, &file, force, args.json),
        Some(Command::Restore { file }) => restore(&config, &file, args.json),
        // Handled above.
        None | Some(Command::Run | Command::Completions { .. } | Command::Man { .. } | Command::Openapi) => Ok(()),
    }
}

fn serve(mut file: Option<PathBuf>) -> Result<(), Fatal> {
    // What was found once has to be there again: without it a reload would go back to the defaults.
    let mut read = move || {
        file = file.take().or_else(ServerConfig::usual);
        Settings::read(file.as_deref())
    };
    let settings = read()?;
    let config = &settings.config;
    daemon::start_logging(config.log, config.log_format);
    daemon::raise_file_limit();
    daemon::private_folder(&config.state_folder)?;
    let _mine = daemon::lock_folder(&config.state_folder, "bellwire-server")?;
    let _store = daemon::share_file(&config.state_folder, "server.db")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Fatal::of(Exit::Software))?;
    let listeners = Listeners::bind(config)?;
    runtime.block_on(async {
        let stop = Stop::on_signals().map_err(Fatal::of(Exit::Software))?;
        let reload = Reload::on_signals(read).map_err(Fatal::of(Exit::Software))?;
        run(settings, listeners, stop, reload).await
    })
}

fn administer(config: &ServerConfig, work: impl AsyncFnOnce(&Store) -> Result<(), Fatal>) -> Result<(), Fatal> {
    daemon::become_owner(&config.state_folder)?;
    with_store(config, work)
}

fn with_store(config: &ServerConfig, work: impl AsyncFnOnce(&Store) -> Result<(), Fatal>) -> Result<(), Fatal> {
    daemon::private_folder(&config.state_folder)?;
    // Beside a running server, but not while its database is replaced.
    let _store = daemon::share_file(&config.state_folder, "server.db")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Fatal::of(Exit::Software))?;
    runtime.block_on(async {
        let store = Store::open(&config.database(), config.limits)?;
        work(&store).await
    })
}

fn back_up(config: &ServerConfig, file: &Path, force: bool, json: bool) -> Result<(), Fatal> {
    daemon::become_owner(&config.state_folder)?;
    let bytes = backup::backup(config, file, force, json)?;
    print(json, &json!({ "file": file, "bytes": bytes }), || format!("wrote {} ({bytes} bytes)", file.display()));
    Ok(())
}

fn restore(config: &ServerConfig, file: &Path, json: bool) -> Result<(), Fatal> {
    daemon::become_owner(&config.state_folder)?;
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
            let secret = secret_file.as_deref().map(read_secret).transpose()?;
            print_credentials(json, &manage::add_app(store, id, secret).await?);
        }
        AppCommand::Rotate { id, grace, secret_file } => {
            let secret = secret_file.as_deref().map(read_secret).transpose()?;
            let grace = grace.unwrap_or(config.limits.secret_grace_hours);
            print_rotated(json, &manage::rotate_app(store, id, secret, grace).await?, grace);
        }
        AppCommand::Callback { id, url: Some(url), key_file, .. } => {
            let key = key_file.as_deref().map(read_secret).transpose()?;
            let made = manage::set_callback(config, store, id, url, key).await?;
            print(json, &made, || {
                format!(
                    "appID:    {}\ncallback: {}\nkey:      {}\n(the key is not shown again)",
                    made.app_id,
                    made.callback,
                    made.key.reveal()
                )
            });
        }
        AppCommand::Callback { id, url: None, .. } => {
            print_removed(json, &manage::remove_callback(store, id).await?);
        }
        AppCommand::VapidKey { id, key: Some(key), .. } => {
            let made = manage::set_vapid_key(store, id, key).await?;
            print(json, &made, || format!("appID:     {}\nVAPID key: {}", made.app_id, made.vapid_key));
        }
        AppCommand::VapidKey { id, key: None, .. } => {
            print_removed(json, &manage::remove_vapid_key(store, id).await?);
        }
        AppCommand::Remove { id } => print_removed(json, &manage::remove_app(store, id).await?.0),
        AppCommand::List => {
            let all = manage::apps(store).await?;
            let line = |app: &manage::App| {
                let callback = app.callback.as_ref().map(|url| format!(", receipts to {url}")).unwrap_or_default();
                let key = app.vapid_key.as_ref().map(|key| format!(", VAPID key {key}")).unwrap_or_default();
                let (id, registrations, grace) = (&app.app_id, app.registrations, grace_left(app));
                format!("{id:<36} {registrations:>9} registrations{grace}{callback}{key}")
            };
            print(json, &all, || list(&all.apps, line, "no apps; add one with `bellwire-server app add`"));
        }
    }
    Ok(())
}

async fn key(store: &Store, command: KeyCommand, json: bool) -> Result<(), Fatal> {
    match command {
        KeyCommand::Rotate => {
            let made = manage::rotate_key(store).await?;
            print(json, &made, || format!("key {} seals regIds from now on", made.number));
        }
        KeyCommand::List => {
            let all = manage::keys(store).await?;
            let line = |key: &manage::Key| {
                let role = if key.in_use { "seals and opens" } else { "opens" };
                format!("key {:<4} {role:<16} {}", key.number, made(key.created_ms))
            };
            print(json, &all, || list(&all.keys, line, "no keys"));
        }
    }
    Ok(())
}

async fn token(store: &Store, command: TokenCommand, json: bool) -> Result<(), Fatal> {
    match command {
        TokenCommand::Add { name } => {
            let made = manage::add_token(store, name).await?;
            print(json, &made, || {
                format!("name:  {}\ntoken: {}\n(the token is not shown again)", made.name.as_str(), made.token.reveal())
            });
        }
        TokenCommand::Remove { name } => print_removed(json, &manage::remove_token(store, name).await?),
        TokenCommand::List => {
            let all = manage::tokens(store).await?;
            let line = |token: &manage::Token| format!("{:<36} {}", token.name.as_str(), made(token.created_ms));
            print(json, &all, || list(&all.tokens, line, "no tokens; add one with `bellwire-server token add`"));
        }
    }
    Ok(())
}

impl From<Refused> for Fatal {
    fn from(refused: Refused) -> Self {
        let exit = match refused {
            Refused::Missing(_) | Refused::Conflict(_) => Exit::Failure,
            Refused::Unwise(_) => Exit::DataErr,
            Refused::Store(_) => Exit::IoErr,
        };
        Self::new(exit, refused)
    }
}

fn made(at: UnixMillis) -> String {
    format!("made {} days ago", (world::now().0 - at.0) / DAY_MS)
}

fn list<T>(rows: &[T], line: impl FnMut(&T) -> String, none: &str) -> String {
    match rows {
        [] => none.to_owned(),
        rows => rows.iter().map(line).collect::<Vec<_>>().join("\n"),
    }
}

fn print_credentials(json: bool, made: &Credentials) {
    print(json, made, || {
        format!("appID:     {}\nappSecret: {}\n(the secret is not shown again)", made.app_id, made.app_secret.reveal())
    });
}

/// The new secret, and how long the old one has left.
fn print_rotated(json: bool, made: &Rotated, grace_hours: u32) {
    print(json, made, || {
        let old = match made.old_secret_until_ms {
            Some(_) => format!("the old one works for {grace_hours} more hours, the one before it no longer"),
            None => "the old one is refused from now on".to_owned(),
        };
        format!(
            "appID:     {}\nappSecret: {}\n(the secret is not shown again; {old})",
            made.app_id,
            made.app_secret.reveal()
        )
    });
}

/// For a list: how long the secret before the present one works on.
fn grace_left(app: &manage::App) -> String {
    let minutes = |until: UnixMillis| (until.0 - world::now().0).max(0) / 60_000;
    app.old_secret_until_ms.map_or_else(String::new, |until| {
        format!(", its old secret works for {} h {} min", minutes(until) / 60, minutes(until) % 60)
    })
}

fn print_removed(json: bool, gone: &Removed) {
    print(json, gone, || format!("removed {}", gone.removed));
}

/// Prints a result as JSON or as text.
pub fn print(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) {
    // Invariant: every result has texts as keys, which is what JSON needs.
    let shown = if json { serde_json::to_string(value).expect("a result is JSON") } else { text() };
    daemon::say(&shown);
}

/// The secret that an operator has chosen.
fn read_secret(file: &Path) -> Result<SharedSecret, Fatal> {
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text).map(|_| text),
        false => std::fs::read_to_string(file),
    };
    let text = read.map_err(|error| Fatal::new(Exit::IoErr, format!("{}: {error}", file.display())))?;
    let wrong = |error| Fatal::new(Exit::DataErr, format!("{}: {error}", file.display()));
    text.trim().to_owned().try_into().map_err(wrong)
}

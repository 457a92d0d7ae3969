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

use crate::daemon::{self, Exit, Fatal, Stop};
use crate::db::DbError;
use crate::proto::{AppId, UnixMillis};
use crate::world;

use super::config::ServerConfig;
use super::manage::{self, AppSecret, Credentials, Refused, Removed, TokenName};
use super::store::Store;
use super::{Listeners, api, run};

/// The push server: takes notifications from application servers and gets them to devices.
#[derive(Debug, Parser)]
#[command(
    name = "bellwire-server",
    version,
    after_help = "\
Without a command it serves until SIGTERM. Exit status: 0 done, 1 the answer is no, 64 wrong usage,
65 wrong input, 69 address in use, 74 the store or a file cannot be used, 78 wrong configuration.

See also bellwire-server.toml(5), bellwire-server-api(7), bellwire-tizen(7), bellwire-protocol(7)."
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
    /// Check the configuration and say what would be served
    Check,
    /// The apps that may be sent to
    #[command(subcommand)]
    App(AppCommand),
    /// The keys that seal regIds
    #[command(subcommand)]
    Key(KeyCommand),
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
    /// Give an app another secret and print it; the old one is refused from now on
    Rotate {
        /// Its id
        id: AppId,
        /// Read the secret from this file, `-` for standard input [default: a random one]
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
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
    let config = ServerConfig::load(args.config.as_deref()).map_err(Fatal::of(Exit::Config))?;
    match args.command {
        None | Some(Command::Run) => serve(config),
        Some(Command::Check) => check(&config, args.json),
        Some(Command::App(command)) => administer(&config, async |store| app(store, command, args.json).await),
        Some(Command::Key(command)) => administer(&config, async |store| key(store, command, args.json).await),
        Some(Command::Token(command)) => administer(&config, async |store| token(store, command, args.json).await),
        // Handled above, where no configuration is needed.
        Some(Command::Completions { .. } | Command::Man { .. } | Command::Openapi) => Ok(()),
    }
}

fn serve(config: ServerConfig) -> Result<(), Fatal> {
    daemon::start_logging(config.log);
    daemon::raise_file_limit();
    daemon::private_folder(&config.state_folder)?;
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
    for files in [&config.api.tls, &config.gateway.tls, &config.admin.tls].into_iter().flatten() {
        crate::tls::server(files).map_err(Fatal::of(Exit::Config))?;
    }
    crate::tls::client(config.regions_ca.as_deref()).map_err(Fatal::of(Exit::Config))?;
    let regions: Vec<String> = config.regions.keys().map(ToString::to_string).collect();
    print(
        json,
        &json!({ "region": config.region, "api": config.api.listen, "gateway": config.gateway.listen,
                         "admin": config.admin.listen,
                         "state_folder": config.state_folder, "regions": regions }),
        || {
            format!(
                "region {}, API on {}, gateway on {}, admin API on {}, state in {}, other regions: {}",
                config.region,
                config.api.listen,
                config.gateway.listen,
                config.admin.listen.unwrap_or(config.api.listen),
                config.state_folder.display(),
                if regions.is_empty() { "none".to_owned() } else { regions.join(", ") }
            )
        },
    );
    Ok(())
}

async fn app(store: &Store, command: AppCommand, json: bool) -> Result<(), Fatal> {
    match command {
        AppCommand::Add { id, secret_file } => {
            let secret = secret_file.as_deref().map(read_secret).transpose()?;
            print_credentials(json, &manage::add_app(store, id, secret).await?);
        }
        AppCommand::Rotate { id, secret_file } => {
            let secret = secret_file.as_deref().map(read_secret).transpose()?;
            print_credentials(json, &manage::rotate_app(store, id, secret).await?);
        }
        AppCommand::Remove { id } => print_removed(json, &manage::remove_app(store, id).await?.0),
        AppCommand::List => {
            let all = manage::apps(store).await?;
            let line = |app: &manage::App| format!("{:<36} {:>9} registrations", app.app_id, app.registrations);
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
                format!("name:  {}\ntoken: {}\n(the token is not shown again)", made.name.as_str(), made.token)
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
            Refused::Store(_) => Exit::IoErr,
        };
        Self::new(exit, refused)
    }
}

fn made(at: UnixMillis) -> String {
    format!("made {} days ago", (world::now().0 - at.0) / 86_400_000)
}

fn list<T>(rows: &[T], line: impl FnMut(&T) -> String, none: &str) -> String {
    match rows {
        [] => none.to_owned(),
        rows => rows.iter().map(line).collect::<Vec<_>>().join("\n"),
    }
}

fn print_credentials(json: bool, made: &Credentials) {
    print(json, made, || {
        format!("appID:     {}\nappSecret: {}\n(the secret is not shown again)", made.app_id, made.app_secret)
    });
}

fn print_removed(json: bool, gone: &Removed) {
    print(json, gone, || format!("removed {}", gone.removed));
}

fn print(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) {
    // Invariant: every result has texts as keys, which is what JSON needs.
    let shown = if json { serde_json::to_string(value).expect("a result is JSON") } else { text() };
    daemon::say(&shown);
}

/// The secret that an operator has chosen.
fn read_secret(file: &Path) -> Result<AppSecret, Fatal> {
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text).map(|_| text),
        false => std::fs::read_to_string(file),
    };
    let text = read.map_err(|error| Fatal::new(Exit::IoErr, format!("{}: {error}", file.display())))?;
    let wrong = |error| Fatal::new(Exit::DataErr, format!("{}: {error}", file.display()));
    text.trim().to_owned().try_into().map_err(wrong)
}

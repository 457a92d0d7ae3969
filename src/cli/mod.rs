//! `bellwire`: the tool. One file a command; each prints text for people or, with `--json`, JSON
//! for scripts.

mod bench;
mod bus;
mod demo;
mod lab;
mod listen;
mod messages;
mod send;
mod settings;
mod status;
#[cfg(feature = "unifiedpush")]
mod unifiedpush;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::Value;

use crate::agent;
use crate::daemon::{self, Exit, Fatal};
use crate::proto::AppId;
use bus::BusName;

/// The tool: look at the agent of this device, be an app, be an application server, try it all.
#[derive(Debug, Parser)]
#[command(
    name = "bellwire",
    version,
    after_help = "\
Exit status: 0 done, 1 the answer is no, 64 wrong usage, 65 wrong input, 69 agent or server not
reached, 74 a file cannot be used, 77 not allowed, 78 wrong certificates.

See also org.bellwire.Push(7), bellwire-tizen(7)."
)]
struct Args {
    /// Print JSON, for scripts
    #[arg(long, global = true)]
    json: bool,
    /// The agent's bus: session, system or an address
    #[arg(long, global = true, value_name = "BUS", default_value = "session", env = "BELLWIRE_BUS")]
    bus: BusName,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the connection and the apps
    Status,
    /// Register an app and print its regId
    ///
    /// The app must not be connected meanwhile, as by `listen`, which prints its regId itself.
    Register {
        /// The app id
        app: AppId,
    },
    /// Be an app: register, and print its messages as they come
    Listen(listen::ListenArgs),
    /// Be an application server: send a notification
    Send(send::SendArgs),
    /// The apps on this device; lists them if nothing else is asked for
    #[command(visible_alias = "apps")]
    App {
        #[command(subcommand)]
        command: Option<AppCommand>,
    },
    /// The messages that came to this device
    #[command(subcommand)]
    Message(MessageCommand),
    /// This device
    #[command(subcommand)]
    Device(DeviceCommand),
    /// The apps that speak UnifiedPush; lists them if nothing else is asked for
    #[cfg(feature = "unifiedpush")]
    #[command(name = "unifiedpush")]
    UnifiedPush {
        #[command(subcommand)]
        command: Option<UnifiedPushCommand>,
    },
    /// Show the main job on private buses and servers: two regions, two devices, one app on each
    Demo,
    /// Measure throughput, latency and memory of the server with simulated devices
    Bench(bench::BenchArgs),
    /// Simulated devices, the second process of the bench
    #[command(hide = true)]
    BenchDevices(bench::devices::DevicesArgs),
    /// Print completions for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
        /// Those of bellwired, which has none in it to be small
        #[arg(long)]
        bellwired: bool,
    },
    /// Write the manual pages of this program and of bellwired into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum AppCommand {
    /// List the apps with state and number of unread messages
    List,
    /// Show one app with its settings
    Show {
        /// The app id
        app: AppId,
    },
    /// Change what an app may do
    Set(settings::SetArgs),
    /// Let an app be registered again; it is told to register
    Enable {
        /// The app id
        app: AppId,
    },
    /// End an app's registration, and let it have no other; its senders are told
    Disable {
        /// The app id
        app: AppId,
    },
    /// Remove all that this device has of an app, and end its registration
    Forget {
        /// The app id
        app: AppId,
    },
    /// Show an app's badge, or set it
    Badge {
        /// The app id
        app: AppId,
        /// 0 to 999
        count: Option<u32>,
    },
    /// End an app's registration
    Deregister {
        /// The app id
        app: AppId,
    },
}

#[derive(Debug, Subcommand)]
enum MessageCommand {
    /// List the newest messages and what became of them
    List {
        /// How many, at most 200
        #[arg(long, value_name = "N", default_value_t = 20)]
        most: u32,
        /// Only those of one app
        #[arg(long)]
        app: Option<AppId>,
    },
    /// Show everything that happened to one message
    Show {
        /// Its id, or the request id that its sender gave it
        id: String,
    },
}

#[cfg(feature = "unifiedpush")]
#[derive(Debug, Subcommand)]
enum UnifiedPushCommand {
    /// List the registrations with service, state, push server and number of unread messages
    List,
    /// Try the whole way: register, send an encrypted message through the push server, open what arrives
    Test(unifiedpush::TestArgs),
}

#[derive(Debug, Subcommand)]
enum DeviceCommand {
    /// Show its id and where it connects
    Show,
    /// Connect now instead of waiting for the next attempt
    Reconnect,
    /// Hold alerts back until this is off again, and start no app in the foreground
    DoNotDisturb {
        /// on or off
        #[arg(value_enum)]
        state: settings::State,
    },
}

/// How results are printed.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Prints a result, at once.
    fn print(self, value: &Value, text: impl FnOnce() -> String) {
        let line = if self.json { value.to_string() } else { text() };
        daemon::say(&line);
    }
}

/// The program.
pub fn main() -> ExitCode {
    match daemon::arguments::<Args>() {
        Ok(args) => daemon::finish("bellwire", run(args)),
        Err(code) => code,
    }
}

fn run(args: Args) -> Result<(), Fatal> {
    let (bus, output) = (&args.bus, Output { json: args.json });
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Fatal::of(Exit::Software))?;
    runtime.block_on(async {
        match args.command {
            Command::Status => status::status(bus, output).await,
            Command::Register { app } => listen::register(bus, &app, output).await,
            Command::Listen(args) => listen::listen(bus, args, output).await,
            Command::Send(args) => send::send(args, output).await,
            Command::App { command } => app(bus, command.unwrap_or(AppCommand::List), output).await,
            Command::Message(MessageCommand::List { most, app }) => {
                messages::list(bus, most, app.as_ref(), output).await
            }
            Command::Message(MessageCommand::Show { id }) => messages::show(bus, &id, output).await,
            Command::Device(DeviceCommand::Show) => status::device(bus, output).await,
            Command::Device(DeviceCommand::Reconnect) => status::reconnect(bus, output).await,
            Command::Device(DeviceCommand::DoNotDisturb { state }) => {
                settings::do_not_disturb(bus, state, output).await
            }
            #[cfg(feature = "unifiedpush")]
            Command::UnifiedPush { command } => match command {
                None | Some(UnifiedPushCommand::List) => unifiedpush::list(bus, output).await,
                Some(UnifiedPushCommand::Test(args)) => unifiedpush::test(bus, args, output).await,
            },
            Command::Demo => demo::demo(output).await,
            Command::Bench(args) => bench::bench(args, output).await,
            Command::BenchDevices(args) => bench::devices::run(args).await,
            Command::Completions { shell, bellwired } => {
                match bellwired {
                    true => daemon::print_completions::<agent::Args>(shell),
                    false => daemon::print_completions::<Args>(shell),
                }
                Ok(())
            }
            Command::Man { folder } => {
                daemon::write_manual::<agent::Args>(&folder)?;
                daemon::write_manual::<Args>(&folder)
            }
        }
    })
}

async fn app(bus: &BusName, command: AppCommand, output: Output) -> Result<(), Fatal> {
    match command {
        AppCommand::List => status::apps(bus, output).await,
        AppCommand::Show { app } => settings::show(bus, &app, output).await,
        AppCommand::Set(args) => settings::set(bus, args, output).await,
        AppCommand::Enable { app } => settings::enable(bus, &app, true, output).await,
        AppCommand::Disable { app } => settings::enable(bus, &app, false, output).await,
        AppCommand::Forget { app } => settings::forget(bus, &app, output).await,
        AppCommand::Badge { app, count } => settings::badge(bus, &app, count, output).await,
        AppCommand::Deregister { app } => listen::deregister(bus, &app, output).await,
    }
}

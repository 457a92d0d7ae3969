//! `bellwire`: the tool. One file a command; each prints text for people or, with `--json`, JSON
//! for scripts.

mod bench;
mod bus;
mod demo;
mod lab;
mod listen;
mod send;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::Value;

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
    Register {
        /// The app id
        app: AppId,
    },
    /// Be an app: register, and print its messages as they come
    Listen(listen::ListenArgs),
    /// Be an application server: send a notification
    Send(send::SendArgs),
    /// The apps on this device
    #[command(subcommand)]
    App(AppCommand),
    /// This device
    #[command(subcommand)]
    Device(DeviceCommand),
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
    /// List the apps with state and number of unread messages
    List,
    /// End an app's registration
    Deregister {
        /// The app id
        app: AppId,
    },
}

#[derive(Debug, Subcommand)]
enum DeviceCommand {
    /// Show its id and where it connects
    Show,
    /// Connect now instead of waiting for the next attempt
    Reconnect,
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
            Command::App(AppCommand::List) => status::apps(bus, output).await,
            Command::App(AppCommand::Deregister { app }) => listen::deregister(bus, &app, output).await,
            Command::Device(DeviceCommand::Show) => status::device(bus, output).await,
            Command::Device(DeviceCommand::Reconnect) => status::reconnect(bus, output).await,
            Command::Demo => demo::demo(output).await,
            Command::Bench(args) => bench::bench(args, output).await,
            Command::BenchDevices(args) => bench::devices::run(args).await,
            Command::Completions { shell } => {
                daemon::print_completions::<Args>(shell);
                Ok(())
            }
            Command::Man { folder } => daemon::write_manual::<Args>(&folder),
        }
    })
}

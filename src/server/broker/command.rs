//! `bellwire-server mqtt`: what an MQTT broker needs to carry frames.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use crate::daemon::{Exit, Fatal, Stop};
use crate::server::admin::print;
use crate::server::config::Mqtt;
use crate::server::store::Store;

use super::mosquitto::{self, Files, Synced};

/// What may be done for a broker.
#[derive(Debug, Subcommand)]
pub enum MqttCommand {
    /// Write the password and ACL files of mosquitto
    ///
    /// The password file has a line for this server (`[mqtt] user` and `password`) and one for each device that has
    /// greeted since `[mqtt] broker` was set; the ACL file lets each device use its own topics alone. A file is
    /// replaced as a whole, only when it changes, and keeps its owner and mode; a new one is its owner's alone. See
    /// bellwire-mqtt(7).
    Sync {
        /// `password_file` of mosquitto.conf(5)
        #[arg(long, value_name = "FILE")]
        passwords: PathBuf,
        /// `acl_file` of mosquitto.conf(5)
        #[arg(long, value_name = "FILE")]
        acl: PathBuf,
        /// `pid_file` of mosquitto.conf(5): mosquitto is told to read its files when they have changed
        #[arg(long, value_name = "FILE")]
        pid_file: Option<PathBuf>,
        /// Go on until SIGTERM, and look for changes every so many seconds
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
        every: Option<u64>,
    },
}

impl MqttCommand {
    /// Does it.
    pub async fn run(self, store: &Store, config: &Mqtt, json: bool) -> Result<(), Fatal> {
        let Self::Sync { passwords, acl, pid_file, every } = self;
        if config.password.is_none() {
            return Err(Fatal::new(
                Exit::Config,
                "`[mqtt] password` is not set: the broker would not let this server in",
            ));
        }
        if passwords == acl {
            return Err(Fatal::new(Exit::Usage, "--passwords and --acl are the same file"));
        }
        let files = Files { passwords, acl, pid: pid_file };
        // An earlier run may have ended between writing and telling.
        let mut first = true;
        let mut stop = Stop::on_signals().map_err(Fatal::of(Exit::Software))?;
        loop {
            let done = mosquitto::sync(store, config, &files, std::mem::take(&mut first)).await?;
            if every.is_none() || done.changed {
                report(json, done, &files);
            }
            let Some(seconds) = every else { return Ok(()) };
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
                () = stop.wait() => return Ok(()),
            }
        }
    }
}

fn report(json: bool, done: Synced, files: &Files) {
    let Synced { devices, changed, told } = done;
    let table = json!({ "devices": devices, "changed": changed, "told": told,
                        "passwords": files.passwords, "acl": files.acl });
    print(json, &table, || {
        let what = if changed { "written" } else { "nothing has changed" };
        let broker = match (&files.pid, told) {
            (Some(_), true) => "; mosquitto reads its files again",
            (Some(_), false) => "; mosquitto does not run",
            (None, _) if changed => "; tell mosquitto by SIGHUP",
            (None, _) => "",
        };
        format!("{devices} devices: {what}{broker}")
    });
}

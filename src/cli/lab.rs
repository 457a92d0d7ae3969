//! Real servers, agents, buses and apps in a throw-away folder, for the demo and the bench.
//! Everything that is started here ends with the [`Lab`].

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::daemon::{Exit, Fatal};

/// How long a program may take to say that it is ready, or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Lines that are kept of what each program says.
const KEPT: usize = 40;

/// The folder in which everything runs.
#[derive(Debug)]
pub struct Lab {
    folder: TempDir,
    log: &'static str,
}

/// A server that runs, or ran.
#[derive(Debug)]
pub struct ServerProcess {
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// The base URL of its API.
    pub api: String,
    /// The URL of its gateway.
    pub gateway: String,
}

/// A device: a private bus with an agent.
#[derive(Debug)]
pub struct DeviceProcess {
    _bus: Child,
    agent: Child,
    /// The bus's address.
    pub address: String,
}

/// An app at the command line of a device.
#[derive(Debug)]
pub struct AppProcess {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// Its regId.
    pub reg_id: String,
}

impl Lab {
    /// A new folder, in which programs log at this level.
    pub fn new(log: &'static str) -> Result<Self, Fatal> {
        Ok(Self { folder: TempDir::with_prefix("bellwire-").map_err(Fatal::of(Exit::IoErr))?, log })
    }

    /// What the programs said last, for people who look for the cause of a failure.
    pub fn said(&self) -> String {
        let Ok(entries) = std::fs::read_dir(self.folder.path()) else { return String::new() };
        let logs =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "log"));
        let mut logs: Vec<PathBuf> = logs.collect();
        logs.sort();
        logs.iter().map(|log| tail(log)).collect()
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a server's configuration; `more` is further TOML at its end.
    pub fn server(
        &self,
        region: &str,
        api: u16,
        gateway: u16,
        tls: Option<(&Path, &Path)>,
        more: &str,
    ) -> Result<ServerProcess, Fatal> {
        let config = self.path(&format!("server-{region}.toml"));
        let state = self.path(&format!("server-{region}"));
        let tls_line = tls.map_or_else(String::new, |(certificate, key)| {
            format!("tls = {{ certificate = {certificate:?}, key = {key:?} }}\n")
        });
        let scheme = if tls.is_some() { "wss" } else { "ws" };
        let text = format!(
            "region = \"{region}\"\nstate-folder = {state:?}\nlog = \"{}\"\n[api]\nlisten = \"127.0.0.1:{api}\"\n\
             [gateway]\nlisten = \"127.0.0.1:{gateway}\"\n{tls_line}{more}",
            self.log
        );
        write(&config, &text)?;
        Ok(ServerProcess {
            log: config.with_extension("log"),
            config,
            child: None,
            api: format!("http://127.0.0.1:{api}"),
            gateway: format!("{scheme}://127.0.0.1:{gateway}"),
        })
    }

    /// Starts a private bus and this agent on it; `more` is further TOML of its configuration.
    pub async fn device(
        &self,
        name: &str,
        program: PathBuf,
        gateway: &str,
        more: &str,
    ) -> Result<DeviceProcess, Fatal> {
        let address = format!("unix:path={}", self.path(&format!("bus-{name}")).display());
        let mut bus = Command::new("dbus-daemon");
        bus.args(["--session", "--nofork", "--nopidfile", "--print-address=1", "--address", &address]);
        let mut bus = spawn(bus.stdout(Stdio::piped()).stderr(Stdio::null())).map_err(|fatal| {
            Fatal::new(fatal.exit, format!("{} (`apt-get install dbus` provides dbus-daemon)", fatal.message))
        })?;
        wait_for_line(bus.stdout.take(), "unix:", None).await?;
        let config = self.path(&format!("agent-{name}.toml"));
        let state = self.path(&format!("agent-{name}"));
        write(&config, &format!("gateway = {gateway:?}\nstate-folder = {state:?}\nlog = \"{}\"\n{more}", self.log))?;
        let log = config.with_extension("log");
        let mut agent = Command::new(program);
        agent.arg("--config").arg(config).env("DBUS_SESSION_BUS_ADDRESS", &address).stderr(Stdio::piped());
        let mut agent = spawn(&mut agent)?;
        wait_for_line(agent.stderr.take(), " ready ", Some(log)).await?;
        Ok(DeviceProcess { _bus: bus, agent, address })
    }
}

impl ServerProcess {
    /// Starts it and waits until it is ready.
    pub async fn start(&mut self) -> Result<(), Fatal> {
        let mut command = Command::new(sibling("bellwire-server")?);
        command.arg("--config").arg(&self.config).stderr(Stdio::piped());
        let mut child = spawn(&mut command)?;
        wait_for_line(child.stderr.take(), " ready ", Some(self.log.clone())).await?;
        self.child = Some(child);
        Ok(())
    }

    /// Ends it in order.
    pub async fn stop(&mut self) -> Result<(), Fatal> {
        match &mut self.child {
            Some(child) => terminate(child).await,
            None => Ok(()),
        }
    }

    /// Adds an app with this secret.
    pub async fn add_app(&self, app: &str, secret: &str) -> Result<(), Fatal> {
        self.admin(&["app", "add", app, "--secret-file", "-", "--json"], secret).await
    }

    /// Runs a command of the server, with this on its standard input.
    pub async fn admin(&self, arguments: &[&str], input: &str) -> Result<(), Fatal> {
        let mut command = Command::new(sibling("bellwire-server")?);
        command.arg("--config").arg(&self.config).args(arguments);
        let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::null()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await.map_err(Fatal::of(Exit::IoErr))?;
        }
        match child.wait().await.map_err(Fatal::of(Exit::IoErr))?.success() {
            true => Ok(()),
            false => Err(Fatal::new(Exit::Software, format!("bellwire-server {} has failed", arguments.join(" ")))),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }
}

impl DeviceProcess {
    /// The agent's process id.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.id()
    }

    /// Starts an app that listens, and waits for its regId.
    pub async fn app(&self, app: &str) -> Result<AppProcess, Fatal> {
        let mut command = Command::new(sibling("bellwire")?);
        command.args(["--json", "--bus", &self.address, "listen", app]).stdout(Stdio::piped());
        let mut child = spawn(&mut command)?;
        let stdout = child.stdout.take().ok_or_else(|| Fatal::new(Exit::Software, "the app has no output"))?;
        let mut app = AppProcess { child, lines: BufReader::new(stdout).lines(), reg_id: String::new() };
        let first = app.next().await?;
        app.reg_id = first["reg_id"].as_str().unwrap_or_default().to_owned();
        Ok(app)
    }
}

impl AppProcess {
    /// The next thing it prints.
    pub async fn next(&mut self) -> Result<Value, Fatal> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line())
            .await
            .map_err(|_| Fatal::new(Exit::Failure, format!("the app printed nothing for {} s", PATIENCE.as_secs())))?;
        let line =
            line.map_err(Fatal::of(Exit::IoErr))?.ok_or_else(|| Fatal::new(Exit::Failure, "the app has ended"))?;
        serde_json::from_str(&line).map_err(Fatal::of(Exit::Software))
    }

    /// Ends it; returns what it printed that nobody has read, if there is anything.
    pub async fn stop(mut self) -> Result<Option<String>, Fatal> {
        terminate(&mut self.child).await?;
        self.lines.next_line().await.map_err(Fatal::of(Exit::IoErr))
    }
}

/// A port that nobody listens on now.
pub fn free_port() -> Result<u16, Fatal> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(Fatal::of(Exit::Unavailable))?;
    Ok(listener.local_addr().map_err(Fatal::of(Exit::Unavailable))?.port())
}

/// Another program of this package, beside this one.
pub fn sibling(name: &str) -> Result<PathBuf, Fatal> {
    let path = std::env::current_exe().map_err(Fatal::of(Exit::IoErr))?.with_file_name(name);
    match path.exists() {
        true => Ok(path),
        false => Err(Fatal::new(
            Exit::Unavailable,
            format!("{} is missing; build or install it beside this tool", path.display()),
        )),
    }
}

/// Starts a program that ends with this one.
pub fn spawn(command: &mut Command) -> Result<Child, Fatal> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    command
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Fatal::new(Exit::Unavailable, format!("{name} cannot be started: {error}")))
}

/// Waits for a line that holds `text`, and reads on in the background, into a log if one is named,
/// so that the program is never held up by a full pipe.
async fn wait_for_line(
    output: Option<impl tokio::io::AsyncRead + Unpin + Send + 'static>,
    text: &str,
    log: Option<PathBuf>,
) -> Result<(), Fatal> {
    let output = output.ok_or_else(|| Fatal::new(Exit::Software, "the program has no output"))?;
    let mut lines = BufReader::new(output).lines();
    let mut said = String::new();
    let found = tokio::time::timeout(PATIENCE, async {
        while let Ok(Some(line)) = lines.next_line().await {
            if line.contains(text) {
                return true;
            }
            said = line;
        }
        false
    });
    if !matches!(found.await, Ok(true)) {
        return Err(Fatal::new(Exit::Unavailable, format!("a program did not become ready; it said: {said}")));
    }
    tokio::spawn(async move {
        let mut log = log.and_then(|log| File::options().append(true).create(true).open(log).ok());
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(log) = &mut log {
                // A log that cannot be written is only less help.
                let _ = writeln!(log, "{line}");
            }
        }
    });
    Ok(())
}

/// The last lines of a log, each with its name.
fn tail(log: &Path) -> String {
    let name = log.file_stem().unwrap_or_default().to_string_lossy();
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(KEPT)..].iter().map(|line| format!("{name}: {line}\n")).collect()
}

async fn terminate(child: &mut Child) -> Result<(), Fatal> {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(Fatal::of(Exit::Software))?;
    }
    match tokio::time::timeout(PATIENCE, child.wait()).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Fatal::new(Exit::Failure, "a program did not end after SIGTERM")),
    }
}

fn write(path: &Path, text: &str) -> Result<(), Fatal> {
    std::fs::write(path, text).map_err(|error| Fatal::new(Exit::IoErr, format!("{}: {error}", path.display())))
}

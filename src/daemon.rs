//! What the programs share at their edges: logging, signals, exit codes, descriptor limits.

use std::fmt::Display;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, IsTerminal};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

#[cfg(feature = "server")]
use clap::CommandFactory;
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, warn};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, registry, reload};

use crate::config::{LogFormat, LogLevel};
use crate::supervisor;

/// How a program ends, in the numbers of sysexits(3), so that a supervisor can tell a mistake in
/// the configuration from bad luck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 1: the answer is no, or an expectation was not met.
    Failure = 1,
    /// 64: the command line makes no sense.
    Usage = 64,
    /// 65: the input makes no sense.
    DataErr = 65,
    /// 69: a peer is not there or does not answer.
    Unavailable = 69,
    /// 70: a mistake in the program.
    Software = 70,
    /// 74: reading or writing failed.
    IoErr = 74,
    /// 77: not allowed.
    NoPerm = 77,
    /// 78: the configuration makes no sense; starting again does not help.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// An error on its way out of the program.
#[derive(Debug)]
pub struct Fatal {
    /// The number for the supervisor.
    pub exit: Exit,
    /// The line for people.
    pub message: String,
}

impl Fatal {
    /// An error of this kind.
    pub fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    /// For `map_err`: the error, with its sources, as an error of this kind.
    pub fn of<E: std::error::Error>(exit: Exit) -> impl FnOnce(E) -> Self {
        move |error| Self { exit, message: chain(&error) }
    }
}

/// An error and its sources in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The command line, or the exit code of a program that has shown its help or complained.
pub fn arguments<A: Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|error| {
        // Nothing is left to do if the terminal is gone.
        let _ = error.print();
        if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS }
    })
}

/// Prints the completions of a program for a shell.
#[cfg(feature = "server")]
pub fn print_completions<A: CommandFactory>(shell: clap_complete::Shell) {
    let mut command = A::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut std::io::stdout());
}

/// Writes the manual pages of a program into a folder.
#[cfg(feature = "server")]
pub fn write_manual<A: CommandFactory>(folder: &Path) -> Result<(), Fatal> {
    clap_mangen::generate_to(A::command(), folder).map_err(Fatal::of(Exit::IoErr))
}

/// Prints a fatal error as `program: message` and gives its exit code.
pub fn finish(program: &str, result: Result<(), Fatal>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            eprintln!("{program}: {}", fatal.message);
            fatal.exit.into()
        }
    }
}

static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Starts logging to standard error. Under a supervisor that stamps lines itself (systemd sets
/// `JOURNAL_STREAM`) lines of text carry no time; colours only on a terminal.
pub fn start_logging(level: LogLevel, format: LogFormat) {
    let (filter, handle) = reload::Layer::new(filter(level));
    let lines = fmt::layer().with_target(false).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match (format, std::env::var_os("JOURNAL_STREAM")) {
        (LogFormat::Json, _) => lines.json().flatten_event(true).with_ansi(false).boxed(),
        (LogFormat::Text, Some(_)) => lines.without_time().boxed(),
        (LogFormat::Text, None) => lines.boxed(),
    };
    // A second start, as in tests, keeps the first.
    if registry().with(filter).with(lines).try_init().is_ok() {
        let _ = LEVEL.set(handle);
    }
}

/// Changes how much is logged.
pub fn log_at(level: LogLevel) {
    // Where logging never began there is nothing to change.
    if let Some(Err(error)) = LEVEL.get().map(|handle| handle.reload(filter(level))) {
        error!("the log stays as it is: {error}");
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    }
}

/// Tells everybody who holds one that the program is to stop.
#[derive(Clone, Debug)]
pub struct Stop {
    stopped: watch::Receiver<bool>,
}

impl Stop {
    /// A stop that never comes by itself, and what makes it come.
    pub fn manual() -> (watch::Sender<bool>, Self) {
        let (sender, stopped) = watch::channel(false);
        (sender, Self { stopped })
    }

    /// Comes with SIGTERM or SIGINT.
    pub fn on_signals() -> std::io::Result<Self> {
        let (sender, stop) = Self::manual();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            // Nobody listening is as good as stopped.
            let _ = sender.send(true);
            std::future::pending::<()>().await;
        });
        Ok(stop)
    }

    /// Whether the program is to stop.
    pub fn has_come(&self) -> bool {
        // An error means that the sender is gone, which is a stop as well.
        *self.stopped.borrow() || self.stopped.has_changed().is_err()
    }

    /// Returns when the program is to stop.
    pub async fn wait(&mut self) {
        // An error means that the sender is gone, which is a stop as well.
        let _ = self.stopped.wait_for(|stopped| *stopped).await;
    }
}

/// A configuration that is read again with each SIGHUP.
pub struct Reload<C> {
    hangups: Signal,
    read: Box<dyn FnMut() -> Result<C, Fatal> + Send>,
}

impl<C> Reload<C> {
    /// From now on SIGHUP does not end the program. `read` also checks what it reads.
    pub fn on_signals(read: impl FnMut() -> Result<C, Fatal> + Send + 'static) -> std::io::Result<Self> {
        Ok(Self { hangups: signal(SignalKind::hangup())?, read: Box::new(read) })
    }

    /// The next configuration that is good; who takes it into use tells the supervisor when that is
    /// [done](supervisor::ready). One that is not good changes nothing.
    pub async fn next(&mut self) -> C {
        loop {
            if self.hangups.recv().await.is_none() {
                // The runtime is ending.
                return std::future::pending().await;
            }
            supervisor::reloading();
            match (self.read)() {
                Ok(config) => return config,
                Err(fatal) => error!("the configuration stays as it was: {}", fatal.message),
            }
            supervisor::ready();
        }
    }
}

/// Says which keys of the configuration have changed and wait for the next start, if there are any.
pub fn name_later(keys: &[&str]) {
    if !keys.is_empty() {
        warn!("these keys have changed and take effect with the next start: {}", keys.join(", "));
    }
}

/// Raises the soft limit of open files to the hard one, where that can be done.
pub fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Makes the folder if it is missing, for its owner alone, and makes every file that the program
/// creates private.
pub fn private_folder(path: &Path) -> Result<(), Fatal> {
    use nix::sys::stat::{Mode, umask};
    umask(Mode::from_bits_truncate(0o077));
    std::fs::create_dir_all(path).map_err(|error| {
        Fatal::new(Exit::IoErr, format!("the state folder {} cannot be made: {error}", path.display()))
    })
}

/// Takes the state folder for one program of this name; it is free again when the file is dropped.
pub fn lock_folder(path: &Path, name: &str) -> Result<File, Fatal> {
    lock_file(path, name, &format!("another {name}"), File::try_lock)
}

/// Takes a file of the state folder to use it together with others that do the same.
pub fn share_file(path: &Path, name: &str) -> Result<File, Fatal> {
    lock_file(path, name, "a program that replaces files", File::try_lock_shared)
}

/// Takes a file of the state folder to replace it, which nobody may be using.
pub fn replace_file(path: &Path, name: &str) -> Result<File, Fatal> {
    lock_file(path, name, "another program", File::try_lock)
}

fn lock_file(
    path: &Path,
    name: &str,
    holder: &str,
    lock: fn(&File) -> Result<(), TryLockError>,
) -> Result<File, Fatal> {
    let path = path.join(format!("{name}.lock"));
    let cannot = |error: std::io::Error| Fatal::new(Exit::IoErr, format!("{} cannot be made: {error}", path.display()));
    let file = open_lock(&path).map_err(cannot)?;
    match lock(&file) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Fatal::new(Exit::Unavailable, format!("{holder} uses this state folder: {} is locked", path.display())))
        }
        Err(TryLockError::Error(error)) => Err(cannot(error)),
    }
}

/// Whoever the folder belongs to may have put anything there, and root may be who asks: no link is followed,
/// nothing is cut off, and what root makes is the owner's, who has to be able to use it.
fn open_lock(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.write(true).mode(0o600).custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits());
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            let folder = path.parent().map(Path::metadata).transpose()?;
            if let Some(folder) = folder.filter(|_| nix::unistd::geteuid().is_root()) {
                fchown(&file, Some(folder.uid()), Some(folder.gid()))?;
            }
            Ok(file)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => options.open(path),
        Err(error) => Err(error),
    }
}

/// Root becomes whom the folder belongs to, if it is there: what is made in it then is its daemon's, and what
/// that one has put there can lead root nowhere.
pub fn become_owner(folder: &Path) -> Result<(), Fatal> {
    use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};
    let Ok(owner) = folder.metadata() else { return Ok(()) };
    if !geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    setgroups(&[]).and_then(|()| setgid(group)).and_then(|()| setuid(user)).map_err(|error| {
        Fatal::new(Exit::NoPerm, format!("the owner of {} cannot be acted for: {error}", folder.display()))
    })
}

/// Prints a result. A reader that has gone (`| head -1`) wants no more, and is no error.
pub fn say(line: &str) {
    use std::io::Write;
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}

/// Locks a value that is whole at every moment, so that a panic elsewhere has not spoilt it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place where a test may let the power go: the program ends here, unasked and at once, if the
/// environment's `BELLWIRE_FAULT` names the place. Compiled only with the feature `fault-points`.
#[cfg(feature = "fault-points")]
pub fn fault_point(place: &str) {
    if std::env::var_os("BELLWIRE_FAULT").is_some_and(|wanted| wanted == place) {
        // Invariant: a process may always kill itself.
        nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL).expect("a signal is sent");
        std::thread::sleep(std::time::Duration::MAX);
    }
}

/// Nothing: there are no faults in a program for use.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn fault_point(_place: &str) {}

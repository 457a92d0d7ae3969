//! The password and ACL files of a mosquitto broker, made from the store.
//!
//! A file is replaced as a whole, keeps its owner and its mode, and only when something has changed. It holds no
//! secret: passwords are salted and hashed in mosquitto's own form, as they are in the store.

use std::io::Write;
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ring::pbkdf2;

use crate::daemon::{Exit, Fatal};
use crate::link::mqtt::topics;
use crate::server::config::Mqtt;
use crate::server::store::Store;
use crate::world;

/// Rounds of the hash: as many as mosquitto's own tool makes. A device's secret has 256 random bits, which no
/// number of rounds makes harder to guess.
const ROUNDS: NonZeroU32 = NonZeroU32::new(101).expect("it is not zero");
/// Users that are read at a time.
const STEP: usize = 1000;

/// A password as mosquitto stores it: PBKDF2 with HMAC-SHA-512.
pub fn hash(password: &str) -> String {
    let salt: [u8; 12] = world::random_bytes();
    let mut hash = [0; 64];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, ROUNDS, &salt, password.as_bytes(), &mut hash);
    format!("$7${ROUNDS}${}${}", STANDARD.encode(salt), STANDARD.encode(hash))
}

/// Whether it is this password that was hashed.
fn is_hash_of(line: &str, password: &str) -> bool {
    let parts: Vec<&str> = line.split('$').collect();
    let ["", "7", rounds, salt, hash] = parts.as_slice() else { return false };
    let (Ok(rounds), Ok(salt), Ok(hash)) = (rounds.parse(), STANDARD.decode(salt), STANDARD.decode(hash)) else {
        return false;
    };
    pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA512, rounds, &salt, password.as_bytes(), &hash).is_ok()
}

/// The files to keep.
#[derive(Clone, Debug)]
pub struct Files {
    /// `password_file` of mosquitto.conf(5).
    pub passwords: PathBuf,
    /// `acl_file` of mosquitto.conf(5).
    pub acl: PathBuf,
    /// The file with the number of the broker's process, which is told to read them again.
    pub pid: Option<PathBuf>,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// Devices that may connect.
    pub devices: usize,
    /// Whether a file was written.
    pub changed: bool,
    /// Whether the broker was told.
    pub told: bool,
}

/// Brings the files up to date, and tells the broker if they were not, or if it may not have been told before.
pub async fn sync(store: &Store, config: &Mqtt, files: &Files, tell_anyway: bool) -> Result<Synced, Fatal> {
    // What can be wrong is found before anything is written: what is written has to be told.
    let process = files.pid.as_deref().map(process).transpose()?.flatten();
    let (users, devices) = users(store, config, &files.passwords).await?;
    let changed = [replace(&files.passwords, &users)?, replace(&files.acl, &rules(config))?].contains(&true);
    let told = match process {
        Some(process) if changed || tell_anyway => tell(process)?,
        Some(_) | None => false,
    };
    Ok(Synced { devices, changed, told })
}

/// The lines of the password file, and how many of them are devices'.
async fn users(store: &Store, config: &Mqtt, present: &Path) -> Result<(String, usize), Fatal> {
    let mut lines = own_line(config, present).unwrap_or_default();
    let (mut devices, mut after) = (0, None);
    loop {
        let step = store.broker_users(after, STEP).await?;
        let Some((last, _)) = step.last() else { return Ok((lines, devices)) };
        (after, devices) = (Some(*last), devices + step.len());
        for (device, hash) in step {
            lines.push_str(&format!("{device}:{hash}\n"));
        }
    }
}

/// The server's own. The one that is there is kept while it is right, as each hash has a salt of its own.
fn own_line(config: &Mqtt, present: &Path) -> Option<String> {
    let (user, password) = (&config.user, config.password.as_ref()?);
    let text = std::fs::read_to_string(present).unwrap_or_default();
    let mut kept = text.lines().filter_map(|line| line.strip_prefix(user.as_str())?.strip_prefix(':'));
    let hash = kept.find(|hash| is_hash_of(hash, password)).map_or_else(|| hash(password), ToOwned::to_owned);
    Some(format!("{user}:{hash}\n"))
}

/// The lines of the ACL file. `%u` is the user, which for devices is their id.
fn rules(config: &Mqtt) -> String {
    let (user, root) = (&config.user, config.root());
    format!(
        "# Written by `bellwire-server mqtt sync`.\n\
         pattern write {root}/%u/hello/+\n\
         pattern write {root}/%u/up/+/+\n\
         pattern write {root}/%u/gone/+\n\
         pattern read {root}/%u/down/+\n\
         pattern read {}\n\
         \n\
         user {user}\n\
         topic readwrite {root}/#\n",
        topics::ends_of_servers(&root)
    )
}

/// Gives the file this text, unless it has it. Returns whether it was written.
fn replace(file: &Path, text: &str) -> Result<bool, Fatal> {
    let failed = |error: std::io::Error| Fatal::new(Exit::IoErr, format!("{}: {error}", file.display()));
    // What a link leads to is the file.
    let file = &file.canonicalize().unwrap_or_else(|_| file.to_owned());
    if std::fs::metadata(file).is_ok_and(|present| !present.is_file()) {
        return Err(Fatal::new(Exit::DataErr, format!("{} is no regular file", file.display())));
    }
    if std::fs::read_to_string(file).is_ok_and(|present| present == text) {
        return Ok(false);
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    new.write_all(text.as_bytes()).map_err(failed)?;
    if let Ok(present) = std::fs::metadata(file) {
        let mode = PermissionsExt::from_mode(present.mode() & 0o7777);
        new.as_file().set_permissions(mode).map_err(failed)?;
        let made = new.as_file().metadata().map_err(failed)?;
        if (made.uid(), made.gid()) != (present.uid(), present.gid()) {
            chown(new.path(), Some(present.uid()), Some(present.gid())).map_err(failed)?;
        }
    }
    new.as_file().sync_all().map_err(failed)?;
    new.persist(file).map_err(|error| failed(error.error))?;
    Ok(true)
}

/// The broker's process; none if the file is not there.
fn process(pid_file: &Path) -> Result<Option<Pid>, Fatal> {
    let wrong = |why: String| Fatal::new(Exit::DataErr, format!("{}: {why}", pid_file.display()));
    let text = match std::fs::read_to_string(pid_file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let pid = text.trim().parse::<i32>().ok().filter(|pid| *pid > 1);
    let pid = pid.ok_or_else(|| wrong("it holds no number that a broker's process could have".into()))?;
    Ok(Some(Pid::from_raw(pid)))
}

/// Tells the broker to read its files. Returns whether it runs.
fn tell(process: Pid) -> Result<bool, Fatal> {
    match kill(process, Signal::SIGHUP) {
        Ok(()) => Ok(true),
        Err(nix::Error::ESRCH) => Ok(false),
        Err(error) => Err(Fatal::new(Exit::IoErr, format!("process {process} cannot be told: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_of_its_password_alone() {
        let (one, two) = (hash("secret"), hash("secret"));
        assert_ne!(one, two, "each has a salt");
        assert!(is_hash_of(&one, "secret") && is_hash_of(&two, "secret"));
        assert!(!is_hash_of(&one, "Secret") && !is_hash_of("$7$101$x", "secret") && !is_hash_of("", ""));
        // Of mosquitto_passwd 2.0.11, for the password `bellwire`.
        let theirs = include_str!("mosquitto_passwd.txt");
        assert!(is_hash_of(theirs.trim().split_once(':').unwrap().1, "bellwire"));
    }

    #[test]
    fn a_file_is_written_when_it_changes_and_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("passwords");
        assert!(replace(&file, "a\n").unwrap());
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600, "nobody else reads a new one");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(!replace(&file, "a\n").unwrap());
        assert!(replace(&file, "b\n").unwrap());
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(!replace(&link, "b\n").unwrap() && replace(&link, "c\n").unwrap());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "c\n", "a link stays one");
        assert!(replace(folder.path(), "d\n").is_err());
    }

    #[test]
    fn a_broker_that_does_not_run_is_told_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        assert_eq!(process(&file).unwrap(), None);
        for wrong in ["1\n", "x", "-5", ""] {
            std::fs::write(&file, wrong).unwrap();
            assert!(process(&file).is_err(), "{wrong}");
        }
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        std::fs::write(&file, ended.id().to_string()).unwrap();
        assert!(!tell(process(&file).unwrap().unwrap()).unwrap());
    }
}

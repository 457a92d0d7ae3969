//! Configuration files as both halves read them: TOML, every key optional, unknown keys refused
//! with file and line.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Why a configuration cannot be used. For the operator; trying again does not help.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {error}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file says something that makes no sense.
    #[error("{path}:{line}: {message}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// In which line.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The settings contradict each other or the rules.
    #[error("{0}")]
    Unwise(String),
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what stops the program or loses something.
    Error,
    /// Also what an operator should look at.
    Warn,
    /// Also what the program does as a whole.
    #[default]
    Info,
    /// Also what each peer does.
    Debug,
}

/// What a line of the log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object, for programs.
    Json,
}

/// Certificate chain and private key of a TLS listener, both PEM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Reads the file, or else uses the defaults.
pub fn load<T: DeserializeOwned + Default>(file: Option<&Path>) -> Result<T, ConfigError> {
    let Some(path) = file else { return Ok(T::default()) };
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
    parse(path, &with_credentials(&text, credentials_folder().as_deref()))
}

/// The usual file of this name, if there is one: among the service's credentials, in the user's folder, or in
/// `/etc/bellwire`, in this order.
pub fn usual(file: &str, users: bool) -> Option<PathBuf> {
    let credentials = credentials_folder().map(PathBuf::from);
    let user = users.then(|| xdg_folder("XDG_CONFIG_HOME", ".config")).flatten();
    let folders = credentials.into_iter().chain(user).chain([PathBuf::from("/etc/bellwire")]);
    // One in a folder that may not be looked into counts as there: reading it says why it cannot be.
    let is_there =
        |path: &PathBuf| path.try_exists().unwrap_or_else(|error| error.kind() == ErrorKind::PermissionDenied);
    folders.map(|folder| folder.join(file)).find(is_there)
}

/// Where the supervisor has put what only this service may read: systemd.exec(5), `LoadCredential=`.
fn credentials_folder() -> Option<String> {
    std::env::var("CREDENTIALS_DIRECTORY")
        .ok()
        .filter(|folder| folder.starts_with('/') && !folder.contains(['"', '\\']))
}

/// Parses a configuration; `path` is only for the error.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        ConfigError::Invalid { path: path.to_owned(), line, message: error.message().to_owned() }
    })
}

/// Refuses a listener or peer without TLS, unless it is on loopback or `allowed` explicitly.
pub fn check_plain_text(what: &str, host: IpAddr, allowed: bool) -> Result<(), ConfigError> {
    if host.is_loopback() || allowed {
        return Ok(());
    }
    Err(ConfigError::Unwise(format!(
        "{what} on {host} would be unencrypted: configure TLS for it, or set `allow-plain-text = true` \
         if something in front of it encrypts"
    )))
}

/// An address of this machine on which nothing is reachable from outside.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The folder for the state: a service's for users that services run as, which are no people; else
/// `$XDG_STATE_HOME/bellwire` or `~/.local/state/bellwire`; a service's where there is no home.
pub fn state_folder() -> PathBuf {
    let users = (!is_service(nix::unistd::geteuid().as_raw())).then(|| xdg_folder("XDG_STATE_HOME", ".local/state"));
    users.flatten().unwrap_or_else(system_state_folder)
}

/// Whether services run as this user, by the ranges of systemd (UIDS-GIDS.md) and Debian. Root may be a person.
fn is_service(uid: u32) -> bool {
    (1..1000).contains(&uid) || (61184..=65519).contains(&uid)
}

/// The folder for a user's data: `$XDG_DATA_HOME`, else `~/.local/share`.
pub fn user_data_folder() -> Option<PathBuf> {
    xdg_base("XDG_DATA_HOME", ".local/share")
}

/// The folders of data for everybody: `$XDG_DATA_DIRS`, else `/usr/local/share` and `/usr/share`.
pub fn data_folders() -> Vec<PathBuf> {
    let set = std::env::var_os("XDG_DATA_DIRS").filter(|folders| !folders.is_empty());
    let folders = set.unwrap_or_else(|| "/usr/local/share:/usr/share".into());
    std::env::split_paths(&folders).filter(|path| path.is_absolute()).collect()
}

/// The folder of a service's state.
pub fn system_state_folder() -> PathBuf {
    PathBuf::from("/var/lib/bellwire")
}

/// Puts the folder of `LoadCredential=` in place of `"$CREDENTIALS_DIRECTORY/`, with which a path may begin.
/// Where there is none the text stays, and names a file that is not there.
fn with_credentials(text: &str, folder: Option<&str>) -> String {
    match folder {
        Some(folder) => text.replace("\"$CREDENTIALS_DIRECTORY/", &format!("\"{folder}/")),
        None => text.to_owned(),
    }
}

fn xdg_folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    Some(xdg_base(variable, below_home)?.join("bellwire"))
}

fn xdg_base(variable: &str, below_home: &str) -> Option<PathBuf> {
    let set = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    set.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(below_home)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        port: u16,
    }

    fn error(text: &str) -> String {
        parse::<Sample>(Path::new("a.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let unknown = error("port = 1\n\nprot = 2\n");
        assert!(unknown.starts_with("a.toml:3: unknown field `prot`"), "{unknown}");
        let wrong = error("\nport = \"x\"\n");
        assert!(wrong.starts_with("a.toml:2: invalid type"), "{wrong}");
        assert!(error("port = \n").starts_with("a.toml:1:"));
    }

    #[test]
    fn a_path_may_begin_with_the_folder_of_credentials() {
        let text = "key = \"$CREDENTIALS_DIRECTORY/tls.key\"\nother = \"a $CREDENTIALS_DIRECTORY/b\"\n";
        let with = with_credentials(text, Some("/run/credentials/a.service"));
        assert_eq!(with, "key = \"/run/credentials/a.service/tls.key\"\nother = \"a $CREDENTIALS_DIRECTORY/b\"\n");
        assert_eq!(with_credentials(text, None), text);
    }

    #[test]
    fn services_are_told_from_people_by_their_number() {
        assert!([0, 1000, 5001, 60000, 65534, 100_000].iter().all(|uid| !is_service(*uid)));
        assert!([1, 101, 999, 61184, 65519].iter().all(|uid| is_service(*uid)));
    }

    #[test]
    fn plain_text_stays_on_loopback() {
        let check = |host: &str, allowed| check_plain_text("x", host.parse().unwrap(), allowed).is_ok();
        assert!(check("127.0.0.1", false) && check("127.9.9.9", false) && check("::1", false));
        assert!(!check("0.0.0.0", false) && !check("192.0.2.1", false) && !check("::", false));
        assert!(check("0.0.0.0", true));
    }
}

//! What is installed on this device: manifests of apps (`apps.d/*.toml`) and desktop files.
//!
//! A manifest binds an app id to the way the app is started and to who may be it. An app without
//! one goes by its id: a desktop file or bus name that is called so belongs to it.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use freedesktop_desktop_entry::DesktopEntry;
use serde::Deserialize;
use tracing::{debug, warn};
use zbus::names::{OwnedWellKnownName, WellKnownName};

use super::config::Bus;
use super::store::Owner;
use crate::config;
use crate::daemon::lock;
use crate::proto::AppId;

/// What an app's manifest says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manifest {
    /// The app.
    pub app: AppId,
    /// Its name for people, in place of that of its desktop file.
    pub name: Option<String>,
    /// Its icon, in the same way: a name of the icon theme or a path.
    pub icon: Option<String>,
    /// How it is started.
    #[serde(default)]
    pub launch: LaunchBy,
    /// Who may be it: everything that is given must hold.
    #[serde(default)]
    pub allow: Allow,
    /// Its file.
    #[serde(skip)]
    pub path: PathBuf,
}

/// The ways to start an app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct LaunchBy {
    /// A name on the bus that starts the app.
    #[serde(deserialize_with = "bus_name")]
    pub bus_name: Option<OwnedWellKnownName>,
    /// Its desktop file, without folder and `.desktop`.
    pub desktop_file: Option<String>,
    /// A systemd unit.
    pub unit: Option<String>,
}

/// What a caller must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Allow {
    /// Its user.
    pub user: Option<User>,
    /// The Flatpak app.
    pub flatpak: Option<String>,
    /// The systemd unit that it runs in.
    pub unit: Option<String>,
    /// Its security label.
    pub label: Option<String>,
}

/// A user by name or number.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum User {
    /// The number.
    Id(u32),
    /// The name.
    Name(String),
}

impl User {
    /// The user's number, if there is such a user.
    pub fn uid(&self) -> Option<u32> {
        match self {
            Self::Id(uid) => Some(*uid),
            Self::Name(name) => nix::unistd::User::from_name(name).ok().flatten().map(|user| user.uid.as_raw()),
        }
    }
}

impl Allow {
    /// Whether anybody may be the app.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Manifest {
    /// One that says nothing.
    pub fn of(app: AppId) -> Self {
        Self { app, name: None, icon: None, launch: LaunchBy::default(), allow: Allow::default(), path: PathBuf::new() }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, config::ConfigError> {
        Ok(Self { path: path.to_owned(), ..config::parse(path, text)? })
    }
}

fn bus_name<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<OwnedWellKnownName>, D::Error> {
    let name = String::deserialize(from)?;
    OwnedWellKnownName::try_from(name).map(Some).map_err(serde::de::Error::custom)
}

/// How an app looks and starts, from everything that is installed of it.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Its name for people.
    pub name: String,
    /// Its icon.
    pub icon: Option<String>,
    /// Its desktop file.
    pub desktop: Option<Arc<DesktopEntry>>,
    /// The name that starts it on the bus, if that is activatable.
    pub bus_name: Option<OwnedWellKnownName>,
    /// The systemd unit that starts it.
    pub unit: Option<String>,
    /// A file of it, empty if only the bus knows it; nothing if nothing is installed.
    pub file: Option<String>,
}

/// The manifests and where they and desktop files are.
#[derive(Debug)]
pub struct Installed {
    /// Folders with shared data, the first goes before the others.
    data: Vec<PathBuf>,
    manifests: Mutex<HashMap<AppId, Arc<Manifest>>>,
    /// A manifest could not be read: nobody knows which app's it is.
    unsure: AtomicBool,
}

/// Most bytes of a manifest.
const MANIFEST_MAX: u64 = 64 * 1024;

impl Installed {
    /// Reads what is installed for everybody and, on a session's bus, for its user.
    pub fn read(bus: Bus) -> Self {
        let user = match bus {
            Bus::Session => config::user_data_folder(),
            Bus::System => None,
        };
        let data = user.into_iter().chain(config::data_folders()).collect();
        let this = Self { data, manifests: Mutex::default(), unsure: AtomicBool::new(false) };
        this.reload();
        this
    }

    /// Reads the manifests anew.
    pub fn reload(&self) {
        let (mut found, mut unsure) = (HashMap::new(), false);
        for folder in self.data.iter().map(|folder| folder.join(APPS)) {
            let (manifests, all) = manifests_in(&folder);
            unsure |= !all;
            for manifest in manifests {
                found.entry(manifest.app.clone()).or_insert_with(|| Arc::new(manifest));
            }
        }
        *lock(&self.manifests) = found;
        self.unsure.store(unsure, Ordering::Relaxed);
    }

    /// Whether an app that seems to be gone may only have a manifest that could not be read.
    pub fn is_unsure(&self) -> bool {
        self.unsure.load(Ordering::Relaxed)
    }

    /// The app's manifest.
    pub fn manifest(&self, app: &AppId) -> Option<Arc<Manifest>> {
        lock(&self.manifests).get(app).cloned()
    }

    /// The folders whose change may mean that apps come or go.
    pub fn folders(&self) -> Vec<PathBuf> {
        let below = |folder: &PathBuf| [APPS, APPLICATIONS, SERVICES].map(|name| folder.join(name));
        self.data.iter().flat_map(below).collect()
    }

    /// What is installed of an app that belongs to `owner`; `activatable` tells whether the bus can
    /// start a name.
    pub fn profile(&self, app: &AppId, owner: Option<&Owner>, activatable: impl Fn(&str) -> bool) -> Profile {
        let manifest = self.manifest(app);
        let launch = manifest.as_ref().map(|manifest| manifest.launch.clone()).unwrap_or_default();
        let flatpak = owner.and_then(|owner| owner.flatpak.clone());
        let by_id = flatpak.unwrap_or_else(|| app.to_string());
        let desktop = self.desktop_file(launch.desktop_file.as_ref().unwrap_or(&by_id)).map(Arc::new);
        let starts = |name: &OwnedWellKnownName| activatable(name.as_str());
        let bus_name = match launch.bus_name {
            Some(name) => Some(name).filter(starts),
            None => WellKnownName::try_from(by_id).ok().map(OwnedWellKnownName::from).filter(starts),
        };
        let named = manifest.as_ref().and_then(|manifest| manifest.name.clone());
        let languages = freedesktop_desktop_entry::get_languages_from_env();
        let entry_name = desktop.as_ref().and_then(|entry| entry.name(&languages).map(|name| name.into_owned()));
        let entry_icon = desktop.as_ref().and_then(|entry| entry.icon().map(str::to_owned));
        let files = manifest.as_ref().map(|manifest| &manifest.path);
        let file = files.or(desktop.as_ref().map(|entry| &entry.path)).map(|path| path.to_string_lossy().into_owned());
        let file = file.or(bus_name.as_ref().map(|_| String::new()));
        Profile {
            name: named.or(entry_name).unwrap_or_else(|| app.to_string()),
            icon: manifest.as_ref().and_then(|manifest| manifest.icon.clone()).or(entry_icon),
            file,
            desktop,
            bus_name,
            unit: launch.unit,
        }
    }

    fn desktop_file(&self, id: &str) -> Option<DesktopEntry> {
        if id.contains('/') {
            return None;
        }
        let paths = self.data.iter().map(|folder| folder.join(APPLICATIONS).join(format!("{id}.desktop")));
        let path = paths.into_iter().find(|path| path.is_file())?;
        let languages = freedesktop_desktop_entry::get_languages_from_env();
        match DesktopEntry::from_path(path.clone(), Some(&languages)) {
            Ok(entry) if entry.hidden() => None,
            Ok(entry) => Some(entry),
            // Looked at for every call of an app: a line each would have no end.
            Err(error) => {
                debug!("{}: not a desktop file: {error}", path.display());
                None
            }
        }
    }
}

const APPS: &str = "bellwire/apps.d";
const APPLICATIONS: &str = "applications";
const SERVICES: &str = "dbus-1/services";

/// The manifests in a folder, and whether these are all; one that is wrong is passed over with a
/// line in the log.
fn manifests_in(folder: &Path) -> (Vec<Manifest>, bool) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return (Vec::new(), error.kind() == ErrorKind::NotFound),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    // To open a pipe is to wait for whoever writes to it.
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "toml") && path.is_file());
    let (mut manifests, all) = (Vec::new(), paths.len());
    for path in paths {
        match read_manifest(&path) {
            Ok(manifest) => manifests.push(manifest),
            Err(error) => warn!("a manifest is passed over: {error}"),
        }
    }
    let complete = manifests.len() == all;
    (manifests, complete)
}

fn read_manifest(path: &Path) -> Result<Manifest, config::ConfigError> {
    use std::io::Read;
    let unreadable = |error| config::ConfigError::Unreadable { path: path.to_owned(), error };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MANIFEST_MAX).read_to_string(&mut text).map_err(unreadable)?;
    Manifest::parse(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Manifest, String> {
        Manifest::parse(Path::new("a.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_sample_is_a_manifest_with_every_key() {
        let manifest = parse(include_str!("../../examples/org.example.Chat.toml")).unwrap();
        assert_eq!(manifest.app.as_str(), "org.example.Chat");
        assert_eq!(manifest.allow.user, Some(User::Name("alice".into())));
        let LaunchBy { bus_name, desktop_file, unit } = manifest.launch;
        assert!(bus_name.is_some() && desktop_file.is_some() && unit.is_some());
        assert!(manifest.allow.flatpak.is_some() && manifest.allow.unit.is_some() && manifest.allow.label.is_some());
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_line() {
        assert!(parse("app = \"a b\"").unwrap_err().starts_with("a.toml:1:"));
        assert!(parse("app = \"a\"\n[allow]\nusr = 1").unwrap_err().starts_with("a.toml:3: unknown field `usr`"));
        assert!(parse("app = \"a\"\n[launch]\nbus-name = \"no\"").unwrap_err().starts_with("a.toml:3:"));
        assert!(parse("").is_err());
    }

    fn write(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_first_folder_goes_before_the_others_and_ids_find_desktop_files() {
        let (user, everybody) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(everybody.path(), "bellwire/apps.d/chat.toml", "app = \"chat\"\nname = \"for all\"");
        write(everybody.path(), "bellwire/apps.d/wrong.toml", "what = 1");
        write(
            everybody.path(),
            "applications/org.example.Mail.desktop",
            "[Desktop Entry]\nType=Application\nName=Mail\nIcon=mail\nExec=mail %U\n",
        );
        write(user.path(), "bellwire/apps.d/x.toml", "app = \"chat\"\nname = \"for me\"");
        let data = vec![user.path().to_owned(), everybody.path().to_owned()];
        let installed = Installed { data, manifests: Mutex::default(), unsure: AtomicBool::new(false) };
        installed.reload();
        assert!(installed.is_unsure());
        std::fs::remove_file(everybody.path().join("bellwire/apps.d/wrong.toml")).unwrap();
        installed.reload();
        assert!(!installed.is_unsure());
        let profile = |app: &str| installed.profile(&app.parse().unwrap(), None, |name| name == "org.example.Bus");
        assert_eq!(profile("chat").name, "for me");
        let mail = profile("org.example.Mail");
        assert_eq!((mail.name.as_str(), mail.icon.as_deref()), ("Mail", Some("mail")));
        assert!(mail.file.is_some_and(|file| file.ends_with("applications/org.example.Mail.desktop")));
        assert!(profile("org.example.Bus").bus_name.is_some());
        assert_eq!(profile("org.example.Bus").file.as_deref(), Some(""));
        assert_eq!(profile("org.example.Other").file, None);
        let flatpak = Owner { uid: 0, flatpak: Some("org.example.Mail".into()) };
        assert_eq!(installed.profile(&"0123".parse().unwrap(), Some(&flatpak), |_| false).name, "Mail");
    }
}

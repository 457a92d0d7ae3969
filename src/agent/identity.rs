//! Who is calling on D-Bus, and whether an app id is theirs.
//!
//! What a caller is comes from the bus and the kernel, never from what it says: its user, the
//! sandbox and the systemd unit of its process, its security label. The process is pinned by the
//! bus's pidfd where there is one (dbus 1.15.8 or later), else its number is looked at twice.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use zbus::fdo::DBusProxy;
use zbus::names::{BusName, UniqueName};

use super::config::Bus;
use super::installed::Manifest;
use super::store::Owner;

/// What is known of a process on the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its user.
    pub uid: u32,
    /// The Flatpak app it is, if it is one.
    pub sandbox: Sandbox,
    /// The systemd unit it runs in.
    pub unit: Option<Unit>,
    /// Its label of the kernel's security module (SMACK, SELinux, AppArmor).
    pub label: Option<String>,
}

/// Whether a process is a sandboxed app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// It is none.
    None,
    /// It is this Flatpak app.
    Flatpak(String),
    /// The daemon may not look.
    Unknown,
}

/// A unit of systemd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its name, such as `chat.service`.
    pub name: String,
    /// A user's manager runs it, so that its name says nothing to others.
    pub of_user: bool,
}

/// What a caller's right to an app rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// A manifest names it.
    Manifest,
    /// Whoever comes first keeps the id.
    FirstCome,
}

/// Why a caller has no right to an app, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoRight(String);

impl Identity {
    /// As the owner of an app that no manifest names.
    pub fn owner(&self) -> Owner {
        let flatpak = match &self.sandbox {
            Sandbox::Flatpak(app) => Some(app.clone()),
            Sandbox::None | Sandbox::Unknown => None,
        };
        Owner { uid: self.uid, flatpak }
    }
}

/// Whether this caller may be the app that the manifest, if there is one, is about. Only the number
/// of a user that the manifest names is looked up.
pub fn right(bus: Bus, manifest: Option<&Manifest>, caller: &Identity) -> Result<Right, NoRight> {
    let no = |why: &str| Err(NoRight(why.to_owned()));
    let Some(manifest) = manifest else {
        return match (bus, &caller.sandbox) {
            (Bus::System, _) => no("on the system bus an app needs a manifest, and there is none for this app"),
            (Bus::Session, Sandbox::Unknown) => no("it cannot be seen whether the caller is a sandboxed app"),
            (Bus::Session, Sandbox::None | Sandbox::Flatpak(_)) => Ok(Right::FirstCome),
        };
    };
    let allow = &manifest.allow;
    if bus == Bus::System && allow.is_empty() {
        return no("the app's manifest does not say who may connect as it");
    }
    if allow.user.as_ref().is_some_and(|user| user.uid() != Some(caller.uid)) {
        return no("the app's manifest names another user");
    }
    // A host process is no sandboxed app, and a sandboxed app is only what its manifest says.
    let flatpak = match &caller.sandbox {
        Sandbox::Flatpak(app) => Some(app),
        Sandbox::None | Sandbox::Unknown => None,
    };
    if flatpak != allow.flatpak.as_ref() {
        return no("the app's manifest names another Flatpak app, or the caller is one and it names none");
    }
    if allow.unit.is_some() && allow.unit.as_ref() != unit_that_counts(bus, caller) {
        return no("the app's manifest names another systemd unit");
    }
    if allow.label.is_some() && allow.label != caller.label {
        return no("the app's manifest names another security label");
    }
    Ok(Right::Manifest)
}

/// On the system bus a unit of a user's manager proves nothing: users name them as they like.
fn unit_that_counts(bus: Bus, caller: &Identity) -> Option<&String> {
    caller.unit.as_ref().filter(|unit| bus == Bus::Session || !unit.of_user).map(|unit| &unit.name)
}

/// Asks the bus and the kernel who has this name. `None` if they do not know.
pub async fn identify(bus: &zbus::Connection, name: &UniqueName<'_>) -> zbus::Result<Option<Identity>> {
    let dbus = DBusProxy::new(bus).await?;
    let credentials = dbus.get_connection_credentials(BusName::from(name.to_owned())).await?;
    let Some(uid) = credentials.unix_user_id() else { return Ok(None) };
    let label = credentials.linux_security_label().map(|label| {
        let text = label.strip_suffix(&[0]).unwrap_or(label);
        String::from_utf8_lossy(text).into_owned()
    });
    let pinned = credentials.process_fd();
    let pid = pinned.and_then(pid_of).or(credentials.process_id());
    let Some(pid) = pid else { return Ok(Some(Identity { uid, sandbox: Sandbox::Unknown, unit: None, label })) };
    let process = Path::new("/proc").join(pid.to_string());
    let born = started(&process);
    let (sandbox, unit) = (sandbox(&process), unit(&process));
    // The number may have gone to another process while we looked.
    let same = match pinned {
        Some(fd) => pid_of(fd) == Some(pid),
        None => born.is_some() && born == started(&process) && dbus.name_has_owner(name.to_owned().into()).await?,
    };
    Ok(same.then_some(Identity { uid, sandbox, unit, label }))
}

/// The process that a pidfd is for, while it lives: proc(5), `/proc/pid/fdinfo`.
fn pid_of(fd: &zbus::OwnedFd) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}

/// When the process began, in the kernel's clock ticks: field 22 of proc(5)'s `stat`.
fn started(process: &Path) -> Option<String> {
    start_time(&std::fs::read_to_string(process.join("stat")).ok()?)
}

/// The 22nd field; the second may have spaces and parentheses of its own.
pub fn start_time(stat: &str) -> Option<String> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

/// Most bytes of Flatpak's description of a sandbox; a real one has about a thousand.
const FLATPAK_INFO_MAX: u64 = 64 * 1024;

fn sandbox(process: &Path) -> Sandbox {
    let path = process.join("root/.flatpak-info");
    match std::fs::symlink_metadata(&path) {
        // The caller may have made the file itself, as large as it likes.
        Ok(info) if info.is_file() && info.len() <= FLATPAK_INFO_MAX => {
            flatpak_id(&path).map_or(Sandbox::Unknown, Sandbox::Flatpak)
        }
        Ok(_) => Sandbox::Unknown,
        Err(error) if error.kind() == ErrorKind::NotFound => Sandbox::None,
        Err(_) => Sandbox::Unknown,
    }
}

fn flatpak_id(path: &Path) -> Option<String> {
    // It may have become a pipe or grown since it was looked at.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path);
    let mut text = String::new();
    file.ok()?.take(FLATPAK_INFO_MAX).read_to_string(&mut text).ok()?;
    let info = freedesktop_desktop_entry::GenericEntry::from_str(path, &text).ok()?;
    info.group("Application")?.entry("name").map(str::to_owned)
}

fn unit(process: &Path) -> Option<Unit> {
    unit_in(&std::fs::read_to_string(process.join("cgroup")).ok()?)
}

/// The unit that a process's control group belongs to: cgroups(7), `/proc/pid/cgroup`.
fn unit_in(cgroups: &str) -> Option<Unit> {
    let path = |prefix: &str| cgroups.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(prefix));
    // systemd's own hierarchy, where there still is one beside the unified one.
    let path = path("name=systemd:").or_else(|| path(":"))?;
    let unit = |name: &str, of_user| is_unit(name).then(|| Unit { name: name.to_owned(), of_user });
    // As systemd finds it: the first group that is no slice. Below its own a unit may make groups
    // and name them as it likes.
    let mut parts = path.split('/').filter(|part| !part.is_empty() && !part.ends_with(".slice"));
    let first = parts.next()?;
    if !first.starts_with("user@") {
        return unit(first, false);
    }
    parts.next().map_or_else(|| unit(first, false), |name| unit(name, true))
}

fn is_unit(name: &str) -> bool {
    name.ends_with(".service") || name.ends_with(".scope")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::installed::{Allow, User};

    fn host(uid: u32) -> Identity {
        Identity { uid, sandbox: Sandbox::None, unit: None, label: None }
    }

    fn flatpak(app: &str) -> Identity {
        Identity { sandbox: Sandbox::Flatpak(app.into()), ..host(1000) }
    }

    fn manifest(allow: Allow) -> Manifest {
        Manifest { allow, ..Manifest::of("chat".parse().unwrap()) }
    }

    #[test]
    fn without_a_manifest_the_session_s_first_comer_keeps_the_id_and_the_system_s_nobody_has_it() {
        assert_eq!(right(Bus::Session, None, &host(1000)), Ok(Right::FirstCome));
        assert_eq!(right(Bus::Session, None, &flatpak("org.example.Chat")), Ok(Right::FirstCome));
        assert!(right(Bus::System, None, &host(0)).is_err());
        let hidden = Identity { sandbox: Sandbox::Unknown, ..host(1000) };
        assert!(right(Bus::Session, None, &hidden).is_err());
    }

    #[test]
    fn every_condition_of_a_manifest_must_hold() {
        let user = manifest(Allow { user: Some(User::Id(1000)), ..Allow::default() });
        assert_eq!(right(Bus::System, Some(&user), &host(1000)), Ok(Right::Manifest));
        assert!(right(Bus::System, Some(&user), &host(0)).is_err());
        assert!(right(Bus::Session, Some(&user), &flatpak("org.example.Chat")).is_err());
        let sandboxed = manifest(Allow { flatpak: Some("org.example.Chat".into()), ..Allow::default() });
        assert_eq!(right(Bus::Session, Some(&sandboxed), &flatpak("org.example.Chat")), Ok(Right::Manifest));
        assert!(right(Bus::Session, Some(&sandboxed), &flatpak("org.example.Mail")).is_err());
        assert!(right(Bus::Session, Some(&sandboxed), &host(1000)).is_err());
        let labelled = manifest(Allow { label: Some("User::App::chat".into()), ..Allow::default() });
        assert!(right(Bus::System, Some(&labelled), &host(1000)).is_err());
        let right_label = Identity { label: Some("User::App::chat".into()), ..host(1000) };
        assert_eq!(right(Bus::System, Some(&labelled), &right_label), Ok(Right::Manifest));
        assert!(right(Bus::System, Some(&manifest(Allow::default())), &host(0)).is_err());
    }

    #[test]
    fn on_the_system_bus_a_user_s_own_unit_proves_nothing() {
        let named = manifest(Allow { unit: Some("chat.service".into()), ..Allow::default() });
        let unit = |of_user| Identity { unit: Some(Unit { name: "chat.service".into(), of_user }), ..host(1000) };
        assert_eq!(right(Bus::System, Some(&named), &unit(false)), Ok(Right::Manifest));
        assert!(right(Bus::System, Some(&named), &unit(true)).is_err());
        assert_eq!(right(Bus::Session, Some(&named), &unit(true)), Ok(Right::Manifest));
        assert!(right(Bus::Session, Some(&named), &host(1000)).is_err());
    }

    #[test]
    fn units_are_found_in_either_kind_of_hierarchy() {
        let unit = |text: &str| unit_in(text).map(|unit| (unit.name, unit.of_user));
        assert_eq!(unit("0::/system.slice/chat.service\n"), Some(("chat.service".into(), false)));
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-chat@1.service/sub\n";
        assert_eq!(unit(user), Some(("app-chat@1.service".into(), true)));
        let older = "4:pids:/x\n1:name=systemd:/user.slice/user-0.slice/session-1.scope\n0::/\n";
        assert_eq!(unit(older), Some(("session-1.scope".into(), false)));
        assert_eq!(unit("0::/user.slice/user@1000.service/init.scope"), Some(("init.scope".into(), true)));
        assert_eq!(unit("0::/user.slice/user@1000.service/app"), None);
        assert_eq!(unit("0::/\n"), None);
    }

    #[test]
    fn a_group_below_a_unit_s_own_is_no_unit() {
        let unit = |text: &str| unit_in(text).map(|unit| (unit.name, unit.of_user));
        assert_eq!(unit("0::/system.slice/other.service/chat.service\n"), Some(("other.service".into(), false)));
        let container = "0::/machine.slice/machine-a.scope/payload/system.slice/chat.service\n";
        assert_eq!(unit(container), Some(("machine-a.scope".into(), false)));
        let other = "0::/system.slice/other.service/user@1000.service/app.slice/chat.service\n";
        assert_eq!(unit(other), Some(("other.service".into(), false)));
    }

    #[test]
    fn a_process_s_birth_is_read_whatever_its_name() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        assert_eq!(start_time(&format!("7 (a) b) {}", fields.join(" "))).as_deref(), Some("22"));
    }
}

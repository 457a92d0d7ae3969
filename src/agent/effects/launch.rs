//! Starting an app: on the bus, by its desktop file, or as a systemd unit.

use std::collections::HashMap;

use zbus::fdo::DBusProxy;
use zbus::names::OwnedWellKnownName;
use zbus::{ObjectPath, Variant};

use super::{START, process, systemd};
use crate::agent::bus::Shared;
use crate::agent::config::Bus;
use crate::agent::installed::Profile;
use crate::agent::plan::Manner;
use crate::agent::store::{AppRow, Launch, Pending};
use crate::db::DbError;
use crate::proto::MessageId;

/// Why and how an app is to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What it is told.
    pub launch: Launch,
    /// With its window or without.
    pub manner: Manner,
    /// What lets it put its window in front.
    pub token: Option<String>,
}

/// A way to start an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A name on the bus starts it.
    Bus(OwnedWellKnownName),
    /// The program of its desktop file, in a unit of the user's systemd.
    TransientUnit,
    /// A systemd unit that its manifest names.
    Unit(String),
    /// The program of its desktop file, as a process of its own.
    Process,
}

/// Why a way did not lead to a start.
#[derive(Debug, thiserror::Error)]
pub enum NoStart {
    /// It is not there, or nothing was started: another way may.
    #[error("{0}")]
    NotThisWay(String),
    /// Something may have been started: another way could start it twice.
    #[error("{0}")]
    Unknown(String),
    /// The device cannot store.
    #[error(transparent)]
    Store(#[from] DbError),
}

/// The ways to start an app of which this is installed, in the order in which they are tried. PURE.
pub fn ways(profile: &Profile, bus: Bus, own_user: bool) -> Vec<Way> {
    let by_name = profile.bus_name.clone().map(Way::Bus);
    let by_unit = profile.unit.clone().map(Way::Unit);
    let has_program = profile.desktop.is_some();
    // On the system bus the daemon's systemd and user are the machine's, not the app's.
    let transient = (has_program && bus == Bus::Session).then_some(Way::TransientUnit);
    let process = (has_program && own_user).then_some(Way::Process);
    by_name.into_iter().chain(transient).chain(by_unit).chain(process).collect()
}

/// Starts apps.
pub struct Launcher<'a> {
    /// What all objects share.
    pub shared: &'a Shared,
    /// The bus.
    pub bus: &'a zbus::Connection,
}

impl Launcher<'_> {
    /// Starts the app by the first way that works; returns how, or why none did.
    pub async fn start(
        &self,
        row: &AppRow,
        reason: &Reason,
        effects: &[Pending],
    ) -> Result<Result<String, String>, DbError> {
        let profile = self.shared.profile(self.bus, &row.app).await;
        let own_user = row.owner.uid == nix::unistd::geteuid().as_raw();
        let ways = ways(&profile, self.shared.config.bus, own_user);
        if ways.is_empty() {
            return Ok(Err("nothing is installed that says how to start it".to_owned()));
        }
        let mut reasons = Vec::new();
        for way in ways {
            match self.go(&way, &profile, row, reason, effects).await {
                Ok(how) => return Ok(Ok(how)),
                Err(NoStart::NotThisWay(why)) => reasons.push(why),
                Err(NoStart::Unknown(why)) => {
                    reasons.push(why);
                    break;
                }
                Err(NoStart::Store(error)) => return Err(error),
            }
        }
        Ok(Err(reasons.join("; ")))
    }

    async fn go(
        &self,
        way: &Way,
        profile: &Profile,
        row: &AppRow,
        reason: &Reason,
        effects: &[Pending],
    ) -> Result<String, NoStart> {
        match way {
            Way::Bus(name) => self.by_name(name, reason).await,
            Way::TransientUnit => {
                let program = process::program(profile)?;
                let unit = systemd::transient_name(row.app.as_str(), &occasion(effects));
                systemd::start_program(self.bus, &unit, &profile.name, &program, &environment(row, reason)).await
            }
            Way::Unit(unit) => systemd::start_unit(self.bus, unit).await,
            Way::Process => {
                let program = process::program(profile)?;
                let first = effects.first();
                if let Some(running) = first.and_then(|effect| effect.process.as_deref()).filter(|id| process::runs(id))
                {
                    return Ok(format!("it runs already, as process {running}"));
                }
                let held = process::hold(&program, &environment(row, reason))?;
                if let Some(effect) = first {
                    self.shared.store.starting(effect.place, held.id.clone()).await?;
                }
                crate::daemon::fault_point("process-noted");
                held.release().await
            }
        }
    }

    /// Starts it by its name on the bus. An app with a window is activated, which brings that to the
    /// front; the start is the same without one.
    async fn by_name(&self, name: &OwnedWellKnownName, reason: &Reason) -> Result<String, NoStart> {
        let start = async {
            match reason.manner {
                Manner::Background => self.start_by_name(name).await,
                Manner::Foreground => match self.activate(name, reason).await {
                    // The bus lets nobody call it, and has not started it.
                    Err(error) if is_denied(&error) => self.start_by_name(name).await,
                    activated => activated,
                },
            }
        };
        let started = tokio::time::timeout(START, start).await;
        match started {
            Ok(Ok(())) => Ok(format!("by its name {name} on the bus")),
            Ok(Err(error)) if runs_without_windows(&error) => Ok(format!("by its name {name} on the bus")),
            Ok(Err(error)) if was_not_started(&error) => {
                Err(NoStart::NotThisWay(format!("the bus did not start {name}: {error}")))
            }
            Ok(Err(error)) => Err(unknown(&error)),
            Err(_) => Err(NoStart::Unknown(format!("{name} did not answer"))),
        }
    }

    async fn start_by_name(&self, name: &OwnedWellKnownName) -> zbus::Result<()> {
        DBusProxy::new(self.bus).await?.start_service_by_name(name.clone().into(), 0).await?;
        Ok(())
    }

    async fn activate(&self, name: &OwnedWellKnownName, reason: &Reason) -> zbus::Result<()> {
        let path = ObjectPath::try_from(object_path(name.as_str()))?;
        let mut platform: HashMap<&str, Variant<'_>> =
            HashMap::from([("bellwire-launch-type", Variant::from(reason.launch.name()))]);
        if let Some(id) = reason.launch.message() {
            platform.insert("bellwire-message-id", Variant::from(id.to_string()));
        }
        if let Some(token) = &reason.token {
            platform.insert("activation-token", Variant::from(token.as_str()));
            platform.insert("desktop-startup-id", Variant::from(token.as_str()));
        }
        let application = Some("org.freedesktop.Application");
        self.bus.call_method(Some(name), &path, application, "Activate", &(platform,)).await.map(drop)
    }
}

/// The object of an app's `org.freedesktop.Application`: Desktop Entry Specification, "D-Bus
/// Activation".
fn object_path(name: &str) -> String {
    format!("/{}", name.replace('.', "/").replace('-', "_"))
}

/// The app was started by the call and has no `org.freedesktop.Application`.
fn runs_without_windows(error: &zbus::Error) -> bool {
    let names = ["UnknownMethod", "UnknownObject", "UnknownInterface", "NotSupported"];
    error_name(error)
        .is_some_and(|name| names.iter().any(|known| name == format!("org.freedesktop.DBus.Error.{known}")))
}

fn is_denied(error: &zbus::Error) -> bool {
    error_name(error).is_some_and(|name| name == "org.freedesktop.DBus.Error.AccessDenied")
}

/// The bus could not start it, nor could systemd where an activation file names a unit.
fn was_not_started(error: &zbus::Error) -> bool {
    let name = error_name(error).unwrap_or_default();
    ["org.freedesktop.DBus.Error.Spawn.", "org.freedesktop.systemd1."].iter().any(|start| name.starts_with(start))
        || name == "org.freedesktop.DBus.Error.ServiceUnknown"
}

/// The name of an error that a method was answered with.
pub fn error_name(error: &zbus::Error) -> Option<String> {
    use zbus::DBusError;
    if let zbus::Error::FDO(standard) = error {
        return Some(standard.name().to_string());
    }
    if let zbus::Error::MethodError(name, _, _) = error {
        return Some(name.to_string());
    }
    None
}

/// A call that was not answered: nobody knows what came of it.
pub fn has_no_answer(error: &zbus::Error) -> bool {
    let silent = ["NoReply", "Timeout", "TimedOut", "Disconnected"];
    error_name(error).is_none_or(|name| silent.iter().any(|known| name.ends_with(known)))
}

/// An error after which nobody knows whether something was started.
pub fn unknown(error: &zbus::Error) -> NoStart {
    NoStart::Unknown(error.to_string())
}

/// A name for this start that the same start has after a power cut, and no other has: that of the
/// oldest effect, whatever has come to it since.
fn occasion(effects: &[Pending]) -> String {
    let Some(oldest) = effects.first() else { return String::new() };
    let id = super::message(&oldest.task).as_ref().map(MessageId::to_string);
    id.unwrap_or_else(|| format!("registration{}", oldest.place))
}

/// What a started program finds in its environment.
fn environment(row: &AppRow, reason: &Reason) -> Vec<(&'static str, String)> {
    let manner = match reason.manner {
        Manner::Foreground => "foreground",
        Manner::Background => "background",
    };
    let mut variables = vec![
        ("BELLWIRE_APP", row.app.to_string()),
        ("BELLWIRE_LAUNCH_TYPE", reason.launch.name().to_owned()),
        ("BELLWIRE_LAUNCH_MANNER", manner.to_owned()),
    ];
    if let Some(id) = reason.launch.message() {
        variables.push(("BELLWIRE_MESSAGE_ID", id.to_string()));
    }
    if let Some(token) = &reason.token {
        variables.push(("XDG_ACTIVATION_TOKEN", token.clone()));
        variables.push(("DESKTOP_STARTUP_ID", token.clone()));
    }
    variables
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn profile() -> Profile {
        let entry = "[Desktop Entry]\nType=Application\nName=Chat\nExec=chat\n";
        let entry = freedesktop_desktop_entry::DesktopEntry::from_str("chat.desktop", entry, None::<&[&str]>).unwrap();
        Profile {
            name: "Chat".into(),
            icon: None,
            desktop: Some(Arc::new(entry)),
            bus_name: Some(OwnedWellKnownName::try_from("org.example.Chat").unwrap()),
            unit: Some("chat.service".into()),
            file: None,
        }
    }

    #[test]
    fn the_bus_goes_first_and_a_plain_process_last() {
        let all = ways(&profile(), Bus::Session, true);
        let name = OwnedWellKnownName::try_from("org.example.Chat").unwrap();
        let unit = Way::Unit("chat.service".into());
        assert_eq!(all, [Way::Bus(name.clone()), Way::TransientUnit, unit.clone(), Way::Process]);
        assert_eq!(ways(&profile(), Bus::System, false), [Way::Bus(name), unit]);
        let bare = Profile { desktop: None, bus_name: None, unit: None, ..profile() };
        assert_eq!(ways(&bare, Bus::Session, true), []);
    }

    #[test]
    fn the_object_of_a_name_is_that_of_the_specification() {
        assert_eq!(object_path("org.example.Chat-App"), "/org/example/Chat_App");
    }
}

//! Starting apps as units of systemd: one that is installed, or a transient one for a program.

use futures_util::StreamExt;

use zbus::{OwnedObjectPath, Variant, proxy};

use super::START;
use super::launch::{NoStart, error_name, has_no_answer, unknown};
use super::process::Program;

/// systemd's manager: the user's on a session's bus, the machine's on the system bus.
#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        others: &[(&str, Vec<(&str, Variant<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: &str, result: &str) -> zbus::Result<()>;
}

/// The name of the transient unit for a program: desktops find the app by its form, and the same
/// start has the same name. Source: systemd, "Desktop Environment Integration".
pub fn transient_name(app: &str, occasion: &str) -> String {
    format!("app-bellwire-{}@{}.service", escape(app), escape(occasion))
}

/// As systemd-escape(1).
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b':' | b'_' => escaped.push(char::from(byte)),
            b'.' if at > 0 => escaped.push('.'),
            b'/' => escaped.push('-'),
            other => escaped.push_str(&format!("\\x{other:02x}")),
        }
    }
    escaped
}

/// Starts an installed unit; one that runs already stays as it is.
pub async fn start_unit(bus: &zbus::Connection, unit: &str) -> Result<String, NoStart> {
    let manager = ManagerProxy::new(bus).await.map_err(|error| unknown(&error))?;
    in_time(wait(&manager, manager.start_unit(unit, "replace"))).await?;
    Ok(format!("as the unit {unit}"))
}

/// Starts a program in a transient unit, outside the daemon's own control group.
pub async fn start_program(
    bus: &zbus::Connection,
    unit: &str,
    title: &str,
    program: &Program,
    environment: &[(&str, String)],
) -> Result<String, NoStart> {
    let path = program.path()?;
    let variables: Vec<String> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut properties = vec![
        ("Description", Variant::from(title)),
        // The start has failed if the program cannot be executed.
        ("Type", Variant::from("exec")),
        // As it is written: a desktop file's dollar is no variable.
        ("ExecStartEx", Variant::from(vec![(path, program.arguments.clone(), vec!["no-env-expand"])])),
        ("Environment", Variant::from(variables)),
        ("Slice", Variant::from("app.slice")),
        ("CollectMode", Variant::from("inactive-or-failed")),
    ];
    if let Some(folder) = &program.folder {
        properties.push(("WorkingDirectory", Variant::from(folder.as_str())));
    }
    let manager = ManagerProxy::new(bus).await.map_err(|error| unknown(&error))?;
    in_time(wait(&manager, manager.start_transient_unit(unit, "fail", &properties, &[]))).await?;
    Ok(format!("as the unit {unit}"))
}

async fn in_time(start: impl Future<Output = Result<(), NoStart>>) -> Result<(), NoStart> {
    tokio::time::timeout(START, start)
        .await
        .unwrap_or_else(|_| Err(NoStart::Unknown("systemd has not finished the start".to_owned())))
}

/// Waits for the job that a call begins.
async fn wait(
    manager: &ManagerProxy<'_>,
    call: impl Future<Output = zbus::Result<OwnedObjectPath>>,
) -> Result<(), NoStart> {
    let mut removed = manager.receive_job_removed().await.map_err(|error| unknown(&error))?;
    let (mut begun, mut early) = (std::pin::pin!(begin(manager, call)), Vec::new());
    let job = loop {
        tokio::select! {
            job = &mut begun => break job?,
            // A stream that is not read holds up everything on the bus, and with it the answer.
            Some(signal) = removed.next() => early.push(signal),
        }
    };
    let Some(job) = job else { return Ok(()) };
    let mut removed = futures_util::stream::iter(early).chain(removed);
    while let Some(signal) = removed.next().await {
        let Ok(ended) = signal.args() else { continue };
        if ended.job() == &job {
            return match *ended.result() {
                "done" => Ok(()),
                other => Err(NoStart::NotThisWay(format!("its unit {} did not start: {other}", ended.unit()))),
            };
        }
    }
    Err(NoStart::Unknown("the bus is gone".to_owned()))
}

/// The job that a call begins; `None` if the unit runs already.
async fn begin(
    manager: &ManagerProxy<'_>,
    call: impl Future<Output = zbus::Result<OwnedObjectPath>>,
) -> Result<Option<OwnedObjectPath>, NoStart> {
    // Without a subscriber systemd sends no signals. A second subscription is an error, and none.
    let subscribed = manager.subscribe().await;
    if let Err(error) = &subscribed
        && is_absent(error)
    {
        return Err(NoStart::NotThisWay("there is no systemd on this bus".to_owned()));
    }
    match call.await {
        Ok(job) => Ok(Some(job)),
        Err(error) if is(&error, "org.freedesktop.systemd1.UnitExists") => Ok(None),
        Err(error) if has_no_answer(&error) => Err(unknown(&error)),
        Err(error) => Err(NoStart::NotThisWay(format!("systemd did not start it: {error}"))),
    }
}

fn is_absent(error: &zbus::Error) -> bool {
    let absent = ["ServiceUnknown", "NameHasNoOwner", "Spawn.ServiceNotFound", "Spawn.ChildExited", "AccessDenied"];
    absent.iter().any(|name| is(error, &format!("org.freedesktop.DBus.Error.{name}")))
}

fn is(error: &zbus::Error, name: &str) -> bool {
    error_name(error).is_some_and(|known| known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_s_name_is_what_desktops_expect() {
        assert_eq!(transient_name("org.example.Chat-2", "0a"), "app-bellwire-org.example.Chat\\x2d2@0a.service");
    }
}

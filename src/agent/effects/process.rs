//! Starting a program as a process of its own, where there is no systemd to ask.
//!
//! The process waits before it becomes the program until its number is on disk: after a power cut
//! the daemon knows what it has started. It is in a process group and, where the daemon may make
//! one, a control group beside the daemon's, so that stopping the daemon does not stop apps.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tracing::debug;

use super::launch::NoStart;
use crate::agent::identity;
use crate::agent::installed::Profile;

/// What a desktop file says is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program and its arguments.
    pub arguments: Vec<String>,
    /// The folder to run it in.
    pub folder: Option<String>,
}

impl Program {
    /// The file of the program.
    pub fn path(&self) -> Result<String, NoStart> {
        let name = self.arguments.first().map(String::as_str).unwrap_or_default();
        let found = find(name, &std::env::var_os("PATH").unwrap_or_default());
        let found = found.and_then(|path| path.to_str().map(str::to_owned));
        found.ok_or_else(|| NoStart::NotThisWay(format!("there is no program {name}")))
    }
}

fn find(name: &str, folders: &std::ffi::OsStr) -> Option<PathBuf> {
    let runs =
        |path: &PathBuf| path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    if name.starts_with('/') {
        return Some(PathBuf::from(name)).filter(runs);
    }
    if name.is_empty() || name.contains('/') {
        return None;
    }
    std::env::split_paths(folders).map(|folder| folder.join(name)).find(runs)
}

/// The program of an app's desktop file.
pub fn program(profile: &Profile) -> Result<Program, NoStart> {
    let not = |why: &str| NoStart::NotThisWay(format!("its desktop file {why}"));
    let entry = profile.desktop.as_ref().ok_or_else(|| not("is missing"))?;
    if entry.terminal() {
        return Err(not("wants a terminal"));
    }
    let arguments = entry.parse_exec().map_err(|error| not(&format!("has no program: {error}")))?;
    Ok(Program { arguments, folder: entry.path().map(str::to_owned) })
}

/// A process that waits to become its program.
pub struct Held {
    /// Its number, birth and machine's start, which no other process has together.
    pub id: String,
    child: Child,
}

/// What the shell does until it is the program.
const HOLD: &str = "read -r go && exec \"$@\" </dev/null";
/// How a shell ends that cannot become a program: POSIX, "Exit Status for Commands".
const NO_PROGRAM: [i32; 2] = [126, 127];
/// Becoming one takes a moment: the pause between looks, and most looks.
const LOOK: Duration = Duration::from_millis(2);
const LOOKS: u32 = 1000;

/// Makes the process.
pub fn hold(program: &Program, environment: &[(&str, String)]) -> Result<Held, NoStart> {
    let path = program.path()?;
    let failed = |error: std::io::Error| NoStart::NotThisWay(format!("no process could be made: {error}"));
    let mut command = Command::new("/bin/sh");
    // If the daemon ends before it has written, the shell reads an end and so ends as well.
    command.args(["-c", HOLD, "sh", &path]).args(&program.arguments[1..]);
    command.stdin(Stdio::piped()).process_group(0);
    // The daemon's own affairs with systemd.
    for own in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(own);
    }
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    if let Some(folder) = &program.folder {
        command.current_dir(folder);
    }
    let child = command.spawn().map_err(failed)?;
    let pid = child.id().unwrap_or_default();
    leave_control_group(pid);
    let id = identity_of(pid).ok_or_else(|| NoStart::NotThisWay("the process ended at once".to_owned()))?;
    Ok(Held { id, child })
}

impl Held {
    /// Lets it become its program.
    pub async fn release(mut self) -> Result<String, NoStart> {
        let failed = |error: std::io::Error| NoStart::NotThisWay(format!("the process ended at once: {error}"));
        let Some(mut input) = self.child.stdin.take() else {
            return Err(NoStart::NotThisWay("the process has no input".to_owned()));
        };
        input.write_all(b"go\n").await.map_err(failed)?;
        let pid = self.child.id().unwrap_or_default();
        self.changed(pid).await?;
        let how = format!("as process {pid}");
        tokio::spawn(async move {
            // Nobody waits for what it says; it must not stay behind as a zombie.
            let _ = self.child.wait().await;
        });
        Ok(how)
    }

    /// Waits until the shell has become the program, or has ended because it could not.
    async fn changed(&mut self, pid: u32) -> Result<(), NoStart> {
        for _ in 0..LOOKS {
            if let Ok(Some(status)) = self.child.try_wait() {
                return match status.code().is_some_and(|code| NO_PROGRAM.contains(&code)) {
                    true => Err(NoStart::NotThisWay(format!("its program could not be executed: {status}"))),
                    false => Ok(()),
                };
            }
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // One that has just ended has no arguments any more.
            if !arguments.is_empty() && !arguments.split(|byte| *byte == 0).any(|word| word == HOLD.as_bytes()) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

/// Whether this process still runs.
pub fn runs(id: &str) -> bool {
    let pid = id.split_once(':').and_then(|(pid, _)| pid.parse().ok());
    pid.is_some_and(|pid| identity_of(pid).as_deref() == Some(id))
}

fn identity_of(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // A process that has ended and was not waited for is none.
    if stat.rsplit_once(')')?.1.trim_start().starts_with('Z') {
        return None;
    }
    // Births are counted from the start of the machine, and one start is much like another.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("{pid}:{}:{}", identity::start_time(&stat)?, boot.trim()))
}

/// Moves the process to a control group beside the daemon's, in cgroup v2.
fn leave_control_group(pid: u32) {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(folder) = group_beside(&own) else { return };
    let moved =
        std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(folder.join("cgroup.procs"), pid.to_string()));
    if let Err(error) = moved {
        debug!(pid, "the app stays in the daemon's control group: {error}");
    }
}

/// The folder of the group; `None` where the daemon is in the root group, which nobody stops.
fn group_beside(own: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let parent = Path::new(path).parent()?;
    Some(Path::new("/sys/fs/cgroup").join(parent.strip_prefix("/").ok()?).join("bellwire-apps"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(arguments: &[&str]) -> Program {
        Program { arguments: arguments.iter().map(|text| (*text).to_owned()).collect(), folder: None }
    }

    #[tokio::test]
    async fn a_process_runs_only_when_it_is_released() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let touch = program(&["touch", mark.to_str().unwrap()]);
        let held = hold(&touch, &[]).unwrap();
        let id = held.id.clone();
        assert!(runs(&id));
        drop(held);
        while runs(&id) {
            tokio::task::yield_now().await;
        }
        assert!(!mark.exists());
        hold(&touch, &[]).unwrap().release().await.unwrap();
        while !mark.exists() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_executed_was_not_started() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, "#!/no/such/interpreter\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let started = hold(&program(&[path.to_str().unwrap()]), &[]).unwrap().release().await;
        assert!(started.unwrap_err().to_string().contains("could not be executed"));
        assert!(hold(&program(&["false"]), &[]).unwrap().release().await.is_ok());
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert!(program(&["sh"]).path().unwrap().ends_with("/sh"));
        assert!(program(&["/bin/sh"]).path().is_ok());
        assert!(program(&["./sh"]).path().is_err());
        assert!(program(&["no-such-program"]).path().is_err());
    }

    #[test]
    fn the_group_is_beside_the_daemon_s() {
        assert_eq!(
            group_beside("1:x:/a\n0::/push/bellwired\n").unwrap(),
            Path::new("/sys/fs/cgroup/push/bellwire-apps")
        );
        assert_eq!(group_beside("0::/\n"), None);
    }
}

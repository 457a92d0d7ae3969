//! Who may be an app, on a real bus: callers of another user, of another sandbox, and with a
//! manifest that names somebody else are refused whatever they ask for, and find nothing changed.
//!
//! The callers are gdbus as another user and inside bubblewrap with the file that makes a process a
//! Flatpak app. To be another user takes root; where that is missing these tests say so and have
//! shown nothing.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::{App, Server, so};
use device::{Device, DeviceApp, NAME, OBJECT, codes, error_name, post, request};
use zbus::Connection;

const APP: &str = "org.example.Chat";
/// Nobody, on every machine.
const STRANGER: u32 = 65534;

/// Who calls.
#[derive(Clone, Copy, Debug)]
enum Caller<'a> {
    /// The user of the test.
    Own,
    /// Another user.
    User(u32),
    /// This Flatpak app of the test's user.
    Flatpak(&'a str),
}

struct Stage {
    server: Server,
    app: App,
    device: Device,
    bus: Connection,
}

impl Stage {
    /// A device on which other users may come to the bus; `None` without the right to be one.
    async fn set(settings: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("not tested: only root can call as another user");
            return None;
        }
        let server = Server::start("00", "");
        let app = server.app_add(APP);
        let device = Device::start(&server.gateway, settings);
        let everybody = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(device.folder.path(), everybody).expect("the folder is ours");
        let bus = device.connect().await;
        Some(Self { server, app, device, bus })
    }

    /// Calls a method of `Push1`; returns the answer, or the error's name without its prefix.
    fn call(&self, caller: Caller<'_>, method: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = command(caller, self.device.folder.path());
        command.args(["gdbus", "call", "--address", &self.device.address, "--dest", NAME, "--object-path", OBJECT]);
        command.args(["--method", &format!("org.bellwire.Push1.{method}")]).args(arguments);
        let output = command
            .output()
            .expect("gdbus, setpriv or bwrap is missing: apt-get install libglib2.0-bin util-linux bubblewrap");
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let name = said.split_once("org.bellwire.Error.").and_then(|(_, rest)| rest.split(':').next());
        Err(name.unwrap_or_else(|| panic!("{caller:?} {method}: {said}")).to_owned())
    }

    fn connect(&self, caller: Caller<'_>) -> Result<String, String> {
        self.call(caller, "Connect", &[APP, "/app", "@a{sv} {}"])
    }

    /// Whatever this caller asks for is refused.
    fn assert_refused(&self, caller: Caller<'_>) {
        let denied = Err("PermissionDenied".to_owned());
        assert_eq!(self.connect(caller), denied, "{caller:?}");
        assert_eq!(self.call(caller, "GetBadge", &[APP]), denied, "{caller:?}");
        assert_eq!(self.call(caller, "SetBadge", &[APP, "9"]), denied, "{caller:?}");
        for method in
            ["Register", "Deregister", "GetRegistrationId", "TakeUnread", "RequestUnread", "GetLaunch", "Disconnect"]
        {
            let refused = self.call(caller, method, &[APP]).expect_err(method);
            assert!(["PermissionDenied", "NotConnected"].contains(&refused.as_str()), "{caller:?} {method}: {refused}");
        }
    }

    /// The app is connected and registered by the test's user, has a badge, and goes.
    async fn owned(&self) -> DeviceApp {
        let app = self.device.app(APP).await;
        app.call::<()>("SetBadge", &(APP, 3_u32)).await.expect("it is the app's own");
        app
    }

    /// Neither badge nor messages of the app have changed hands.
    async fn assert_untouched(&self, app: &mut DeviceApp) {
        assert_eq!(app.call::<u32>("GetBadge", &APP).await.expect("it is the app's own"), 3);
        assert_eq!(codes(&post(&self.server, &self.app, &request(app.reg_id.as_str(), "r", "mine"))), [1000]);
        app.connect(&[]).await.expect("the app is its owner's");
        assert_eq!(app.next_data(1).await, ["mine"]);
    }

    /// Writes the app's manifest, and waits until the daemon goes by it: a call is answered so.
    async fn manifest(&self, folder: &str, allow: &str, expected: Result<(), &str>) {
        let text = format!("app = \"{APP}\"\n[allow]\n{allow}\n");
        let path = self.device.folder.path().join(folder).join("bellwire/apps.d");
        std::fs::create_dir_all(&path).expect("the folder is ours");
        std::fs::write(path.join("chat.toml"), text).expect("the folder is ours");
        common::until(async || {
            let answer = self.call(Caller::Own, "GetBadge", &[APP]).map(drop);
            so(answer == expected.map_err(str::to_owned), || format!("with {allow} the answer is {answer:?}"))
        })
        .await;
    }
}

fn command(caller: Caller<'_>, folder: &Path) -> Command {
    match caller {
        Caller::Own => Command::new("env"),
        Caller::User(uid) => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups"]);
            command
        }
        Caller::Flatpak(id) => {
            let info = folder.join(format!("{id}.flatpak-info"));
            std::fs::write(&info, format!("[Application]\nname={id}\n\n[Instance]\ninstance-id=1\n")).expect("a file");
            let mut command = Command::new("bwrap");
            command.args([
                "--ro-bind",
                "/usr",
                "/usr",
                "--symlink",
                "usr/lib",
                "/lib",
                "--symlink",
                "usr/lib64",
                "/lib64",
            ]);
            command.args(["--symlink", "usr/bin", "/bin", "--proc", "/proc", "--dev", "/dev", "--ro-bind"]);
            command.arg(info).arg("/.flatpak-info").arg("--bind").arg(folder).arg(folder);
            command
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_has_nothing_of_an_app() {
    let Some(stage) = Stage::set("").await else { return };
    let mut app = stage.owned().await;
    // While the app is there, and while it is not.
    stage.assert_refused(Caller::User(STRANGER));
    app.call::<()>("Disconnect", &APP).await.expect("it is connected");
    stage.assert_refused(Caller::User(STRANGER));
    stage.assert_untouched(&mut app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandboxed_app_has_nothing_of_another_nor_the_other_way_round() {
    let Some(stage) = Stage::set("").await else { return };
    let mut app = stage.owned().await;
    app.call::<()>("Disconnect", &APP).await.expect("it is connected");
    stage.assert_refused(Caller::Flatpak("org.example.Other"));
    stage.assert_refused(Caller::Flatpak(APP));
    stage.assert_untouched(&mut app).await;
    // The first comer of another id is a sandboxed app: it keeps the id against all others.
    let other = |caller| stage.call(caller, "SetBadge", &["org.example.Mail", "4"]);
    assert_eq!(other(Caller::Flatpak("org.example.Mail")), Err("UnknownApp".to_owned()));
    let connect = ["org.example.Mail", "/app", "@a{sv} {}"];
    assert!(stage.call(Caller::Flatpak("org.example.Mail"), "Connect", &connect).is_ok());
    let denied = Err("PermissionDenied".to_owned());
    assert_eq!(other(Caller::Flatpak("org.example.Other")), denied);
    assert_eq!(other(Caller::Own), denied);
    assert_eq!(other(Caller::User(STRANGER)), denied);
    assert_eq!(other(Caller::Flatpak("org.example.Mail")), Ok("()".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_names_somebody_else_shuts_everybody_else_out() {
    let Some(stage) = Stage::set("").await else { return };
    let app = stage.owned().await;
    app.call::<()>("Disconnect", &APP).await.expect("it is connected");
    for allow in [
        format!("user = {STRANGER}"),
        "flatpak = \"org.example.Chat\"".into(),
        "unit = \"chat.service\"".into(),
        "label = \"User::App::chat\"".into(),
    ] {
        stage.manifest("data", &allow, Err("PermissionDenied")).await;
        stage.assert_refused(Caller::Own);
        assert_eq!(error_name(app.connect(&[]).await), "PermissionDenied", "{allow}");
        stage.assert_refused(Caller::Flatpak("org.example.Other"));
    }
    stage.manifest("data", "user = \"root\"", Ok(())).await;
    stage.assert_refused(Caller::User(STRANGER));
    // A manifest gives the app to whom it names, whoever had it before.
    stage.manifest("data", "flatpak = \"org.example.Chat\"", Err("PermissionDenied")).await;
    assert!(stage.connect(Caller::Flatpak(APP)).is_ok());
    assert!(stage.call(Caller::Flatpak(APP), "SetBadge", &[APP, "8"]).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_system_bus_an_app_needs_a_manifest() {
    let Some(stage) = Stage::set("bus = \"system\"").await else { return };
    stage.assert_refused(Caller::Own);
    stage.assert_refused(Caller::User(STRANGER));
    stage.manifest("nothing", &format!("user = {STRANGER}"), Err("PermissionDenied")).await;
    common::until(async || stage.connect(Caller::User(STRANGER)).map(drop)).await;
    stage.assert_refused(Caller::Own);
    stage.manifest("nothing", "", Err("PermissionDenied")).await;
    // The interface for settings is for the daemon's user and root.
    let mut stranger = command(Caller::User(STRANGER), stage.device.folder.path());
    stranger.args(["gdbus", "call", "--address", &stage.device.address, "--dest", NAME, "--object-path", OBJECT]);
    let output = stranger.args(["--method", "org.bellwire.Manager1.ListApps"]).output().expect("gdbus runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains("org.bellwire.Error.PermissionDenied"), "{output:?}");
    let apps: Vec<std::collections::HashMap<String, zbus::OwnedVariant>> =
        stage.device.manage(&stage.bus, "ListApps", &()).await;
    assert_eq!(u32::try_from(apps[0]["uid"].clone()).expect("a number"), STRANGER);
}

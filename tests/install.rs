//! What `make install` and the packages lay out: complete, each file in one package, and nothing in it that is
//! true on the building machine alone. `packaging/install.sh` is tried as it is; `make test-packages` tries the
//! packages themselves.

#![cfg(all(feature = "agent", feature = "server"))]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bellwire::agent::config::AgentConfig;
use bellwire::server::config::ServerConfig;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PACKAGES: [&str; 3] = ["bellwired", "bellwire-server", "bellwire"];

/// The folder of the programs that are tested.
fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_bellwired")).parent().expect("a program is in a folder")
}

fn file(path: impl AsRef<Path>) -> String {
    let path = Path::new(ROOT).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What is in a folder of this package, as paths.
fn folder(path: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    entries.map(|entry| entry.expect("the folder can be read").path()).collect()
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("all names here are text")
}

/// What `make install` has put below a folder.
struct Tree {
    root: tempfile::TempDir,
}

impl Tree {
    fn new(settings: &[&str]) -> Self {
        let tree = Self { root: tempfile::tempdir().expect("a temporary folder") };
        tree.install(settings);
        tree
    }

    fn install(&self, settings: &[&str]) {
        let place = format!("DESTDIR={}", self.root.path().display());
        run(make_install().arg(place).args(settings));
    }

    /// Its files, as they will be called.
    fn files(&self) -> BTreeSet<String> {
        let (mut files, mut folders) = (BTreeSet::new(), vec![self.root.path().to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("it can be read") {
                let path = entry.expect("it can be read").path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => {
                        let place = path.strip_prefix(self.root.path()).expect("it is below");
                        assert!(files.insert(format!("/{}", place.display())));
                    }
                }
            }
        }
        files
    }

    fn path(&self, place: &str) -> PathBuf {
        self.root.path().join(place.trim_start_matches('/'))
    }

    fn text(&self, place: &str) -> String {
        std::fs::read_to_string(self.path(place)).unwrap_or_else(|error| panic!("{place}: {error}"))
    }
}

/// `make install` of the programs that are tested, with nothing of this environment that says where.
fn make_install() -> Command {
    let mut make = Command::new("make");
    make.args(["--no-print-directory", "--directory", ROOT, "install"])
        .arg(format!("PROGRAMS={}", programs().display()));
    for name in ["MAKEFLAGS", "DESTDIR", "PREFIX", "SYSCONFDIR"] {
        make.env_remove(name);
    }
    make
}

fn run(command: &mut Command) {
    let output = command.output().expect("make is missing: apt-get install make");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn the_environment_may_say_where_as_well_as_the_command_line() {
    let tree = Tree { root: tempfile::tempdir().expect("a temporary folder") };
    let mut make = make_install();
    make.env("DESTDIR", tree.root.path()).env("PREFIX", "/opt/push").env("SYSCONFDIR", "/opt/push/etc");
    run(make.args(["PACKAGES=bellwire-server"]));
    let files = tree.files();
    assert!(files.contains("/opt/push/bin/bellwire-server") && files.contains("/opt/push/etc/bellwire/server.toml"));
    assert!(files.iter().all(|place| place.starts_with("/opt/push/")), "{files:?}");
}

/// `dbus-daemon --system` knows two folders of rules, and none of them is below `/usr/local`; the activation of its
/// services and systemd's units are looked for there as well.
#[test]
fn the_bus_and_systemd_read_what_is_installed_where_it_is() {
    for (prefix, rules) in [("/usr", "/usr/share"), ("/usr/local", "/etc"), ("/opt/push", "/etc")] {
        // The second is what it is if nobody says it.
        let said = format!("PREFIX={prefix}");
        let settings = if prefix == "/usr/local" { vec!["PACKAGES=bellwired"] } else { vec![said.as_str()] };
        let files = Tree::new(&settings).files();
        let found: Vec<_> =
            files.iter().filter(|place| place.ends_with(".conf") && place.contains("/dbus-1/")).collect();
        assert_eq!(found, [&format!("{rules}/dbus-1/system.d/org.bellwire.Push.conf")], "below {prefix}");
        assert!(files.contains(&format!("{prefix}/lib/systemd/system/bellwired.service")));
        assert!(files.contains(&format!("{prefix}/share/dbus-1/system-services/org.bellwire.Push.service")));
    }
}

#[test]
fn everything_that_is_shipped_has_its_place() {
    let tree = Tree::new(&["PREFIX=/usr"]);
    let files = tree.files();
    let mut expected: BTreeSet<String> = BTreeSet::new();
    for program in PACKAGES {
        expected.extend([
            format!("/usr/bin/{program}"),
            format!("/usr/share/man/man1/{program}.1"),
            format!("/usr/share/bash-completion/completions/{program}"),
            format!("/usr/share/zsh/site-functions/_{program}"),
            format!("/usr/share/fish/vendor_completions.d/{program}.fish"),
            format!("/usr/share/doc/{program}/LICENSE-MIT"),
            format!("/usr/share/doc/{program}/LICENSE-APACHE"),
        ]);
    }
    for page in folder("man") {
        let section = page.extension().and_then(|section| section.to_str()).expect("a page has a section");
        expected.insert(format!("/usr/share/man/man{section}/{}", name(&page)));
    }
    for (from, to) in [
        ("systemd/system", "lib/systemd/system"),
        ("systemd/user", "lib/systemd/user"),
        ("systemd/system-preset", "lib/systemd/system-preset"),
        ("systemd/user-preset", "lib/systemd/user-preset"),
        ("systemd/sysusers.d", "lib/sysusers.d"),
        ("systemd/tmpfiles.d", "lib/tmpfiles.d"),
        ("dbus/session", "share/dbus-1/services"),
        ("dbus/system", "share/dbus-1/system-services"),
    ] {
        expected.extend(folder(from).iter().map(|path| format!("/usr/{to}/{}", name(path))));
    }
    for path in folder("dbus") {
        let place = match path.extension().and_then(|ending| ending.to_str()) {
            Some("xml") => "dbus-1/interfaces",
            Some("conf") => "dbus-1/system.d",
            Some("policy") => "polkit-1/actions",
            _ => continue,
        };
        expected.insert(format!("/usr/share/{place}/{}", name(&path)));
    }
    expected.extend(["/etc/bellwire/agent.toml", "/etc/bellwire/server.toml"].map(str::to_owned));
    let missing: Vec<_> = expected.difference(&files).collect();
    assert!(missing.is_empty(), "not installed: {missing:?}");
    let samples: BTreeSet<_> =
        files.iter().filter(|place| place.contains("/examples/")).map(|place| name(Path::new(place))).collect();
    let sources = folder("examples");
    assert_eq!(samples, sources.iter().map(|path| name(path)).collect());
    // Pages of subcommands, README, changes and a word for the folder of manifests are the rest.
    let rest: Vec<_> = files.difference(&expected).filter(|place| !place.contains("/examples/")).collect();
    for place in &rest {
        let known = ["/usr/share/man/man1/bellwire-", "/usr/share/doc/bellwire/", "/usr/share/bellwire/apps.d/README"];
        assert!(known.iter().any(|known| place.starts_with(known)), "{place} is nobody's");
    }
    assert!(files.contains("/usr/share/man/man1/bellwire-server-check.1"), "{rest:?}");
}

#[test]
fn each_file_is_in_one_package_and_all_of_them_are_the_tree() {
    let whole = Tree::new(&["PREFIX=/usr"]).files();
    let mut owners: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for package in PACKAGES {
        for place in Tree::new(&["PREFIX=/usr", &format!("PACKAGES={package}")]).files() {
            owners.entry(place).or_default().push(package);
        }
    }
    let shared: Vec<_> = owners.iter().filter(|(_, owners)| owners.len() > 1).collect();
    assert!(shared.is_empty(), "in several packages: {shared:?}");
    assert_eq!(owners.keys().cloned().collect::<BTreeSet<_>>(), whole);
    let owner = |place: &str| owners.get(place).map(|owners| owners[0]);
    assert_eq!(owner("/usr/share/man/man5/bellwired.toml.5"), Some("bellwired"));
    assert_eq!(owner("/usr/share/man/man7/bellwire-server-setup.7"), Some("bellwire-server"));
    assert_eq!(owner("/usr/share/man/man7/bellwire-protocol.7"), Some("bellwire"));
    assert_eq!(owner("/usr/share/doc/bellwire-server/examples/server.toml"), Some("bellwire-server"));
    assert_eq!(owner("/usr/share/dbus-1/interfaces/org.bellwire.Push1.xml"), Some("bellwire"));
}

#[test]
fn both_kinds_of_packages_are_described_for_each() {
    let manifest: toml::Table = file("Cargo.toml").parse().expect("Cargo reads it");
    let metadata = &manifest["package"]["metadata"];
    for kind in ["deb", "generate-rpm"] {
        let variants = metadata[kind]["variants"].as_table().expect("a table of packages");
        assert_eq!(variants.keys().map(String::as_str).collect::<BTreeSet<_>>(), PACKAGES.into());
        for (package, variant) in variants {
            assert_eq!(variant["name"].as_str(), Some(package.as_str()));
            for (key, value) in variant.as_table().expect("a table") {
                let named = (key == "maintainer-scripts" || key.ends_with("_script")).then(|| value.as_str()).flatten();
                assert!(named.is_none_or(|path| Path::new(ROOT).join(path).exists()), "{value:?} is not there");
            }
        }
    }
}

#[test]
fn units_and_activation_name_programs_and_units_that_are_there() {
    for prefix in ["/usr", "/opt/push"] {
        let tree = Tree::new(&[&format!("PREFIX={prefix}")]);
        let files = tree.files();
        let units: Vec<_> = files.iter().filter(|place| place.contains("/lib/systemd/")).collect();
        let mut named = BTreeSet::new();
        for place in &files {
            let is_unit = place.contains("/lib/systemd/") && !place.ends_with(".preset");
            if !is_unit && !place.contains("/dbus-1/services/") && !place.contains("/system-services/") {
                continue;
            }
            for line in tree.text(place).lines() {
                let Some((key, value)) = line.split_once('=') else { continue };
                let first = value.split_whitespace().next().unwrap_or_default();
                match key {
                    "Exec" if first == "/bin/false" => {}
                    _ if key.starts_with("Exec") && first.contains("bellwire") => {
                        let program = first.trim_start_matches(['-', '+', '!', '@', ':']);
                        assert!(files.contains(program), "{place}: {line}");
                        named.insert(program.to_owned());
                    }
                    "SystemdService" => {
                        let folder = if place.contains("/system-services/") { "system" } else { "user" };
                        let unit = tree.text(&format!("{prefix}/lib/systemd/{folder}/bellwired.service"));
                        assert!(unit.contains(&format!("\nAlias={first}\n")), "{place}: {line}");
                    }
                    _ => {}
                }
            }
        }
        assert_eq!(named, ["bellwired", "bellwire-server"].map(|program| format!("{prefix}/bin/{program}")).into());
        assert!(units.len() > 5, "{units:?}");
    }
}

#[test]
fn nothing_but_programs_names_a_folder_of_the_building_machine() {
    let tree = Tree::new(&["PREFIX=/usr"]);
    let home = std::env::var("HOME").expect("there is a home");
    let target = programs().parent().expect("a folder of builds").display().to_string();
    let mut read = 0;
    for place in tree.files() {
        // Those that are tested are not those that are shipped: `make test-packages` looks at these.
        if place.starts_with("/usr/bin/") {
            continue;
        }
        let bytes = std::fs::read(tree.path(&place)).expect("it can be read");
        let text = String::from_utf8_lossy(&bytes);
        for path in [ROOT, target.as_str(), home.as_str(), &tree.root.path().display().to_string()] {
            assert!(!text.contains(path), "{place} names {path}");
        }
        read += 1;
    }
    assert!(read > 50, "{read} files");
}

#[test]
fn the_configurations_say_nothing_and_are_never_replaced() {
    let tree = Tree::new(&["PREFIX=/usr"]);
    let empty = tree.path("empty.toml");
    std::fs::write(&empty, "").expect("the folder is ours");
    let (agent, server) = (tree.path("/etc/bellwire/agent.toml"), tree.path("/etc/bellwire/server.toml"));
    let of_agent = |path: &Path| format!("{:?}", AgentConfig::load(Some(path)).expect("it is good"));
    assert_eq!(of_agent(&agent), of_agent(&empty));
    let of_server = |path: &Path| format!("{:?}", ServerConfig::load(Some(path)).expect("it is good"));
    assert_eq!(of_server(&server), of_server(&empty));
    let keys = |text: &str| text.lines().filter(|line| line.contains(" = ")).count();
    assert_eq!(keys(&tree.text("/etc/bellwire/server.toml")), keys(&file("examples/server.toml")));

    std::fs::write(&server, "region = \"07\"\n").expect("the folder is ours");
    tree.install(&["PREFIX=/usr"]);
    assert_eq!(tree.text("/etc/bellwire/server.toml"), "region = \"07\"\n");
}

#[test]
fn everybody_may_read_it_whatever_the_umask() {
    let tree = Tree { root: tempfile::tempdir().expect("a temporary folder") };
    let install = format!(
        "umask 077; exec make -C '{ROOT}' install DESTDIR='{}' PREFIX=/usr PROGRAMS='{}'",
        tree.root.path().display(),
        programs().display()
    );
    let output = Command::new("sh").args(["-c", &install]).output().expect("a shell");
    assert!(output.status.success(), "{output:?}");
    for place in tree.files() {
        let mode = |path: &Path| path.metadata().expect("it is there").permissions().mode() & 0o777;
        let runs = place.starts_with("/usr/bin/") || place.ends_with(".sh") || place.ends_with(".py");
        assert_eq!(mode(&tree.path(&place)), if runs { 0o755 } else { 0o644 }, "{place}");
        let folders = tree.path(&place);
        for folder in folders.ancestors().skip(1).take_while(|folder| *folder != tree.root.path()) {
            assert_eq!(mode(folder), 0o755, "{}", folder.display());
        }
    }
}

#[test]
fn a_device_gets_one_package_without_running_its_programs() {
    let tree = Tree::new(&["PREFIX=/usr", "PACKAGES=bellwired", "WRITERS="]);
    let files = tree.files();
    assert!(files.contains("/usr/bin/bellwired") && files.contains("/usr/share/man/man5/bellwired.toml.5"));
    assert!(!files.iter().any(|place| place.contains("/man1/") || place.contains("completions")), "{files:?}");
}

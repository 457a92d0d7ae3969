//! The manual: every name that people may use has its place in it, its samples are true, and it can
//! be shown. The pages are `man/*`, and those that the programs write of their command lines.

#![cfg(all(feature = "agent", feature = "server"))]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use bellwire::agent::config::AgentConfig;
use bellwire::agent::installed::Manifest;
use bellwire::config;
use bellwire::proto::frame::{self, Frame, ToDevice, ToServer};
use bellwire::server::config::ServerConfig;
use bellwire::server::doors::tizen::TABLE;

/// A file of this package.
fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A page as its reader sees it, near enough: requests and font changes stay, escaped characters do
/// not.
fn page(name: &str) -> String {
    let text = file(&format!("man/{name}"));
    [("\\-", "-"), ("\\(dq", "\""), ("\\(aq", "'"), ("\\e", "\\")]
        .iter()
        .fold(text, |text, (from, to)| text.replace(from, to))
}

/// Whether `name` stands in `text` with nothing beside it that could be part of a name.
fn mentions(text: &str, name: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.match_indices(name).any(|(at, _)| !text[..at].ends_with(part) && !text[at + name.len()..].starts_with(part))
}

#[track_caller]
fn assert_mentions(page_name: &str, names: impl IntoIterator<Item = String>) {
    let (text, names) = (page(page_name), Vec::from_iter(names));
    assert!(names.len() > 1, "no names were found to look for in {page_name}");
    let missing: Vec<_> = names.iter().filter(|name| !mentions(&text, name)).collect();
    assert!(missing.is_empty(), "man/{page_name} does not mention {missing:?}");
}

/// The keys of a sample configuration, those in comments as well, and its tables.
fn keys(sample: &str) -> BTreeSet<String> {
    let key = |text: &str| {
        let key = text.trim_start_matches(['#', '{', ' ']).split(" = ").next().map(str::to_owned);
        key.filter(|key| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
    };
    let pairs = sample.lines().flat_map(|line| line.split([',', '{'])).filter(|part| part.contains(" = "));
    let tables = sample.lines().filter(|line| line.starts_with('[')).map(str::to_owned);
    pairs.filter_map(key).chain(tables).collect()
}

#[test]
fn every_key_of_a_configuration_has_its_place() {
    let server = keys(&file("examples/server.toml"));
    assert!(
        server.contains("certificate") && server.contains("regions-ca") && server.contains("[limits]"),
        "{server:?}"
    );
    assert_mentions("bellwire-server.toml.5", server);
    let agent = keys(&file("examples/agent.toml"));
    assert!(agent.contains("enrolment-key") && agent.contains("unread-bytes"), "{agent:?}");
    assert_mentions("bellwired.toml.5", agent);
    let manifest = keys(&file("examples/org.example.Chat.toml"));
    assert!(manifest.contains("desktop-file") && manifest.contains("[allow]"), "{manifest:?}");
    assert_mentions("bellwire-apps.d.5", manifest);
}

#[test]
fn every_status_code_of_the_guide_has_its_place_and_no_other() {
    let codes: BTreeSet<String> = TABLE.iter().map(|row| row.number.to_string()).collect();
    let text = page("bellwire-tizen.7");
    let (_, section) = text.split_once(".SH STATUS CODES").expect("the page has the section");
    let told: BTreeSet<String> = section
        .lines()
        .filter_map(|line| line.strip_prefix(".B "))
        .filter(|word| word.parse::<u16>().is_ok())
        .map(str::to_owned)
        .collect();
    assert_eq!(codes, told);
}

#[test]
fn every_member_on_d_bus_has_its_place() {
    let mut names = Vec::new();
    for interface in ["Push1", "Manager1", "App1"] {
        let xml = file(&format!("dbus/org.bellwire.{interface}.xml"));
        names.extend(xml.split('<').filter_map(|tag| {
            let (kind, rest) = tag.split_once(" name=\"")?;
            ["interface", "method", "signal", "property"]
                .contains(&kind)
                .then(|| rest.split('"').next().map(str::to_owned))?
        }));
    }
    let errors = file("src/agent/bus/error.rs");
    names.extend(errors.lines().filter_map(|line| line.trim().strip_suffix("(String),").map(str::to_owned)));
    assert!(names.iter().any(|name| name == "Message") && names.iter().any(|name| name == "StoreFailed"), "{names:?}");
    assert_mentions("org.bellwire.Push.7", names);
}

#[test]
fn every_name_and_reason_of_unifiedpush_has_its_place() {
    let mut names = Vec::new();
    for version in [1, 2] {
        let xml = file(&format!("dbus/org.unifiedpush.Distributor{version}.xml"));
        names.extend(xml.split("<method name=\"").skip(1).filter_map(|rest| Some(rest.split('"').next()?.to_owned())));
        names.push(format!("org.unifiedpush.Distributor{version}"));
    }
    let reasons = file("src/agent/unifiedpush/registrations.rs");
    names.extend(reasons.split("#[error(\"").skip(1).filter_map(|rest| Some(rest.split('"').next()?.to_owned())));
    assert!(names.iter().any(|name| name == "Unregister") && names.len() == 9, "{names:?}");
    assert_mentions("bellwire-unifiedpush.7", names);
}

#[test]
fn every_member_of_a_message_on_d_bus_has_its_place() {
    let source = file("src/agent/bus/message.rs");
    let quoted = source.split('"').skip(1).step_by(2);
    let names =
        quoted.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
    assert_mentions("org.bellwire.Push.7", names.map(str::to_owned));
}

/// The variants of an enum in `src/proto/frame.rs`, as they are on the wire.
fn variants(name: &str) -> Vec<String> {
    let source = file("src/proto/frame.rs");
    let (_, rest) = source.split_once(&format!("pub enum {name} {{\n")).expect("the enum is there");
    let body = rest.split("\n}").next().unwrap_or_default();
    let variant = |line: &str| {
        let name: String = line.strip_prefix("    ")?.chars().take_while(char::is_ascii_alphanumeric).collect();
        name.starts_with(|first: char| first.is_ascii_uppercase()).then_some(name)
    };
    body.lines().filter_map(variant).map(|name| kebab(&name)).collect()
}

fn kebab(name: &str) -> String {
    let mut text = String::new();
    for (at, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// The part of a page from this heading, a section's or a subsection's, to the next section.
fn section(name: &str, heading: &str) -> String {
    let text = page(name);
    let (_, rest) = text.split_once(&format!("{heading}\n")).unwrap_or_else(|| panic!("{name} lacks {heading}"));
    rest.split("\n.SH ").next().unwrap_or_default().to_owned()
}

fn protocol(heading: &str) -> String {
    section("bellwire-protocol.7", &format!(".SH {heading}"))
}

/// Each frame's heading, with its sample in full.
fn samples(section: &str) -> Vec<(String, String)> {
    let frames = section.split(".SS ").skip(1);
    frames
        .map(|frame| {
            let (name, rest) = frame.split_once('\n').expect("a heading is a line");
            let sample = rest.split(".EX\n").nth(1).and_then(|rest| rest.split("\n.EE").next()).expect("a sample");
            let sample =
                sample.replace("7f7f...7f", &"7f".repeat(32)).replace("03a7...5c", &format!("03a7{}", "5c".repeat(48)));
            (name.to_owned(), sample.replace('\n', ""))
        })
        .collect()
}

#[test]
fn every_frame_has_a_sample_that_is_one() {
    fn check<F: Frame>(heading: &str, of: &str) {
        let samples = samples(&protocol(heading));
        let names: Vec<String> = samples.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names, variants(of));
        for (name, sample) in samples {
            let frame = F::decode(&sample).unwrap_or_else(|error| panic!("{name}: {error}"));
            let (sent, shown): (serde_json::Value, serde_json::Value) =
                (frame.encode().parse().expect("a frame is JSON"), sample.parse().expect("it was decoded"));
            assert_eq!(
                sent, shown,
                "{name} has members in the manual that it does not have on the wire, or lacks some"
            );
        }
    }
    check::<ToServer>("FRAMES TO THE SERVER", "ToServer");
    check::<ToDevice>("FRAMES TO THE DEVICE", "ToDevice");
}

#[test]
fn the_protocol_s_words_and_limits_have_their_place() {
    for name in ["Reason", "Fate", "Refusal"] {
        assert_mentions("bellwire-protocol.7", variants(name));
    }
    let limits =
        [frame::TO_SERVER_MAX, frame::TO_DEVICE_MAX, frame::LIST_MAX, frame::WINDOW].map(|limit| limit.to_string());
    assert_mentions("bellwire-protocol.7", limits);
    assert_mentions("bellwire-protocol.7", [frame::SUBPROTOCOL.to_owned(), format!("version {}", frame::VERSION)]);
}

const GUIDE: &str = "bellwire-integration.7";

/// The files that the guide writes, by name.
fn written_by_the_guide() -> BTreeMap<String, String> {
    let text = page(GUIDE);
    let files = text.split("\ncat > ").skip(1).map(|rest| {
        let (path, rest) = rest.split_once(" <<END\n").expect("a file is between two END");
        let body = rest.split("\nEND").next().unwrap_or_default();
        (path.rsplit('/').next().unwrap_or_default().to_owned(), body.to_owned())
    });
    files.collect()
}

#[test]
fn the_guide_writes_configurations_that_are_some() {
    let files = written_by_the_guide();
    let parsed = |name: &str| (Path::new(GUIDE).join(name), files[name].as_str());
    let (path, text) = parsed("server.toml");
    config::parse::<ServerConfig>(&path, text).expect("it is a server's").check().expect("it makes sense");
    let (path, text) = parsed("agent.toml");
    let agent: AgentConfig = config::parse(&path, text).expect("it is an agent's");
    agent.check().expect("it makes sense");
    let (path, text) = parsed("org.example.chat.toml");
    let manifest: Manifest = config::parse(&path, text).expect("it is an app's");
    assert!(manifest.launch.unit.is_some_and(|unit| files.contains_key(&unit)), "{files:?}");
    let credentials = section(GUIDE, ".SS Secrets that only the service may read");
    let line = credentials.lines().find(|line| line.starts_with("client-certificate = ")).expect("it is shown");
    assert!(config::parse::<AgentConfig>(&path, line).expect("it is an agent's").client_certificate.is_some());
}

/// The settings of a unit.
fn unit(name: &str) -> Vec<(String, String)> {
    let text = file(&format!("systemd/system/{name}"));
    let pairs = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[test]
fn the_guide_s_limits_and_restarts_are_those_of_the_units() {
    let agent = unit("bellwired.service");
    let limits = ["MemoryHigh", "MemoryMax", "TasksMax", "LimitNOFILE", "OOMScoreAdjust"];
    let limits: Vec<String> = agent
        .iter()
        .filter(|(key, _)| limits.contains(&key.as_str()))
        .map(|(key, value)| format!("\\fB{key}={value}\\fR|"))
        .collect();
    assert_eq!(limits.len(), 5, "{agent:?}");
    let memory = section(GUIDE, ".SH MEMORY");
    assert!(limits.iter().all(|limit| memory.contains(limit)), "{limits:?}");

    let table = section(GUIDE, ".SH SUPERVISION");
    let rows: Vec<(&str, &str)> = table
        .lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_digit()))
        .filter_map(|line| Some((line.split('|').next()?, line.rsplit('|').next()?)))
        .collect();
    let ends: BTreeSet<&str> = rows.iter().filter(|(_, again)| *again == "no").map(|(status, _)| *status).collect();
    assert!(rows.len() > ends.len() && ends.contains("78"), "{rows:?}");
    for name in ["bellwired.service", "bellwire-server.service", "bellwire-server@.service"] {
        let settings = unit(name);
        let (_, prevented) =
            settings.iter().find(|(key, _)| key == "RestartPreventExitStatus").expect("the unit says it");
        assert!(settings.iter().any(|setting| *setting == ("Restart".into(), "always".into())), "{name}");
        assert_eq!(ends, prevented.split(' ').collect(), "{name}");
    }
}

#[test]
fn what_is_put_into_an_image_is_in_the_guide() {
    let put_in = section(GUIDE, ".SH WHAT IS PUT IN");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names: Vec<String> = ["system", "system-preset", "user", "user-preset", "sysusers.d", "tmpfiles.d"]
        .iter()
        .flat_map(|folder| files_in(&root.join("systemd").join(folder)))
        .chain(files_in(&root.join("dbus")).into_iter().filter(|path| path.is_file()))
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        // The server has a package of its own, and the XML is for developers.
        .filter(|name| !name.contains("bellwire-server") && !name.ends_with(".xml"))
        .collect();
    assert!(names.len() >= 7, "{names:?}");
    let missing: Vec<_> = names.iter().filter(|name| !put_in.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_a_reload_takes_into_use_at_once_has_its_place() {
    let all = keys(&file("examples/agent.toml"));
    let source = file("src/agent/reload.rs");
    let at_once: BTreeSet<String> =
        source.lines().filter_map(|line| line.trim().strip_suffix(": _,")).map(|key| key.replace('_', "-")).collect();
    assert!(at_once.contains("gateway") && at_once.is_subset(&all), "{at_once:?}");
    let text = section("bellwired.toml.5", ".SS Reading it again");
    let told: BTreeSet<String> = all.into_iter().filter(|key| mentions(&text, key)).collect();
    assert_eq!(told, at_once);
}

#[test]
fn pages_that_are_referred_to_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts: Vec<(PathBuf, String)> = Vec::new();
    for folder in ["man", "systemd/system", "systemd/user"] {
        for path in files_in(&root.join(folder)) {
            let text = std::fs::read_to_string(&path).expect("it can be read").replace("\\-", "-");
            texts.push((path, text.replace(" (", "(")));
        }
    }
    let mut seen = BTreeSet::new();
    for (path, text) in &texts {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !"-.()".contains(c));
        let pages = words.filter_map(|word| {
            let (name, rest) = word.split_once('(')?;
            let (number, _) = rest.split_once(')')?;
            let ours = name.starts_with("bellwire") || name.starts_with("org.bellwire");
            (ours && ["5", "7"].contains(&number)).then(|| format!("{name}.{number}"))
        });
        for name in pages {
            assert!(root.join("man").join(&name).exists(), "{} refers to {name}", path.display());
            seen.insert(name);
        }
    }
    let alone: Vec<_> = files_in(&root.join("man"))
        .into_iter()
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| !seen.contains(name)))
        .collect();
    assert!(alone.is_empty(), "nothing refers to {alone:?}");
}

/// The files in a folder, in order.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    files.sort();
    files
}

#[track_caller]
fn assert_can_be_shown(page: &Path) {
    let checked = Command::new("groff").args(["-man", "-t", "-ww", "-z", "-Tutf8", "-Kutf8"]).arg(page).output();
    let output = checked.unwrap_or_else(|error| panic!("groff: {error}; `apt-get install groff-base` provides it"));
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{}: {complaints}", page.display());
}

#[test]
fn every_page_can_be_shown() {
    let pages = files_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("man"));
    assert!(pages.len() >= 5, "{pages:?}");
    pages.iter().for_each(|page| assert_can_be_shown(page));
}

#[test]
fn the_pages_that_the_programs_write_can_be_shown() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for program in [env!("CARGO_BIN_EXE_bellwire"), env!("CARGO_BIN_EXE_bellwire-server")] {
        let status = Command::new(program).arg("man").arg(folder.path()).status().expect("the program starts");
        assert!(status.success(), "{program}");
    }
    let pages = files_in(folder.path());
    for name in ["bellwire.1", "bellwire-send.1", "bellwire-server.1", "bellwire-server-app-add.1", "bellwired.1"] {
        assert!(pages.iter().any(|page| page.ends_with(name)), "{name} is not among {pages:?}");
    }
    pages.iter().for_each(|page| assert_can_be_shown(page));
}

#[test]
fn the_readme_names_no_file_that_is_not_there() {
    let readme = file("README.md");
    let of_ours = |word: &&str| {
        ["src/", "tests/", "man/", "examples/", "dbus/", "systemd/"].iter().any(|room| word.starts_with(room))
    };
    let words = readme.split(|c: char| c.is_whitespace() || "`()[]".contains(c)).filter(of_ours);
    let words: BTreeSet<&str> = words.map(|word| word.trim_end_matches([',', '.', ';', ':'])).collect();
    assert!(words.contains("src/lib.rs"), "{words:?}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let missing: Vec<_> = words.iter().filter(|word| !root.join(word).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

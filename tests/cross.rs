//! The builds for other machines, as far as they need no compiler: what `cross/build.sh` is asked, what a
//! device's program may weigh, and the delivery test of `make test-arm` with the programs of this machine.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::python;
use toml::{Table, Value};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// With TLS and the system's SQLite, in bytes: the promise to integrators.
const ARMV7: u64 = 3_000_000;
const AARCH64: u64 = 3_500_000;
const SQLITE: u64 = 1_000_000;
/// What tells people, or programs, how to build.
const TELL: [&str; 6] =
    ["cross/build.sh", "cross/config.toml", "cross/Cross.toml", "cross/README.md", "README.md", "Makefile"];

fn build(arguments: &[&str]) -> Output {
    let mut command = Command::new(format!("{ROOT}/cross/build.sh"));
    command.args(arguments).stdin(Stdio::null()).output().expect("bash is missing: apt-get install bash")
}

fn table(name: &str) -> Table {
    let text = std::fs::read_to_string(format!("{ROOT}/{name}")).expect("it is shipped");
    text.parse().unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[track_caller]
fn said(output: &Output, status: i32, part: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(status) && said.contains(part), "{status}, {part:?}: {output:?}");
}

#[test]
fn a_wrong_command_is_refused_before_anything_is_installed() {
    let usage = "usage: cross/build.sh aarch64|armv7|x86_64";
    for wrong in [&[][..], &["mips"], &["armv7", "--strip"], &["armv7", "--features"], &["armv7", "--weigh"]] {
        said(&build(wrong), 64, usage);
    }
    said(&build(&["armv7", "--features", "ws"]), 64, "agent or server is needed");
    said(&build(&["armv7", "--musl", "--system-sqlite"]), 64, "has no library of the system");
}

#[test]
fn a_program_over_its_budget_fails_and_is_told_by_how_much() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join("bellwired");
    let name = program.to_str().expect("a temporary folder has a plain name");
    let weigh = |arguments: &[&str], size: u64| {
        File::create(&program).and_then(|file| file.set_len(size)).expect("the folder is ours");
        build(&[arguments, &["--weigh", name]].concat())
    };
    for (machine, budget) in [("armv7", ARMV7), ("aarch64", AARCH64)] {
        for features in ["agent,ws", "agent,ws,mqtt,unifiedpush"] {
            let bundled = [machine, "--features", features];
            let linked = [machine, "--system-sqlite", "--features", features];
            for (arguments, budget) in [(&bundled[..], budget + SQLITE), (&linked, budget)] {
                said(&weigh(arguments, budget), 0, &format!("0 below its budget of {budget}"));
                let over = format!("7 more than the {budget} that cross/budget allows for {machine}");
                said(&weigh(arguments, budget + 7), 1, &over);
            }
        }
    }
    // What has a server or the C library in it is no device's program with these libraries.
    said(&weigh(&["armv7", "--features", "agent,server,ws"], 2 * ARMV7), 0, "6000000 bytes");
    for other in ["--musl", "--quick"] {
        said(&build(&["armv7", other, "--weigh", name]), 0, "6000000 bytes");
    }
    said(&build(&["armv7", "--weigh", "/nowhere"]), 1, "/nowhere");
}

/// The commands that the files of the folder and the README tell people to type.
#[test]
fn what_is_told_about_builds_is_there() {
    let cargo = table("Cargo.toml");
    let features: BTreeSet<&str> = cargo["features"].as_table().expect("a table").keys().map(String::as_str).collect();
    let mut told = 0;
    for name in TELL {
        let text = std::fs::read_to_string(format!("{ROOT}/{name}")).expect("it is shipped");
        let words: Vec<&str> = text.split_whitespace().map(|word| word.trim_matches(['`', '.', ';'])).collect();
        for pair in words.windows(2).filter(|pair| pair[0] == "--features" && pair[1].starts_with(char::is_lowercase)) {
            told += 1;
            let unknown: Vec<&str> = pair[1].split(',').filter(|word| !features.contains(word)).collect();
            assert!(unknown.is_empty(), "{name}: there is no feature {unknown:?}");
        }
    }
    assert!(told > 5, "{told}");
    assert_eq!(cargo["profile"]["device"]["inherits"], Value::from("release"));
    assert_eq!(cargo["profile"]["release"]["panic"], Value::from("abort"));
    let flags = &table("cross/config.toml")["env"]["CFLAGS_armv7_unknown_linux_gnueabihf"];
    assert!(flags.as_str().is_some_and(|flags| flags.contains("-D_TIME_BITS=64")), "{flags:?}");
}

/// For toolchains that the tests do not have: each target that people are told of is configured, and by keys
/// and images that the tool `cross` documents.
#[test]
fn other_toolchains_are_told_of_targets_that_are_configured() {
    let targets = |name: &str| table(name)["target"].as_table().expect("a table").clone();
    let (cargo, cross) = (targets("cross/config.toml"), targets("cross/Cross.toml"));
    for (target, settings) in &cross {
        let settings: Table = settings.as_table().expect("a table").clone();
        assert_eq!(settings.keys().collect::<Vec<_>>(), ["image"], "{target}");
        assert_eq!(settings["image"].as_str(), Some(&*format!("ghcr.io/cross-rs/{target}:main")));
    }
    let told = |name: &str, option: &str| {
        let text = std::fs::read_to_string(format!("{ROOT}/{name}")).expect("it is shipped");
        let after = |place: (usize, &str)| text[place.0 + option.len()..].split_whitespace().next().map(str::to_owned);
        text.match_indices(option).filter_map(after).filter(|word| word.contains("-linux-")).collect::<Vec<_>>()
    };
    assert!(told("cross/Cross.toml", "--target ").iter().all(|target| cross.contains_key(target)));
    for name in ["cross/README.md", "cross/config.toml"] {
        let (added, built) = (told(name, "rustup target add "), told(name, "--target "));
        assert!(!added.is_empty() && added == built, "{name}: {added:?}, {built:?}");
        assert!(added.iter().all(|target| cargo.contains_key(target)), "{name}: {added:?}");
    }
}

fn deliver(machine: &str) -> Output {
    let built = Path::new(env!("CARGO_BIN_EXE_bellwired")).parent().expect("a folder");
    let mut command = Command::new(python());
    command.arg(format!("{ROOT}/tests/arm/run.py")).arg(machine).arg(built).stdin(Stdio::null());
    command.output().expect("it was there just now")
}

#[test]
fn the_delivery_test_of_other_machines_passes_on_this_one() {
    let output = deliver("here");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("ok - ")).count(), 5);
}

#[test]
fn programs_of_this_machine_do_not_pass_for_those_of_another() {
    said(&deliver("armv7"), 69, "is not for this machine: its ELF header says");
}

//! Throw-away certificates, made by openssl.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// A throw-away certificate for this machine, made by openssl.
pub struct Certificate {
    _folder: TempDir,
    /// The certificate.
    pub chain: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificate {
    /// One for this machine.
    pub fn make() -> Self {
        Self::make_for("DNS:localhost,IP:127.0.0.1", &["openssl"])
    }

    /// One for these names, made by openssl as this command starts it.
    pub fn make_for(names: &str, openssl: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (chain, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        let (program, arguments) = openssl.split_first().expect("a command has a program");
        let mut openssl = Command::new(program);
        openssl.args(arguments);
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        openssl.args(["-days", "2", "-subj", "/CN=localhost", "-addext", &format!("subjectAltName={names}")]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"]).arg(&key).arg("-out").arg(&chain);
        let made =
            openssl.output().expect("openssl and faketime run; `apt-get install openssl faketime` provides them");
        assert!(made.status.success(), "{made:?}");
        Self { _folder: folder, chain, key }
    }

    /// The setting of a listener that has it.
    pub fn tls(&self) -> String {
        format!("tls = {{ certificate = {:?}, key = {:?} }}\n", self.chain, self.key)
    }

    /// The settings of a server that has it on both ports.
    pub fn settings(&self) -> String {
        format!("[api]\n{0}[gateway]\n{0}", self.tls())
    }
}

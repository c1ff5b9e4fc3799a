//! Our client with servers that speak TLS: ours, and nbdkit.

use std::path::Path;

use super::verified::works;
use super::{Foreign, open};
use crate::certificates::{Authority, all_well};
use crate::server::{Server, folder};

fn refused(spec: &str, part: &str) {
    let said = open(spec).err().unwrap_or_else(|| panic!("{spec} was opened")).to_string();
    assert!(said.contains(part), "{spec}: {said}");
}

fn looks_at_the_server(uri: &str, pki: &Path, home: &Path) {
    let query = format!("tls-certificates={}", pki.display());
    works(&format!("{uri}{query}&tls-hostname=localhost"));
    // Signed by somebody else, or for somebody else.
    let strangers = home.join("strangers");
    std::fs::create_dir(&strangers).unwrap();
    Authority::new("strangers").is_trusted_in(&strangers);
    let foreign = format!("{uri}tls-certificates={}&tls-hostname=localhost", strangers.display());
    refused(&foreign, "certificate");
    refused(&format!("{uri}{query}&tls-hostname=example.org"), "certificate");
    refused(
        &format!("{uri}{query}&tls-hostname=localhost&tls-verify-peer=0"),
        "look at the server's certificate",
    );
    refused(&format!("{uri}{query}&tls-hostname=localhost&tls-type=psk"), "pre-shared keys");
    refused(&format!("{uri}{query}"), "tls-hostname");
    // In the clear there is nothing to be had.
    let plain = uri.replacen("nbds", "nbd", 1);
    refused(plain.trim_end_matches('&'), "nbds instead of nbd");
}

#[test]
fn a_server_of_ours_by_tls() {
    let home = folder();
    let pki = home.path().join("pki");
    all_well(&pki);
    let outside = folder();
    let arguments = [
        "--listen",
        "unix:s",
        "--tls",
        "required",
        "--tls-certificates",
        "pki",
        "--tls-verify-peer",
        "ram:16M",
    ];
    let server = Server::started(home, &arguments);
    let uri = format!("nbds+unix:///?socket={}&", server.socket().display());
    looks_at_the_server(&uri, &pki, outside.path());
}

#[test]
fn nbdkit_by_tls() {
    let home = folder();
    let pki = home.path().join("pki");
    all_well(&pki);
    let certificates = format!("--tls-certificates={}", pki.display());
    let arguments = ["--tls=require", &certificates, "--tls-verify-peer", "memory", "16M"];
    let _server = Foreign::nbdkit(home.path(), &arguments);
    let outside = folder();
    let uri = format!("nbds+unix:///?socket={}&", home.path().join("s").display());
    looks_at_the_server(&uri, &pki, outside.path());
}

//! Certificates and keys in files of a folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::unusable;
use crate::error::{Error, Result};

/// Where distributions keep the CAs that a machine trusts: Debian and its kin, Fedora and its, SUSE.
const TRUSTED: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

const CA: &str = "ca-cert.pem";
const REVOKED: &str = "ca-crl.pem";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What a server needs.
pub(super) fn server(folder: &Path, verify_peer: bool) -> Result<ServerConfig> {
    let what = || format!("cannot use the certificates in {}", folder.display());
    let unfit = |error: &dyn std::fmt::Display| unusable(what(), error.to_string());
    let (chain, key) = own(folder, "server")?;
    let verifier = match verify_peer {
        false => WebPkiClientVerifier::no_client_auth(),
        true => WebPkiClientVerifier::builder_with_provider(Arc::new(authorities(folder)?), provider())
            .with_crls(revoked(folder)?)
            .build()
            .map_err(|error| unfit(&error))?,
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| unfit(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| {
            unfit(&error).cure("server-key.pem must be the key of the first certificate in server-cert.pem")
        })?;
    // A connection is long, and its beginning not worth remembering.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What a client needs.
pub(super) fn client(folder: Option<&Path>) -> Result<ClientConfig> {
    let here = folder.unwrap_or(Path::new("."));
    let what = || format!("cannot use the certificates in {}", here.display());
    let unfit = |error: &dyn std::fmt::Display| unusable(what(), error.to_string());
    let own_ca = folder.filter(|folder| folder.join(CA).exists());
    let (roots, crls) = match own_ca {
        Some(folder) => (authorities(folder)?, revoked(folder)?),
        None => (trusted_here()?, Vec::new()),
    };
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .with_crls(crls)
        .build()
        .map_err(|error| unfit(&error))?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| unfit(&error))?
        .with_webpki_verifier(verifier);
    let has_own = |folder: &&Path| folder.join("client-cert.pem").exists();
    let mut config = match folder.filter(has_own) {
        None => builder.with_no_client_auth(),
        Some(folder) => {
            let (chain, key) = own(folder, "client")?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                unfit(&error)
                    .cure("client-key.pem must be the key of the first certificate in client-cert.pem")
            })?
        }
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// The certificate of this side, with those between it and a CA, and its key.
fn own(folder: &Path, side: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(&folder.join(format!("{side}-cert.pem")))?;
    let path = folder.join(format!("{side}-key.pem"));
    let key =
        PrivateKeyDer::from_pem_file(&path).map_err(|error| unreadable(&path, error, "a private key"))?;
    Ok((chain, key))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let failed = |error| unreadable(path, error, "a certificate");
    let found = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let found = found.collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
    if found.is_empty() {
        return Err(failed(pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn unreadable(path: &Path, error: pem::Error, wanted: &str) -> Error {
    let what = format!("cannot read {}", path.display());
    match error {
        pem::Error::Io(error) => Error::system(what, error).cure(
            "the folder of the certificates has ca-cert.pem, server-cert.pem and server-key.pem for a server, \
             ca-cert.pem, client-cert.pem and client-key.pem for a client",
        ),
        pem::Error::NoItemsFound => unusable(what, format!("there is not {wanted} in it, as PEM has it")),
        error => unusable(what, format!("it is not what PEM has it: {error}")),
    }
}

/// Those whose signature counts.
fn authorities(folder: &Path) -> Result<RootCertStore> {
    let path = folder.join(CA);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&path)? {
        roots.add(certificate).map_err(|error| {
            unusable(format!("cannot use {}", path.display()), error.to_string())
                .cure("it must have certificates of CAs, of X.509 version 3")
        })?;
    }
    Ok(roots)
}

/// Lists of certificates that do not count any more, where there are some.
fn revoked(folder: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let path = folder.join(REVOKED);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let failed = |error| unreadable(&path, error, "a list of revoked certificates");
    let found = CertificateRevocationListDer::pem_file_iter(&path).map_err(failed)?;
    found.collect::<std::result::Result<Vec<_>, _>>().map_err(failed)
}

/// The CAs that this machine trusts.
fn trusted_here() -> Result<RootCertStore> {
    let what = "cannot tell which servers to trust";
    let found = TRUSTED.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
        Error::new(crate::error::Kind::NotFound, what, "this machine has no list of CAs")
            .cure("give tls-certificates=FOLDER, with ca-cert.pem in it, or install ca-certificates")
    })?;
    let mut roots = RootCertStore::empty();
    // Some of so many may be of a kind that is not known here.
    let (added, _) = roots.add_parsable_certificates(certificates(&found)?);
    match added {
        0 => Err(unusable(what.into(), format!("no CA in {} can be used", found.display()))),
        _ => Ok(roots),
    }
}

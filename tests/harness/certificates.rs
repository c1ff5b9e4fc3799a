//! Certificates made for one test, in files as qemu, nbdkit and libnbd name them.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

/// The number of the next certificate; a CA's are all different.
static NEXT: AtomicU64 = AtomicU64::new(1000);

/// A CA.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// Years in which a certificate is good now, and stays so.
pub const NOW: Range<i32> = 2020..2120;

impl Authority {
    pub fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Writes the CA's own certificate as the one that counts.
    pub fn is_trusted_in(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("ca-cert.pem"), &self.pem).unwrap();
    }

    /// Writes a certificate, good in these years, and its key for a side: `server` or `client`. Yields its number.
    pub fn certify(&self, folder: &Path, side: &str, names: &[&str], years: Range<i32>) -> u64 {
        fs::create_dir_all(folder).unwrap();
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, format!("a {side}"));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        params.serial_number = Some(SerialNumber::from(number));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match side {
            "server" => ExtendedKeyUsagePurpose::ServerAuth,
            _ => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.not_before = date_time_ymd(years.start, 1, 1);
        params.not_after = date_time_ymd(years.end, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(folder.join(format!("{side}-cert.pem")), certificate.pem()).unwrap();
        fs::write(folder.join(format!("{side}-key.pem")), key.serialize_pem()).unwrap();
        number
    }

    /// Writes a list that says a certificate does not count any more.
    pub fn revoke(&self, folder: &Path, number: u64) {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2120, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(number),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).unwrap();
        fs::write(folder.join("ca-crl.pem"), list.pem().unwrap()).unwrap();
    }
}

/// A folder in which everything is as it should be, for a server called localhost (127.0.0.1 and ::1) and a client.
pub fn all_well(folder: &Path) -> Authority {
    let authority = Authority::new("a CA");
    authority.is_trusted_in(folder);
    authority.certify(folder, "server", &["localhost", "127.0.0.1", "::1"], NOW);
    authority.certify(folder, "client", &["client.example"], NOW);
    authority
}

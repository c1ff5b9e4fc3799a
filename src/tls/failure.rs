//! Why a connection under TLS came to nothing, in words.

use std::io;

use rustls::{AlertDescription, CertificateError};

use crate::error::{Error, Kind};

/// What ended it.
#[derive(Debug)]
pub(super) enum Failure {
    /// TLS itself: what the peer sent, or what it is.
    Tls(rustls::Error),
    /// The connection below.
    Io(io::Error),
    /// The peer ended the connection without saying so under TLS: somebody else may have cut it off.
    Truncated,
    /// The handshake was not over in time.
    Late,
    /// Whoever wanted the connection does not want it any more.
    Abandoned,
}

impl From<rustls::Error> for Failure {
    fn from(error: rustls::Error) -> Failure {
        Failure::Tls(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

impl Failure {
    /// Whether a person would want to know of it, who wonders why a client does not come in.
    pub(super) fn is_of_interest(&self) -> bool {
        matches!(self, Failure::Tls(_) | Failure::Late)
    }

    pub(super) fn why(&self) -> String {
        match self {
            Failure::Tls(error) => error.to_string(),
            Failure::Io(error) => error.to_string(),
            Failure::Truncated => "the connection was cut off".into(),
            Failure::Late => "the handshake of TLS took too long".into(),
            Failure::Abandoned => "the connection is not wanted any more".into(),
        }
    }

    /// The error for whoever wanted to connect.
    pub(super) fn error(self, what: String) -> Error {
        let cure = self.cure();
        let error = match self {
            Failure::Io(error) => Error::system(what, error),
            Failure::Late => Error::new(Kind::Deadline, what, self.why()),
            Failure::Tls(_) => Error::new(Kind::Permission, what, self.why()),
            Failure::Truncated | Failure::Abandoned => Error::new(Kind::Failed, what, self.why()),
        };
        match cure {
            Some(cure) => error.cure(cure),
            None => error,
        }
    }

    fn cure(&self) -> Option<&'static str> {
        use AlertDescription as Alert;
        let Failure::Tls(error) = self else { return None };
        Some(match error {
            rustls::Error::InvalidCertificate(certificate) => match certificate {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    "ca-cert.pem must have the certificate of the CA that signed the server's"
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "the server needs a new certificate, or this machine's clock is wrong"
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "is this machine's clock right?"
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    "connect by a name that is in the certificate (as a subject alternative name), or give it as tls-hostname=NAME"
                }
                CertificateError::Revoked => "the server needs a new certificate",
                _ => "the server needs another certificate",
            },
            rustls::Error::AlertReceived(
                Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::UnknownCA
                | Alert::CertificateUnknown,
            ) => "the server wants client-cert.pem and client-key.pem, signed by a CA that it trusts",
            rustls::Error::AlertReceived(_) => "the server's log may say more",
            _ => "the other side must speak TLS 1.2 or 1.3",
        })
    }
}

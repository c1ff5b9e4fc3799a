//! What clients can choose from at this moment: exports come and go while the door is open.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::desk::Desk;
use crate::error::{Error, Kind, Result};
use crate::nbd::Export;
use crate::nbd::handshake::TlsPolicy;
use crate::tls;

/// Whether what clients say and hear is encrypted.
#[derive(Clone, Debug, Default)]
pub enum Encryption {
    /// It is not.
    #[default]
    Off,
    /// It is for those that ask for it.
    Offered(tls::ServerConfig),
    /// It is, and nobody is served without.
    Required(tls::ServerConfig),
}

impl Encryption {
    /// What is said to clients about it.
    pub fn policy(&self) -> TlsPolicy {
        match self {
            Encryption::Off => TlsPolicy::Off,
            Encryption::Offered(_) => TlsPolicy::Offered,
            Encryption::Required(_) => TlsPolicy::Required,
        }
    }

    /// Certificates and keys.
    pub fn config(&self) -> Option<&tls::ServerConfig> {
        match self {
            Encryption::Off => None,
            Encryption::Offered(config) | Encryption::Required(config) => Some(config),
        }
    }
}

/// The exports of a process, and the connections that it has to all of them together.
#[derive(Debug)]
pub struct Catalogue {
    max_connections: u16,
    encryption: Encryption,
    taken: Arc<AtomicUsize>,
    /// Never changed but replaced, so that whoever reads it does so without the lock.
    listing: Mutex<Arc<Listing>>,
}

/// The exports at one moment; the two lists have the same order.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    pub exports: Vec<Export>,
    pub choices: Vec<Arc<Choice>>,
}

/// The queues that serve an export. Who holds one has chosen that export and no other, whatever is
/// in the catalogue by now.
#[derive(Debug)]
pub(super) struct Choice {
    pub desks: Vec<Arc<Desk>>,
}

impl Catalogue {
    /// With no export yet, for at most this many connections at once.
    pub fn new(max_connections: u16) -> Arc<Catalogue> {
        Catalogue::encrypted(max_connections, Encryption::Off)
    }

    /// The same, for clients that can or must use TLS.
    pub fn encrypted(max_connections: u16, encryption: Encryption) -> Arc<Catalogue> {
        Arc::new(Catalogue { max_connections, encryption, taken: Arc::default(), listing: Mutex::default() })
    }

    /// Whether clients can or must use TLS.
    pub fn encryption(&self) -> &Encryption {
        &self.encryption
    }

    /// Connections at once, to all exports together.
    pub fn max_connections(&self) -> u16 {
        self.max_connections
    }

    /// Connections at this moment, those in the handshake too.
    pub fn connections(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    /// Where connections are counted.
    pub(super) fn taken(&self) -> &Arc<AtomicUsize> {
        &self.taken
    }

    /// What there is to choose from now.
    pub(super) fn listing(&self) -> Arc<Listing> {
        self.listing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds an export behind the others.
    pub(super) fn add(&self, export: &Export, choice: &Arc<Choice>) -> Result<()> {
        let mut listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        if listing.exports.iter().any(|other| other.name == export.name) {
            return Err(taken(&export.name));
        }
        let mut new = Listing::clone(&listing);
        new.exports.push(export.clone());
        new.choices.push(choice.clone());
        *listing = Arc::new(new);
        Ok(())
    }

    /// Takes an export out, if it is in.
    pub(super) fn remove(&self, choice: &Arc<Choice>) {
        let mut listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = listing.choices.iter().position(|other| Arc::ptr_eq(other, choice)) else { return };
        let mut new = Listing::clone(&listing);
        new.exports.remove(at);
        new.choices.remove(at);
        *listing = Arc::new(new);
    }
}

fn taken(name: &str) -> Error {
    let what = format!("cannot export {name:?} twice");
    Error::new(Kind::Invalid, what, "a client could not choose").cure("give another name")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::{BlockSizes, ExportFlags};

    fn export(name: &str) -> Export {
        Export {
            name: name.into(),
            description: String::new(),
            size: 0,
            flags: ExportFlags::HAS_FLAGS,
            block: BlockSizes { minimum: 1, preferred: 4096, maximum: 4096 },
        }
    }

    fn names(listing: &Listing) -> Vec<&str> {
        listing.exports.iter().map(|export| export.name.as_str()).collect()
    }

    #[test]
    fn what_was_looked_at_stays_while_the_catalogue_changes() {
        let catalogue = Catalogue::new(1);
        let choice = || Arc::new(Choice { desks: Vec::new() });
        let (a, b, c) = (choice(), choice(), choice());
        catalogue.add(&export("a"), &a).unwrap();
        catalogue.add(&export("b"), &b).unwrap();
        let before = catalogue.listing();
        assert!(catalogue.add(&export("a"), &c).unwrap_err().to_string().contains("twice"));
        catalogue.remove(&a);
        catalogue.remove(&a);
        catalogue.add(&export("a"), &c).unwrap();
        assert_eq!((names(&before), names(&catalogue.listing())), (vec!["a", "b"], vec!["b", "a"]));
        assert!(Arc::ptr_eq(&before.choices[0], &a) && Arc::ptr_eq(&catalogue.listing().choices[1], &c));
        // One that is out does not take another of its name along.
        catalogue.remove(&a);
        assert_eq!(names(&catalogue.listing()), ["b", "a"]);
    }
}

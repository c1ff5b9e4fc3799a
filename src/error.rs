//! Errors of the control plane: what failed, on what, why, and what to do next.

use std::fmt;

/// What a program may want to tell apart; a person reads the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The request itself cannot be met: a bad spec, value or combination.
    Invalid,
    /// Something that was named is not there.
    NotFound,
    /// It is in use, or taken.
    Busy,
    /// Not allowed.
    Permission,
    /// This kernel or store cannot do it.
    Unsupported,
    /// No answer within the deadline.
    Deadline,
    /// Anything else that went wrong below us.
    Failed,
}

/// An error of the control plane.
///
/// Displayed as `WHAT: WHY; CURE`, with what is known of the three. As small as a pointer, since a queue's loop
/// passes on many results that have none.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Parts>);

#[derive(Debug, thiserror::Error)]
struct Parts {
    kind: Kind,
    what: String,
    why: String,
    cure: Option<String>,
    #[source]
    source: Option<std::io::Error>,
}

/// A result of the control plane.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// `what` failed because of `why`: "cannot open /x", "it is a directory".
    pub fn new(kind: Kind, what: impl Into<String>, why: impl Into<String>) -> Error {
        Error(Box::new(Parts { kind, what: what.into(), why: why.into(), cure: None, source: None }))
    }

    /// A bad spec, value or combination.
    pub fn invalid(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::new(Kind::Invalid, what, why)
    }

    /// `what` failed with an error of the operating system, whose errno tells the kind.
    pub fn system(what: impl Into<String>, source: impl Into<std::io::Error>) -> Error {
        use std::io::ErrorKind;
        let source = source.into();
        let kind = match source.kind() {
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::PermissionDenied => Kind::Permission,
            ErrorKind::ResourceBusy | ErrorKind::AlreadyExists | ErrorKind::WouldBlock => Kind::Busy,
            ErrorKind::Unsupported => Kind::Unsupported,
            ErrorKind::TimedOut => Kind::Deadline,
            ErrorKind::InvalidInput => Kind::Invalid,
            _ => Kind::Failed,
        };
        let why = source.to_string();
        Error(Box::new(Parts { kind, what: what.into(), why, cure: None, source: Some(source) }))
    }

    /// Adds what a person can do about it.
    #[must_use]
    pub fn cure(mut self, cure: impl Into<String>) -> Error {
        self.0.cure = Some(cure.into());
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The errno below it, where there is one.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.0.source.as_ref().and_then(std::io::Error::raw_os_error)
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)?;
        match &self.cure {
            Some(cure) => write!(f, "; {cure}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_one_sentence_and_keeps_the_errno() {
        let error = Error::system("cannot open /x", std::io::Error::from_raw_os_error(2)).cure("create it");
        assert_eq!(error.to_string(), "cannot open /x: No such file or directory (os error 2); create it");
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.raw_os_error(), Some(2));
    }
}

//! Which engine shows a disk: the one that a person names, or the first that this machine has.

use std::str::FromStr;

use super::{Engine, fuse, nbd, ublk};
use crate::error::{Error, Kind, Result};

/// What a person wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineWish {
    /// The first of [`Engine::ALL`] that this machine has.
    #[default]
    Auto,
    /// This one and no other.
    Only(Engine),
}

impl FromStr for EngineWish {
    type Err = Error;

    fn from_str(text: &str) -> Result<EngineWish> {
        if text == "auto" {
            return Ok(EngineWish::Auto);
        }
        Engine::ALL.into_iter().find(|engine| engine.name() == text).map(EngineWish::Only).ok_or_else(|| {
            let names: Vec<&str> = Engine::ALL.iter().map(|engine| engine.name()).collect();
            Error::invalid(format!("cannot take the engine {text:?}"), "there is none of this name")
                .cure(format!("give auto, or one of {}", names.join(", ")))
        })
    }
}

/// An engine that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Which.
    pub engine: Engine,
    /// Why, a line for the person who asked.
    pub why: String,
}

/// Says whether this machine has an engine: loads the kernel's driver where that is a module that is not
/// loaded. The error says why not.
pub fn available(engine: Engine) -> Result<()> {
    match engine {
        Engine::Ublk => ublk::control::Control::open()?.features().map(drop),
        Engine::Nbd => nbd::kernel::available(),
        Engine::Fuse => fuse::availability::check(),
    }
}

/// Takes an engine. One that is named is not looked for here: it says for itself why it cannot be had.
pub fn choose(wish: EngineWish, available: &dyn Fn(Engine) -> Result<()>) -> Result<Chosen> {
    let engine = match wish {
        EngineWish::Only(engine) => {
            return Ok(Chosen { engine, why: format!("engine {engine}: as asked for") });
        }
        EngineWish::Auto => Engine::ALL,
    };
    let mut missing: Vec<String> = Vec::new();
    let mut kind = Kind::Unsupported;
    for engine in engine {
        match available(engine) {
            Ok(()) => {
                let why = match missing.is_empty() {
                    true => "this machine has it, and it is the first choice".to_owned(),
                    false => missing.join("; "),
                };
                return Ok(Chosen { engine, why: format!("engine {engine}: {why}") });
            }
            Err(error) => {
                if error.kind() == Kind::Permission {
                    kind = Kind::Permission;
                }
                missing.push(error.to_string());
            }
        }
    }
    Err(Error::new(kind, "no engine can show this machine a disk", missing.join("; "))
        .cure("`blockhaus serve` offers the same disk to NBD clients, which needs nothing of the kernel"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_first_that_there_is_and_says_why() {
        let none =
            |engine: Engine| Err(Error::new(Kind::Unsupported, format!("no {engine}"), "it is missing"));
        let chosen = choose(EngineWish::Auto, &|_| Ok(())).unwrap();
        assert_eq!(chosen.engine, Engine::Ublk);
        assert!(chosen.why.starts_with("engine ublk: this machine has it"), "{}", chosen.why);
        let only =
            |wanted: Engine| move |engine: Engine| if engine == wanted { Ok(()) } else { none(engine) };
        let chosen = choose(EngineWish::Auto, &only(Engine::Nbd)).unwrap();
        assert_eq!((chosen.engine, chosen.why.as_str()), (Engine::Nbd, "engine nbd: no ublk: it is missing"));
        let error = choose(EngineWish::Auto, &none).unwrap_err().to_string();
        for part in ["no ublk", "no nbd", "blockhaus serve"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn one_that_is_named_is_taken_unseen() {
        let unasked = |_: Engine| -> Result<()> { panic!("nobody is to be asked") };
        for engine in Engine::ALL {
            let wish: EngineWish = engine.name().parse().unwrap();
            assert_eq!(choose(wish, &unasked).unwrap().engine, engine);
        }
        assert_eq!("auto".parse::<EngineWish>().unwrap(), EngineWish::Auto);
        let error = "udlk".parse::<EngineWish>().unwrap_err().to_string();
        assert!(error.contains("udlk") && error.contains("ublk, nbd"), "{error}");
    }

    #[test]
    fn where_permission_is_missing_that_is_what_is_said() {
        let refused = |engine: Engine| {
            let kind = if engine == Engine::Ublk { Kind::Unsupported } else { Kind::Permission };
            Err(Error::new(kind, "cannot open it", "why"))
        };
        assert_eq!(choose(EngineWish::Auto, &refused).unwrap_err().kind(), Kind::Permission);
    }
}

//! Our structures and numbers against the newest packaged headers of the kernel, both ways: a C compiler says what
//! each of ours is in a header, and the header's text is searched for anything we do not have, so that a new kernel
//! flag or field fails here.

mod c;
mod loop_device;
mod nbd;
mod parse;
mod table;
mod ublk;

use std::path::{Path, PathBuf};

/// An include directory, or `linux/ublk_cmd.h` in one.
const VARIABLE: &str = "BLOCKHAUS_UBLK_HEADER";

/// The include directory.
fn include() -> PathBuf {
    match std::env::var_os(VARIABLE).map(PathBuf::from) {
        Some(path) if path.is_dir() => path,
        Some(path) => match path.parent().filter(|dir| dir.ends_with("linux")).and_then(Path::parent) {
            Some(include) => include.to_owned(),
            None => panic!("{VARIABLE} is neither an include directory nor a linux/ublk_cmd.h in one"),
        },
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/headers/include"),
    }
}

/// The text of a header.
fn read(include: &Path, header: &str) -> String {
    let path = include.join(header);
    std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}: run `cargo xtask test`, which fetches the newest kernel's headers, or set {VARIABLE} to an \
             include directory that has it",
            path.display()
        )
    })
}

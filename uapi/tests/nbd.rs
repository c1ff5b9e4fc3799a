//! Our numbers of the NBD driver against the newest packaged `linux/nbd-netlink.h` and `linux/nbd.h`: a C compiler says
//! what each of ours is there, and the headers' text is searched for anything that we do not have.

// What else is in there is for the header of ublk.
#[allow(dead_code)]
#[path = "header/parse.rs"]
mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use bitflags::Flags;
use blockhaus_uapi::nbd::*;

const VARIABLE: &str = "BLOCKHAUS_UBLK_HEADER";

/// The include root: as the test of ublk's header has it.
fn root() -> PathBuf {
    let root = match std::env::var_os(VARIABLE).map(PathBuf::from) {
        Some(path) if path.is_dir() => path,
        Some(path) => path.parent().and_then(Path::parent).expect("a header in linux/").to_owned(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/headers/include"),
    };
    assert!(
        root.join("linux/nbd-netlink.h").is_file(),
        "no linux/nbd-netlink.h under {}: run `cargo xtask test`, which fetches the newest kernel's headers, or set \
         {VARIABLE} to an include directory that has it",
        root.display()
    );
    root
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Adds constants: a prefix of the header, a module, and the names that follow both.
macro_rules! numbers {
    ($table:ident, $prefix:literal, $module:ident: $($name:ident)+) => {
        $($table.push((concat!($prefix, stringify!($name)).to_owned(), u64::from($module::$name)));)+
    };
}

fn flags<F: Flags<Bits = u64>>(prefix: &str) -> impl Iterator<Item = (String, u64)> {
    F::FLAGS.iter().map(move |f| (format!("{prefix}{}", f.name()), f.value().bits()))
}

/// What `linux/nbd-netlink.h` has.
fn of_netlink() -> Vec<(String, u64)> {
    let mut t = vec![("NBD_GENL_VERSION".to_owned(), u64::from(GENL_VERSION))];
    numbers!(t, "NBD_CMD_", cmd: UNSPEC CONNECT DISCONNECT RECONFIGURE LINK_DEAD STATUS MAX);
    numbers!(t, "NBD_ATTR_", attr:
        UNSPEC INDEX SIZE_BYTES BLOCK_SIZE_BYTES TIMEOUT SERVER_FLAGS CLIENT_FLAGS SOCKETS DEAD_CONN_TIMEOUT DEVICE_LIST
        BACKEND_IDENTIFIER MAX);
    t.push(("NBD_DEVICE_ITEM".to_owned(), device_item::ITEM.into()));
    numbers!(t, "NBD_DEVICE_ITEM_", device_item: UNSPEC MAX);
    numbers!(t, "NBD_DEVICE_", device: UNSPEC INDEX CONNECTED ATTR_MAX);
    t.push(("NBD_SOCK_ITEM".to_owned(), sock_item::ITEM.into()));
    numbers!(t, "NBD_SOCK_ITEM_", sock_item: UNSPEC MAX);
    numbers!(t, "NBD_SOCK_", sock: UNSPEC FD MAX);
    t
}

/// What `linux/nbd.h` has of ioctls and flags.
fn of_ioctls() -> Vec<(String, u64)> {
    let mut t: Vec<_> = flags::<ServerFlags>("NBD_FLAG_").collect();
    numbers!(t, "NBD_", ioctl:
        SET_SOCK SET_BLKSIZE SET_SIZE DO_IT CLEAR_SOCK CLEAR_QUE PRINT_DEBUG SET_SIZE_BLOCKS DISCONNECT SET_TIMEOUT
        SET_FLAGS);
    t.extend(flags::<ClientFlags>("NBD_CFLAG_"));
    t
}

fn names(table: &[(String, u64)]) -> BTreeSet<String> {
    table.iter().map(|(name, _)| name.clone()).collect()
}

/// What a header says of each of ours.
fn compiled(
    root: &Path,
    header: &str,
    table: &[(String, u64)],
    texts: &[&str],
) -> (BTreeMap<String, u64>, Vec<String>) {
    let mut c = String::from("#include <stdio.h>\n#include <sys/ioctl.h>\n");
    writeln!(c, "#include \"{}\"\nint main(void) {{", root.join(header).display())
        .expect("a String takes it");
    for (name, _) in table {
        writeln!(c, "printf(\"{name} %llu\\n\", (unsigned long long)({name}));").expect("a String takes it");
    }
    for text in texts {
        writeln!(c, "printf(\"text %s\\n\", {text});").expect("a String takes it");
    }
    c.push_str("return 0; }\n");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let name = header.replace(['/', '.'], "-");
    let (source, binary) = (dir.join(format!("{name}.c")), dir.join(&name));
    std::fs::write(&source, c).expect("write the program");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let built = Command::new(&compiler).arg("-I").arg(root).arg("-o").arg(&binary).arg(&source).output();
    let built = built.expect("the C compiler runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let ran = Command::new(&binary).output().expect("the C program runs");
    let (mut numbers, mut said) = (BTreeMap::new(), Vec::new());
    for line in String::from_utf8(ran.stdout).expect("it prints text").lines() {
        match line.split_once(' ').expect("a name and a value") {
            ("text", text) => said.push(text.to_owned()),
            (name, number) => drop(numbers.insert(name.to_owned(), number.parse().expect("a number"))),
        }
    }
    (numbers, said)
}

fn compare(root: &Path, header: &str, table: Vec<(String, u64)>, texts: &[&str]) -> Vec<String> {
    let (theirs, said) = compiled(root, header, &table, texts);
    let wrong: Vec<String> = table
        .iter()
        .filter(|(name, value)| theirs.get(name) != Some(value))
        .map(|(name, value)| format!("{name}: {value} here, {:?} in {header}", theirs.get(name)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    said
}

#[test]
fn netlink_numbers_agree_and_none_is_missing() {
    let root = root();
    let header =
        parse::header(&read(&root.join("linux/nbd-netlink.h"))).expect("this test can parse the header");
    // What C counts with, texts, and the guard.
    let texts = ["NBD_GENL_FAMILY_NAME", "NBD_GENL_MCAST_GROUP_NAME"];
    let is_number = |name: &&String| {
        !name.starts_with("__") && !texts.contains(&name.as_str()) && *name != "LINUX_NBD_NETLINK_H"
    };
    let theirs: BTreeSet<String> = header.numbers.iter().filter(is_number).cloned().collect();
    assert_eq!(theirs, names(&of_netlink()));
    assert!(header.structs.is_empty() && header.functions.is_empty());
    let said = compare(&root, "linux/nbd-netlink.h", of_netlink(), &texts);
    assert_eq!(said, [GENL_FAMILY_NAME, GENL_MCAST_GROUP_NAME]);
}

#[test]
fn ioctls_and_flags_agree_and_none_is_missing() {
    let root = root();
    let text = read(&root.join("linux/nbd.h"));
    let is_ours = |name: &&String| {
        let number = text.contains(&format!("{name}\t_IO(")) || text.contains(&format!("{name}  _IO("));
        let number =
            number || text.contains(&format!("{name} _IO(")) || text.contains(&format!("{name}   _IO("));
        number || ["NBD_FLAG_", "NBD_CFLAG_"].iter().any(|prefix| name.starts_with(prefix))
    };
    let theirs: BTreeSet<String> = parse::defines(&text).iter().filter(is_ours).cloned().collect();
    assert_eq!(theirs, names(&of_ioctls()));
    compare(&root, "linux/nbd.h", of_ioctls(), &[]);
}

//! Our structures and numbers against the newest packaged `linux/ublk_cmd.h`, both ways: a C
//! compiler says what each of ours is in the header, and the header's text is searched for
//! anything we do not have, so that a new kernel flag or field fails here.

mod c;
mod parse;
mod table;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use parse::Header;
use table::Ours;

/// Names the header defines that are not numbers: its include guard.
const NOT_NUMBERS: [&str; 1] = ["USER_BLK_DRV_CMD_INC_H"];

const VARIABLE: &str = "BLOCKHAUS_UBLK_HEADER";

/// The include root and the header in it.
fn locate() -> (PathBuf, PathBuf) {
    let root = match std::env::var_os(VARIABLE).map(PathBuf::from) {
        Some(path) if path.is_dir() => path,
        Some(path) => match path.parent().filter(|dir| dir.ends_with("linux")).and_then(Path::parent) {
            Some(root) => root.to_owned(),
            None => panic!("{VARIABLE} is neither an include directory nor a linux/ublk_cmd.h in one"),
        },
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/headers/include"),
    };
    let header = root.join("linux/ublk_cmd.h");
    assert!(
        header.is_file() && root.join("linux/fs.h").is_file(),
        "no linux/ublk_cmd.h and linux/fs.h under {}: run `cargo xtask test`, which fetches the newest \
         kernel's headers, or set {VARIABLE} to an include directory that has them",
        root.display()
    );
    (root, header)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What the header has and we do not, and the other way round.
fn incomplete(header: &Header, ours: &Ours) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut compare = |what: &str, theirs: BTreeSet<String>, ours: BTreeSet<String>| {
        wrong.extend(theirs.difference(&ours).map(|name| format!("{what} {name} is not in our table")));
        wrong.extend(ours.difference(&theirs).map(|name| format!("{what} {name} is not in the header")));
    };
    let numbers = header.numbers.iter().filter(|n| !NOT_NUMBERS.contains(&n.as_str())).cloned().collect();
    compare("number", numbers, ours.numbers.iter().map(|(name, _)| name.clone()).collect());
    compare("function", header.functions.clone(), table::FUNCTIONS.iter().map(|f| (*f).to_owned()).collect());
    compare(
        "structure",
        header.structs.iter().map(|s| s.name.clone()).collect(),
        ours.structs.iter().map(|s| s.name.to_owned()).collect(),
    );
    compare(
        "field",
        header.structs.iter().flat_map(|s| s.fields.iter().map(|f| format!("{}.{f}", s.name))).collect(),
        ours.structs.iter().flat_map(|s| s.fields.iter().map(|f| format!("{}.{}", s.name, f.name))).collect(),
    );
    wrong
}

/// The numbers of `linux/fs.h` that belong to ublk.
fn integrity_names(root: &Path) -> BTreeSet<String> {
    parse::defines(&read(&root.join("linux/fs.h")))
        .into_iter()
        .filter(|n| n.starts_with("LBMD_PI_"))
        .collect()
}

fn full_header(root: &Path, text: &str) -> Header {
    let mut header = parse::header(text).expect("this test can parse the header");
    header.numbers.extend(integrity_names(root));
    header
}

#[test]
fn header_and_crate_agree() {
    let (root, path) = locate();
    let ours = Ours::new();
    let header = full_header(&root, &read(&path));
    let missing = incomplete(&header, &ours);
    assert!(missing.is_empty(), "{}", missing.join("\n"));

    let wrong = c::differences(&root, &path, &ours, "agree");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    eprintln!(
        "{} numbers, {} structures with {} fields and {} functions agree with {}",
        ours.numbers.len(),
        ours.structs.len(),
        ours.structs.iter().map(|s| s.fields.len()).sum::<usize>(),
        table::FUNCTIONS.len(),
        path.display()
    );
}

/// Each of these changes to the header has to be seen, and named.
#[test]
fn additions_are_seen() {
    let (root, path) = locate();
    let ours = Ours::new();
    let text = read(&path);
    let end = text.rfind("#endif").expect("an include guard");
    for (addition, complaint) in [
        ("#define UBLK_F_FUTURE\t(1ULL << 63)\n", "number UBLK_F_FUTURE"),
        ("#define UBLK_TWO_LINES \\\n\t2\n", "number UBLK_TWO_LINES"),
        ("  #  define UBLK_INDENTED 3\n", "number UBLK_INDENTED"),
        ("#define UBLK_MACRO(x) (x)\n", "number UBLK_MACRO"),
        ("enum ublk_new { UBLK_FIRST, UBLK_SECOND = UBLK_FIRST + (1, 3), };\n", "number UBLK_SECOND"),
        ("struct ublk_new { __u8 x; };\n", "structure ublk_new"),
        ("static __inline__ int ublk_new(void) { return 1; }\n", "function ublk_new"),
    ] {
        let changed = format!("{}{addition}{}", &text[..end], &text[end..]);
        let found = incomplete(&full_header(&root, &changed), &ours);
        assert!(found.iter().any(|f| f.starts_with(complaint)), "{complaint}: {found:?}");
    }
    for (old, new, complaint) in [
        ("__u32\tpad1;", "__u16\tpad1, half;", "field ublksrv_ctrl_dev_info.half is not in our"),
        ("__u32\tpad1;", "__u32\trenamed;", "field ublksrv_ctrl_dev_info.pad1 is not in the header"),
        ("nr_zones;", "nr_zones; __u32 nr_new;", "field ublksrv_io_desc.nr_new is not in our"),
        ("UBLK_IO_OP_READ\t", "UBLK_IO_OP_RENAMED\t", "number UBLK_IO_OP_READ is not in the header"),
    ] {
        let changed = text.replace(old, new);
        assert_ne!(changed, text, "{old} is in the header");
        let found = incomplete(&full_header(&root, &changed), &ours);
        assert!(found.iter().any(|f| f.starts_with(complaint)), "{complaint}: {found:?}");
    }
    for refused in ["typedef int ublk_t;\n", "struct ublk_bits { __u32 x : 3; };\n"] {
        let changed = format!("{}{refused}{}", &text[..end], &text[end..]);
        assert!(parse::header(&changed).is_err(), "{refused}");
    }
}

/// The same names with another meaning have to be seen by the compiler's side.
#[test]
fn changes_are_seen() {
    let (root, path) = locate();
    let ours = Ours::new();
    let text = read(&path);
    for (i, (old, new, complaint)) in [
        ("UBLK_F_USER_COPY\t(1UL << 7)", "UBLK_F_USER_COPY\t(1UL << 8)", "UBLK_F_USER_COPY"),
        ("(-ENODEV)", "(-EINTR)", "UBLK_IO_RES_ABORT"),
        ("_IOWR('u', 0x18,", "_IOR('u', 0x18,", "UBLK_U_CMD_REG_BUF"),
        (
            "__u32\tpad1;\n\n\t__u64\tflags;",
            "__u64\tflags;\n\t__u32\tpad1;",
            "ublksrv_ctrl_dev_info.pad1 offset",
        ),
        ("reserved[20]", "reserved[24]", "ublk_param_zoned"),
        ("__s32\tublksrv_pid", "__u32\tublksrv_pid", "ublksrv_ctrl_dev_info.ublksrv_pid"),
        ("iod->op_flags & 0xff", "iod->op_flags & 0x7f", "ublksrv_get_op"),
    ]
    .into_iter()
    .enumerate()
    {
        let changed = text.replace(old, new);
        assert_ne!(changed, text, "{old} is in the header");
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("changed-{i}.h"));
        std::fs::write(&file, changed).expect("write the changed header");
        let found = c::differences(&root, &file, &ours, &format!("changed-{i}"));
        assert!(found.iter().any(|f| f.starts_with(complaint)), "{complaint}: {found:?}");
    }
}

//! One C program that prints what the header says, and the comparison with what we say.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use blockhaus_uapi::ublk::{AutoBufReg, IoDesc, ShmemAddr};

use super::table::{FUNCTIONS, Ours};

/// Inputs of the inline functions: every single bit, every run of low bits, and a pattern.
fn samples() -> Vec<u64> {
    let bits = (0..64).flat_map(|bit| [1 << bit, u64::MAX >> bit]);
    bits.chain([0, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]).collect()
}

/// What our twin of a header's function makes of a sample.
fn ours_of(function: &str, x: u64) -> u64 {
    let desc = IoDesc { op_flags: x as u32, ..IoDesc::default() };
    match function {
        "ublksrv_get_op" => desc.op().into(),
        // The header moves the flags down; ours stay where UBLK_IO_F_* are.
        "ublksrv_get_flags" => u64::from(desc.flags().bits()) >> 8,
        "ublk_sqe_addr_to_auto_buf_reg" => {
            let reg = AutoBufReg::from_sqe_addr(x);
            u64::from(reg.index)
                ^ u64::from(reg.flags.bits()) << 17
                ^ u64::from(reg.reserved0) << 29
                ^ u64::from(reg.reserved1) << 31
        }
        "ublk_auto_buf_reg_to_sqe_addr" => AutoBufReg::from_sqe_addr(x).to_sqe_addr(),
        "ublk_shmem_zc_addr" => ShmemAddr::new((x >> 32) as u16, x as u32).0,
        "ublk_shmem_zc_index" => ShmemAddr(x).index().into(),
        "ublk_shmem_zc_offset" => ShmemAddr(x).offset().into(),
        other => panic!("no twin of {other}"),
    }
}

/// The same in C, with the sample in `x`.
fn c_of(function: &str) -> String {
    match function {
        "ublksrv_get_op" | "ublksrv_get_flags" => {
            format!("struct ublksrv_io_desc d = {{ .op_flags = x }}; r = {function}(&d);")
        }
        "ublk_sqe_addr_to_auto_buf_reg" => format!(
            "struct ublk_auto_buf_reg b = {function}(x); r = b.index ^ (__u64)b.flags << 17 \
             ^ (__u64)b.reserved0 << 29 ^ (__u64)b.reserved1 << 31;"
        ),
        "ublk_auto_buf_reg_to_sqe_addr" => format!(
            "struct ublk_auto_buf_reg b = {{ .index = x, .flags = x >> 16, .reserved0 = x >> 24, \
             .reserved1 = x >> 32 }}; r = {function}(&b);"
        ),
        "ublk_shmem_zc_addr" => format!("r = {function}(x >> 32, x);"),
        _ => format!("r = {function}(x);"),
    }
}

fn program(header: &Path, ours: &Ours) -> String {
    let mut c =
        String::from("#include <errno.h>\n#include <stddef.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n");
    let out = &mut c;
    let mut line = |text: &str| writeln!(out, "{text}").expect("a String takes it");
    line(&format!("#include \"{}\"", header.display()));
    line("#include <linux/fs.h>");
    line("#define SAY(what, value) printf(\"%s %llu\\n\", what, (unsigned long long)(value))");
    line("#define FIELD(s, f) (((struct s *)0)->f)");
    line("#define SIGNED(e) _Generic((e), __s8: 1, __s16: 1, __s32: 1, __s64: 1, default: 0)");
    line("int main(void) {");
    for (name, _) in &ours.numbers {
        line(&format!("SAY(\"{name}\", {name});"));
    }
    for s in &ours.structs {
        let name = s.name;
        line(&format!("SAY(\"{name} size\", sizeof(struct {name}));"));
        line(&format!("SAY(\"{name} alignment\", _Alignof(struct {name}));"));
        for f in &s.fields {
            let field = f.name;
            line(&format!("SAY(\"{name}.{field} offset\", offsetof(struct {name}, {field}));"));
            line(&format!("SAY(\"{name}.{field} size\", sizeof(FIELD({name}, {field})));"));
            line(&format!("SAY(\"{name}.{field} signed\", SIGNED(FIELD({name}, {field})));"));
        }
    }
    let list: Vec<String> = samples().iter().map(|x| format!("{x:#x}ULL")).collect();
    line(&format!("static const __u64 samples[] = {{ {} }};", list.join(", ")));
    line("for (unsigned i = 0; i < sizeof(samples) / sizeof(*samples); i++) {");
    line("__u64 x = samples[i], r; char what[128];");
    for function in FUNCTIONS {
        line(&format!("{{ {} sprintf(what, \"{function} of %llu\", x); SAY(what, r); }}", c_of(function)));
    }
    line("}");
    line("return 0; }");
    c
}

fn expected(ours: &Ours) -> Vec<(String, u64)> {
    let mut all = ours.numbers.clone();
    for s in &ours.structs {
        all.push((format!("{} size", s.name), s.size as u64));
        all.push((format!("{} alignment", s.name), s.align as u64));
        for f in &s.fields {
            let name = format!("{}.{}", s.name, f.name);
            all.push((format!("{name} offset"), f.offset as u64));
            all.push((format!("{name} size"), f.size as u64));
            all.push((format!("{name} signed"), f.signed.into()));
        }
    }
    for x in samples() {
        all.extend(FUNCTIONS.iter().map(|f| (format!("{f} of {x}"), ours_of(f, x))));
    }
    all
}

fn run(command: &mut Command, what: &str) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(output.status.success(), "{what} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap_or_else(|e| panic!("{what}: {e}"))
}

/// Compiles and runs the program against a header, and says where it and we differ.
pub fn differences(include: &Path, header: &Path, ours: &Ours, name: &str) -> Vec<String> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, binary) = (dir.join(format!("{name}.c")), dir.join(name));
    let header = header.canonicalize().expect("the header is there");
    std::fs::write(&source, program(&header, ours)).expect("write the program");

    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut cc = Command::new(&compiler);
    cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-sign-compare"]).arg("-I").arg(include);
    // An unpacked Debian package keeps `asm` in a directory of the architecture.
    if let Ok(output) = Command::new(&compiler).arg("-print-multiarch").output() {
        let multiarch = String::from_utf8_lossy(&output.stdout);
        let asm = include.join(multiarch.trim());
        if asm.join("asm").is_dir() {
            cc.arg("-I").arg(asm);
        }
    }
    run(cc.arg("-o").arg(&binary).arg(&source), "the C compiler");
    let printed = run(&mut Command::new(&binary), "the C program");

    let theirs: BTreeMap<&str, u64> = printed
        .lines()
        .map(|line| {
            let (what, value) = line.rsplit_once(' ').expect("a name and a value");
            (what, value.parse().expect("a number"))
        })
        .collect();
    let expected = expected(ours);
    assert!(theirs.len() <= expected.len(), "the program prints what nobody compares");
    expected
        .iter()
        .filter(|(what, value)| theirs.get(what.as_str()) != Some(value))
        .map(|(what, value)| match theirs.get(what.as_str()) {
            Some(other) => format!("{what}: {value} ({value:#x}) here, {other} ({other:#x}) in the header"),
            None => format!("{what}: not printed"),
        })
        .collect()
}

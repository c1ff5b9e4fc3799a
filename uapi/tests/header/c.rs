//! One C program that prints what the header says, and the comparison with what we say.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use super::table::Ours;

/// Inputs of the inline functions: every single bit, every run of low bits, and a pattern.
fn samples() -> Vec<u64> {
    let bits = (0..64).flat_map(|bit| [1 << bit, u64::MAX >> bit]);
    bits.chain([0, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]).collect()
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
    for f in &ours.functions {
        for x in samples() {
            line(&format!("{{ __u64 x = {x:#x}ULL, r; {} SAY(\"{} of {x}\", r); }}", f.c, f.name));
        }
    }
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
    for f in &ours.functions {
        all.extend(samples().into_iter().map(|x| (format!("{} of {x}", f.name), (f.ours)(x))));
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

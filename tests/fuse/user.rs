//! An ordinary user's disk: a file, mounted by fusermount3.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Command, Output};

use crate::world::World;

/// nobody.
const USER: u32 = 65534;

/// Runs a shell script as nobody, where /dev/fuse is everybody's, as udev makes it: in a mount namespace of its own, so that
/// nothing of the machine's is changed.
fn as_user(world: &World, script: &str) -> Output {
    let own = world.home.path().join("fuse");
    let program = env!("CARGO_BIN_EXE_blockhaus");
    // The program may lie where nobody may look.
    let copy = world.home.path().join("blockhaus");
    if !copy.exists() {
        fs::copy(program, &copy).unwrap();
    }
    let outer = format!(
        "set -e; mount --make-rprivate /; test -e {own} || mknod -m 666 {own} c 10 229; mount --bind {own} /dev/fuse; \
         exec setpriv --reuid {USER} --regid {USER} --clear-groups sh -ec '{script}'",
        own = own.display(),
    );
    Command::new("unshare")
        .args(["-m", "sh", "-c", &outer])
        .env("XDG_RUNTIME_DIR", world.home.path().join("user"))
        .env("B", &copy)
        .current_dir("/")
        .output()
        .unwrap()
}

#[test]
fn an_ordinary_user_has_a_file() {
    let Some(world) = World::new() else { return };
    let own = world.home.path().join("user");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(USER), Some(USER)).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(world.home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // One script, since a mount is seen in its own namespace alone.
    let script = r#"
        disk=$($B attach --engine fuse ram:8M --connections 2)
        echo "disk $disk"
        stat -c "%s %u %a" $disk
        head -c 3000000 /dev/urandom > $XDG_RUNTIME_DIR/data
        dd if=$XDG_RUNTIME_DIR/data of=$disk conv=notrunc,fsync seek=1234 oflag=seek_bytes bs=64k 2>/dev/null
        dd if=$disk iflag=skip_bytes,count_bytes skip=1234 count=3000000 bs=64k 2>/dev/null | cmp - $XDG_RUNTIME_DIR/data
        $B list
        exec 9<$disk
        if $B detach fuse0 2>&1; then echo "it went although it was open"; fi
        exec 9<&-
        $B detach $disk
        test ! -e $disk
        second=$($B attach --engine fuse ram:8M)
        kill -9 $(sed "s/.*\"pid\":\([0-9]*\).*/\1/" $XDG_RUNTIME_DIR/blockhaus/fuse0.json)
        sleep 1
        $B gc
        ls $XDG_RUNTIME_DIR/blockhaus
        grep $XDG_RUNTIME_DIR /proc/self/mountinfo || echo "nothing is mounted"
    "#;
    let output = as_user(&world, script);
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{said}", output.status);
    let file = own.join("blockhaus/fuse0/disk");
    for part in [
        format!("disk {}", file.display()),
        format!("8388608 {USER} 600"),
        "live".into(),
        "in use".into(),
        "nothing is mounted".into(),
    ] {
        assert!(out.contains(&part), "{part}: {out}{said}");
    }
    assert!(!out.contains("although"), "{out}");
    assert!(said.contains("takes root"), "{said}");
}

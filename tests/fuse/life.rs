//! How a disk begins and ends, in order and not.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::waiting::wait_until;
use crate::world::{World, backing, is_gone, kill, tool};

#[test]
fn a_disk_is_a_block_device_and_says_what_it_is() {
    let Some(world) = World::new() else { return };
    let disk = world.attach(&["ram:64M", "--connections", "2", "--block-size", "4096"]);
    assert!(disk.path.to_str().unwrap().starts_with("/dev/loop"), "{}", disk.path.display());
    assert_eq!(backing(&disk.path).as_deref(), disk.file.to_str());
    let device = disk.path.to_str().unwrap();
    assert_eq!(tool("blockdev", &["--getsize64", "--getss", device]), "67108864\n4096\n");
    let direct = fs::read_to_string(format!("/sys/block/{}/loop/dio", device.trim_start_matches("/dev/")));
    assert_eq!(direct.unwrap().trim(), "1", "its loop device goes through the page cache");
    let list = world.ok(&["list"]);
    for part in [device, "live", "ram:64M"] {
        assert!(list.contains(part), "{part}: {list}");
    }
    // By every name it has.
    for name in [disk.name.as_str(), device, disk.file.to_str().unwrap(), "0"] {
        let status = world.ok(&["status", name]);
        for part in ["fuse", "live", "IO_FLUSHER", disk.file.to_str().unwrap()] {
            assert!(status.contains(part), "{name}, {part}: {status}");
        }
    }
    fs::write(&disk.path, vec![3u8; 1 << 20]).unwrap();
    let stats = world.json(&["stats", &disk.name, "--json"]).to_string();
    assert!(stats.contains("\"engine\":\"fuse\"") && stats.contains("write"), "{stats}");
    world.detach(&disk);
    assert!(is_gone(disk.pid));
}

/// By whomever: its number may be another file's by now.
#[test]
fn a_disk_whose_loop_device_was_taken_away_is_its_file() {
    let Some(world) = World::new() else { return };
    let disk = world.attach(&["ram:1M"]);
    tool("losetup", &["-d", disk.path.to_str().unwrap()]);
    wait_until("the end of the loop device", || backing(&disk.path).is_none());
    let status = world.json(&["status", &disk.name, "--json"]);
    assert_eq!(status["data_path"], "file", "{status}");
    // Another one in its place is not touched.
    let other = world.home.path().join("other");
    fs::write(&other, [0; 4096]).unwrap();
    let took = Command::new("losetup").arg(&disk.path).arg(&other).status().unwrap().success();
    world.ok(&["detach", &disk.name]);
    if took {
        assert_eq!(backing(&disk.path).as_deref(), other.to_str());
        tool("losetup", &["-d", disk.path.to_str().unwrap()]);
    }
    world.is_empty();
}

/// Its server was killed between the first step and the next.
#[test]
fn a_folder_that_is_no_disk_is_collected_when_it_is_old() {
    let Some(world) = World::new() else { return };
    let folder = world.folder().join("fuse0");
    fs::create_dir_all(&folder).unwrap();
    world.ok(&["gc"]);
    assert!(folder.exists(), "its server may be just making it");
    std::thread::sleep(Duration::from_secs(6));
    let said = world.ok(&["gc"]);
    assert!(!folder.exists() && said.contains("fuse0"), "{said}");
    world.is_empty();
}

#[test]
fn auto_takes_it_where_the_kernel_has_nothing_better() {
    let Some(world) = World::new() else { return };
    if ["/dev/ublk-control", "/dev/nbd0"].iter().any(|path| fs::exists(path).unwrap()) {
        return eprintln!("SKIPPED: this kernel has something better");
    }
    let output = world.run(&["attach", "ram:1M"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("fuse") && said.contains("ublk"), "{said}");
    assert!(output.stdout.starts_with(b"/dev/loop"));
    world.ok(&["detach", String::from_utf8(output.stdout).unwrap().trim()]);
    world.is_empty();
}

#[test]
fn many_disks_have_numbers_of_their_own() {
    let Some(world) = World::new() else { return };
    let disks: Vec<_> = (0..3).map(|_| world.attach(&["ram:1M"])).collect();
    let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["fuse0", "fuse1", "fuse2"]);
    world.ok(&["detach", "fuse1"]);
    let said = world.fails(&["attach", "--engine", "fuse", "ram:1M", "--id", "2"]);
    assert!(said.contains("2") && said.contains("in use"), "{said}");
    assert_eq!(world.attach(&["ram:1M"]).name, "fuse1");
    let seven = world.attach(&["ram:1M", "--id", "7"]);
    assert_eq!(seven.name, "fuse7");
    for (number, disk) in disks.iter().enumerate() {
        if number != 1 {
            fs::write(&disk.path, [number as u8; 512]).unwrap();
        }
    }
    assert_eq!(&fs::read(&disks[2].path).unwrap()[..3], [2, 2, 2]);
    world.ok(&["detach", "--all"]);
    world.is_empty();
}

#[test]
fn a_disk_without_a_loop_device_is_its_file() {
    let Some(world) = World::new() else { return };
    let disk = world.attach(&["ram:1M", "--no-loop-device"]);
    assert_eq!(disk.path, disk.file);
    assert_eq!(tool("stat", &["-c", "%s %a", disk.file.to_str().unwrap()]), "1048576 600\n");
    // Who has it open is in the way, and named.
    let open = File::open(&disk.file).unwrap();
    let said = world.fails(&["detach", &disk.name]);
    assert!(said.contains("in use") && said.contains(&std::process::id().to_string()), "{said}");
    assert_eq!(open.read_at(&mut [0; 9], 0).unwrap(), 9);
    drop(open);
    world.detach(&disk);
}

#[test]
fn what_is_in_use_stays_until_it_is_not_or_by_force() {
    let Some(world) = World::new() else { return };
    let disk = world.attach(&["file:disk.img,size=64M"]);
    let device = disk.path.to_str().unwrap();
    tool("mkfs.ext4", &["-q", device]);
    let at = world.home.path().join("mnt");
    fs::create_dir(&at).unwrap();
    tool("mount", &[device, at.to_str().unwrap()]);
    let said = world.fails(&["detach", &disk.name]);
    assert!(said.contains("mounted at") && said.contains("--force"), "{said}");
    // A signal is refused as well.
    kill(disk.pid, libc::SIGTERM);
    std::thread::sleep(Duration::from_secs(1));
    assert!(!is_gone(disk.pid));
    fs::write(at.join("a"), "still there").unwrap();
    tool("sync", &["-f", at.to_str().unwrap()]);
    assert!(world.ok(&["status", &disk.name]).contains("mounted at"));
    assert_eq!(backing(&disk.path).as_deref(), disk.file.to_str());
    tool("umount", &[at.to_str().unwrap()]);
    // Now it may go, and what was written is there.
    world.detach(&disk);
    let disk = world.attach(&["file:disk.img"]);
    let device = disk.path.to_str().unwrap();
    tool("mount", &[device, at.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "still there");
    let began = Instant::now();
    world.ok(&["detach", &disk.name, "--force"]);
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(is_gone(disk.pid));
    assert!(fs::write(at.join("b"), "x").and_then(|()| File::open(at.join("b"))?.sync_all()).is_err());
    tool("umount", &[at.to_str().unwrap()]);
    wait_until("the end of the loop device", || backing(&disk.path).is_none());
    world.is_empty();
}

/// Killed with requests on their way: whoever waits hears of it, and everything can be put right.
#[test]
fn a_killed_servers_disk_fails_and_is_cleaned_up() {
    let Some(world) = World::new() else { return };
    for how in [&["gc"][..], &["detach", "fuse0"], &["detach", "--force", "fuse0"]] {
        let disk = world.attach(&["ram:64M", "--filter", "fault,op=write,delay_ms=300"]);
        let writer = || {
            let target = format!("of={}", disk.path.display());
            std::process::Command::new("dd")
                .args(["if=/dev/zero", &target, "bs=1M", "count=64", "oflag=direct"])
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        };
        let mut writers = [writer(), writer()];
        std::thread::sleep(Duration::from_millis(400));
        kill(disk.pid, libc::SIGKILL);
        wait_until("the server's end", || is_gone(disk.pid));
        for writer in &mut writers {
            assert!(!writer.wait().unwrap().success(), "a write to nobody was acknowledged");
        }
        assert!(world.ok(&["list"]).contains("dead"));
        let began = Instant::now();
        world.ok(how);
        assert!(began.elapsed() < Duration::from_secs(10));
        assert!(backing(&disk.path).is_none());
        world.is_empty();
    }
}

/// The server waits for nobody who waits for the server, even in the moment in which its loop device is made.
#[test]
fn a_server_that_is_killed_while_it_starts_leaves_nothing_that_gc_does_not_find() {
    let Some(world) = World::new() else { return };
    // Whatever is read or flushed takes so long that it is certainly under way.
    let mut attach = world
        .command(&["attach", "--engine", "fuse", "ram:64M", "--filter", "fault,delay_ms=1500"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let entry = world.folder().join("fuse0.json");
    wait_until("the entry", || fs::read_to_string(&entry).is_ok_and(|text| text.ends_with('\n')));
    std::thread::sleep(Duration::from_millis(700));
    let entry: serde_json::Value = serde_json::from_str(&fs::read_to_string(&entry).unwrap()).unwrap();
    let pid = entry["pid"].as_i64().unwrap() as i32;
    kill(pid, libc::SIGKILL);
    wait_until("the server's end", || is_gone(pid));
    if attach.wait().unwrap().success() {
        eprintln!("SKIPPED: a kernel without partitions asks for nothing when it makes a loop device");
    }
    world.ok(&["gc"]);
    world.is_empty();
}

/// Others that hang are not made to hang us.
#[test]
fn a_server_that_is_stopped_is_named_and_can_be_killed() {
    let Some(world) = World::new() else { return };
    let disk = world.attach(&["ram:1M"]);
    kill(disk.pid, libc::SIGSTOP);
    let began = Instant::now();
    assert!(world.ok(&["list"]).contains("hung"));
    assert!(world.ok(&["status", &disk.name]).contains("hung"));
    let said = world.fails(&["detach", &disk.name]);
    assert!(said.contains("does not answer"), "{said}");
    world.ok(&["detach", "--force", &disk.name]);
    assert!(began.elapsed() < Duration::from_secs(25));
    assert!(backing(&disk.path).is_none());
    world.is_empty();
}

/// Somebody unmounts the file behind our back.
#[test]
fn a_file_that_somebody_else_unmounts_ends_its_server() {
    let Some(world) = World::new() else { return };
    let disk = world.attach(&["ram:1M", "--no-loop-device"]);
    tool("umount", &[disk.file.parent().unwrap().to_str().unwrap()]);
    wait_until("the server's end", || is_gone(disk.pid));
    world.ok(&["gc"]);
    world.is_empty();
}

/// `up` serves files as it serves devices, and beside exports on the same disk.
#[test]
fn up_has_disks_by_fuse() {
    let Some(world) = World::new() else { return };
    let config = world.home.path().join("disks.toml");
    let text = "[[device]]\nspec = \"ram:8M\"\nengine = \"fuse\"\nexport = \"both\"\n\n[[device]]\nspec = \"ram:4M\"\n\
                engine = \"fuse\"\nid = 5\n\n[nbd]\nlisten = [\"unix:s\"]\n";
    fs::write(&config, text).unwrap();
    let mut up =
        world.command(&["up", "disks.toml"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(up.stdout.take().unwrap()));
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("/dev/loop"), "{first}");
    fs::write(&first, b"from the loop device").unwrap();
    let file = fs::read(world.folder().join("fuse0/disk")).unwrap();
    assert_eq!((file.len(), &file[..20]), (8 << 20, &b"from the loop device"[..]));
    assert_eq!(fs::metadata(world.folder().join("fuse5/disk")).unwrap().len(), 4 << 20);
    let list = world.ok(&["list"]);
    assert!(list.contains("both") && list.matches("live").count() >= 3, "{list}");
    world.ok(&["down", "disks.toml"]);
    assert!(up.wait().unwrap().success());
    world.is_empty();
}

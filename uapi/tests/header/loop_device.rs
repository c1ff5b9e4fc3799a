//! `linux/loop.h`, as far as it is spoken here: these two structures, all flags, and some of the commands.

use blockhaus_uapi::loop_device::{self, Config, Flags, Info64};

use super::table::{Field, Ours, Struct, flags, incomplete, numbers, structure};
use super::{c, include, parse, read};

fn ours() -> Ours {
    let mut t: Vec<_> = flags::<Flags>("LO_FLAGS_").collect();
    numbers!(t, "LOOP_", loop_device::cmd: CLR_FD SET_STATUS64 GET_STATUS64 CONFIGURE);
    numbers!(t, "LOOP_CTL_", loop_device::control: ADD GET_FREE);
    let structs = vec![
        structure!("loop_info64" = Info64 "lo_" {
            device inode rdevice offset sizelimit number encrypt_type encrypt_key_size flags file_name crypt_name
            encrypt_key init
        }),
        structure!("loop_config" = Config { fd block_size info; __reserved = reserved }),
    ];
    Ours { numbers: t, structs, functions: Vec::new() }
}

#[test]
fn what_is_spoken_agrees_and_no_flag_or_field_is_missing() {
    const HEADER: &str = "linux/loop.h";
    let include = include();
    let ours = ours();
    let mut header = parse::header(&read(&include, HEADER)).expect("this test can parse the header");
    header
        .numbers
        .retain(|name| name.starts_with("LO_FLAGS_") || ours.numbers.iter().any(|(n, _)| n == name));
    header.structs.retain(|theirs| ours.structs.iter().any(|s| s.name == theirs.name));
    assert_eq!(incomplete(&header, &ours), [""; 0]);
    assert_eq!(c::differences(&include, &include.join(HEADER), &ours, "loop"), [""; 0]);
}

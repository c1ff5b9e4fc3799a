//! Properties of the methods that pick bits apart and put them together, over many values from a
//! fixed seed.

use blockhaus_uapi::ublk::*;

/// SplitMix64.
struct Seed(u64);

impl Seed {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Runs a property on edges and on random values.
fn for_values(mut property: impl FnMut(u64)) {
    for x in [0, 1, 0xff, 0x100, 0xffff, u64::from(u32::MAX), 1 << 32, 1 << 62, 1 << 63, u64::MAX] {
        property(x);
    }
    let mut seed = Seed(7);
    (0..20_000).for_each(|_| property(seed.next()));
}

#[test]
fn a_descriptor_is_its_kind_and_its_flags() {
    for_values(|x| {
        let desc = IoDesc { op_flags: x as u32, nr_sectors: (x >> 32) as u32, ..IoDesc::default() };
        assert_eq!(u32::from(desc.op()) | desc.flags().bits(), desc.op_flags);
        assert_eq!(desc.flags().bits() & 0xff, 0);
        assert_eq!(desc.nr_zones(), desc.nr_sectors);
        for flag in IoFlags::all() {
            assert_eq!(desc.flags().contains(flag), desc.op_flags & flag.bits() != 0);
        }
    });
}

#[test]
fn every_request_flag_lies_above_the_kind() {
    assert_eq!(IoFlags::all().bits() & 0xff, 0);
}

#[test]
fn auto_registration_survives_the_sqe() {
    for_values(|x| {
        let reg = AutoBufReg::from_sqe_addr(x);
        assert_eq!(reg.to_sqe_addr(), x);
        assert_eq!(AutoBufReg::from_sqe_addr(reg.to_sqe_addr()), reg);
        let plain = AutoBufReg { reserved0: 0, reserved1: 0, ..reg };
        assert_eq!(plain.to_sqe_addr(), x & 0xff_ffff);
    });
}

#[test]
fn shared_memory_places_survive() {
    for_values(|x| {
        let (index, offset) = ((x >> 32) as u16, x as u32);
        let place = ShmemAddr::new(index, offset);
        assert_eq!((place.index(), place.offset()), (index, offset));
        assert_eq!(place.0 >> 48, 0);
        // Bits that are reserved today do not leak into either part.
        assert_eq!((ShmemAddr(x).index(), ShmemAddr(x).offset()), (index, offset));
    });
}

#[test]
fn a_position_names_one_byte_of_one_request() {
    for_values(|x| {
        let (q_id, tag, offset) = ((x >> 41) as u16 & 0xfff, (x >> 25) as u16, x as u32 & 0x1ff_ffff);
        let pos = user_copy_pos(q_id, tag, offset);
        let rest = pos - IO_BUF_OFFSET;
        assert!(rest < IO_BUF_TOTAL_SIZE);
        assert_eq!((rest >> QID_OFF) & QID_BITS_MASK, u64::from(q_id));
        assert_eq!((rest >> TAG_OFF) & TAG_BITS_MASK, u64::from(tag));
        assert_eq!((rest >> IO_BUF_OFF) & IO_BUF_BITS_MASK, u64::from(offset));
        assert_eq!(pos & IO_INTEGRITY_FLAG, 0);
    });
}

#[test]
fn a_position_cuts_off_what_does_not_fit() {
    for_values(|x| {
        let (q_id, tag, offset) = ((x >> 48) as u16, (x >> 32) as u16, x as u32);
        assert_eq!(user_copy_pos(q_id, tag, offset), user_copy_pos(q_id & 0xfff, tag, offset & 0x1ff_ffff));
    });
}

#[test]
fn positions_by_hand() {
    assert_eq!(user_copy_pos(0, 0, 0), 0x8000_0000);
    assert_eq!(user_copy_pos(0, 0, 4096), 0x8000_1000);
    assert_eq!(user_copy_pos(1, 0, 0), 0x8000_0000 + (1 << 41));
    assert_eq!(user_copy_pos(2, 3, 512), 0x8000_0000 + (2 << 41) + (3 << 25) + 512);
}

/// The encoding of most architectures, spelt out.
#[test]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn opcodes_by_hand() {
    assert_eq!(cmd::ADD_DEV, 0xc020_7504);
    assert_eq!(cmd::GET_FEATURES, 0x8020_7513);
    assert_eq!(cmd::UNREG_BUF, 0xc020_7519);
    assert_eq!(io_cmd::FETCH_REQ, 0xc010_7520);
    assert_eq!(io_cmd::FETCH_IO_CMDS, 0xc010_7527);
}

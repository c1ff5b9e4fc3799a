//! `linux/ublk_cmd.h`, with the `LBMD_PI_*` numbers of `linux/fs.h` that it refers to.

use std::path::Path;

use blockhaus_uapi::ublk::{self, *};

use super::parse::{self, Header};
use super::table::{Field, Function, Ours, Struct, flags, incomplete, numbers, structure};
use super::{c, include, read};

const HEADER: &str = "linux/ublk_cmd.h";

/// Its include guard is no number.
const GUARD: &str = "USER_BLK_DRV_CMD_INC_H";

/// What the two headers have, the text of the first being given.
fn declared(include: &Path, text: &str) -> Header {
    let mut header = parse::header(text).expect("this test can parse the header");
    assert!(header.numbers.remove(GUARD), "{GUARD} is in the header");
    let fs = parse::defines(&read(include, "linux/fs.h"));
    header.numbers.extend(fs.into_keys().filter(|name| name.starts_with("LBMD_PI_")));
    header
}

fn ours() -> Ours {
    Ours { numbers: numbers(), structs: structs(), functions: functions() }
}

fn numbers() -> Vec<(String, u64)> {
    let mut t = Vec::new();
    t.extend(flags::<Features>("UBLK_F_"));
    t.extend(flags::<Attributes>("UBLK_ATTR_"));
    t.extend(flags::<IoFlags>("UBLK_IO_F_"));
    t.extend(flags::<ParamTypes>("UBLK_PARAM_TYPE_"));
    t.extend(flags::<AutoBufRegFlags>("UBLK_AUTO_BUF_REG_"));
    t.extend(flags::<BatchFlags>("UBLK_BATCH_F_"));
    t.extend(flags::<ShmemBufFlags>("UBLK_SHMEM_BUF_"));
    t.extend(flags::<IntegrityCaps>("LBMD_PI_CAP_"));
    numbers!(t, "LBMD_PI_CSUM_", ublk::pi_csum: NONE IP CRC16_T10DIF CRC64_NVME);
    numbers!(t, "UBLK_CMD_", ublk::cmd::legacy:
        GET_QUEUE_AFFINITY GET_DEV_INFO ADD_DEV DEL_DEV START_DEV STOP_DEV SET_PARAMS GET_PARAMS
        START_USER_RECOVERY END_USER_RECOVERY GET_DEV_INFO2);
    numbers!(t, "UBLK_U_CMD_", ublk::cmd:
        GET_QUEUE_AFFINITY GET_DEV_INFO ADD_DEV DEL_DEV START_DEV STOP_DEV SET_PARAMS GET_PARAMS
        START_USER_RECOVERY END_USER_RECOVERY GET_DEV_INFO2 GET_FEATURES DEL_DEV_ASYNC UPDATE_SIZE
        QUIESCE_DEV TRY_STOP_DEV REG_BUF UNREG_BUF);
    numbers!(t, "UBLK_IO_", ublk::io_cmd::legacy: FETCH_REQ COMMIT_AND_FETCH_REQ NEED_GET_DATA);
    numbers!(t, "UBLK_U_IO_", ublk::io_cmd:
        FETCH_REQ COMMIT_AND_FETCH_REQ NEED_GET_DATA REGISTER_IO_BUF UNREGISTER_IO_BUF PREP_IO_CMDS
        COMMIT_IO_CMDS FETCH_IO_CMDS);
    numbers!(t, "UBLK_IO_RES_", ublk::res: OK NEED_GET_DATA ABORT);
    numbers!(t, "UBLK_S_DEV_", ublk::state: DEAD LIVE QUIESCED FAIL_IO);
    numbers!(t, "UBLK_IO_OP_", ublk::op:
        READ WRITE FLUSH DISCARD WRITE_SAME WRITE_ZEROES ZONE_OPEN ZONE_CLOSE ZONE_FINISH ZONE_APPEND
        ZONE_RESET_ALL ZONE_RESET REPORT_ZONES);
    numbers!(t, "UBLK_", ublk:
        MAX_QUEUE_DEPTH MAX_NR_QUEUES IO_BUF_OFF IO_BUF_BITS IO_BUF_BITS_MASK TAG_OFF TAG_BITS TAG_BITS_MASK
        QID_OFF QID_BITS QID_BITS_MASK INTEGRITY_FLAG_OFF MIN_SEGMENT_SIZE SHMEM_ZC_OFF_MASK SHMEM_ZC_IDX_OFF
        SHMEM_ZC_IDX_MASK);
    numbers!(t, "UBLKSRV_", ublk:
        CMD_BUF_OFFSET IO_BUF_OFFSET IO_BUF_TOTAL_BITS IO_BUF_TOTAL_SIZE IO_INTEGRITY_FLAG);
    t.push(("UBLK_FEATURES_LEN".to_owned(), FEATURES_LEN as u64));
    t.push(("UBLK_AUTO_BUF_REG_F_MASK".to_owned(), AutoBufRegFlags::all().bits().into()));
    t
}

fn structs() -> Vec<Struct> {
    vec![
        structure!("ublksrv_ctrl_cmd" = CtrlCmd { dev_id queue_id len addr data dev_path_len pad reserved }),
        structure!("ublksrv_ctrl_dev_info" = CtrlDevInfo {
            nr_hw_queues queue_depth state io_desc_size max_io_buf_bytes dev_id ublksrv_pid pad1 flags
            ublksrv_flags owner_uid owner_gid reserved1 reserved2
        }),
        structure!("ublksrv_io_desc" = IoDesc {
            op_flags nr_sectors start_sector addr; nr_zones = nr_sectors
        }),
        structure!("ublksrv_io_cmd" = IoCmd { q_id tag result addr; zone_append_lba = addr }),
        structure!("ublk_auto_buf_reg" = AutoBufReg { index flags reserved0 reserved1 }),
        structure!("ublk_elem_header" = ElemHeader { tag buf_index result }),
        structure!("ublk_batch_io" = BatchIo { q_id flags nr_elem elem_bytes reserved reserved2 }),
        structure!("ublk_shmem_buf_reg" = ShmemBufReg { addr len flags reserved }),
        structure!("ublk_param_basic" = ParamBasic {
            attrs logical_bs_shift physical_bs_shift io_opt_shift io_min_shift max_sectors chunk_sectors
            dev_sectors virt_boundary_mask
        }),
        structure!("ublk_param_discard" = ParamDiscard {
            discard_alignment discard_granularity max_discard_sectors max_write_zeroes_sectors
            max_discard_segments reserved0
        }),
        structure!("ublk_param_devt" = ParamDevt { char_major char_minor disk_major disk_minor }),
        structure!("ublk_param_zoned" = ParamZoned {
            max_open_zones max_active_zones max_zone_append_sectors reserved
        }),
        structure!("ublk_param_dma_align" = ParamDmaAlign { alignment pad }),
        structure!("ublk_param_segment" = ParamSegment {
            seg_boundary_mask max_segment_size max_segments pad
        }),
        structure!("ublk_param_integrity" = ParamIntegrity {
            flags max_integrity_segments interval_exp metadata_size pi_offset csum_type tag_size pad
        }),
        structure!("ublk_params" = Params { len types basic discard devt zoned dma seg integrity }),
    ]
}

fn functions() -> Vec<Function> {
    fn desc(op_flags: u64) -> IoDesc {
        IoDesc { op_flags: op_flags as u32, ..IoDesc::default() }
    }
    vec![
        Function {
            name: "ublksrv_get_op",
            c: "struct ublksrv_io_desc d = { .op_flags = x }; r = ublksrv_get_op(&d);",
            ours: |x| desc(x).op().into(),
        },
        Function {
            name: "ublksrv_get_flags",
            c: "struct ublksrv_io_desc d = { .op_flags = x }; r = ublksrv_get_flags(&d);",
            // The header moves the flags down; ours stay where UBLK_IO_F_* are.
            ours: |x| u64::from(desc(x).flags().bits()) >> 8,
        },
        Function {
            name: "ublk_sqe_addr_to_auto_buf_reg",
            c: "struct ublk_auto_buf_reg b = ublk_sqe_addr_to_auto_buf_reg(x); r = b.index ^ (__u64)b.flags << 17 \
                ^ (__u64)b.reserved0 << 29 ^ (__u64)b.reserved1 << 31;",
            ours: |x| {
                let reg = AutoBufReg::from_sqe_addr(x);
                u64::from(reg.index)
                    ^ u64::from(reg.flags.bits()) << 17
                    ^ u64::from(reg.reserved0) << 29
                    ^ u64::from(reg.reserved1) << 31
            },
        },
        Function {
            name: "ublk_auto_buf_reg_to_sqe_addr",
            c: "struct ublk_auto_buf_reg b = { .index = x, .flags = x >> 16, .reserved0 = x >> 24, \
                .reserved1 = x >> 32 }; r = ublk_auto_buf_reg_to_sqe_addr(&b);",
            ours: |x| AutoBufReg::from_sqe_addr(x).to_sqe_addr(),
        },
        Function {
            name: "ublk_shmem_zc_addr",
            c: "r = ublk_shmem_zc_addr(x >> 32, x);",
            ours: |x| ShmemAddr::new((x >> 32) as u16, x as u32).0,
        },
        Function {
            name: "ublk_shmem_zc_index",
            c: "r = ublk_shmem_zc_index(x);",
            ours: |x| ShmemAddr(x).index().into(),
        },
        Function {
            name: "ublk_shmem_zc_offset",
            c: "r = ublk_shmem_zc_offset(x);",
            ours: |x| ShmemAddr(x).offset().into(),
        },
    ]
}

#[test]
fn header_and_crate_agree() {
    let include = include();
    let ours = ours();
    let header = declared(&include, &read(&include, HEADER));
    let missing = incomplete(&header, &ours);
    assert!(missing.is_empty(), "{}", missing.join("\n"));

    let wrong = c::differences(&include, &include.join(HEADER), &ours, "agree");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    eprintln!(
        "{} numbers, {} structures with {} fields and {} functions agree with {}",
        ours.numbers.len(),
        ours.structs.len(),
        ours.structs.iter().map(|s| s.fields.len()).sum::<usize>(),
        ours.functions.len(),
        HEADER
    );
}

/// Each of these changes to the header has to be seen, and named.
#[test]
fn additions_are_seen() {
    let include = include();
    let ours = ours();
    let text = read(&include, HEADER);
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
        let found = incomplete(&declared(&include, &changed), &ours);
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
        let found = incomplete(&declared(&include, &changed), &ours);
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
    let include = include();
    let ours = ours();
    let text = read(&include, HEADER);
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
        let found = c::differences(&include, &file, &ours, &format!("changed-{i}"));
        assert!(found.iter().any(|f| f.starts_with(complaint)), "{complaint}: {found:?}");
    }
}

//! What we have, under the header's names.

use std::mem::{align_of, offset_of, size_of};

use bitflags::Flags;
use blockhaus_uapi::ublk::*;

/// A structure of ours.
pub struct Struct {
    pub name: &'static str,
    pub size: usize,
    pub align: usize,
    pub fields: Vec<Field>,
}

/// A field of ours.
pub struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub size: usize,
    /// Whether it is a signed integer.
    pub signed: bool,
}

/// Everything we have.
pub struct Ours {
    /// Name and value; a negative value as 64-bit two's complement.
    pub numbers: Vec<(String, u64)>,
    pub structs: Vec<Struct>,
}

/// The header's inline functions; [`c`](super::c) compares what they compute with ours.
pub const FUNCTIONS: [&str; 7] = [
    "ublksrv_get_op",
    "ublksrv_get_flags",
    "ublk_sqe_addr_to_auto_buf_reg",
    "ublk_auto_buf_reg_to_sqe_addr",
    "ublk_shmem_zc_addr",
    "ublk_shmem_zc_index",
    "ublk_shmem_zc_offset",
];

/// Adds constants: a prefix of the header, a path below `ublk`, and the names that follow both.
macro_rules! numbers {
    ($table:ident, $prefix:literal, $(:: $module:ident)*: $($name:ident)+) => {{
        use blockhaus_uapi::ublk $(:: $module)* ::*;
        $($table.push((concat!($prefix, stringify!($name)).to_owned(), i128::from($name) as u64));)+
    }};
}

/// Adds constants whose names in the header are not ours behind one prefix.
macro_rules! renamed {
    ($table:ident, $($c:literal = $value:expr),+ $(,)?) => {
        $($table.push(($c.to_owned(), i128::try_from($value).expect("fits") as u64));)+
    };
}

/// Describes a structure; `other = field` is a second name in the header's union.
macro_rules! structure {
    ($c:literal = $ty:ident { $($field:ident)+ $(; $($other:ident = $of:ident)+)? }) => {
        Struct {
            name: $c,
            size: size_of::<$ty>(),
            align: align_of::<$ty>(),
            fields: vec![
                $(field(stringify!($field), offset_of!($ty, $field), |s: &$ty| &s.$field),)+
                $($(field(stringify!($other), offset_of!($ty, $of), |s: &$ty| &s.$of),)+)?
            ],
        }
    };
}

fn field<T, F: 'static>(name: &'static str, offset: usize, _: fn(&T) -> &F) -> Field {
    let signed = std::any::TypeId::of::<F>() == std::any::TypeId::of::<i32>();
    Field { name, offset, size: size_of::<F>(), signed }
}

/// Every flag of a type, under the header's prefix.
fn flags<F: Flags<Bits: Into<u64>>>(prefix: &str) -> impl Iterator<Item = (String, u64)> {
    F::FLAGS.iter().map(move |f| (format!("{prefix}{}", f.name()), f.value().bits().into()))
}

impl Ours {
    pub fn new() -> Self {
        Self { numbers: all_numbers(), structs: all_structs() }
    }
}

fn all_numbers() -> Vec<(String, u64)> {
    let mut t = Vec::new();
    t.extend(flags::<Features>("UBLK_F_"));
    t.extend(flags::<Attributes>("UBLK_ATTR_"));
    t.extend(flags::<IoFlags>("UBLK_IO_F_"));
    t.extend(flags::<ParamTypes>("UBLK_PARAM_TYPE_"));
    t.extend(flags::<AutoBufRegFlags>("UBLK_AUTO_BUF_REG_"));
    t.extend(flags::<BatchFlags>("UBLK_BATCH_F_"));
    t.extend(flags::<ShmemBufFlags>("UBLK_SHMEM_BUF_"));
    t.extend(flags::<IntegrityCaps>("LBMD_PI_CAP_"));
    numbers!(t, "LBMD_PI_CSUM_", ::pi_csum: NONE IP CRC16_T10DIF CRC64_NVME);
    numbers!(t, "UBLK_CMD_", ::cmd::legacy:
        GET_QUEUE_AFFINITY GET_DEV_INFO ADD_DEV DEL_DEV START_DEV STOP_DEV SET_PARAMS GET_PARAMS
        START_USER_RECOVERY END_USER_RECOVERY GET_DEV_INFO2);
    numbers!(t, "UBLK_U_CMD_", ::cmd:
        GET_QUEUE_AFFINITY GET_DEV_INFO ADD_DEV DEL_DEV START_DEV STOP_DEV SET_PARAMS GET_PARAMS
        START_USER_RECOVERY END_USER_RECOVERY GET_DEV_INFO2 GET_FEATURES DEL_DEV_ASYNC UPDATE_SIZE
        QUIESCE_DEV TRY_STOP_DEV REG_BUF UNREG_BUF);
    numbers!(t, "UBLK_IO_", ::io_cmd::legacy: FETCH_REQ COMMIT_AND_FETCH_REQ NEED_GET_DATA);
    numbers!(t, "UBLK_U_IO_", ::io_cmd:
        FETCH_REQ COMMIT_AND_FETCH_REQ NEED_GET_DATA REGISTER_IO_BUF UNREGISTER_IO_BUF PREP_IO_CMDS
        COMMIT_IO_CMDS FETCH_IO_CMDS);
    numbers!(t, "UBLK_IO_RES_", ::res: OK NEED_GET_DATA ABORT);
    numbers!(t, "UBLK_S_DEV_", ::state: DEAD LIVE QUIESCED FAIL_IO);
    numbers!(t, "UBLK_IO_OP_", ::op:
        READ WRITE FLUSH DISCARD WRITE_SAME WRITE_ZEROES ZONE_OPEN ZONE_CLOSE ZONE_FINISH ZONE_APPEND
        ZONE_RESET_ALL ZONE_RESET REPORT_ZONES);
    numbers!(t, "UBLK_", :
        MAX_QUEUE_DEPTH MAX_NR_QUEUES IO_BUF_OFF IO_BUF_BITS IO_BUF_BITS_MASK TAG_OFF TAG_BITS TAG_BITS_MASK
        QID_OFF QID_BITS QID_BITS_MASK INTEGRITY_FLAG_OFF MIN_SEGMENT_SIZE SHMEM_ZC_OFF_MASK SHMEM_ZC_IDX_OFF
        SHMEM_ZC_IDX_MASK);
    numbers!(t, "UBLKSRV_", :
        CMD_BUF_OFFSET IO_BUF_OFFSET IO_BUF_TOTAL_BITS IO_BUF_TOTAL_SIZE IO_INTEGRITY_FLAG);
    renamed!(
        t,
        "UBLK_FEATURES_LEN" = FEATURES_LEN,
        "UBLK_AUTO_BUF_REG_F_MASK" = AutoBufRegFlags::all().bits(),
    );
    t
}

fn all_structs() -> Vec<Struct> {
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

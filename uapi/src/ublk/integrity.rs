//! The numbers of `linux/fs.h` that `ublk_param_integrity` refers to, `LBMD_PI_*`.

bitflags::bitflags! {
    /// `LBMD_PI_CAP_*`: what a disk can do with protection information.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
    #[repr(transparent)]
    pub struct IntegrityCaps: u32 {
        /// The disk stores and checks it (the block layer's "device capable").
        const INTEGRITY = 1 << 0;
        /// It holds a reference tag, which ties a unit to its place.
        const REFTAG = 1 << 1;
    }
}

/// `LBMD_PI_CSUM_*`: kinds of checksum, as in
/// [`ParamIntegrity::csum_type`](super::ParamIntegrity::csum_type).
pub mod pi_csum {
    /// None: the metadata is not protection information.
    pub const NONE: u8 = 0;
    /// The 16-bit checksum of the Internet protocol.
    pub const IP: u8 = 1;
    /// CRC-16 of T10 DIF.
    pub const CRC16_T10DIF: u8 = 2;
    /// CRC-64 of NVMe.
    pub const CRC64_NVME: u8 = 4;
}

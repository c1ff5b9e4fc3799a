//! `features` tells what the kernel tells.

use super::{Entry, Where, entry};
use crate::blockhaus::Blockhaus;
use crate::ensure;
use crate::outcome::{Context, Outcome};
use crate::raw;

pub(super) const TESTS: &[Entry] = &[entry("features/mask", 30, Where::Ublk, mask)];

/// What each kernel offered when we looked; later builds may offer more.
const KNOWN: [(&str, u64); 4] = [("6.12.", 0x1fe), ("6.18.", 0x7fff), ("7.2", 0xf_ffff), ("7.3", 0x1f_ffff)];

fn mask() -> Outcome {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("release of the kernel")?;
    let release = release.trim();
    let asked = raw::features().context("asking the kernel itself")?;
    let told = Blockhaus::new().features()?;
    ensure!(told.kernel == release, "features says kernel {:?}, this is {release:?}", told.kernel);
    ensure!(told.ublk && told.reason.is_none(), "features says there is no ublk: {:?}", told.reason);
    let mask = told.mask.as_deref().context("features gives no mask")?;
    let mask = mask
        .strip_prefix("0x")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .context(format!("{mask:?} is no mask"))?;
    ensure!(mask == asked, "features says {mask:#x}, the kernel says {asked:#x}");
    if let Some((_, least)) = KNOWN.iter().find(|(prefix, _)| release.starts_with(prefix)) {
        ensure!(mask & least == *least, "{release} offers {mask:#x}, expected at least {least:#x}");
    }
    for bit in 0..=20 {
        let feature = told
            .features
            .iter()
            .find(|feature| feature.bit == bit)
            .context(format!("bit {bit} is not in the list"))?;
        ensure!(
            feature.offered == (asked >> bit & 1 == 1),
            "bit {bit} ({}): offered is {}",
            feature.name,
            feature.offered
        );
        ensure!(!feature.name.is_empty() && feature.meaning.len() > 10, "bit {bit} is not explained");
    }
    Ok(())
}

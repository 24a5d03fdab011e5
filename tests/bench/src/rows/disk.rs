//! N1, N2, N3, N8 and N11 once more, with the kubelet's root on a disk: a file beside this program, shown by
//! a loop device.

use seamount_testkit::disk::FileSystem;
use seamount_testkit::namespace::private_mounts;
use seamount_testkit::skip;

use crate::report::Row;

use super::{Context, publish, start};

/// Which are measured.
pub const ROWS: [u32; 5] = [1, 2, 3, 8, 11];
/// What changes with the disk, or says what the machine did.
const SHOWN: [&str; 15] =
    ["N1", "N1c", "N1d", "N2", "N2b", "N3", "N3c", "N3d", "N3e", "N8", "N8b", "N8c", "N11", "N11b", "N11c"];
const RUNS: usize = 3;

pub fn measure(context: &Context) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for disk in FileSystem::DISKS {
        if let Err(reason) = private_mounts(|| probe(disk)) {
            skip(&format!("N1, N2, N3, N8, N11 on {}", disk.name()), &format!("{reason:#}"));
            continue;
        }
        // Each in a namespace of its own: the device is gone before the next one comes.
        let measured = private_mounts(|| {
            let mut measured = publish::measure_on(context, disk, RUNS)?;
            measured.extend(start::measure_on(context, disk, RUNS)?);
            anyhow::Ok(measured)
        });
        rows.extend(
            measured?.into_iter().filter(|row| SHOWN.contains(&row.id())).map(|row| row.on(disk.name())),
        );
    }
    Ok(rows)
}

/// Whether it can be made here.
fn probe(disk: FileSystem) -> anyhow::Result<()> {
    let at = tempfile::tempdir()?;
    disk.mount(at.path())?;
    Ok(rustix::mount::unmount(at.path(), rustix::mount::UnmountFlags::DETACH)?)
}

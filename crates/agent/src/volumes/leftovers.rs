//! Leftovers: seen in each list of the node's volumes, told, and taken away by the kubelet's unpublish alone.
//! On a node nothing but a missing `vol_data.json` or pod directory shows that a volume is an orphan.

use seamount_mounter_protocol::flag;

use super::metrics::Metrics;
use crate::mounter::Found;

/// Counts, and says at the start of an agent which volumes they are.
pub(super) fn look(all: &[Found], metrics: &Metrics, tell: bool) {
    let (mut orphans, mut foreign, mut stacked) = (0, 0, 0);
    for found in all {
        let Found { volume, mounts, .. } = found;
        // Of an orphan the volume's id is not known; where there is a record, that has it.
        if found.has(flag::ORPHAN) {
            orphans += 1;
            if tell {
                tracing::warn!(%volume, "the volume's pod is gone; left to the kubelet's unpublish");
            }
        }
        if *mounts > 1 {
            stacked += 1;
        }
        if found.has(flag::FOREIGN) {
            foreign += 1;
            if tell {
                tracing::warn!(
                    %volume,
                    mounts,
                    "another driver's mount is in a volume of this one; left alone until the pod is restarted"
                );
            }
        } else if *mounts > 1 && tell {
            tracing::warn!(%volume, mounts, "mounts are stacked in a volume; they go when the kubelet unpublishes it");
        }
    }
    metrics.leftovers(orphans, foreign, stacked);
}

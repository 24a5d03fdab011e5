//! The pods of this node as tenants: how many volumes each has, and the account that its sockets share.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::{Arc, PoisonError};

use seamount_mounter_protocol::names::PodUid;
use seamount_workload_api::{Limits, Node, Tenant};

use super::Volumes;
use seamount_sync::{Mutex, MutexGuard};

/// Below this a pod is not shed: cutting a few connections gives back nothing, and takes them from a pod that
/// does nothing wrong.
const WORTHWHILE: u64 = 1 << 20;

/// All tenants.
///
/// The lock guards the counts of volumes, is held for an instant, and nothing is locked under it.
pub struct Tenants {
    limits: Limits,
    node: Node,
    volumes: usize,
    all: Mutex<HashMap<PodUid, Account>>,
}

struct Account {
    tenant: Arc<Tenant>,
    volumes: usize,
}

/// A volume's place among its pod's; given back on drop.
pub(super) struct Place {
    tenants: Arc<Tenants>,
    pod: PodUid,
    tenant: Arc<Tenant>,
}

impl Place {
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.tenants.all();
        if let MapEntry::Occupied(mut account) = all.entry(self.pod.clone()) {
            account.get_mut().volumes -= 1;
            if account.get().volumes == 0 {
                account.remove();
            }
        }
    }
}

impl Tenants {
    /// Without any yet. Each pod may have so many volumes.
    pub fn new(limits: Limits, node: Node, volumes: usize) -> Arc<Self> {
        Arc::new(Self { limits, node, volumes, all: Mutex::default() })
    }

    fn all(&self) -> MutexGuard<'_, HashMap<PodUid, Account>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What volumes take their descriptors from.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// A place for one more volume of this pod. `there` already: it is counted and never refused.
    pub(super) fn claim(self: &Arc<Self>, pod: &PodUid, there: bool) -> Result<Place, usize> {
        let mut all = self.all();
        let account = all
            .entry(pod.clone())
            .or_insert_with(|| Account { tenant: Tenant::new(self.limits, self.node.clone()), volumes: 0 });
        if account.volumes >= self.volumes && !there {
            return Err(self.volumes);
        }
        account.volumes += 1;
        Ok(Place { tenants: Arc::clone(self), pod: pod.clone(), tenant: Arc::clone(&account.tenant) })
    }

    /// Whether no pod has a volume.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// The pod whose clients cause most memory, where cutting them gives some back.
    fn heaviest(&self) -> Option<(PodUid, Arc<Tenant>)> {
        let all = self.all();
        let (pod, account) = all.iter().max_by_key(|(_, account)| account.tenant.weight())?;
        (account.tenant.weight() >= WORTHWHILE).then(|| (pod.clone(), Arc::clone(&account.tenant)))
    }
}

/// A pod whose connections were cut.
#[derive(Debug)]
pub struct Shed {
    /// Its UID.
    pub pod: PodUid,
    /// Its namespace and name, as far as they are known.
    pub name: String,
    /// How many connections it had.
    pub connections: usize,
    /// About how many bytes they held.
    pub bytes: u64,
}

impl Volumes {
    /// Cuts the connections of the pod that uses most memory by them; none where no pod uses much. Waits for
    /// nothing.
    pub fn shed(&self) -> Option<Shed> {
        let (pod, tenant) = self.options.tenants.heaviest()?;
        let bytes = tenant.weight();
        let connections = tenant.shed();
        let entry = self.entries().iter().find(|((of, _), _)| *of == pod).map(|(_, entry)| entry.clone());
        let name = entry.map_or_else(String::new, |entry| {
            let common = entry.common();
            format!("{}/{}", common.namespace, common.pod)
        });
        Some(Shed { pod, name, connections, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: u8) -> PodUid {
        format!("00000000-0000-4000-8000-0000000000{number:02x}").parse().unwrap()
    }

    fn tenants() -> Arc<Tenants> {
        Tenants::new(Limits::default(), Node::unbounded(), 2)
    }

    #[tokio::test]
    async fn a_pod_has_so_many_volumes_and_no_more() {
        let tenants = tenants();
        let mut places: Vec<_> = (0..2).map(|_| tenants.claim(&pod(1), false).ok().unwrap()).collect();
        assert_eq!(tenants.claim(&pod(1), false).err(), Some(2));
        // Another pod has its own, and what is there already is counted and kept.
        let other = tenants.claim(&pod(2), false).ok().unwrap();
        places.push(tenants.claim(&pod(1), true).ok().unwrap());
        assert!(Arc::ptr_eq(places[0].tenant(), places[2].tenant()));
        assert!(!Arc::ptr_eq(places[0].tenant(), other.tenant()));
        places.truncate(2);
        assert!(tenants.claim(&pod(1), false).is_err());
        places.truncate(1);
        assert!(tenants.claim(&pod(1), false).is_ok());
    }

    #[tokio::test]
    async fn a_pod_without_volumes_is_forgotten() {
        let tenants = tenants();
        drop(tenants.claim(&pod(1), false));
        let place = tenants.claim(&pod(2), false).ok().unwrap();
        assert_eq!(tenants.all().keys().collect::<Vec<_>>(), [&pod(2)]);
        drop(place);
        assert!(tenants.is_empty());
    }

    #[tokio::test]
    async fn a_pod_that_uses_nothing_is_not_shed() {
        let tenants = tenants();
        let _places = [tenants.claim(&pod(1), false), tenants.claim(&pod(2), false)];
        assert!(tenants.heaviest().is_none());
    }
}

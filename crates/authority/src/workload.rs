//! What an identity is for.

/// The pod for which an SVID is asked, as its verified token describes it; never as the pod's author does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Namespace.
    pub namespace: String,
    /// Service account's name.
    pub service_account: String,
    /// Pod's name.
    pub pod_name: String,
    /// Pod's UID.
    pub pod_uid: String,
    /// Name of the node that the pod runs on.
    pub node: String,
}

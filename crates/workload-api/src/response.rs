//! Responses, encoded once, when the first stream asks.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use seamount_identity::{BundleSet, X509Bundle, X509Svid};
use seamount_proto::workload::{X509BundlesResponse, X509svid, X509svidResponse};

use crate::message::{frame, wiped};

/// An `X509SVIDResponse` and an `X509BundlesResponse`. Each is encoded and framed for gRPC when the first
/// stream wants it, and shared by all streams from then on: most volumes of a node are asked for one of the
/// two, some for none. The bytes, which hold private keys, are wiped when the last stream lets go of them.
pub struct Response {
    /// Those that a client can use.
    usable: Box<[Arc<X509Svid>]>,
    set: BundleSet,
    svids: OnceLock<Bytes>,
    bundles: OnceLock<Bytes>,
}

impl Response {
    /// What a pod's clients get: all its SVIDs, the first being the default one, each with its trust domain's
    /// bundle out of `bundles` (Workload API §5.2). An SVID whose trust domain has no bundle there is left
    /// out, because no client could use it. Without any SVID, streams are denied.
    pub fn new(svids: &[Arc<X509Svid>], bundles: &BundleSet) -> Self {
        let usable = svids.iter().filter(|svid| bundles.get(svid.id().trust_domain()).is_some());
        Self {
            usable: usable.cloned().collect(),
            set: bundles.clone(),
            svids: OnceLock::new(),
            bundles: OnceLock::new(),
        }
    }

    /// How many SVIDs are in it.
    pub fn count(&self) -> usize {
        self.usable.len()
    }

    /// The framed `X509SVIDResponse`.
    pub(crate) fn svids(&self) -> &Bytes {
        self.svids.get_or_init(|| frame(&self.svid_message()))
    }

    /// The framed `X509BundlesResponse`.
    pub(crate) fn bundles(&self) -> &Bytes {
        self.bundles.get_or_init(|| {
            let all = std::iter::once(self.set.own()).chain(self.set.federated());
            frame(&X509BundlesResponse { crl: Vec::new(), bundles: all.map(entry).collect() })
        })
    }

    fn svid_message(&self) -> X509svidResponse {
        let with_bundle = |svid: &Arc<X509Svid>| {
            let bundle = self.set.get(svid.id().trust_domain())?;
            Some(X509svid {
                spiffe_id: svid.id().to_string(),
                x509_svid: svid.chain_der().into(),
                x509_svid_key: wiped(svid.key().expose_pkcs8_der().to_vec()),
                bundle: bundle.der().into(),
                hint: String::new(),
            })
        };
        X509svidResponse {
            svids: self.usable.iter().filter_map(with_bundle).collect(),
            crl: Vec::new(),
            federated_bundles: self.set.federated().map(entry).collect(),
        }
    }
}

fn entry(bundle: &X509Bundle) -> (String, Bytes) {
    (bundle.trust_domain().id().to_string(), bundle.der().into())
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Response({} SVIDs)", self.count())
    }
}

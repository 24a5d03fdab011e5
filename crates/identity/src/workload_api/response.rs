//! Responses, encoded once.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use prost::Message;
use seamount_proto::workload::{X509BundlesResponse, X509svid, X509svidResponse};
use zeroize::Zeroizing;

use crate::{
    bundle::{BundleSet, X509Bundle},
    svid::X509Svid,
};

/// Encoded `X509SVIDResponse` and `X509BundlesResponse`, framed for gRPC and shared by all streams. The bytes,
/// which hold private keys, are wiped when the last stream lets go of them.
pub struct Response {
    svids: Bytes,
    bundles: Bytes,
    count: usize,
}

impl Response {
    /// Encodes what a pod's clients get: all its SVIDs, the first being the default one, each with its trust
    /// domain's bundle out of `bundles` (Workload API §5.2). An SVID whose trust domain has no bundle there is
    /// left out, because no client could use it. Without any SVID, streams are denied.
    pub fn new(svids: &[Arc<X509Svid>], bundles: &BundleSet) -> Self {
        let svids: Vec<X509svid> = svids
            .iter()
            .filter_map(|svid| Some((svid, bundles.get(svid.id().trust_domain())?)))
            .map(|(svid, bundle)| X509svid {
                spiffe_id: svid.id().to_string(),
                x509_svid: svid.chain_der().into(),
                x509_svid_key: Bytes::from_owner(Wiped(Zeroizing::new(
                    svid.key().expose_pkcs8_der().to_vec(),
                ))),
                bundle: bundle.der().into(),
                hint: String::new(),
            })
            .collect();
        let entry = |bundle: &X509Bundle| (bundle.trust_domain().id().to_string(), bundle.der().into());
        let count = svids.len();
        let svids = X509svidResponse {
            svids,
            crl: Vec::new(),
            federated_bundles: bundles.federated().map(entry).collect(),
        };
        let bundles = X509BundlesResponse {
            crl: Vec::new(),
            bundles: std::iter::once(bundles.own()).chain(bundles.federated()).map(entry).collect(),
        };
        Self { svids: frame(&svids), bundles: frame(&bundles), count }
    }

    /// How many SVIDs are in it.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The framed `X509SVIDResponse`.
    pub(super) fn svids(&self) -> &Bytes {
        &self.svids
    }

    /// The framed `X509BundlesResponse`.
    pub(super) fn bundles(&self) -> &Bytes {
        &self.bundles
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Response({} SVIDs)", self.count)
    }
}

struct Wiped(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// One message as gRPC carries it: not compressed, length, bytes. The buffer never grows, so that no copy of a
/// key stays behind.
fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = Zeroizing::new(Vec::with_capacity(length + 5));
    out.push(0);
    // A message of 4 GiB cannot be made of bounded chains and bundles.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.encode_raw(&mut *out);
    Bytes::from_owner(Wiped(out))
}

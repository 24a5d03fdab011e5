//! Responses, encoded once, for whoever asks first.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use prost::Message;
use seamount_proto::workload::{X509BundlesResponse, X509svid, X509svidResponse};
use zeroize::Zeroizing;

use seamount_identity::{BundleSet, X509Bundle, X509Svid};

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
    pub(super) fn svids(&self) -> &Bytes {
        self.svids.get_or_init(|| frame(&self.svid_message()))
    }

    /// The framed `X509BundlesResponse`.
    pub(super) fn bundles(&self) -> &Bytes {
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
                x509_svid_key: Bytes::from_owner(Wiped(Zeroizing::new(
                    svid.key().expose_pkcs8_der().to_vec(),
                ))),
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

struct Wiped(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// One message as gRPC carries it: not compressed, length, bytes. The buffer never grows, so that no copy of
/// a key stays behind.
fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = Zeroizing::new(Vec::with_capacity(length + 5));
    out.push(0);
    // A message of 4 GiB cannot be made of bounded chains and bundles.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.encode_raw(&mut *out);
    Bytes::from_owner(Wiped(out))
}

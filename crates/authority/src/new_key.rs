//! Keys that have no certificate yet.

use std::fmt;

use seamount_identity::{KeyPair, KeyType, PrivateKey};

use crate::{error::AuthorityError, signing_key::SigningKey};

/// A key for which an SVID is to be signed. A value of this type is proof that its holder has the private
/// key.
pub struct NewKey {
    pair: SigningKey,
    key: PrivateKey,
}

impl NewKey {
    /// Makes a key. An RSA key takes a tenth of a second and more: call this off the asynchronous threads.
    pub fn generate(key_type: KeyType) -> Result<Self, AuthorityError> {
        let (pair, key) =
            KeyPair::generate(key_type).map_err(|_| AuthorityError::Crypto("key generation"))?;
        Ok(Self { pair: SigningKey(pair), key })
    }

    /// A signing request (PKCS#10 DER). It has no name: the authority decides for which workload it is.
    pub fn csr(&self) -> Result<Vec<u8>, AuthorityError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let csr = params
            .serialize_request(&self.pair)
            .map_err(|_| AuthorityError::Crypto("signing a certificate request"))?;
        Ok(csr.der().to_vec())
    }

    /// The key, to be kept with its SVID.
    pub fn into_private_key(self) -> PrivateKey {
        self.key
    }

    /// The public half, for a certificate.
    pub(crate) fn public(&self) -> &impl rcgen::PublicKeyData {
        &self.pair
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewKey(…)")
    }
}

/// Makes a key and a signing request for it: [`NewKey::generate`] and [`NewKey::csr`].
pub fn new_key_and_csr(key_type: KeyType) -> Result<(PrivateKey, Vec<u8>), AuthorityError> {
    let key = NewKey::generate(key_type)?;
    let csr = key.csr()?;
    Ok((key.into_private_key(), csr))
}

//! Keys: pairs that sign, and private keys that are kept with an SVID. No copy of one is left in plain
//! memory.

use std::{fmt, str::FromStr};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        self, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
        RsaKeyPair,
    },
};
use zeroize::Zeroizing;

/// Kind and size of a key. P-256 is the default everywhere; RSA keys take a tenth of a second and more to
/// make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum KeyType {
    /// ECDSA on P-256 with SHA-256: `ec-p256`.
    #[default]
    EcP256,
    /// ECDSA on P-384 with SHA-384: `ec-p384`.
    EcP384,
    /// RSA of 2048 bits with SHA-256: `rsa-2048`.
    Rsa2048,
    /// RSA of 4096 bits with SHA-256: `rsa-4096`.
    Rsa4096,
}

/// A key type that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown key type {0:?}: use ec-p256, ec-p384, rsa-2048 or rsa-4096")]
pub struct UnknownKeyType(String);

impl FromStr for KeyType {
    type Err = UnknownKeyType;

    fn from_str(name: &str) -> Result<Self, UnknownKeyType> {
        match name {
            "ec-p256" => Ok(Self::EcP256),
            "ec-p384" => Ok(Self::EcP384),
            "rsa-2048" => Ok(Self::Rsa2048),
            "rsa-4096" => Ok(Self::Rsa4096),
            _ => Err(UnknownKeyType(name.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EcP256 => "ec-p256",
            Self::EcP384 => "ec-p384",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa4096 => "rsa-4096",
        })
    }
}

/// Why there is no key, or no signature. The library gives no reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The bytes are no key of a kind that is supported.
    #[error("the private key is not PKCS#8 DER of an ECDSA P-256, ECDSA P-384 or RSA key")]
    Unreadable,
    /// No key could be made.
    #[error("the cryptographic library cannot make a key; try again")]
    Generation,
    /// The key does not sign.
    #[error("the cryptographic library cannot sign with the key; try again")]
    Signing,
}

/// What a key signs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyAlgorithm {
    /// ECDSA on P-256 with SHA-256.
    EcP256,
    /// ECDSA on P-384 with SHA-384.
    EcP384,
    /// RSA of any supported size: PKCS#1 v1.5 with SHA-256.
    Rsa,
}

/// A private key that can sign. No `Debug`; the library wipes the memory when it goes.
pub struct KeyPair(Pair);

enum Pair {
    EcP256(EcdsaKeyPair),
    EcP384(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl KeyPair {
    /// A new key: what signs, and what is kept. An RSA key takes a tenth of a second and more.
    pub fn generate(kind: KeyType) -> Result<(Self, PrivateKey), KeyError> {
        let ec = |curve, pair_of: fn(EcdsaKeyPair) -> Pair| {
            let pair = EcdsaKeyPair::generate(curve).map_err(|_| KeyError::Generation)?;
            let der = pair.to_pkcs8v1().map_err(|_| KeyError::Generation)?;
            Ok((Self(pair_of(pair)), Zeroizing::new(der.as_ref().to_vec())))
        };
        let rsa = |size| {
            let pair = RsaKeyPair::generate(size).map_err(|_| KeyError::Generation)?;
            let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| KeyError::Generation)?;
            let der = Zeroizing::new(der.as_ref().to_vec());
            Ok((Self(Pair::Rsa(pair)), der))
        };
        let (pair, pkcs8) = match kind {
            KeyType::EcP256 => ec(&ECDSA_P256_SHA256_ASN1_SIGNING, Pair::EcP256),
            KeyType::EcP384 => ec(&ECDSA_P384_SHA384_ASN1_SIGNING, Pair::EcP384),
            KeyType::Rsa2048 => rsa(KeySize::Rsa2048),
            KeyType::Rsa4096 => rsa(KeySize::Rsa4096),
        }?;
        let key = PrivateKey { pkcs8, public: pair.public_key().into() };
        Ok((pair, key))
    }

    /// Reads PKCS#8 DER of a supported kind.
    fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der) {
            return Ok(Self(Pair::EcP256(pair)));
        }
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, der) {
            return Ok(Self(Pair::EcP384(pair)));
        }
        RsaKeyPair::from_pkcs8(der).map(|pair| Self(Pair::Rsa(pair))).map_err(|_| KeyError::Unreadable)
    }

    /// Reads PKCS#8, SEC 1 (`EC PRIVATE KEY`) or PKCS#1 (`RSA PRIVATE KEY`) DER of a supported kind.
    pub fn from_any_der(der: &[u8]) -> Result<Self, KeyError> {
        if let Ok(pair) = Self::from_pkcs8(der) {
            return Ok(pair);
        }
        if let Ok(pair) = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der) {
            return Ok(Self(Pair::EcP256(pair)));
        }
        if let Ok(pair) = EcdsaKeyPair::from_private_key_der(&ECDSA_P384_SHA384_ASN1_SIGNING, der) {
            return Ok(Self(Pair::EcP384(pair)));
        }
        RsaKeyPair::from_der(der).map(|pair| Self(Pair::Rsa(pair))).map_err(|_| KeyError::Unreadable)
    }

    /// The public key as it stands in a certificate's `subjectPublicKey` bit string.
    pub fn public_key(&self) -> &[u8] {
        match &self.0 {
            Pair::EcP256(pair) | Pair::EcP384(pair) => pair.public_key().as_ref(),
            Pair::Rsa(pair) => pair.public_key().as_ref(),
        }
    }

    /// What [`sign`](Self::sign) signs with.
    pub fn algorithm(&self) -> KeyAlgorithm {
        match &self.0 {
            Pair::EcP256(_) => KeyAlgorithm::EcP256,
            Pair::EcP384(_) => KeyAlgorithm::EcP384,
            Pair::Rsa(_) => KeyAlgorithm::Rsa,
        }
    }

    /// Signs a message, which is hashed here. An ECDSA signature is in ASN.1, as certificates have it.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let random = SystemRandom::new();
        match &self.0 {
            Pair::EcP256(pair) | Pair::EcP384(pair) => pair
                .sign(&random, message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| KeyError::Signing),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(|_| KeyError::Signing)?;
                Ok(signature)
            }
        }
    }
}

/// A private key as PKCS#8 DER. It cannot be printed and is wiped when dropped.
#[derive(Clone)]
pub struct PrivateKey {
    pkcs8: Zeroizing<Vec<u8>>,
    /// The public half as a certificate holds it: reading the private one again costs as much as signing.
    public: Box<[u8]>,
}

impl PrivateKey {
    /// Takes unencrypted PKCS#8 DER of an ECDSA P-256, ECDSA P-384 or RSA key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let pair = KeyPair::from_pkcs8(der)?;
        Ok(Self { pkcs8: Zeroizing::new(der.to_vec()), public: pair.public_key().into() })
    }

    /// The public key as it stands in a certificate's `subjectPublicKey`.
    pub(crate) fn public_key(&self) -> &[u8] {
        &self.public
    }

    /// The PKCS#8 DER. The caller wipes each copy that it makes.
    pub fn expose_pkcs8_der(&self) -> &[u8] {
        &self.pkcs8
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_types_by_name() {
        for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048, KeyType::Rsa4096] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let error = "ed25519".parse::<KeyType>().unwrap_err().to_string();
        assert_eq!(error, "unknown key type \"ed25519\": use ec-p256, ec-p384, rsa-2048 or rsa-4096");
    }

    #[test]
    fn generated_keys_are_read_back() {
        for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            let (pair, key) = KeyPair::generate(kind).unwrap();
            let der = key.expose_pkcs8_der();
            assert_eq!(PrivateKey::from_pkcs8_der(der).unwrap().public_key(), pair.public_key());
            let again = KeyPair::from_any_der(der).unwrap();
            assert_eq!((again.public_key(), again.algorithm()), (pair.public_key(), pair.algorithm()));
        }
        assert!(KeyPair::from_any_der(b"not a key").is_err());
    }
}

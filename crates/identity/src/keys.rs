//! Key pairs: aws-lc-rs keys behind rcgen's traits, so that no copy of a private key is left in plain memory.

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

/// The key could not be made or read. There is no more to say: the library gives no reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyFailure;

/// A private key that can sign. No `Debug`; the library wipes the memory when it goes.
pub(crate) enum KeyPair {
    Ec(EcdsaKeyPair, &'static rcgen::SignatureAlgorithm),
    Rsa(RsaKeyPair),
}

impl KeyPair {
    /// A new key with its PKCS#8 DER.
    pub(crate) fn generate(kind: KeyType) -> Result<(Self, Zeroizing<Vec<u8>>), KeyFailure> {
        let ec = |curve, algorithm| {
            let pair = EcdsaKeyPair::generate(curve).map_err(|_| KeyFailure)?;
            let der = pair.to_pkcs8v1().map_err(|_| KeyFailure)?;
            Ok((Self::Ec(pair, algorithm), Zeroizing::new(der.as_ref().to_vec())))
        };
        let rsa = |size| {
            let pair = RsaKeyPair::generate(size).map_err(|_| KeyFailure)?;
            let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| KeyFailure)?;
            let der = Zeroizing::new(der.as_ref().to_vec());
            Ok((Self::Rsa(pair), der))
        };
        match kind {
            KeyType::EcP256 => ec(&ECDSA_P256_SHA256_ASN1_SIGNING, &rcgen::PKCS_ECDSA_P256_SHA256),
            KeyType::EcP384 => ec(&ECDSA_P384_SHA384_ASN1_SIGNING, &rcgen::PKCS_ECDSA_P384_SHA384),
            KeyType::Rsa2048 => rsa(KeySize::Rsa2048),
            KeyType::Rsa4096 => rsa(KeySize::Rsa4096),
        }
    }

    /// Reads PKCS#8 DER of one of our kinds.
    pub(crate) fn from_pkcs8(der: &[u8]) -> Result<Self, KeyFailure> {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der) {
            return Ok(Self::Ec(pair, &rcgen::PKCS_ECDSA_P256_SHA256));
        }
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, der) {
            return Ok(Self::Ec(pair, &rcgen::PKCS_ECDSA_P384_SHA384));
        }
        RsaKeyPair::from_pkcs8(der).map(Self::Rsa).map_err(|_| KeyFailure)
    }

    /// Reads PKCS#8, SEC 1 (`EC PRIVATE KEY`) or PKCS#1 (`RSA PRIVATE KEY`) DER of one of our kinds.
    pub(crate) fn from_any_der(der: &[u8]) -> Result<Self, KeyFailure> {
        if let Ok(pair) = Self::from_pkcs8(der) {
            return Ok(pair);
        }
        if let Ok(pair) = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der) {
            return Ok(Self::Ec(pair, &rcgen::PKCS_ECDSA_P256_SHA256));
        }
        if let Ok(pair) = EcdsaKeyPair::from_private_key_der(&ECDSA_P384_SHA384_ASN1_SIGNING, der) {
            return Ok(Self::Ec(pair, &rcgen::PKCS_ECDSA_P384_SHA384));
        }
        RsaKeyPair::from_der(der).map(Self::Rsa).map_err(|_| KeyFailure)
    }

    /// The public key as it stands in a certificate's `subjectPublicKey` bit string.
    pub(crate) fn public_key(&self) -> &[u8] {
        match self {
            Self::Ec(pair, _) => pair.public_key().as_ref(),
            Self::Rsa(pair) => pair.public_key().as_ref(),
        }
    }
}

impl rcgen::PublicKeyData for KeyPair {
    fn der_bytes(&self) -> &[u8] {
        self.public_key()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::Ec(_, algorithm) => algorithm,
            Self::Rsa(_) => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

impl rcgen::SigningKey for KeyPair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let random = SystemRandom::new();
        match self {
            Self::Ec(pair, _) => pair
                .sign(&random, message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| rcgen::Error::RingUnspecified),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(|_| rcgen::Error::RingUnspecified)?;
                Ok(signature)
            }
        }
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
            let (pair, der) = KeyPair::generate(kind).unwrap();
            assert_eq!(KeyPair::from_pkcs8(&der).unwrap().public_key(), pair.public_key());
            assert_eq!(KeyPair::from_any_der(&der).unwrap().public_key(), pair.public_key());
        }
        assert!(KeyPair::from_any_der(b"not a key").is_err());
    }
}

//! Why a request is refused, and with which gRPC code.

use tonic::{Code, Status};

use seamount_pod_token::TokenError;

/// A refusal. Nothing was changed. The message names the field and the remedy; values in it are quoted and
/// cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field that has to be there is not.
    #[error("request missing required {field}: {remedy}")]
    Missing {
        /// The field.
        field: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A string or map that is longer than CSI allows.
    #[error("{field} has {length} bytes, more than the {max} allowed: shorten it")]
    TooLong {
        /// The field.
        field: String,
        /// Its bytes; of a map up to the entry that was too much.
        length: usize,
        /// The limit.
        max: usize,
    },
    /// A NUL byte.
    #[error("{field} has a NUL byte: remove it")]
    Nul {
        /// The field.
        field: String,
    },
    /// A component `..`, or a slash in what is no path.
    #[error("{field} climbs out with `..` or `/`: send what the kubelet made")]
    Climbs {
        /// The field.
        field: String,
    },
    /// Another form than expected.
    #[error("{field} is {value}, expected {expected}")]
    Form {
        /// The field.
        field: String,
        /// What came, quoted.
        value: String,
        /// What is expected.
        expected: String,
    },
    /// A block device was asked for, or a file system or mount options.
    #[error(
        "volume_capability.access_type must be a simple mount: {0} is set; remove it from pod.spec.volumes[].csi"
    )]
    NotPlainMount(&'static str),
    /// An access mode that an ephemeral volume on one node cannot have.
    #[error(
        "volume_capability.access_mode {0} is not valid: the kubelet sends SINGLE_NODE_WRITER for inline volumes"
    )]
    AccessMode(i32),
    /// The pod asks for a writable volume.
    #[error("readonly is false: pod.spec.volumes[].csi.readOnly must be set to 'true'")]
    NotReadOnly,
    /// A persistent volume, or a CSIDriver object without `podInfoOnMount`.
    #[error(
        "volume_context[\"csi.storage.k8s.io/ephemeral\"] is not \"true\": only ephemeral volumes are supported; \
         use an inline volume (pod.spec.volumes[].csi) and podInfoOnMount: true in the CSIDriver object"
    )]
    NotEphemeral,
    /// An attribute that this driver does not have.
    #[error("volume_context[{0}] is not known: remove it from pod.spec.volumes[].csi.volumeAttributes")]
    UnknownAttribute(String),
    /// An attribute in the kubelet's name space that the kubelet does not send.
    #[error(
        "volume_context[{0}] is reserved for the kubelet: remove it from pod.spec.volumes[].csi.volumeAttributes"
    )]
    ReservedAttribute(String),
    /// A key in `secrets` that this driver does not have.
    #[error("secrets[{0}] is not known: remove nodePublishSecretRef from pod.spec.volumes[].csi")]
    UnknownSecret(String),
    /// No token at all.
    #[error(
        "secrets[\"csi.storage.k8s.io/serviceAccount.tokens\"] is missing: the CSIDriver object needs tokenRequests \
         with the audience {audience:?} and serviceAccountTokenInSecrets: true \
         (before Kubernetes 1.35 token.allowVolumeContext in the agent's configuration)"
    )]
    NoToken {
        /// The configured audience.
        audience: String,
    },
    /// One of the two is the pod author's.
    #[error(
        "volume_context[\"csi.storage.k8s.io/serviceAccount.tokens\"] beside the one in secrets is forged: remove it \
         from pod.spec.volumes[].csi.volumeAttributes"
    )]
    TokenTwice,
    /// A token in `volume_context`, which the pod's author can write.
    #[error(
        "volume_context[\"csi.storage.k8s.io/serviceAccount.tokens\"] proves nothing and secrets has no token: set \
         serviceAccountTokenInSecrets: true in the CSIDriver object (before Kubernetes 1.35 token.allowVolumeContext \
         in the agent's configuration)"
    )]
    TokenInVolumeContext,
    /// The JSON around the tokens.
    #[error("{field} is not the kubelet's JSON of tokens: {reason}; nothing but the kubelet may write it")]
    TokenJson {
        /// The field.
        field: String,
        /// What is wrong, without any of it.
        reason: &'static str,
    },
    /// A token for somebody else.
    #[error(
        "{field} has a token for the audience {audience}, which is not configured: CSIDriver tokenRequests and \
         token.audience must be the same"
    )]
    Audience {
        /// The field.
        field: String,
        /// The audience, quoted.
        audience: String,
    },
    /// The token does not hold.
    #[error("csi.storage.k8s.io/serviceAccount.tokens: {0}")]
    Token(#[from] TokenError),
    /// The kubelet never says two different UIDs.
    #[error(
        "volume_context[\"csi.storage.k8s.io/pod.uid\"] is {context}, target_path says {path}: the pod's author forged \
         it, or the CSIDriver object was changed (podInfoOnMount: true)"
    )]
    PodUid {
        /// What the context says, quoted.
        context: String,
        /// What the path says, quoted.
        path: String,
    },
    /// What the kubelet was made to say is not what the token proves.
    #[error(
        "{field} is {value}, the pod's token says {claim}: the pod's author forged it, or the CSIDriver object was changed (podInfoOnMount: true)"
    )]
    Mismatch {
        /// The field.
        field: &'static str,
        /// What the request says, quoted.
        value: String,
        /// What the token says, quoted.
        claim: String,
    },
    /// Nothing of that name is here.
    #[error("{field} {path} is not a volume of {volume} on this node: nothing is published there")]
    NotFound {
        /// The field.
        field: String,
        /// The path, quoted.
        path: String,
        /// The volume's id, quoted.
        volume: String,
    },
}

impl Refusal {
    /// `InvalidArgument` for a request of the wrong form (as the SPIFFE CSI driver), `PermissionDenied` for a
    /// token that does not hold or does not fit the request, `Unavailable` where the kubelet is to try again.
    pub fn code(&self) -> Code {
        match self {
            Self::Token(TokenError::KeysUnavailable(_)) => Code::Unavailable,
            Self::Token(_) | Self::Mismatch { .. } | Self::PodUid { .. } => Code::PermissionDenied,
            Self::NotFound { .. } => Code::NotFound,
            _ => Code::InvalidArgument,
        }
    }

    /// One word for metrics: `form`, `token`, `mismatch`, `keys` or `unknown`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Token(TokenError::KeysUnavailable(_)) => "keys",
            Self::Token(_)
            | Self::NoToken { .. }
            | Self::TokenTwice
            | Self::TokenInVolumeContext
            | Self::TokenJson { .. }
            | Self::Audience { .. } => "token",
            Self::Mismatch { .. } | Self::PodUid { .. } => "mismatch",
            Self::NotFound { .. } => "unknown",
            _ => "form",
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}

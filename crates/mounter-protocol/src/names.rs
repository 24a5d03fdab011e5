//! Names that cross the boundary between agent and mounter. A value of these types is safe as one path
//! component.

use std::fmt;
use std::str::FromStr;

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:literal, $valid:expr, $reason:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = &'static str;

            /// The error says which kind of name it is and what is wrong with it.
            fn from_str(s: &str) -> Result<Self, &'static str> {
                let valid: fn(&str) -> bool = $valid;
                match s.len() {
                    0 => Err(concat!($what, " is empty")),
                    1..=$max if valid(s) => Ok(Self(s.to_owned())),
                    1..=$max => Err(concat!($what, " ", $reason)),
                    _ => Err(concat!($what, " is longer than ", $max, " bytes")),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A CSI driver's name (CSI 1.13, GetPluginInfo): also its directory in the kubelet's `plugins`.
    DriverName, "driver name", 63,
    |s| s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        && !s.starts_with(['-', '.'])
        && !s.ends_with(['-', '.']),
    "is not of letters, digits, and inner hyphens and dots"
);

name!(
    /// The name of a socket in a volume: one path component, and never hidden.
    SocketName, "socket name", 63,
    |s| s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) && !s.starts_with('.'),
    "is not of letters, digits, hyphens, dots and underscores, or begins with a dot"
);

name!(
    /// A pod's UID: the 36 lower-case characters of a UUID, which is the name of the pod's directory. (Static
    /// pods have 32 hex digits there; they cannot have service-account tokens, so they have no identity.)
    PodUid, "pod UID", 36,
    |s| s.len() == 36 && s.bytes().enumerate().all(|(i, b)| match i {
        8 | 13 | 18 | 23 => b == b'-',
        _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
    }),
    "is not a lower-case UUID"
);

name!(
    /// A volume's name in its pod: a DNS-1123 label (Kubernetes API conventions), one path component.
    VolumeName, "volume name", 63,
    |s| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !s.starts_with('-')
        && !s.ends_with('-'),
    "is not a DNS label (lower-case letters, digits and inner hyphens)"
);

name!(
    /// A CSI volume id (CSI 1.13, "Size Limits": 128 bytes). Only compared with `vol_data.json`, never part
    /// of a path.
    VolumeId, "volume id", 128,
    |s| s.bytes().all(|b| b.is_ascii_graphic()),
    "has a character outside printable ASCII"
);

/// One CSI volume of one pod: all that the mounter is ever told about where something is. As text it is
/// `<pod UID>/<volume name>`, which no two volumes of a node share, whatever their drivers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Volume {
    /// The driver that `vol_data.json` beside the volume must name.
    pub driver: DriverName,
    /// The pod's UID.
    pub pod: PodUid,
    /// The volume's name in the pod.
    pub name: VolumeName,
    /// The id that `vol_data.json` beside the volume must carry.
    pub id: VolumeId,
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pod, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_the_kubelet_uses() {
        assert!("3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6".parse::<PodUid>().is_ok());
        assert!("spiffe-workload-api".parse::<VolumeName>().is_ok());
        assert!(format!("csi-{}", "a".repeat(64)).parse::<VolumeId>().is_ok());
    }

    #[test]
    fn refuses_whatever_could_leave_the_directory() {
        for good in ["csi.spiffe.io", "a", "A-1.b..c", &"a".repeat(63)] {
            assert!(good.parse::<DriverName>().is_ok(), "{good:?}");
        }
        for bad in ["", ".", "..", "a/b", ".a", "a.", "-a", "a-", "a_b", "a\0", "é", &"a".repeat(64)] {
            assert!(bad.parse::<DriverName>().is_err(), "{bad:?}");
        }
        for bad in ["", ".", "..", "a/b", "A", "a\0", "-a", "a-", "a.b", &"a".repeat(64)] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?}");
        }
        for bad in ["", "..", "3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5fG", "3F2C1A9E-0b1d-4c5e-8f70-a1b2c3d4e5f6"]
        {
            assert!(bad.parse::<PodUid>().is_err(), "{bad:?}");
        }
        for bad in ["", "a b", "a\0b", "a\n", &"a".repeat(129), "é"] {
            assert!(bad.parse::<VolumeId>().is_err(), "{bad:?}");
        }
    }
}

//! UUIDs as Kubernetes gives them to its objects.

/// A random UUID (RFC 9562, version 4), as Kubernetes gives to its objects.
pub fn uuid() -> String {
    let mut bytes = [0; 16];
    // Without random numbers the name is merely not unique.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    format_uuid(bytes)
}

/// The UUID that belongs to a name: the same name has the same one.
pub fn uuid_of(name: &str) -> String {
    let mut bytes = [0; 16];
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_bytes());
    for (to, from) in bytes.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    format_uuid(bytes)
}

fn format_uuid(bytes: [u8; 16]) -> String {
    let mut number = u128::from_be_bytes(bytes);
    number = (number & !(0xf << 76)) | (0x4 << 76);
    number = (number & !(0x3 << 62)) | (0x2 << 62);
    let hex = format!("{number:032x}");
    let mut out = String::with_capacity(36);
    for (i, c) in hex.chars().enumerate() {
        if matches!(i, 8 | 12 | 16 | 20) {
            out.push('-');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_have_version_4_form() {
        for id in [uuid(), uuid_of("node-1")] {
            assert_eq!(id.len(), 36, "{id}");
            assert_eq!(&id[14..15], "4", "{id}");
            assert!("89ab".contains(&id[19..20]), "{id}");
            assert!(
                id.bytes().enumerate().all(|(i, b)| match i {
                    8 | 13 | 18 | 23 => b == b'-',
                    _ => b.is_ascii_hexdigit() && !b.is_ascii_uppercase(),
                }),
                "{id}"
            );
        }
        assert_eq!(uuid_of("a"), uuid_of("a"));
        assert_ne!(uuid_of("a"), uuid_of("b"));
    }
}

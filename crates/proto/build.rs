//! Compiles the `.proto` files with protox: no protoc is needed.

use std::{env, error::Error, fs, path::Path};

use prost::Message as _;

/// Messages that carry keys or tokens: `src/redacted.rs` writes their `Debug`.
const SECRET: [&str; 8] = [
    "csi.v1.NodePublishVolumeRequest",
    "csi.v1.NodeGetStorageHealthRequest",
    "csi.v1.CreateVolumeRequest",
    "csi.v1.DeleteVolumeRequest",
    "X509SVID",
    "JWTSVID",
    "ValidateJWTSVIDRequest",
    "ValidateJWTSVIDResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = env::var("OUT_DIR")?;
    for name in ["csi", "registration", "workload", "node"] {
        let descriptors = protox::compile([format!("proto/{name}.proto")], ["proto"])?;
        fs::write(Path::new(&out).join(format!("{name}.bin")), descriptors.encode_to_vec())?;
        // In the order of their keys, the Workload API's maps of the same content have the same bytes.
        tonic_prost_build::configure()
            .bytes(".")
            .btree_map(".X509SVIDResponse")
            .btree_map(".X509BundlesResponse")
            .btree_map(".JWTBundlesResponse")
            .skip_debug(SECRET)
            .codec_path("crate::codec::SmallBuffers")
            .compile_fds(descriptors)?;
    }
    Ok(())
}

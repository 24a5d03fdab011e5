//! Compiles the `.proto` files with protox: no protoc is needed.

use std::{env, error::Error, fs, path::Path};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = env::var("OUT_DIR")?;
    for name in ["csi", "registration", "workload"] {
        let descriptors = protox::compile([format!("proto/{name}.proto")], ["proto"])?;
        fs::write(Path::new(&out).join(format!("{name}.bin")), descriptors.encode_to_vec())?;
        tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    }
    Ok(())
}

//! Generates Rust from the schemas beside it. protox parses the .proto files, planus the .fbs: neither protoc nor flatc is needed here.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=containerd");
    println!("cargo:rerun-if-changed=soci");
    println!("cargo:rerun-if-changed=ztoc.fbs");

    let snapshots = protox::compile(["containerd/services/snapshots/v1/snapshots.proto"], ["."])?;
    tonic_prost_build::configure()
        .build_client(false)
        // One Mount type for the side that we serve and the side that we call.
        .extern_path(".containerd.types.Mount", "::containerd_client::types::Mount")
        .compile_fds(snapshots)?;
    let daemon = protox::compile(["soci/v1/daemon.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(daemon)?;

    let declarations =
        planus_translation::translate_files(&["ztoc.fbs"]).ok_or("ztoc.fbs does not translate")?;
    let code = planus_codegen::generate_rust(&declarations, true)?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out.join("ztoc.rs"), code)?;
    Ok(())
}

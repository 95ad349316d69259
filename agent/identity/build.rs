//! Makes the authority's messages and stubs of `proto/authority.proto`. protox reads the file, so that nobody needs protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    #[cfg(feature = "wire")]
    {
        let files = protox::compile(["authority.proto"], ["proto"])?;
        // Channels are made where connections are: in the agent. This crate does no I/O.
        tonic_prost_build::configure().build_transport(false).compile_fds(files)?;
    }
    Ok(())
}

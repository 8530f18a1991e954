//! Generates messages and client from the protos; needs `protoc`, or its path in `PROTOC`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = "../../../protos";
    let services = format!("{protos}/ossa/registry/v1/registry_service.proto");
    tonic_prost_build::configure().build_server(false).compile_protos(&[services.as_str()], &[protos])?;
    Ok(())
}

//! Compiles the client of the dataplane's inspection service, with serde on every message for `-o json`.

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=../proxy/proto/inspect.proto");
    tonic_prost_build::configure()
        .build_server(false)
        .type_attribute(".", "#[derive(serde::Serialize)]")
        .compile_protos(&["../proxy/proto/inspect.proto"], &["../proxy/proto"])
}

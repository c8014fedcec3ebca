//! Compiles the dataplane's inspection service, with serde on every message for `-o json`. The server's half
//! is for the tests.

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=../proxy/proto/inspect.proto");
    tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize)]")
        .compile_protos(&["../proxy/proto/inspect.proto"], &["../proxy/proto"])
}

//! How the binary is linked.

fn main() {
    // Functions whose code is the same are kept once: much of the program is one generic function for many kinds.
    println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    println!("cargo:rerun-if-changed=build.rs");
}

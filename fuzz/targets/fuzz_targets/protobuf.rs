//! `cargo +nightly fuzz run --fuzz-dir fuzz/targets protobuf fuzz/corpus/protobuf`
#![no_main]

use hawser_fuzz::{Harness, Target};

thread_local! {
    static HARNESS: Harness = Harness::new().expect("the server starts");
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    HARNESS.with(|harness| harness.run(Target::Protobuf, data));
});

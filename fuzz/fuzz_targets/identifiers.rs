#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seamount_fuzz::identifiers::run(data));

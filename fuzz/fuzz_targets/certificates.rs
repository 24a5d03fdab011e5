#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seamount_fuzz::certificates::run(data));

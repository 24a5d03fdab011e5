#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seamount_fuzz::state_records::run(data));

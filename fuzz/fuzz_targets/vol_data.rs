#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seamount_fuzz::vol_data::run(data));

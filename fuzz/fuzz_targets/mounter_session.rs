#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seamount_fuzz::mounter_session::run(data));

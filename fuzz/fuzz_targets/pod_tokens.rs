#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seamount_fuzz::pod_tokens::run(data));

use super::*;

#[test]
fn durations() {
    for (text, milliseconds) in [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)] {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)));
    }
    for bad in ["", "s", "30", "1d", "-1s", "1.5s", "99999999999s", "1 s"] {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
}

//! Tests with short timing.

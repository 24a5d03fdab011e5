//! The agent's conditions of readiness.

use seamount_telemetry::readiness::ReadinessCheck;

/// The configuration is valid.
pub const CONFIGURATION: ReadinessCheck = ReadinessCheck::named("configuration");
/// The mounter is connected.
pub const MOUNTER: ReadinessCheck = ReadinessCheck::named("mounter");
/// The kubelet has registered the driver.
pub const REGISTRATION: ReadinessCheck = ReadinessCheck::named("registration");
/// The authority can sign.
pub const AUTHORITY: ReadinessCheck = ReadinessCheck::named("authority");

/// All of them, in the order in which they are shown.
pub fn checks() -> [ReadinessCheck; 5] {
    [CONFIGURATION, MOUNTER, REGISTRATION, AUTHORITY, seamount_pod_token::READINESS]
}

//! Logs to stderr, one event per line, as text or JSON.

use seamount_api::{Log, LogFormat, LogLevel};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer as _, Registry, fmt};

#[cfg(any(test, feature = "testing"))]
pub mod captured;
mod lossy;
mod recent;

pub use lossy::{Lossy, Metrics};
pub use recent::{Line, Recent};

/// Changes the level of a running agent, and knows what it said last.
pub struct LogHandle {
    level: reload::Handle<Targets, Registry>,
    recent: Recent,
}

impl LogHandle {
    /// Takes the level over; the format needs a restart.
    pub fn set_level(&self, level: LogLevel) -> Result<(), reload::Error> {
        self.level.reload(targets(level))
    }

    /// The last warnings and errors.
    pub fn recent(&self) -> Recent {
        self.recent.clone()
    }
}

/// Installs the process's logger. Call once.
pub fn init(log: Log) -> Result<LogHandle, TryInitError> {
    let (filter, handle) = reload::Layer::new(targets(log.level));
    let lines = match log.format {
        LogFormat::Text => fmt::layer().with_ansi(false).with_target(false).with_writer(|| Lossy).boxed(),
        LogFormat::Json => {
            fmt::layer().json().flatten_event(true).with_target(false).with_writer(|| Lossy).boxed()
        }
    };
    let recent = Recent::default();
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(recent.layer()).try_init()?;
    Ok(LogHandle { level: handle, recent })
}

/// Our own crates at the wished level. The libraries below stay at `warn` even with `debug` and `trace`: h2
/// and hyper print frames and headers there, and a frame may hold a token or a key. Those two stay at
/// `error`: a client makes h2 warn of each frame that it sends, a hundred thousand lines from one pod.
fn targets(level: LogLevel) -> Targets {
    let ours = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new()
        .with_default(ours.min(LevelFilter::WARN))
        .with_target("h2", LevelFilter::ERROR)
        .with_target("hyper", LevelFilter::ERROR)
        .with_target("seamount", ours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn libraries_never_print_frames() {
        for level in [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace] {
            let targets = targets(level);
            for library in ["h2::codec", "hyper::proto", "tonic", "rustls"] {
                assert!(!targets.would_enable(library, &Level::INFO), "{library} at {level:?}");
            }
            // What a pod can make a library say.
            for library in ["h2::proto::ping_pong", "hyper::proto::h2::server"] {
                assert!(!targets.would_enable(library, &Level::WARN), "{library} at {level:?}");
            }
        }
        assert!(targets(LogLevel::Trace).would_enable("seamount_agent::volumes", &Level::TRACE));
        assert!(!targets(LogLevel::Info).would_enable("seamount_agent::volumes", &Level::DEBUG));
        assert!(!targets(LogLevel::Error).would_enable("h2", &Level::WARN));
    }
}

//! The kubelet's plugin registration v1, served by the agent itself (no registrar sidecar).
//!
//! The kubelet calls only when a registration socket appears or when it starts itself. An agent that came
//! back on the kept listener is therefore not called again: what the kubelet said last is part of the
//! recorded state, and liveness never depends on it. Where the kubelet has not said that the driver is
//! registered, the socket appears again, and again (`run/offers.rs`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use seamount_proto::registration::registration_server;
use seamount_proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use tokio::sync::{Notify, watch};
use tonic::{Request, Response, Status};

use crate::record::Registration;

mod metrics;

pub use metrics::Metrics;
/// How a driver's registration stands, for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverStatus {
    /// `registered`, `refused`, `unreachable` (a socket's name does not lead to the agent), or `unknown`.
    pub state: &'static str,
    /// The kubelet's words; what is wrong with the socket.
    pub reason: String,
    /// Since when.
    pub since: SystemTime,
}

impl Default for DriverStatus {
    /// Nothing was heard, from now on.
    fn default() -> Self {
        Self { state: "unknown", reason: String::new(), since: SystemTime::now() }
    }
}

/// How long the kubelet waits for its word to be recorded; it gives up after 5 s.
const RECORD: Duration = Duration::from_secs(3);

/// The service.
///
/// The kubelet's word goes out by one channel and comes back by another, and each keeps the last value alone:
/// who answers waits for its own word, or for a later one that was recorded in its place until the time is
/// up, and is answered in both cases.
pub struct Service {
    driver: String,
    endpoint: String,
    asked: Arc<Notify>,
    registered: watch::Sender<Registration>,
    recorded: watch::Receiver<Registration>,
}

impl Service {
    /// For this driver, whose CSI socket the kubelet finds at `endpoint`. That the kubelet asks is told to
    /// `asked`. What it says goes to `registered`, and comes back through `recorded` once it would survive
    /// the agent.
    pub fn new(
        driver: String,
        endpoint: String,
        asked: Arc<Notify>,
        registered: watch::Sender<Registration>,
        recorded: watch::Receiver<Registration>,
    ) -> Self {
        Self { driver, endpoint, asked, registered, recorded }
    }
}

#[tonic::async_trait]
impl registration_server::Registration for Service {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        tracing::info!(driver = %self.driver, "the kubelet asks who we are");
        self.asked.notify_one();
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.driver.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        let now = if plugin_registered {
            tracing::info!(driver = %self.driver, "registered with the kubelet");
            Registration::Registered
        } else {
            let error: String = error.chars().filter(|c| !c.is_control()).take(500).collect();
            tracing::error!(driver = %self.driver, %error, "the kubelet refused the registration; is another driver of this name installed?");
            Registration::Failed(error)
        };
        self.registered.send_replace(now.clone());
        // The kubelet does not say it twice. Without a place for records it is answered all the same.
        let _ =
            tokio::time::timeout(RECORD, self.recorded.clone().wait_for(|recorded| *recorded == now)).await;
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use registration_server::Registration as _;

    fn service(registered: watch::Sender<Registration>, recorded: watch::Receiver<Registration>) -> Service {
        Service::new(
            "csi.spiffe.io".to_owned(),
            "/k/csi.sock".to_owned(),
            Arc::default(),
            registered,
            recorded,
        )
    }

    #[tokio::test]
    async fn the_kubelets_word_is_recorded_before_it_is_answered() {
        let (registered, mut seen) = watch::channel(Registration::Unknown);
        let (record, recorded) = watch::channel(Registration::Unknown);
        let service = service(registered, recorded);
        let status = RegistrationStatus { plugin_registered: true, error: String::new() };
        let mut answer = service.notify_registration_status(Request::new(status));
        tokio::select! {
            biased;
            _ = &mut answer => panic!("answered before it was recorded"),
            heard = seen.wait_for(|r| *r == Registration::Registered) => drop(heard.unwrap()),
        }
        record.send_replace(Registration::Registered);
        answer.await.unwrap();
    }

    #[tokio::test]
    async fn the_kubelet_gets_the_driver_and_its_word_is_kept() {
        let (registered, seen) = watch::channel(Registration::Unknown);
        let service = service(registered, seen.clone());
        let info = service.get_info(Request::new(InfoRequest {})).await.unwrap().into_inner();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.spiffe.io"));
        assert_eq!(
            (info.endpoint.as_str(), info.supported_versions),
            ("/k/csi.sock", vec!["1.0.0".to_owned()])
        );
        let status = RegistrationStatus { plugin_registered: false, error: "taken\n".to_owned() };
        service.notify_registration_status(Request::new(status)).await.unwrap();
        assert_eq!(*seen.borrow(), Registration::Failed("taken".to_owned()));
        let status = RegistrationStatus { plugin_registered: true, error: String::new() };
        service.notify_registration_status(Request::new(status)).await.unwrap();
        assert_eq!(*seen.borrow(), Registration::Registered);
    }
}

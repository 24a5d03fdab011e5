//! Stands between csi-sanity and the agent and plays the kubelet's part.
//!
//! csi-sanity publishes at `<its folder>/target`, never asks for read-only, knows no pods and writes no
//! `vol_data.json`; the kubelet does all of that and the agent insists on it. So this program gives every
//! request that csi-sanity makes what the kubelet would give it: a target path in a pod's directory with
//! `vol_data.json` beside it, `readonly`, the pod's facts in `volume_context` and a token in `secrets`. What
//! csi-sanity leaves out on purpose (volume id, path, capability) stays out. After unpublish it removes what
//! the kubelet would remove. It also serves the Controller calls through which csi-sanity makes its volumes,
//! since an ephemeral driver has none.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use hyper_util::rt::TokioIo;
use seamount_proto::csi::controller_server::{Controller, ControllerServer};
use seamount_proto::csi::identity_client::IdentityClient;
use seamount_proto::csi::identity_server::{Identity, IdentityServer};
use seamount_proto::csi::node_client::NodeClient;
use seamount_proto::csi::node_server::{Node, NodeServer};
use seamount_proto::csi::*;
use seamount_testkit::issuer::TokenIssuer;
use seamount_testkit::kubelet::{Kubelet, PodVolume};
use seamount_testkit::uuid_of;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status};

/// Plays the kubelet between csi-sanity and the agent.
#[derive(Parser)]
struct Args {
    /// The kubelet's root directory, as the mounter and the agent know it.
    #[arg(long)]
    root: PathBuf,
    #[arg(long, default_value = "csi.spiffe.io")]
    driver: String,
    #[arg(long, default_value = "node-1")]
    node: String,
    #[arg(long, default_value = "seamount.dev")]
    audience: String,
    #[arg(long, default_value = "https://issuer.test")]
    issuer: String,
    /// Where to write the issuer's public keys, for the agent. Written first.
    #[arg(long)]
    jwks: PathBuf,
    /// The sockets for csi-sanity. They appear when the agent is registered.
    #[arg(long)]
    node_endpoint: PathBuf,
    #[arg(long)]
    controller_endpoint: PathBuf,
    /// A folder in which csi-sanity's paths become symbolic links to the real ones, for its check of the
    /// target.
    #[arg(long)]
    targets: PathBuf,
}

/// The kubelet's side of the volumes that csi-sanity names.
struct Volumes {
    kubelet: Kubelet,
    issuer: TokenIssuer,
    args: Args,
}

impl Volumes {
    /// The pod of a volume: another one for each volume id.
    fn pod(volume_id: &str) -> PodVolume {
        let uid = uuid_of(volume_id);
        PodVolume {
            volume_id: volume_id.to_owned(),
            ..PodVolume::new("sanity", "sanity", &format!("sanity-{uid}"), &uid, "spiffe")
        }
    }

    /// csi-sanity's own paths are absolute and end in `target`; others (`some/path`) are meant to be wrong.
    fn is_target(path: &str) -> bool {
        path.starts_with('/') && path.ends_with("/target")
    }

    /// The path in the kubelet's form for a path of csi-sanity's.
    fn real_path(&self, volume_id: &str, path: &str) -> String {
        if !Self::is_target(path) {
            return path.to_owned();
        }
        self.kubelet.target_path(&Self::pod(volume_id)).to_string_lossy().into_owned()
    }

    /// Remembers where csi-sanity's path really is.
    fn link(&self, path: &str, real: &Path) -> std::io::Result<()> {
        let link = self.args.targets.join(path.replace('/', "_"));
        match std::fs::remove_file(&link) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::os::unix::fs::symlink(real, link)
    }

    /// The request as the kubelet would make it, with what csi-sanity left out still left out.
    fn as_the_kubelet(
        &self,
        mut request: NodePublishVolumeRequest,
    ) -> anyhow::Result<NodePublishVolumeRequest> {
        let pod = Self::pod(&request.volume_id);
        let tokens = self.issuer.tokens_json(&pod.claims(&self.args.node, &self.args.audience));
        let real = self.kubelet.publish_request(&pod, Some(&tokens));
        if Self::is_target(&request.target_path) {
            if !request.volume_id.is_empty() {
                self.kubelet.prepare(&pod).context("cannot make the pod's directory")?;
                self.link(&request.target_path, Path::new(&real.target_path))?;
            }
            request.target_path = real.target_path;
        }
        request.readonly = real.readonly;
        request.volume_context = real.volume_context;
        request.secrets = real.secrets;
        Ok(request)
    }
}

fn internal(error: anyhow::Error) -> Status {
    Status::internal(format!("the shim failed: {error:#}"))
}

/// All services of the shim; the agent is behind `node` and `identity`.
#[derive(Clone)]
struct Shim {
    volumes: Arc<Volumes>,
    node: NodeClient<Channel>,
    identity: IdentityClient<Channel>,
}

#[tonic::async_trait]
impl Node for Shim {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let id = request.get_ref().volume_id.clone();
        let request = self.volumes.as_the_kubelet(request.into_inner()).map_err(internal)?;
        let answer = self.node.clone().node_publish_volume(request).await;
        if answer.is_err() {
            // A pod that never started: the kubelet tidies up after the failed mount.
            self.volumes.kubelet.remove(&Volumes::pod(&id)).map_err(|e| internal(e.into()))?;
        }
        answer
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let mut request = request.into_inner();
        let id = request.volume_id.clone();
        request.target_path = self.volumes.real_path(&id, &request.target_path);
        let answer = self.node.clone().node_unpublish_volume(request).await?;
        self.volumes.kubelet.remove(&Volumes::pod(&id)).map_err(|e| internal(e.into()))?;
        Ok(answer)
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let mut request = request.into_inner();
        request.volume_path = self.volumes.real_path(&request.volume_id, &request.volume_path);
        self.node.clone().node_get_volume_stats(request).await
    }

    async fn node_get_capabilities(
        &self,
        request: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        self.node.clone().node_get_capabilities(request.into_inner()).await
    }

    async fn node_get_info(
        &self,
        request: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        self.node.clone().node_get_info(request.into_inner()).await
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        let mut request = request.into_inner();
        request.volume_publish_path =
            self.volumes.real_path(&request.volume_id, &request.volume_publish_path);
        self.node.clone().node_get_volume_health(request).await
    }

    async fn node_get_storage_health(
        &self,
        request: Request<NodeGetStorageHealthRequest>,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        self.node.clone().node_get_storage_health(request.into_inner()).await
    }
}

#[tonic::async_trait]
impl Identity for Shim {
    async fn get_plugin_info(
        &self,
        request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        self.identity.clone().get_plugin_info(request.into_inner()).await
    }

    async fn get_plugin_capabilities(
        &self,
        request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let mut answer = self.identity.clone().get_plugin_capabilities(request.into_inner()).await?;
        // The Controller is this program's; without it csi-sanity would skip every spec with a real volume.
        let service =
            plugin_capability::Service { r#type: plugin_capability::service::Type::ControllerService.into() };
        answer
            .get_mut()
            .capabilities
            .push(PluginCapability { r#type: Some(plugin_capability::Type::Service(service)) });
        Ok(answer)
    }

    async fn probe(&self, request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        self.identity.clone().probe(request.into_inner()).await
    }
}

#[tonic::async_trait]
impl Controller for Shim {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        // The kubelet's ids for ephemeral volumes look like this one.
        let volume_id = format!("csi-{}", request.into_inner().name);
        Ok(Response::new(CreateVolumeResponse { volume: Some(Volume { volume_id, ..Volume::default() }) }))
    }

    async fn delete_volume(
        &self,
        _: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let rpc = controller_service_capability::Rpc {
            r#type: controller_service_capability::rpc::Type::CreateDeleteVolume.into(),
        };
        let capability =
            ControllerServiceCapability { r#type: Some(controller_service_capability::Type::Rpc(rpc)) };
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities: vec![capability] }))
    }
}

/// The agent's CSI socket, dialled by path as the kubelet does.
async fn dial(path: PathBuf) -> anyhow::Result<Channel> {
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://localhost").connect_with_connector(connector).await?)
}

fn listen(path: &Path) -> anyhow::Result<UnixListenerStream> {
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    Ok(UnixListenerStream::new(listener))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let issuer = TokenIssuer::new(&args.issuer);
    let partial = args.jwks.with_extension("new");
    std::fs::write(&partial, issuer.jwks_json())?;
    std::fs::rename(&partial, &args.jwks)?;

    let kubelet = Kubelet::new(&args.root, &args.driver)?.with_node(&args.node);
    kubelet.register(Duration::from_secs(60)).await.context("the agent did not register")?;
    let channel = dial(args.root.join("plugins").join(&args.driver).join("csi.sock")).await?;
    let (node, controller) = (listen(&args.node_endpoint)?, listen(&args.controller_endpoint)?);
    let shim = Shim {
        volumes: Arc::new(Volumes { kubelet, issuer, args }),
        node: NodeClient::new(channel.clone()),
        identity: IdentityClient::new(channel),
    };
    let for_node = Server::builder()
        .add_service(IdentityServer::new(shim.clone()))
        .add_service(NodeServer::new(shim.clone()))
        .serve_with_incoming(node);
    let for_controller = Server::builder()
        .add_service(IdentityServer::new(shim.clone()))
        .add_service(ControllerServer::new(shim))
        .serve_with_incoming(controller);
    tokio::try_join!(for_node, for_controller)?;
    Ok(())
}

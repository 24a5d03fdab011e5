//! From a frame to what carries it out, and to the reply.

use seamount_mounter_protocol::{Fault, FrameError, Reply, Request, Subject, flag};

use crate::closer::Foreign;
use crate::error::{Result, bail};
use crate::log::event;
use crate::node::Node;
use crate::wire::Attached;

impl Node {
    /// The answer to one frame. Total: whatever comes in, one reply goes out, and a failure changes nothing.
    pub fn handle(&mut self, frame: &[u8], fd: Option<Foreign>) -> (Reply, Attached) {
        let (id, request) = match Request::decode(frame) {
            Ok(decoded) => decoded,
            Err((id, e @ FrameError::Version(_))) => {
                return (Reply::refusal(id, Fault::Version, e.to_string()), None);
            }
            Err((id, e)) => return (Reply::refusal(id, Fault::Malformed, e.to_string()), None),
        };
        let mut reply = Reply::to(id, &request);
        let error = match self.carry_out(&request, fd, &mut reply) {
            Ok(attached) => return (reply, attached),
            Err(error) => error,
        };
        reply = Reply::to(id, &request);
        reply.fault = Some(error.fault);
        reply.text = match &reply.subject {
            Subject::Node => error.text,
            subject => format!("{subject}: {}", error.text),
        };
        if error.fault != Fault::NotFound {
            event("warn", "refused", &[("op", &request.op()), ("reason", &reply.text)]);
        }
        (reply, None)
    }

    fn carry_out(&mut self, request: &Request, fd: Option<Foreign>, reply: &mut Reply) -> Result<Attached> {
        if fd.is_some() != matches!(request, Request::StoreListener { .. }) {
            bail!(Malformed, "a descriptor comes with StoreListener, and only there");
        }
        match request {
            Request::Hello => {
                reply.flags |= if self.owner() == 0 { flag::IDMAP } else { 0 };
                reply.flags |= if self.noswap { flag::NOSWAP } else { 0 };
                reply.numbers = [self.descriptors, self.started.elapsed().as_micros() as u64, 0];
                reply.text = concat!("seamount-mounter ", env!("CARGO_PKG_VERSION")).into();
                Ok(None)
            }
            Request::CsiListener(_) | Request::RegistrationListener(_) => self.driver_listener(reply),
            Request::State => self.state(),
            Request::PublishIdentity(volume) => self.publish_identity(volume, reply),
            Request::PublishTmpfs { volume, gid, size } => self.publish_tmpfs(volume, *gid, *size, reply),
            Request::SetOwnership { volume, version } => self.settle(volume, version),
            Request::PublishDirectory(volume) => self.publish_directory(volume, reply),
            Request::Unpublish(volume) => self.unpublish(volume),
            Request::Inspect(volume) => self.inspect(volume, reply),
            Request::List { cursor } => self.list(*cursor, reply),
            Request::StoreListener { subject, cookie } => self.keep(subject, *cookie, fd),
            Request::Offer(_) => self.offer(&reply.subject.to_string()),
        }
    }
}

//! The tmpfs of the agent's records.

use std::rc::Rc;

use rustix::fs::{self, ResolveFlags};

use crate::error::{Result, bail};
use crate::log::done;
use crate::node::Node;
use crate::path::{self, DIRECTORY, OWN, Target};
use crate::volume::tmpfs;
use crate::wire::Attached;

const STATE: &str = "mode=0700,size=64m";
const STATE_INODES: u64 = 65_536;

impl Node {
    /// The state tmpfs, mounted once per node; it outlives this process.
    pub fn state(&self) -> Result<Attached> {
        let own = path::plugin(&self.root, OWN)?;
        let open = || Target::of(path::make_directory(&own, "state", 0o700)?);
        let mut held = open()?;
        if !held.is_mount() {
            let state = tmpfs::make(self.owner(), 0, STATE, STATE_INODES, self.noswap)?;
            path::attach(&state, &held.fd)?;
            done("state mounted", None);
            held = open()?;
        }
        let owned = [0, self.config.agent_uid].contains(&held.stat.stx_uid);
        if !owned || !tmpfs::is_one(&held.fd, STATE_INODES) {
            bail!(NotOurs, "a mount that is not ours is on the state directory: unmount it");
        }
        Ok(Some(Rc::new(self.hand_out(&held)?.into())))
    }

    /// Device and inode of the state tmpfs, so that the agent sees that it has another one; zeros where there
    /// is none.
    pub fn state_id(&self) -> [u64; 3] {
        let state = format!("plugins/{OWN}/state");
        let state = path::open(&self.root, state, DIRECTORY, ResolveFlags::empty()).ok();
        let state = state.filter(|fd| tmpfs::is_one(fd, STATE_INODES));
        let stat = state.and_then(|fd| fs::fstat(&fd).ok());
        stat.map_or([0; 3], |stat| [stat.st_dev, stat.st_ino, 0])
    }
}

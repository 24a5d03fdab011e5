//! The guest's first process: mounts, the disk, the policies one after the other, power off.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::mount::{MountFlags, mount};

use crate::context;

/// Where the disk is mounted.
pub const DISK: &str = "/var";
const POLICIES: [&str; 2] = ["fedora", "refpolicy"];

/// Runs everything, prints the sum, and switches the machine off.
pub fn boot() -> ! {
    let status = all();
    if let Err(error) = &status {
        println!("FAIL the guest itself: {error:#}");
    }
    println!("guest done");
    // What was printed has to get through the serial line.
    std::thread::sleep(Duration::from_millis(200));
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn all() -> anyhow::Result<()> {
    prepare()?;
    for policy in POLICIES {
        load(policy)?;
        let status = rules(policy)?;
        if !status.success() {
            println!("FAIL {policy} the rules ended with {status}");
        }
    }
    Ok(())
}

fn prepare() -> anyhow::Result<()> {
    let none = MountFlags::empty();
    for (kind, path) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")] {
        fs::create_dir_all(path)?;
        mount(kind, path, kind, none, None).with_context(|| format!("mount {path}"))?;
    }
    // Each denial has to be seen.
    fs::write("/proc/sys/kernel/printk_ratelimit", "0")?;
    let module = fs::File::open("/virtio_blk.ko").context("open the disk's driver")?;
    rustix::system::finit_module(&module, c"", 0).context("load the disk's driver")?;
    wait_for(Path::new("/dev/vda"))?;
    fs::create_dir_all(DISK)?;
    mount("/dev/vda", DISK, "ext4", none, None).context("mount the disk")?;
    if !Path::new("/sys/fs/selinux").is_dir() {
        let lsm = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
        bail!("this kernel runs without SELinux (security modules: {lsm})");
    }
    mount("selinuxfs", "/sys/fs/selinux", "selinuxfs", none, None).context("mount selinuxfs")?;
    Ok(())
}

fn wait_for(path: &Path) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !path.exists() {
        if begun.elapsed() > Duration::from_secs(20) {
            bail!("{} did not appear", path.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn load(policy: &str) -> anyhow::Result<()> {
    let bytes = fs::read(format!("/policy.{policy}")).context("read the policy")?;
    // One write with all of it.
    fs::write("/sys/fs/selinux/load", bytes).with_context(|| format!("load the policy {policy}"))?;
    fs::write("/sys/fs/selinux/enforce", "1").context("enforce")?;
    let version = fs::read_to_string("/proc/version").unwrap_or_default();
    let kernel = version.split(' ').nth(2).unwrap_or_default();
    println!("policy {policy}: loaded, enforcing, Linux {kernel}");
    Ok(())
}

/// As the kubelet's own domain: this program again.
fn rules(policy: &str) -> anyhow::Result<ExitStatus> {
    let kubelet = context::process("kubelet_t", "s0");
    let mut command = Command::new("/init");
    command.args(["exec", &kubelet, "/init", "rules", policy]);
    command.status().context("start the rules")
}

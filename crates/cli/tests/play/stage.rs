//! How the tests run `seamount play`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// More than anything here takes, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// An ordinary user, whose number nothing else uses.
const USER: u32 = 51234;

/// The user that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Root,
    /// Without root and without subordinate ids.
    User,
}

/// The users that can run it here; says what is skipped.
pub fn everybody(test: &str) -> Vec<Who> {
    let mut all = Vec::new();
    if seamount_testkit::is_root() {
        all.push(Who::Root);
    } else {
        seamount_testkit::skip(&format!("{test} (as root)"), "it takes root");
    }
    let mut probe = Who::User.command("unshare");
    let probe = probe.args(["--user", "--map-root-user", "--mount", "true"]).stderr(Stdio::null()).status();
    if probe.is_ok_and(|s| s.success()) {
        all.push(Who::User);
    } else {
        seamount_testkit::skip(
            &format!("{test} (without root)"),
            "an ordinary user may not make a user namespace here",
        );
    }
    all
}

/// Root, or a note that the test is skipped.
pub fn root(test: &str) -> bool {
    let root = seamount_testkit::is_root();
    if !root {
        seamount_testkit::skip(test, "it takes root");
    }
    root
}

impl Who {
    pub fn command(self, program: impl AsRef<Path>) -> Command {
        if self == Self::Root || !seamount_testkit::is_root() {
            return Command::new(program.as_ref());
        }
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".into()]);
        command.arg(program.as_ref());
        command
    }
}

/// A directory and the programs, where every user can read them.
pub struct Stage {
    directory: tempfile::TempDir,
    programs: PathBuf,
}

impl Stage {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut programs = seamount_testkit::bin("seamount").parent().unwrap().to_owned();
        let mut probe = Who::User.command(programs.join("seamount"));
        if !probe
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
        {
            // The checkout is below a user's home.
            for name in ["seamount", "seamount-mounter", "seamount-agent"] {
                fs::copy(seamount_testkit::bin(name), directory.path().join(name)).unwrap();
            }
            programs = directory.path().to_owned();
        }
        // Says what to build if one is missing.
        let _ = (seamount_testkit::bin("seamount-mounter"), seamount_testkit::bin("seamount-agent"));
        Self { directory, programs }
    }

    /// Where the programs are.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// The program `seamount`.
    pub fn seamount(&self) -> PathBuf {
        self.programs.join("seamount")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Plays a manifest to its end.
    pub fn play(&self, who: Who, yaml: &str, args: &[&str]) -> Played {
        self.start(who, yaml, args).wait()
    }

    /// Starts to play a manifest.
    pub fn start(&self, who: Who, yaml: &str, args: &[&str]) -> Playing {
        self.start_with(who.command(self.seamount()), yaml, args)
    }

    pub fn start_with(&self, command: Command, yaml: &str, args: &[&str]) -> Playing {
        let file = self.write("pods.yaml", yaml);
        start(command, &file, Stdio::null(), args)
    }
}

/// Starts to play what comes from standard input.
pub fn start_from_input(command: Command, yaml: &str) -> Playing {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // Less than a pipe holds.
    writer.write_all(yaml.as_bytes()).unwrap();
    start(command, Path::new("-"), reader.into(), &[])
}

fn start(mut command: Command, file: &Path, input: Stdio, args: &[&str]) -> Playing {
    command.arg("play").arg(file).args(args).stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (send, lines) = mpsc::channel();
    copy(child.stdout.take().unwrap(), true, send.clone());
    copy(child.stderr.take().unwrap(), false, send);
    Playing { child, lines, out: Vec::new(), err: Vec::new() }
}

fn copy(from: impl Read + Send + 'static, out: bool, to: mpsc::Sender<(bool, String)>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send((out, line)).is_err() {
                return;
            }
        }
    });
}

/// A play that goes on. Killed when it is dropped.
pub struct Playing {
    child: Child,
    lines: mpsc::Receiver<(bool, String)>,
    out: Vec<String>,
    err: Vec<String>,
}

impl Playing {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line with this text.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((out, line)) => {
                    if out { &mut self.out } else { &mut self.err }.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(_) => panic!("no line with {text:?}:\n{}\n{}", self.out.join("\n"), self.err.join("\n")),
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn wait(mut self) -> Played {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end:\n{}\n{}",
                self.out.join("\n"),
                self.err.join("\n")
            );
            while let Ok((out, line)) = self.lines.recv_timeout(Duration::from_millis(20)) {
                if out { &mut self.out } else { &mut self.err }.push(line);
            }
        };
        // The readers end when no process holds the pipes any more.
        while let Ok((out, line)) = self.lines.recv_timeout(PATIENCE) {
            if out { &mut self.out } else { &mut self.err }.push(line);
        }
        Played { status, out: std::mem::take(&mut self.out), err: std::mem::take(&mut self.err) }
    }
}

impl Drop for Playing {
    fn drop(&mut self) {
        // Both fail only if it has been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A play that has ended.
#[derive(Debug)]
pub struct Played {
    pub status: ExitStatus,
    pub out: Vec<String>,
    pub err: Vec<String>,
}

impl Played {
    /// The lines of one container, without its name.
    pub fn of(&self, container: &str) -> Vec<&str> {
        let prefix = format!("[{container}] ");
        self.out.iter().filter_map(|l| l.strip_prefix(&prefix)).collect()
    }

    #[track_caller]
    pub fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    pub fn assert_said(&self, text: &str) -> &Self {
        assert!(self.err.iter().any(|l| l.contains(text)), "{text:?} is not in {self:#?}");
        self
    }
}

/// A Pod `p` of namespace `ns` with one container `c` that runs a shell script.
pub fn script(spec: &str, container: &str, script: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: p, namespace: ns}}
spec:
  terminationGracePeriodSeconds: 60
{spec}
  containers:
  - name: c
    command: [sh, -c, {script:?}]
{container}
"
    )
}

//! One static program that is everything in the guest but the mounter and the agent: the first process, which
//! loads the policy; the simulated kubelet, which runs the rules; the played runtime, which labels and starts
//! containers; and what runs in the containers. `README.md` beside it says what is proved.

mod avc;
mod boot;
mod context;
mod pod;
mod rules;
mod runtime;
mod stage;
mod writer;

use std::process::ExitCode;

use anyhow::{Context as _, bail};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if std::process::id() == 1 {
        boot::boot();
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selinux guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> anyhow::Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["rules", policy] => rules::run(policy),
        ["exec", context, rest @ ..] => runtime::exec(context, rest),
        ["pod", volume, context, rest @ ..] => runtime::pod(volume, context, rest),
        ["relabel", context, path] => runtime::relabel(context, path.as_ref()),
        ["listen", context] => runtime::listen(context),
        ["accept"] => pod::accept(),
        ["fetch"] => pod::fetch(),
        ["read", path] => pod::read(path),
        ["write", path] => pod::write(path),
        ["publish-files", socket, pod, name, id] => writer::publish(socket, pod, name, id),
        other => bail!("no such part: {other:?}"),
    }
    .with_context(|| format!("in {words:?}"))
}

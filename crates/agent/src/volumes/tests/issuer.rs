//! A simulated token issuer.

use super::*;
use crate::csi::request::bind_stored;
use proof::{Proof, Unproved};

/// Knows tokens like `token of frontend` and `token of frontend 7`, which was issued later.
#[derive(Default)]
pub(in crate::volumes) struct Issuer {
    /// It cannot be said what is genuine.
    pub away: std::sync::atomic::AtomicBool,
}

impl Prover for Issuer {
    fn prove<'a>(&'a self, volume: &'a Volume, token: &'a Token) -> BoxFuture<'a, Result<Proof, Unproved>> {
        Box::pin(async move {
            if seamount_sync::model::exploring() {
                seamount_sync::model::pause(4).await;
            }
            let never = || Unproved::Never("forged".to_owned());
            let words: Vec<_> = token.expose().split(' ').collect();
            let ["token" | "false", "of", account, ..] = words[..] else { return Err(never()) };
            let (_, mut claims) = request(account);
            claims.issued = at(words.get(3).map_or(0, |n| n.parse().unwrap()));
            let bound = bind_stored(volume, &claims, "node-1");
            let proof = bound
                .map(|workload| Proof { workload, token: DatedToken::new(token.clone(), &claims) })
                .map_err(|e| Unproved::Never(e.to_string()));
            if self.away.load(Ordering::Relaxed) {
                return Err(Unproved::Later { why: "no keys".to_owned(), claimed: proof.ok() });
            }
            if words[0] == "token" { proof } else { Err(never()) }
        })
    }

    fn id(&self, workload: &Workload) -> Option<seamount_identity::SpiffeId> {
        let domain: TrustDomain = "example.org".parse().unwrap();
        IdTemplate::parse(crate::config::ID_TEMPLATE, &domain).unwrap().render(workload).ok()
    }
}

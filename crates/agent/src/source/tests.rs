use std::time::SystemTime;

use seamount_authority::{Workload, new_key_and_csr};
use seamount_identity::X509Svid;

use super::*;

fn config(yaml: &str) -> Arc<Config> {
    let args = config::Args { node_name: Some("node-1".to_owned()), ..config::Args::default() };
    Arc::new(config::parse(yaml, Path::new("test"), &args, None).unwrap())
}

fn authority(directory: &Path) -> Arc<Config> {
    config(&format!(
        "trustDomain: example.org\ntoken: {{issuers: i, keys: {{file: /nowhere}}}}\nauthority: {{embedded: {{directory: {}}}}}\n",
        directory.display()
    ))
}

fn memory() -> Arc<Config> {
    config("trustDomain: example.org\ntoken: {issuers: i, keys: {file: /nowhere}}\n")
}

async fn wait(source: &mut watch::Receiver<Source>, what: fn(&Source) -> bool) -> Source {
    tokio::time::timeout(Duration::from_secs(30), source.wait_for(what)).await.unwrap().unwrap().clone()
}

#[tokio::test]
async fn a_missing_root_is_named_and_its_arrival_repairs() {
    let dir = tempfile::tempdir().unwrap();
    let (configs, follow) = watch::channel(None);
    let (sender, mut source) = watch::channel(Source::Missing("start".into()));
    let cancel = CancellationToken::new();
    let task = tokio::spawn(supervise(follow, sender, cancel.clone()));
    wait(&mut source, |s| matches!(s, Source::Missing(why) if why.contains("configuration"))).await;
    configs.send_replace(Some(authority(&dir.path().join("root"))));
    wait(&mut source, |s| matches!(s, Source::Missing(why) if why.contains("tls.crt"))).await;
    configs.send_replace(Some(memory()));
    let Source::Authority(signer) = wait(&mut source, |s| matches!(s, Source::Authority(_))).await else {
        unreachable!()
    };
    assert_eq!(signer.authority.trust_domain().to_string(), "example.org");
    // A configuration that asks for what is not there takes nothing back, and is not passed over in silence.
    configs.send_replace(Some(authority(&dir.path().join("root"))));
    let trouble = |s: &Source| match s {
        Source::Authority(signer) => signer.trouble.clone(),
        _ => panic!("the last good authority is gone"),
    };
    let Source::Authority(last) =
        wait(&mut source, |s| matches!(s, Source::Authority(s) if s.trouble.is_some())).await
    else {
        unreachable!()
    };
    assert!(Arc::ptr_eq(&last.authority, &signer.authority));
    assert!(trouble(&source.borrow()).unwrap().contains("tls.crt"));
    configs.send_replace(Some(memory()));
    wait(&mut source, |s| matches!(s, Source::Authority(s) if s.trouble.is_none())).await;
    cancel.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn the_directory_source_needs_nothing() {
    let (_configs, follow) = watch::channel(Some(config("identity: {source: directory}\n")));
    let (sender, mut source) = watch::channel(Source::Missing("start".into()));
    let cancel = CancellationToken::new();
    let task = tokio::spawn(supervise(follow, sender, cancel.clone()));
    wait(&mut source, |s| matches!(s, Source::Directory)).await;
    cancel.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_root_in_memory_outlives_other_rules_for_tokens() {
    let (sender, _source) = watch::channel(Source::Missing("start".into()));
    let mut embedded = None;
    let with =
        |yaml: &str| config(&format!("trustDomain: example.org\n{yaml}\n")).authority().unwrap().clone();
    embed(&mut embedded, &with("token: {audience: a}"), &sender).await;
    let first = Arc::clone(&embedded.as_ref().unwrap().0);
    embed(&mut embedded, &with("token: {audience: b, issuers: c}"), &sender).await;
    assert!(Arc::ptr_eq(&first, &embedded.as_ref().unwrap().0));
    embed(&mut embedded, &with("authority: {embedded: {keyType: ec-p384}}"), &sender).await;
    assert!(!Arc::ptr_eq(&first, &embedded.as_ref().unwrap().0));
}

#[tokio::test]
async fn a_root_in_memory_outlives_other_lifetimes() {
    let (sender, source) = watch::channel(Source::Missing("start".into()));
    let mut embedded = None;
    let with =
        |yaml: &str| config(&format!("trustDomain: example.org\n{yaml}\n")).authority().unwrap().clone();
    let now = || match &*source.borrow() {
        Source::Authority(signer) => Arc::clone(&signer.authority),
        _ => panic!("no authority"),
    };
    let workload = Workload {
        namespace: "shop".to_owned(),
        service_account: "cart".to_owned(),
        pod_name: "cart-1".to_owned(),
        pod_uid: "1".to_owned(),
        node: "node-1".to_owned(),
    };
    let lifetime = async || {
        let (key, csr) = new_key_and_csr(KeyType::EcP256).unwrap();
        let chain = now().sign(&csr, &workload, "").await.unwrap();
        let svid = X509Svid::new(chain, key).unwrap();
        svid.verify(now().bundles().borrow().own(), SystemTime::now()).unwrap();
        svid.not_after().duration_since(SystemTime::now()).unwrap()
    };
    embed(&mut embedded, &with(""), &sender).await;
    let roots = now().bundles().borrow().clone();
    assert!(lifetime().await < Duration::from_secs(3601));
    embed(&mut embedded, &with("authority: {embedded: {caTtl: 48h, svidTtl: 2h}}"), &sender).await;
    assert_eq!(*now().bundles().borrow(), roots, "another root");
    assert!(lifetime().await > Duration::from_secs(3700), "the new lifetime is not in force");
}

#[test]
fn the_fingerprint_follows_the_files() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(fingerprint(None), Ok([0; 32]));
    assert!(fingerprint(Some(dir.path())).unwrap_err().contains("tls.crt"));
    std::fs::write(dir.path().join("tls.crt"), "a").unwrap();
    std::fs::write(dir.path().join("tls.key"), "b").unwrap();
    let before = fingerprint(Some(dir.path())).unwrap();
    assert_eq!(fingerprint(Some(dir.path())), Ok(before));
    std::fs::write(dir.path().join("tls.key"), "c").unwrap();
    assert_ne!(fingerprint(Some(dir.path())).unwrap(), before);
}

use super::*;
use crate::volumes::health::VolumeCondition;

fn fault(fault: Fault) -> MounterError {
    MounterError::Fault { operation: "PublishIdentity", fault, text: "because".to_owned() }
}

#[test]
fn the_kubelet_tries_again_where_that_helps() {
    // Its final errors make the kubelet forget the volume; these must not be among them.
    for error in [
        MounterError::Down { socket: "s".to_owned(), why: "w".to_owned() },
        MounterError::Version("2".to_owned()),
        MounterError::Timeout { operation: "Unpublish", seconds: 10 },
        MounterError::Broken { operation: "Unpublish", why: "w".to_owned() },
        fault(Fault::Busy),
    ] {
        assert_eq!(Status::from(VolumeError::Mounter(error)).code(), Code::Unavailable);
    }
    assert_eq!(Status::from(VolumeError::NoState("w".to_owned())).code(), Code::Unavailable);
    for error in [fault(Fault::Exhausted), fault(Fault::Storage)] {
        assert_eq!(Status::from(VolumeError::Mounter(error)).code(), Code::ResourceExhausted);
    }
    let status = Status::from(VolumeError::Mounter(fault(Fault::NotOurs)));
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("target_path") && status.message().contains("because"), "{status:?}");
}

#[test]
fn stats_always_have_usage() {
    let healthy = stats(&VolumeStats { bytes: 40, inodes: 4, conditions: Vec::new() });
    assert_eq!(healthy.usage.len(), 2);
    assert_eq!((healthy.usage[0].used, healthy.usage[1].used), (40, 4));
    assert!(!healthy.volume_condition.unwrap().abnormal);
    let conditions = vec![VolumeCondition {
        severity: Severity::Inaccessible,
        reason: "SocketMissing",
        message: "not there".to_owned(),
    }];
    let sick = stats(&VolumeStats { bytes: u64::MAX, inodes: 0, conditions });
    assert_eq!(sick.usage[0].used, i64::MAX);
    let condition = sick.volume_condition.unwrap();
    assert!(condition.abnormal && condition.message == "SocketMissing: not there", "{condition:?}");
}

#[tokio::test]
async fn an_operation_goes_on_when_the_kubelet_gives_up() {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let call = to_its_end(async move {
        let _ = wait.await;
        let _ = sender.send(());
        Ok(())
    });
    let mut call = Box::pin(call);
    assert!(futures_util::poll!(&mut call).is_pending());
    drop(call);
    go.send(()).unwrap();
    receiver.await.unwrap();
}

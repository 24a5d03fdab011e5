//! The JSON of tokens in a publish request: exactly one token, for our audience, and never a word of it in a
//! message.

use seamount_agent::csi::request;
use seamount_pod_token::MAX_TOKEN;
use serde_json::{Value, json};

use crate::csi_requests::{good, rules};

const AUDIENCE: &str = "seamount.dev";

/// The JSON.
pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let judged = request::publish(good(text), &rules());
    let value: Option<Value> = serde_json::from_str(text).ok();
    let ours = value.as_ref().and_then(|v| v.get(AUDIENCE)?.get("token")?.as_str());
    match judged {
        Ok(judged) => {
            let token = judged.token.expect("an authority needs one");
            // What is passed over may be more than a `Value` holds: a number too large, nested too deeply.
            if let Some(value) = &value {
                assert_eq!(ours, Some(token.expose()));
                assert_eq!(value.as_object().map(|o| o.len()), Some(1));
            }
            assert!(
                text.len() <= 2 * MAX_TOKEN && !format!("{token:?}").contains(token.expose())
                    || token.expose().len() < 8
            );
            let plain = json!({AUDIENCE: {"token": token.expose()}}).to_string();
            let again = request::publish(good(&plain), &rules()).expect("the same in plain words");
            assert_eq!(again.token, Some(token));
        }
        Err(refusal) => {
            let message = refusal.to_string();
            assert!(message.len() < 4096 && !message.chars().any(char::is_control));
            // Short ones may be words of the message itself.
            if let Some(token) = ours.filter(|t| t.len() >= 24) {
                assert!(!message.contains(token), "{message}");
            }
        }
    }
}

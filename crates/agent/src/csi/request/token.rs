//! Finds the pod's token in a publish request.

use std::fmt;

use seamount_pod_token::{MAX_TOKEN, Token};
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use zeroize::Zeroizing;

use super::fields::{Map, TOKENS, entry, quote};
use super::refusal::Refusal;
use super::rules::Rules;

/// The longest JSON of tokens that is looked at, in bytes.
const MAX_TOKENS: usize = 2 * MAX_TOKEN;

/// The token for the configured audience. One of `secrets`; of `volume_context` only where that is allowed
/// and `secrets` has none: the pod's author can write whatever he likes into the latter.
pub(super) fn find(secrets: &Map, context: &Map, rules: &Rules) -> Result<Option<Token>, Refusal> {
    let Some(audience) = &rules.audience else { return Ok(None) };
    let (field, json) = match (secrets.get(TOKENS), context.get(TOKENS)) {
        (Some(_), Some(_)) => return Err(Refusal::TokenTwice),
        (Some(json), None) => ("secrets", json),
        (None, Some(json)) if rules.allow_volume_context => ("volume_context", json),
        (None, Some(_)) => return Err(Refusal::TokenInVolumeContext),
        (None, None) => return Err(Refusal::NoToken { audience: audience.clone() }),
    };
    let field = entry(field, TOKENS);
    if json.len() > MAX_TOKENS {
        return Err(Refusal::TooLong { field, length: json.len(), max: MAX_TOKENS });
    }
    let mut found = None;
    for (name, token) in parse(json, &field)? {
        if name != *audience {
            return Err(Refusal::Audience { field, audience: quote(&name) });
        }
        if found.replace(token).is_some() {
            return Err(Refusal::TokenJson { field, reason: "an audience occurs twice" });
        }
    }
    found.map(Some).ok_or_else(|| Refusal::NoToken { audience: audience.clone() })
}

/// `{"<audience>": {"token": "…", "expirationTimestamp": "…"}, …}` in order, repetitions included.
fn parse(json: &str, field: &str) -> Result<Vec<(String, Token)>, Refusal> {
    let refuse = |reason| Refusal::TokenJson { field: field.to_owned(), reason };
    let mut reader = serde_json::Deserializer::from_str(json);
    // serde_json's messages name a position and a type, but may quote a value: they are not passed on.
    let found = reader
        .deserialize_map(Tokens)
        .map_err(|_| refuse("not an object of objects with one string `token` each"))?;
    reader.end().map_err(|_| refuse("something follows the object"))?;
    Ok(found)
}

struct Tokens;

impl<'de> Visitor<'de> for Tokens {
    type Value = Vec<(String, Token)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of audiences")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(audience) = map.next_key::<String>()? {
            found.push((audience, map.next_value::<Entry>()?.0));
        }
        Ok(found)
    }
}

struct Entry(Token);

impl<'de> serde::Deserialize<'de> for Entry {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a token")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
                let mut token: Option<Zeroizing<String>> = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key == "token" {
                        if token.replace(Zeroizing::new(map.next_value()?)).is_some() {
                            return Err(serde::de::Error::duplicate_field("token"));
                        }
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                let mut token = token.ok_or_else(|| serde::de::Error::missing_field("token"))?;
                if token.is_empty() {
                    return Err(serde::de::Error::missing_field("token"));
                }
                Ok(Entry(Token::new(std::mem::take(&mut *token))))
            }
        }
        d.deserialize_map(V)
    }
}

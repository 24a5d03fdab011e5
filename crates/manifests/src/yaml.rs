//! YAML of objects, one document each.

use serde::Serialize;

use crate::{Error, Object};

/// One YAML document, without a marker at its start.
pub(crate) fn one<T: Serialize>(what: &str, value: &T) -> Result<String, Error> {
    serde_saphyr::to_string(value).map_err(|e| Error::Serialize {
        what: what.to_owned(),
        format: "YAML",
        reason: e.to_string(),
    })
}

/// All objects as one stream of documents, each begun by `---`. Keys are in a stable order.
pub fn to_yaml(objects: &[Object]) -> Result<String, Error> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&one(&format!("{} {}", object.kind(), object.name()), object.value())?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn values_that_yaml_1_1_reads_otherwise_stay_text() {
        // Kubernetes reads YAML 1.1: `on`, `0755`, `1e3` and `12:30` unquoted would be no text.
        let texts = [
            "on",
            "off",
            "yes",
            "no",
            "y",
            "n",
            "true",
            "null",
            "~",
            "",
            "0755",
            "0o7",
            "1e3",
            "1_000",
            "12:30:45",
            ".inf",
            "-",
            "2026-11-21",
            "# x",
            "a: b",
            "a #b",
            "*a",
            "&a",
            "!t",
            "%x",
            "@x",
            "`x",
            "- x",
            "{a}",
            "[a]",
            "x:",
            "0x1F",
            "=",
            "<<",
            " lead",
            "trail ",
            "tab\there",
            "two\nlines",
            "two\nlines\n",
            "\n",
            "  indented\nfirst",
            "nul\u{0}",
            "\u{85}\u{2028}",
        ];
        let value = json!(&texts[..]);
        let text = one("texts", &value).unwrap();
        assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), value, "{text}");
    }

    #[test]
    fn a_long_line_is_not_folded_away() {
        let value = json!({"url": "word ".repeat(60), "path": "/x".repeat(200)});
        let text = one("long", &value).unwrap();
        assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), value, "{text}");
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[ -~\n]{0,100}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("[ -~]{0,20}", inner, 0..6)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(value in any_value()) {
            let text = one("value", &value).unwrap();
            let back: Value = serde_saphyr::from_str(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
            prop_assert_eq!(back, value, "{}", text);
        }
    }
}

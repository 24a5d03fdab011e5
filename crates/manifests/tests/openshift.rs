//! OpenShift's API server takes our SecurityContextConstraints: judged by the CRD's own schema, a copy of
//! which lies in `tests/openshift`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

use seamount_manifests::{Environment, Options, Source, objects};
use serde_json::{Map, Value, json};

const CRD: &str = include_str!("openshift/securitycontextconstraints.crd.yaml");
/// All that the validator below understands. Another word in a newer copy has to be taught first.
const WORDS: [&str; 13] = [
    "default",
    "description",
    "enum",
    "format",
    "items",
    "nullable",
    "properties",
    "required",
    "type",
    "x-kubernetes-list-type",
    "additionalProperties",
    "minimum",
    "maximum",
];

/// The schema of the version that our object names.
fn schema(object: &Value) -> Value {
    let crd: Value = serde_saphyr::from_str(CRD).unwrap();
    let (group, version) = object["apiVersion"].as_str().unwrap().split_once('/').unwrap();
    assert_eq!((&crd["spec"]["group"], &crd["spec"]["names"]["kind"]), (&json!(group), &object["kind"]));
    let versions = crd["spec"]["versions"].as_array().unwrap();
    let found = versions.iter().find(|v| v["name"] == version && v["served"] == true).unwrap();
    found["schema"]["openAPIV3Schema"].clone()
}

/// What the API server says of `value`: a structural schema (Kubernetes, CustomResourceDefinition), and what
/// it would prune without a word.
fn judge(path: &str, value: &Value, schema: &Value, found: &mut Vec<String>) {
    for word in schema.as_object().unwrap().keys() {
        assert!(WORDS.contains(&word.as_str()), "{path}: the validator does not know {word}");
    }
    if value.is_null() {
        if schema["nullable"] != true {
            found.push(format!("{path}: Invalid value: null"));
        }
        return;
    }
    if schema["enum"].as_array().is_some_and(|all| !all.contains(value)) {
        found.push(format!("{path}: Unsupported value: {value}"));
    }
    let fits = match schema["type"].as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" if schema["format"] == "int32" => value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        "integer" => value.is_i64(),
        other => panic!("{path}: the validator does not know the type {other}"),
    };
    if !fits {
        return found.push(format!("{path}: Invalid value: {value}: must be of type {}", schema["type"]));
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        judge(&format!("{path}[{index}]"), item, &schema["items"], found);
    }
    let Some(fields) = value.as_object() else { return };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            found.push(format!("{path}.{}: Required value", name.as_str().unwrap()));
        }
    }
    // The API server validates metadata by rules of its own.
    if path == ".metadata" {
        return;
    }
    for (name, value) in fields {
        match schema["properties"].get(name) {
            Some(schema) => judge(&format!("{path}.{name}"), value, schema, found),
            None => found.push(format!("{path}.{name}: unknown field")),
        }
    }
}

/// What is sent by `kubectl apply`, which takes a null for "not set".
fn applied(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), applied(v)));
            Value::Object(kept.collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.iter().map(applied).collect()),
        other => other.clone(),
    }
}

/// By `kubectl create`, which sends the object as it is, and by `kubectl apply`.
fn refusals(scc: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for sent in [scc.clone(), applied(scc)] {
        judge("", &sent, &schema(&sent), &mut found);
    }
    found
}

fn constraints(source: Source) -> Value {
    let options = Options {
        environment: Environment::OpenShift,
        trust_domain: "example.org".into(),
        source,
        ..Options::default()
    };
    let list = objects(&options).unwrap();
    list.iter().find(|o| o.kind() == "SecurityContextConstraints").unwrap().value().clone()
}

#[test]
fn the_crd_takes_our_scc() {
    let directory = Source::Directory { host_path: "/run/spire/agent-sockets".into() };
    for source in [Options::default().source, directory] {
        assert_eq!(refusals(&constraints(source)), [""; 0]);
    }
}

/// The validator refuses what OpenShift's API server was seen to refuse, and more.
#[test]
fn the_crd_refuses_what_is_missing_or_of_another_form() {
    let good = constraints(Options::default().source);
    for (field, value, says) in [
        ("priority", Value::Null, ".priority: Required value"),
        ("requiredDropCapabilities", Value::Null, ".requiredDropCapabilities: Required value"),
        ("priority", json!("0"), r#".priority: Invalid value: "0": must be of type "integer""#),
        (
            "priority",
            json!(1_u64 << 31),
            r#".priority: Invalid value: 2147483648: must be of type "integer""#,
        ),
        ("allowHostPID", Value::Null, ".allowHostPID: Invalid value: null"),
        ("volumes", json!(["secret", 1]), r#".volumes[1]: Invalid value: 1: must be of type "string""#),
        ("userNamespaceLevel", json!("None"), r#".userNamespaceLevel: Unsupported value: "None""#),
        ("hostNetwork", json!(false), ".hostNetwork: unknown field"),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        let found = refusals(&bad);
        assert!(found.iter().any(|why| why == says), "{says:?} is not in {found:#?}");
    }
}

//! The fields, their defaults and the rules between them.

use std::net::SocketAddr;
use std::path::PathBuf;

use seamount_authority::IdTemplate;
use seamount_identity::{KeyType, TrustDomain};
use seamount_mounter_protocol::names::DriverName;
use serde_json::{Map, Value};

use super::reader::{Problems, Section, absolute, word};
use super::{
    API_SERVER, API_SERVER_CA, API_SERVER_TOKEN, AUDIENCE, ApiServer, AuthoritySource, BYTES, CA_TTL, Config,
    DRIVER, Embedded, HTTP_ADDRESS, ID_TEMPLATE, KEYS_MAX_AGE, KUBELET_ROOT, Keys, MAX_CONNECTIONS,
    MAX_DRIVERS, MAX_ISSUERS, MAX_KEYS_MAX_AGE, MAX_NODE_CONNECTIONS, MAX_SVID_TTL, MEMORY, MIN_KEYS_MAX_AGE,
    MIN_SVID_TTL, MOUNTER_SOCKET, Overrides, Problem, SVID_TTL, SVIDS_PER_CA, Source, TokenConfig,
    WorkloadApi,
};
use crate::{Log, LogFormat, LogLevel, format_duration};

const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];
const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
/// Sections that the source `directory` has no use for.
const AUTHORITY_ONLY: [&str; 3] = ["trustDomain", "authority", "token"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Authority,
    Directory,
}

pub(super) fn read(
    mapping: Map<String, Value>,
    args: &Overrides,
    environment: Option<&str>,
) -> Result<Config, Vec<Problem>> {
    let mut problems = Problems::default();
    let p = &mut problems;
    let mut root = Section::root(mapping);

    let drivers = drivers(&mut root, args, p);
    let (field, text) =
        chosen(&mut root, "kubeletRoot", ("--kubelet-root", &args.kubelet_root), KUBELET_ROOT, p);
    let kubelet_root = absolute(&field, &text, p);
    if kubelet_root.as_ref().is_some_and(|root| root.as_os_str() == "/") {
        p.add(&field, "is \"/\"", format!("write the kubelet's --root-dir, mostly {KUBELET_ROOT}"));
    }
    let node_name = node(&mut root, args, environment, p);
    let (field, text) =
        chosen(&mut root, "mounterSocket", ("--mounter-socket", &args.mounter_socket), MOUNTER_SOCKET, p);
    let mounter_socket = absolute(&field, &text, p);
    if let Some(path) = &mounter_socket
        && path.as_os_str().len() > 107
    {
        p.add(
            &field,
            "is longer than the 107 bytes of a Unix socket's address (unix(7))",
            "write a shorter path",
        );
    }
    let kubelet_uid = root.number("kubeletUid", 0, (0, u32::MAX - 1), p);
    let source = source(&mut root, p);
    let http = http(&mut root, args, p);
    let log = log(&mut root, args, p);
    let workload_api = workload_api(&mut root, p);
    let memory_limit = root.size("memoryLimit", MEMORY, p);
    root.end(p);

    match (kubelet_root, mounter_socket, source) {
        (Some(kubelet_root), Some(mounter_socket), Some(source)) if problems.0.is_empty() => Ok(Config {
            drivers,
            kubelet_root,
            node_name,
            mounter_socket,
            kubelet_uid,
            source,
            http,
            log,
            workload_api,
            memory_limit,
        }),
        _ => Err(problems.0),
    }
}

/// Flag over file over default, with the name to put into a problem. The file's value must be a text in any
/// case.
fn chosen(
    root: &mut Section,
    name: &'static str,
    (flag, value): (&str, &Option<String>),
    default: &str,
    p: &mut Problems,
) -> (String, String) {
    let file = root.string(name, p);
    match (value, file) {
        (Some(text), _) => (flag.to_owned(), text.clone()),
        (None, Some(text)) => (name.to_owned(), text),
        (None, None) => (name.to_owned(), default.to_owned()),
    }
}

/// The flags, else the file's list, else the default. The flags say which drivers there are: the mounter has
/// the same.
fn drivers(root: &mut Section, args: &Overrides, p: &mut Problems) -> Vec<DriverName> {
    let mut named = Vec::new();
    match (root.has("drivers"), root.sections("drivers", p)) {
        (false, _) => named.push(("drivers".to_owned(), DRIVER.to_owned())),
        // It was told.
        (true, None) => return Vec::new(),
        (true, Some(list)) => {
            for mut section in list {
                let field = section.path("name");
                match section.string("name", p) {
                    Some(name) => named.push((field, name)),
                    None => {
                        p.add(
                            &field,
                            "is missing",
                            format!("write the driver's name, for instance {DRIVER}"),
                        );
                    }
                }
                section.end(p);
            }
        }
    }
    if !args.drivers.is_empty() {
        named = args.drivers.iter().map(|name| ("--driver".to_owned(), name.clone())).collect();
    }
    if !(1..=MAX_DRIVERS).contains(&named.len()) {
        p.add("drivers", format!("has {} entries", named.len()), format!("write 1 to {MAX_DRIVERS}"));
    }
    let mut drivers = Vec::new();
    for (field, name) in named {
        match driver(&name) {
            Some(name) if drivers.contains(&name) => {
                p.add(&field, format!("{name} is there twice"), "write each driver once");
            }
            Some(name) => drivers.push(name),
            None => p.add(
                &field,
                format!("{name:?} is not a CSI driver name"),
                format!("write at most 63 lower-case letters, digits, inner hyphens and dots, for instance {DRIVER}"),
            ),
        }
    }
    drivers
}

/// CSI 1.13, GetPluginInfoResponse.name: at most 63 characters, domain name notation, begins and ends with an
/// alphanumeric. Lower case because the CSIDriver object's name has to be the same, and it is a DNS
/// subdomain.
pub fn driver(name: &str) -> Option<DriverName> {
    name.split('.').all(label).then(|| name.parse().ok()).flatten()
}

fn label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= 63
        && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn node(root: &mut Section, args: &Overrides, environment: Option<&str>, p: &mut Problems) -> String {
    let file = root.string("nodeName", p);
    let environment = environment.filter(|name| !name.is_empty()).map(str::to_owned);
    let (field, name) = match (&args.node_name, environment, file) {
        (Some(flag), _, _) => ("--node-name", flag.clone()),
        (None, Some(environment), _) => ("environment NODE_NAME", environment),
        (None, None, Some(file)) => ("nodeName", file),
        (None, None, None) => {
            p.add(
                "nodeName",
                "is missing",
                "set --node-name, the environment's NODE_NAME (fieldRef spec.nodeName) or nodeName",
            );
            return String::new();
        }
    };
    // CSI 1.13, NodeGetInfoResponse.node_id: at most 256 bytes; Kubernetes: a DNS subdomain.
    if name.len() > 253 || !name.split('.').all(label) {
        p.add(field, format!("{name:?} is not a node name"), "write the node's metadata.name");
    }
    name
}

fn source(root: &mut Section, p: &mut Problems) -> Option<Source> {
    let mut identity = root.section("identity", p);
    let kinds = [("authority", Kind::Authority), ("directory", Kind::Directory)];
    let kind = identity.word("source", Kind::Authority, &kinds, p);
    let template = identity.string("idTemplate", p);
    identity.end(p);

    if kind == Kind::Directory {
        for name in AUTHORITY_ONLY {
            if root.has(name) {
                p.add(
                    name,
                    "has no meaning with identity.source directory",
                    "remove it, or write identity.source: authority",
                );
            }
            root.ignore(name);
        }
        if template.is_some() {
            p.add("identity.idTemplate", "has no meaning with identity.source directory", "remove it");
        }
        return Some(Source::Directory);
    }

    let trust_domain = match root.string("trustDomain", p) {
        None => {
            p.add(
                "trustDomain",
                "is missing",
                "write the trust domain of your SPIFFE IDs, for instance example.org",
            );
            None
        }
        Some(text) => match text.parse::<TrustDomain>() {
            Ok(domain) => Some(domain),
            Err(why) => {
                p.add(
                    "trustDomain",
                    format!("{text:?}: {why}"),
                    "write a name such as example.org, without spiffe://",
                );
                None
            }
        },
    };
    let id_template = template.unwrap_or_else(|| ID_TEMPLATE.to_owned());
    if let Some(domain) = &trust_domain
        && let Err(why) = IdTemplate::parse(&id_template, domain)
    {
        p.add(
            "identity.idTemplate",
            format!("{id_template:?}: {why}"),
            format!("write for instance {ID_TEMPLATE}"),
        );
    }
    let embedded = embedded(root, p);
    let token = token(root, p);
    let (trust_domain, token) = (trust_domain?, token?);
    Some(Source::Authority(Box::new(AuthoritySource { trust_domain, id_template, embedded, token })))
}

fn embedded(root: &mut Section, p: &mut Problems) -> Embedded {
    let mut authority = root.section("authority", p);
    let mut section = authority.section("embedded", p);
    authority.end(p);
    let ca_ttl = section.duration("caTtl", CA_TTL, p);
    let svid_ttl = section.duration("svidTtl", SVID_TTL, p);
    let field = section.path("svidTtl");
    if !(MIN_SVID_TTL..=MAX_SVID_TTL).contains(&svid_ttl) {
        p.add(
            &field,
            format!("is {}", format_duration(svid_ttl)),
            format!("write {} to {}", format_duration(MIN_SVID_TTL), format_duration(MAX_SVID_TTL)),
        );
    }
    if svid_ttl.saturating_mul(SVIDS_PER_CA) > ca_ttl {
        p.add(
            &field,
            format!("{} does not fit {SVIDS_PER_CA} times into caTtl {}", format_duration(svid_ttl), format_duration(ca_ttl)),
            "shorten svidTtl or lengthen caTtl: an SVID must not outlive its issuer, which is replaced at half-life",
        );
    }
    let directory = section.file("directory", p);
    let key_type = key_kind(&mut section, "keyType", p);
    let svid_key_type = key_kind(&mut section, "svidKeyType", p);
    section.end(p);
    Embedded { directory, key_type, svid_key_type, ca_ttl, svid_ttl }
}

fn key_kind(section: &mut Section, name: &'static str, p: &mut Problems) -> KeyType {
    let Some(text) = section.string(name, p) else { return KeyType::EcP256 };
    text.parse().unwrap_or_else(|_| {
        p.add(
            &section.path(name),
            format!("is {text:?}"),
            "write one of ec-p256, ec-p384, rsa-2048, rsa-4096",
        );
        KeyType::EcP256
    })
}

fn token(root: &mut Section, p: &mut Problems) -> Option<TokenConfig> {
    let mut section = root.section("token", p);
    let audience = section.string("audience", p).unwrap_or_else(|| AUDIENCE.to_owned());
    if bad_word(&audience) {
        p.add(
            &section.path("audience"),
            "is empty, longer than 1024 bytes or has control characters",
            "write the audience of the CSIDriver's tokenRequests",
        );
    }
    let has_issuers = section.has("issuers");
    let issuers = section.texts("issuers", p);
    if let Some(issuers) = &issuers {
        issuer_rules(&section.path("issuers"), issuers, p);
    }
    let keys_max_age = section.duration("keysMaxAge", KEYS_MAX_AGE, p);
    if !(MIN_KEYS_MAX_AGE..=MAX_KEYS_MAX_AGE).contains(&keys_max_age) {
        let [min, max] = [MIN_KEYS_MAX_AGE, MAX_KEYS_MAX_AGE].map(format_duration);
        p.add(
            &section.path("keysMaxAge"),
            format!("is {}", format_duration(keys_max_age)),
            format!("write {min} to {max}"),
        );
    }
    let allow_volume_context = section.boolean("allowVolumeContext", false, p);
    let mut keys = section.section("keys", p);
    section.end(p);

    let (has_file, has_server) = (keys.has("file"), keys.has("apiServer"));
    let file = keys.file("file", p);
    let mut server = keys.section("apiServer", p);
    let url = server.string("url", p).unwrap_or_else(|| API_SERVER.to_owned());
    let parsed = parse_url(&url);
    if parsed.is_none() {
        p.add(
            "token.keys.apiServer.url",
            format!("is {url:?}"),
            format!("write https://<host>[:<port>][/<path>], for instance {API_SERVER}"),
        );
    }
    let ca_file = path_or(&mut server, "caFile", API_SERVER_CA, p);
    let token_file = path_or(&mut server, "tokenFile", API_SERVER_TOKEN, p);
    server.end(p);
    keys.end(p);

    let keys = match (has_file, has_server) {
        (true, true) => {
            p.add("token.keys", "has both file and apiServer", "write one of them");
            return None;
        }
        (true, false) => {
            if !has_issuers {
                p.add(
                    "token.issuers",
                    "is missing",
                    "write whose tokens the keys of token.keys.file verify: the API server's --service-account-issuer",
                );
            }
            Keys::File(file?)
        }
        // `apiServer: {}` and nothing at all: the API server of the cluster that the agent runs in.
        (false, _) => {
            let (host, port, path) = parsed?;
            Keys::ApiServer(ApiServer { host, port, path, ca_file: ca_file?, token_file: token_file? })
        }
    };
    let issuers = issuers.unwrap_or_default();
    Some(TokenConfig { audience, issuers, keys, keys_max_age, allow_volume_context })
}

fn issuer_rules(field: &str, issuers: &[String], p: &mut Problems) {
    const REMEDY: &str = "write the API server's --service-account-issuer, several while it changes";
    if issuers.is_empty() {
        p.add(field, "is empty", format!("{REMEDY}, or leave it out for that of the agent's own token"));
    }
    if issuers.len() > MAX_ISSUERS {
        p.add(field, format!("has {} entries", issuers.len()), format!("write at most {MAX_ISSUERS}"));
    }
    if issuers.iter().any(|issuer| bad_word(issuer)) {
        p.add(field, "has one that is empty, longer than 1024 bytes or has control characters", REMEDY);
    }
}

fn bad_word(word: &str) -> bool {
    word.is_empty() || word.len() > 1024 || word.contains(char::is_control)
}

fn path_or(section: &mut Section, name: &'static str, default: &str, p: &mut Problems) -> Option<PathBuf> {
    if section.has(name) {
        section.file(name, p)
    } else {
        section.ignore(name);
        Some(default.into())
    }
}

/// Host without brackets, port, path without closing slash. Only https: the keys decide which pod a
/// token is of.
fn parse_url(url: &str) -> Option<(String, u16, String)> {
    let uri: http::Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    let plain =
        uri.scheme_str() == Some("https") && uri.query().is_none() && !authority.as_str().contains('@');
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    // `port_u16` is none both without a port and with one that is no number.
    let port = match authority.port() {
        Some(port) => Some(port.as_u16()),
        None => authority.as_str().ends_with(authority.host()).then_some(443),
    };
    let path = uri.path().trim_end_matches('/').to_owned();
    (plain && !host.is_empty()).then_some(())?;
    Some((host.to_owned(), port.filter(|port| *port != 0)?, path))
}

fn http(root: &mut Section, args: &Overrides, p: &mut Problems) -> Option<SocketAddr> {
    let mut section = root.section("http", p);
    let text = section.string("address", p).unwrap_or_else(|| HTTP_ADDRESS.to_owned());
    section.end(p);
    let (field, text) = match &args.http_address {
        Some(flag) => ("--http-address", flag),
        None => ("http.address", &text),
    };
    if text.is_empty() {
        return None;
    }
    let address = text.parse().ok();
    if address.is_none() {
        p.add(
            field,
            format!("is {text:?}"),
            "write <IP address>:<port>, for instance 127.0.0.1:9808 or [::]:9808, or \"\" for none",
        );
    }
    address
}

fn log(root: &mut Section, args: &Overrides, p: &mut Problems) -> Log {
    let mut section = root.section("log", p);
    let mut format = section.word("format", LogFormat::Text, &FORMATS, p);
    let mut level = section.word("level", LogLevel::Info, &LEVELS, p);
    section.end(p);
    if let Some(text) = &args.log_format {
        format = word("--log-format", text, format, &FORMATS, p);
    }
    if let Some(text) = &args.log_level {
        level = word("--log-level", text, level, &LEVELS, p);
    }
    Log { format, level }
}

fn workload_api(root: &mut Section, p: &mut Problems) -> WorkloadApi {
    let mut section = root.section("workloadApi", p);
    let default = WorkloadApi::default();
    let mut number = |name, default| section.number(name, default, (1, MAX_CONNECTIONS), p);
    let volumes_per_pod = number("volumesPerPod", default.volumes_per_pod);
    let connections_per_pod = number("connectionsPerPod", default.connections_per_pod);
    let streams_per_connection = number("streamsPerConnection", default.streams_per_connection);
    let streams_per_pod = number("streamsPerPod", default.streams_per_pod);
    let connections_per_node = section
        .has("connectionsPerNode")
        .then(|| section.number("connectionsPerNode", MAX_CONNECTIONS, (1, MAX_NODE_CONNECTIONS), p));
    let mut bytes = |name, default: u32| {
        section.size(name, BYTES, p).and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(default)
    };
    let burst_per_pod = bytes("burstPerPod", default.burst_per_pod);
    let rate_per_pod = bytes("ratePerPod", default.rate_per_pod);
    section.end(p);
    WorkloadApi {
        volumes_per_pod,
        connections_per_pod,
        connections_per_node,
        streams_per_connection,
        streams_per_pod,
        burst_per_pod,
        rate_per_pod,
    }
}

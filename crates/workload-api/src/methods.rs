//! The methods that the socket knows: one row each.
//!
//! A new method is a row here and a function that the row names. Everything else is the same for all of them:
//! the checks of the request, the account of the pod, what cuts a client that is too slow.

use crate::{handler::Handler, health, reflection, tenant::Cost, x509};

/// A row.
pub(crate) struct Method {
    /// `/<service>/<method>`, as HTTP/2 has it.
    pub(crate) path: &'static str,
    /// What its answer is about.
    pub(crate) serves: Serves,
    /// What its answer costs the pod, beside what each request does.
    pub(crate) cost: Cost,
    /// What answers it.
    pub(crate) handler: Handler,
}

/// What an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Serves {
    /// The pod's identity. A request has the security header, and the observer counts the streams.
    Identity,
    /// The socket: its health, its services.
    Endpoint,
}

/// The table; what is asked for most comes first.
static METHODS: [Method; 9] = [
    identity("/SpiffeWorkloadAPI/FetchX509SVID", Cost::Shared, Handler::Stream(x509::svids)),
    identity("/SpiffeWorkloadAPI/FetchX509Bundles", Cost::Shared, Handler::Stream(x509::bundles)),
    identity("/SpiffeWorkloadAPI/FetchJWTSVID", Cost::Own, Handler::NotBuilt),
    identity("/SpiffeWorkloadAPI/FetchJWTBundles", Cost::Shared, Handler::NotBuilt),
    identity("/SpiffeWorkloadAPI/ValidateJWTSVID", Cost::Own, Handler::NotBuilt),
    endpoint("/grpc.health.v1.Health/Check", Cost::Own, Handler::Unary(health::check)),
    endpoint("/grpc.health.v1.Health/Watch", Cost::Own, Handler::Stream(health::watch)),
    endpoint(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Cost::Reflection,
        Handler::Tonic(reflection::v1),
    ),
    endpoint(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Cost::Reflection,
        Handler::Tonic(reflection::v1alpha),
    ),
];

const fn identity(path: &'static str, cost: Cost, handler: Handler) -> Method {
    Method { path, serves: Serves::Identity, cost, handler }
}

const fn endpoint(path: &'static str, cost: Cost, handler: Handler) -> Method {
    Method { path, serves: Serves::Endpoint, cost, handler }
}

/// The row of a path.
pub(crate) fn find(path: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.path == path)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use prost::Message as _;
    use prost_types::{FileDescriptorSet, MethodDescriptorProto};

    use super::*;

    /// Every method of these services by its path.
    fn of_contracts(sets: &[&[u8]]) -> BTreeMap<String, MethodDescriptorProto> {
        let files = sets.iter().flat_map(|set| FileDescriptorSet::decode(*set).unwrap().file);
        let mut found = BTreeMap::new();
        for file in files {
            for service in file.service {
                let package = file.package.iter().filter(|name| !name.is_empty()).cloned();
                let name = package.chain(service.name.clone()).collect::<Vec<_>>().join(".");
                for method in service.method {
                    found.insert(format!("/{name}/{}", method.name()), method);
                }
            }
        }
        found
    }

    fn contracts() -> BTreeMap<String, MethodDescriptorProto> {
        of_contracts(&[
            seamount_proto::WORKLOAD_API_DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ])
    }

    #[test]
    fn every_method_of_the_services_has_one_row() {
        let rows: Vec<_> = METHODS.iter().map(|method| method.path.to_owned()).collect();
        let known: BTreeSet<_> = rows.iter().cloned().collect();
        assert_eq!(known.len(), rows.len(), "a path has two rows");
        assert_eq!(known, contracts().into_keys().collect());
    }

    #[test]
    fn every_method_of_the_workload_api_is_served_or_not_built() {
        let (mut served, mut not_built) = (Vec::new(), Vec::new());
        for path in of_contracts(&[seamount_proto::WORKLOAD_API_DESCRIPTORS]).into_keys() {
            let method = find(&path).unwrap_or_else(|| panic!("{path} has no row"));
            assert_eq!(method.serves, Serves::Identity, "{path} is answered without the security header");
            let list = if matches!(method.handler, Handler::NotBuilt) { &mut not_built } else { &mut served };
            list.push(path.rsplit('/').next().unwrap().to_owned());
        }
        assert_eq!(served, ["FetchX509Bundles", "FetchX509SVID"]);
        // README says so.
        assert_eq!(not_built, ["FetchJWTBundles", "FetchJWTSVID", "ValidateJWTSVID"]);
    }

    #[test]
    fn a_handler_answers_as_the_contract_has_it() {
        let contracts = contracts();
        for Method { path, handler, .. } in &METHODS {
            let contract = &contracts[*path];
            let streams = (contract.client_streaming(), contract.server_streaming());
            match handler {
                Handler::Unary(_) => assert_eq!(streams, (false, false), "{path}"),
                Handler::Stream(_) => assert_eq!(streams, (false, true), "{path}"),
                Handler::Tonic(_) => assert_eq!(streams, (true, true), "{path}"),
                Handler::NotBuilt => assert!(!streams.0, "{path}"),
            }
        }
    }
}

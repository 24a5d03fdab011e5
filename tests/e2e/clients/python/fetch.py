"""A Workload API client that we did not write: the package `spiffe`.

fetch.py URI                    print the X.509 context as one JSON object
fetch.py --without-header URI   call FetchX509SVID by hand, without the security header, and print the code of the answer
"""

import hashlib
import json
import sys

import grpc
from cryptography.hazmat.primitives.serialization import Encoding
from spiffe import WorkloadApiClient
from spiffe._proto import workload_pb2, workload_pb2_grpc


def fetch(uri):
    with WorkloadApiClient(uri, default_timeout=30) as client:
        context = client.fetch_x509_context()
    svid = context.default_svid
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    # The library checks the SVID's form, and that the key belongs to it; the signatures are checked here.
    for child, parent in zip(svid.cert_chain, svid.cert_chain[1:]):
        child.verify_directly_issued_by(parent)
    issuers = [a for a in bundle.x509_authorities if a.subject == svid.cert_chain[-1].issuer]
    svid.cert_chain[-1].verify_directly_issued_by(issuers[0])
    return {
        "id": str(svid.spiffe_id),
        "serial": format(svid.leaf.serial_number, "x"),
        "authorities": sorted(hashlib.sha256(a.public_bytes(Encoding.DER)).hexdigest() for a in bundle.x509_authorities),
    }


def code_without_header(uri):
    with grpc.insecure_channel(uri) as channel:
        stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        try:
            next(stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), timeout=30))
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


if sys.argv[1] == "--without-header":
    print(code_without_header(sys.argv[2]))
else:
    print(json.dumps(fetch(sys.argv[1])))

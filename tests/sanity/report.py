"""report.py REPORT.json: what csi-sanity ran, and why it did not run the rest. Fails if something failed or was skipped for a reason that is not known here."""
import collections
import json
import sys

# Why a spec does not apply, by the text that csi-sanity skips it with; "" is our own --ginkgo.skip.
KNOWN = {
    "": "Controller, group controller and snapshot services: an ephemeral driver has none (the shim plays two calls)",
    "NodeStageVolume not supported": "an ephemeral volume is not staged",
    "NodeUnstageVolume not supported": "an ephemeral volume is not staged",
    "NodeExpandVolume not supported": "an identity has no size",
    "NodeGetStorageHealth not supported": "there is no storage behind the volumes",
    "Service does not have single node multi writer capability": "all volumes are read-only",
}

PENDING = "pending"
KNOWN[PENDING] = "csi-sanity itself has switched it off for everybody"

specs = [s for s in json.load(open(sys.argv[1]))[0]["SpecReports"] if s["LeafNodeType"] == "It"]
name = lambda s: " ".join((s["ContainerHierarchyTexts"] or [])[-2:] + [s["LeafNodeText"]])
by_state = collections.Counter(s["State"] for s in specs)
skipped, unknown = collections.Counter(), []
for s in specs:
    if s["State"] == "passed":
        print("passed ", name(s))
    elif s["State"] in ("skipped", "pending"):
        why = PENDING if s["State"] == "pending" else s.get("Failure", {}).get("Message", "")
        skipped[why] += 1
        if why not in KNOWN:
            unknown.append(f"{name(s)}: {why}")
    else:
        print(s["State"].ljust(7), name(s), "-", s.get("Failure", {}).get("Message", ""))
for why, n in sorted(skipped.items()):
    print(f"skipped {n:3} {KNOWN.get(why, '?')} [{why or 'filtered'}]")
failed = len(specs) - by_state["passed"] - by_state["skipped"] - by_state["pending"]
for line in unknown:
    print("skipped without a known reason:", line)
sys.exit(bool(failed or unknown or not by_state["passed"]))

//! weft.dev.

use serde_json::Value;

use super::{
    Column, Definition,
    schema::{array, object, optional, required, text},
};
use crate::limits;

pub(super) const NODE_WORKLOADS: Definition = Definition {
    kind: "NodeWorkloads",
    group: "weft.dev",
    plural: "nodeworkloads",
    singular: "nodeworkload",
    short_names: &["nwl"],
    versions: &["v1alpha1"],
    storage: "v1alpha1",
    cluster_scoped: true,
    categories: &["weft"],
    columns: &[Column { name: "Node", path: ".spec.node" }, Column { name: "Pods", path: ".spec.pods[*].name" }],
    schema: node_workloads,
};

fn node_workloads() -> Value {
    let mut ips = array("Its addresses.", text("An IP address."));
    ips["minItems"] = 1.into();
    ips["maxItems"] = limits::POD_IPS_MAX.into();
    let mut uid = text("Its UID.");
    uid["minLength"] = 1.into();
    uid["maxLength"] = limits::UID_BYTES_MAX.into();
    let pod = object(
        "A pod that takes mutual TLS.",
        vec![
            required("uid", uid),
            required("namespace", text("Its namespace.")),
            required("name", text("Its name.")),
            required("serviceAccount", text("Its service account: what its certificate must name.")),
            required("ips", ips),
        ],
    );
    let mut pods = array("Pods of the node, each in one object only.", pod);
    pods["maxItems"] = limits::NODE_SHARD_PODS_MAX.into();
    let spec =
        object("What the agent of the node says.", vec![required("node", text("The node.")), optional("pods", pods)]);
    object(
        "Pods of one node that take mutual TLS. Written by the agent of that node, read by all others; not for people to write.",
        vec![required("spec", spec)],
    )
}

//! The chart's admission policy, as an API server evaluates it. That of the tests has no admission, so its CEL is evaluated here: by
//! another implementation of the language, with the one function that Kubernetes adds to it.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, anyhow, ensure};
use cel::{Context, Program, Value, extractors::This};
use serde_json::json;
use weft_integration::{Cluster, command};

const AGENT: &str = "system:serviceaccount:weft-system:weft";

/// Kubernetes' CEL library, "Strings": `<string>.replace(<string>, <string>)`.
#[allow(clippy::needless_pass_by_value, reason = "functions of CEL take what they are given")]
fn replace(This(text): This<Arc<String>>, from: Arc<String>, to: Arc<String>) -> String {
    text.replace(from.as_str(), &to)
}

fn evaluate(expression: &str, context: &Context<'_, '_>) -> Result<Value> {
    let program = Program::compile(expression).map_err(|error| anyhow!("{expression}: {error}"))?;
    program.execute(context).map_err(|error| anyhow!("{expression}: {error}"))
}

/// Who asks for what.
struct Asked {
    user: &'static str,
    /// What the token says of its node.
    nodes: serde_json::Value,
    operation: &'static str,
    name: &'static str,
    node: &'static str,
}

const OWN: Asked =
    Asked { user: AGENT, nodes: serde_json::Value::Null, operation: "CREATE", name: "n.1-0", node: "n.1" };

/// Whether the policy lets it through; `None` if it is none of the policy's business.
fn admitted(policy: &serde_json::Value, asked: &Asked) -> Result<Option<bool>> {
    let mut user = json!({"username": asked.user});
    if !asked.nodes.is_null() {
        user["extra"] = json!({"authentication.kubernetes.io/node-name": asked.nodes});
    }
    let object = json!({"metadata": {"name": asked.name}, "spec": {"node": asked.node, "pods": []}});
    let mut context = Context::default();
    context.add_function("replace", replace).map_err(|error| anyhow!("replace: {error}"))?;
    let request = json!({"operation": asked.operation, "userInfo": user});
    let add = |context: &mut Context<'_, '_>, name: &str, value: &serde_json::Value| -> Result<()> {
        context.add_variable(name, value).map_err(|error| anyhow!("{name}: {error}"))
    };
    add(&mut context, "request", &request)?;
    let (new, old) = if asked.operation == "DELETE" { (&serde_json::Value::Null, &object) } else { (&object, &object) };
    add(&mut context, "object", new)?;
    add(&mut context, "oldObject", old)?;
    let list = |field: &str| policy["spec"][field].as_array().cloned().unwrap_or_default();
    let expression = |item: &serde_json::Value| item["expression"].as_str().unwrap_or_default().to_owned();
    for condition in list("matchConditions") {
        if evaluate(&expression(&condition), &context)? != Value::Bool(true) {
            return Ok(None);
        }
    }
    let mut variables = std::collections::HashMap::<String, Value>::new();
    for variable in list("variables") {
        context.add_variable_from_value("variables", variables.clone());
        let value = evaluate(&expression(&variable), &context)?;
        variables.insert(variable["name"].as_str().context("a name")?.to_owned(), value);
    }
    context.add_variable_from_value("variables", variables);
    let validations = list("validations");
    ensure!(validations.len() == 3, "{validations:?}");
    for validation in validations {
        // failurePolicy: Fail.
        if evaluate(&expression(&validation), &context)? != Value::Bool(true) {
            if let Some(message) = validation["messageExpression"].as_str() {
                ensure!(matches!(evaluate(message, &context)?, Value::String(_)), "{message}");
            }
            return Ok(Some(false));
        }
    }
    Ok(Some(true))
}

#[test]
fn an_agent_publishes_pods_of_its_own_node_and_no_other() -> Result<()> {
    let cluster = Cluster::new()?;
    let chart = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../manifests/weft");
    let mut helm = cluster.server.helm();
    helm.args(["template", "weft"]).arg(chart).args(["--namespace", "weft-system"]);
    helm.args(["--show-only", "templates/admission.yaml"]);
    helm.args(["--api-versions", "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"]);
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&command::output(&mut helm)?)?;
    let of_kind = |kind: &str| documents.iter().find(|document| document["kind"] == kind).context(kind.to_owned());
    let policy = of_kind("ValidatingAdmissionPolicy")?;
    let binding = of_kind("ValidatingAdmissionPolicyBinding")?;
    ensure!(binding["spec"]["policyName"] == policy["metadata"]["name"]);
    ensure!(binding["spec"]["validationActions"] == json!(["Deny"]) && policy["spec"]["failurePolicy"] == "Fail");
    let rule = &policy["spec"]["matchConstraints"]["resourceRules"][0];
    ensure!(
        rule["operations"] == json!(["CREATE", "UPDATE", "DELETE"]) && rule["resources"] == json!(["nodeworkloads"])
    );
    let n1 = || json!(["n.1"]);
    for (asked, expected) in [
        (Asked { nodes: n1(), ..OWN }, Some(true)),
        (Asked { nodes: n1(), operation: "UPDATE", name: "n.1-127", ..OWN }, Some(true)),
        (Asked { nodes: n1(), operation: "DELETE", ..OWN }, Some(true)),
        // Its own name, and somebody else's pods.
        (Asked { nodes: n1(), node: "n2", ..OWN }, Some(false)),
        (Asked { nodes: n1(), operation: "UPDATE", node: "n2", ..OWN }, Some(false)),
        // Somebody else's object, whatever it says.
        (Asked { nodes: n1(), name: "n2-0", node: "n2", ..OWN }, Some(false)),
        (Asked { nodes: n1(), name: "n2-0", ..OWN }, Some(false)),
        (Asked { nodes: n1(), operation: "DELETE", name: "n2-0", ..OWN }, Some(false)),
        // Names that only look like its own.
        (Asked { nodes: n1(), name: "nx1-0", ..OWN }, Some(false)),
        (Asked { nodes: n1(), name: "n.1-2-0", ..OWN }, Some(false)),
        (Asked { nodes: n1(), name: "n.1-", ..OWN }, Some(false)),
        (Asked { nodes: n1(), name: "xn.1-0", ..OWN }, Some(false)),
        // A token that says nothing of its node, or too much.
        (Asked { ..OWN }, Some(false)),
        (Asked { nodes: json!([]), ..OWN }, Some(false)),
        (Asked { nodes: json!(["n.1", "n2"]), ..OWN }, Some(false)),
        (Asked { nodes: json!([""]), name: "-0", node: "", ..OWN }, Some(false)),
        // Administrators put things right.
        (Asked { user: "admin", operation: "DELETE", name: "n2-0", ..OWN }, None),
    ] {
        let found = admitted(policy, &asked)?;
        let Asked { user, nodes, operation, name, node } = &asked;
        ensure!(found == expected, "{user} of {nodes}: {operation} {name} for {node}: {found:?}");
    }
    Ok(())
}

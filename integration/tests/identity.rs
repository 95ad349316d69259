//! Identities of a real agent's pods: who has a certificate, and what a restart, a hand-over and a removal do to it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_integration::{Agent, AgentOptions, PodSpec, Shop, limits, shop::NAMESPACE, wait};

/// Serial numbers by service account, once every account has one.
fn serials(agent: &Agent, accounts: usize) -> Result<BTreeMap<String, String>> {
    let mut last = Value::Null;
    wait::until("a certificate for every service account", limits::APPLY_TIMEOUT, || {
        last = agent.identity()?;
        let rows = last["accounts"].as_array().context("no accounts")?;
        let serials: BTreeMap<_, _> = rows
            .iter()
            .filter_map(|row| {
                let name = format!("{}/{}", row["namespace"].as_str()?, row["service_account"].as_str()?);
                Some((name, row["serial"].as_str()?.to_owned()))
            })
            .collect();
        Ok((serials.len() == accounts && rows.len() == accounts).then_some(serials))
    })
    .with_context(|| format!("last: {last:#}"))
}

#[test]
fn every_service_account_has_one_certificate_that_outlives_the_agent() -> Result<()> {
    let mut shop = Shop::with_servers("open", 2, 0)?;
    shop.start()?;
    let first = serials(shop.agent()?, 2)?;
    assert_eq!(first.keys().map(String::as_str).collect::<Vec<_>>(), ["shop/client", "shop/web"]);
    let before = shop.agent()?.identity()?;
    assert_eq!(before["trust_domain"], "cluster.local");
    assert_eq!(before["accounts"][1]["spiffe_id"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(before["accounts"][1]["pods"], 2);

    shop.take_agent()?.kill()?;
    shop.start()?;
    assert_eq!(serials(shop.agent()?, 2)?, first, "after a kill");
    assert_eq!(shop.agent()?.identity()?["bundle_sha256"], before["bundle_sha256"], "the same root");
    assert_eq!(shop.agent()?.metric("weft_certificate_renewals_total", &[])?, 0.0, "nobody was asked");

    let new = shop.take_agent()?.hand_over(&shop.manifests)?;
    shop.set_agent(new);
    assert_eq!(serials(shop.agent()?, 2)?, first, "after a hand-over");

    // A pod that comes later is asked for at once; its certificate is of the same root, and has a serial number of its own.
    let late = shop.node.pod(PodSpec::new(NAMESPACE, "late").account("late"))?;
    shop.manifests.put_pod(&late)?;
    let third = serials(shop.agent()?, 3)?;
    assert!(first.iter().all(|(account, serial)| third.get(account) == Some(serial)), "{third:?}");
    assert!(shop.agent()?.metric("weft_certificate_expiry_timestamp_seconds", &["service_account=\"late\""])? > 1e9);
    Ok(())
}

#[test]
fn certificates_are_renewed_while_the_agent_runs_and_the_old_one_is_in_force_until_then() -> Result<()> {
    let mut shop = Shop::with_servers("open", 1, 0)?;
    let arguments = ["--certificate-ttl-s", "4", "--trust-domain", "mesh.test"].map(str::to_owned).to_vec();
    shop.start_with(AgentOptions { arguments, ..AgentOptions::default() })?;
    let agent = shop.agent()?;
    let mut seen = serials(agent, 2)?;
    assert_eq!(agent.identity()?["accounts"][0]["spiffe_id"], "spiffe://mesh.test/ns/shop/sa/client");
    for _ in 0..2 {
        seen = wait::until("other serial numbers", limits::APPLY_TIMEOUT, || {
            ensure!(agent.metric("weft_identities_without_certificate", &[])? == 0.0, "one is without a certificate");
            let now = serials(agent, 2)?;
            Ok(now.iter().all(|(account, serial)| seen.get(account) != Some(serial)).then_some(now))
        })?;
    }
    assert!(agent.metric("weft_certificate_renewals_total", &[])? >= 6.0);
    assert_eq!(agent.metric("weft_certificate_failures_total", &[])?, 0.0);
    Ok(())
}

//! What a server that speaks first loses by being captured.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_integration::{
    Pod, PodSpec, Shop,
    objects::{ServicePort, plain_namespace},
    programs::mariadb,
    shop::{NAMESPACE, load},
};

/// Connections of each kind whose times are compared.
const GREETINGS: usize = 60;
/// What a connection to a server that speaks first may lose against a direct one, by the medians.
const GREETING_LOSS_MAX: Duration = Duration::from_millis(5);
/// No connection, not even the first, may wait as long as a guess by timeout would take.
const GREETING_MAX: Duration = Duration::from_millis(500);

/// The server is MariaDB, and its first bytes hold a line end (its protocol's version is 10), which is all that the client waits for.
#[test]
fn a_server_that_speaks_first_loses_at_most_5_ms_on_a_port_that_nobody_declared() -> Result<()> {
    let mut shop = Shop::empty("open")?;
    let outsider = shop.node.pod(PodSpec::new("elsewhere", "outsider"))?;
    let database = shop.node.pod(PodSpec::new("elsewhere", "database"))?;
    let _direct = mariadb::start(&database, &shop.node.state_dir().join("database"))?;
    shop.manifests.put(&plain_namespace("elsewhere"))?;
    for pod in [&outsider, &database] {
        shop.manifests.put_pod(pod)?;
    }
    shop.add_program("mariadb", &[ServicePort::named("main", 3306, mariadb::PORT)], mariadb::start)?;
    shop.start()?;
    let (captured_to, direct_to) = (shop.service("mariadb", 3306)?, format!("{}:{}", database.ipv4(), mariadb::PORT));
    let greeting = |pod: &Pod, to: &str| -> Result<u64> {
        let report = load(pod, &["--to", to, "--speech", "listen"])?;
        ensure!(report.served == 1, "{to}: {report:?}");
        Ok(report.served_us_max)
    };
    let (mut captured, mut direct) = (Vec::new(), Vec::new());
    for _ in 0..GREETINGS {
        captured.push(greeting(&shop.client, &captured_to)?);
        direct.push(greeting(&outsider, &direct_to)?);
    }
    let first = captured[0];
    captured.sort_unstable();
    direct.sort_unstable();
    let (median, slowest) = (captured[GREETINGS / 2], captured[GREETINGS - 1]);
    println!(
        "greeting after, us: captured first {first}, median {median}, slowest {slowest}; direct median {}, slowest {}; n = {GREETINGS} each",
        direct[GREETINGS / 2],
        direct[GREETINGS - 1],
    );
    let loss = Duration::from_micros(median.saturating_sub(direct[GREETINGS / 2]));
    ensure!(loss <= GREETING_LOSS_MAX, "{loss:?} lost");
    ensure!(Duration::from_micros(slowest) < GREETING_MAX, "{slowest} us for the slowest");
    assert_eq!(shop.agent()?.pod_stats(NAMESPACE, "client")?.outbound_captured, GREETINGS as u64);
    Ok(())
}

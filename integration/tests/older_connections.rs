//! Connections that weft does not carry, because they are older than capture or were made while the agent was gone: they go on where
//! policy would let them through, and end where it does not.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use weft_integration::{
    Pod, PodSpec, Shop,
    objects::{plain_namespace, route_group, tcp_route, traffic_target},
    pod::Server,
    shop::{ECHO, NAMESPACE},
    wait,
};

/// An agent that started or read a change has looked at all connections.
const LOOKED: Duration = Duration::from_secs(30);
/// A connection that a change of policy denies ends.
const CUT_WITHIN: Duration = Duration::from_secs(1);
/// An echo on a machine under load.
const ECHO_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to a port that says back what it hears, with the name that a failure is told by.
struct Talk(String, TcpStream);

impl Talk {
    fn begin(pod: &Pod, to: impl Into<SocketAddr>) -> Result<Self> {
        let to = to.into();
        pod.run(|| Self::connect(format!("{} to {to}", pod.name()), to))
    }

    fn connect(name: String, to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, ECHO_TIMEOUT).with_context(|| name.clone())?;
        stream.set_read_timeout(Some(ECHO_TIMEOUT))?;
        stream.set_nodelay(true)?;
        let mut talk = Self(name, stream);
        if !talk.goes_on()? {
            bail!("{} ended at once", talk.0);
        }
        Ok(talk)
    }

    /// Says something and hears it again; false if the connection was reset.
    fn goes_on(&mut self) -> Result<bool> {
        let mut heard = [0; 4];
        match self.1.write_all(b"echo").and_then(|()| self.1.read_exact(&mut heard)) {
            Ok(()) if &heard == b"echo" => Ok(true),
            Ok(()) => bail!("{} heard {heard:?}", self.0),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Ok(false),
            Err(error) => Err(error).with_context(|| self.0.clone()),
        }
    }

    /// Waits for the reset without saying anything.
    fn is_reset(&mut self) -> Result<()> {
        match self.1.read(&mut [0; 4]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            other => bail!("{} was not reset: {other:?}", self.0),
        }
    }
}

fn all_go_on(talks: &mut [Talk]) -> Result<()> {
    for talk in talks {
        assert!(talk.goes_on()?, "{} was reset", talk.0);
    }
    Ok(())
}

/// A shop with one server, a pod of another account, and one that is not meshed and has a server of its own.
struct Stage {
    outsiders_server: Server,
    shop: Shop,
    other: Pod,
    outsider: Pod,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut shop = Shop::with_servers("open", 1, 0)?;
        let other = shop.node.pod(PodSpec::new(NAMESPACE, "other").account("other"))?;
        let outsider = shop.node.pod(PodSpec::new("elsewhere", "outsider"))?;
        let outsiders_server = outsider.serve(&["--tcp", &format!("echo:{ECHO}")])?;
        shop.manifests.put(&plain_namespace("elsewhere"))?;
        shop.manifests.put_pod(&other)?;
        shop.manifests.put_pod(&outsider)?;
        shop.node.sync_kube_proxy(&shop.manifests)?;
        Ok(Self { outsiders_server, shop, other, outsider })
    }

    fn web(&self) -> Result<&Pod> {
        Ok(&self.shop.server("v1-1")?.pod)
    }

    fn grant(&mut self, routes: &[(&str, &str)]) -> Result<()> {
        self.shop.manifests.put(&traffic_target(NAMESPACE, "web", "web", routes, &["client"]))
    }

    /// Waits until so many connections were cut that weft does not carry.
    fn cut(&self, count: f64) -> Result<()> {
        let mut last = 0.0;
        wait::until(&format!("{count} older connections to be cut"), LOOKED, || {
            last = self.shop.agent()?.metric("weft_connections_cut_total", &["reason=\"older\""])?;
            Ok((last >= count).then_some(()))
        })
        .with_context(|| format!("{last} were"))?;
        assert!((last - count).abs() < 0.5, "{last} were cut, and not {count}");
        Ok(())
    }
}

#[test]
fn connections_older_than_capture_end_where_policy_denies_them() -> Result<()> {
    let mut stage = Stage::new()?;
    let objects = [tcp_route(NAMESPACE, "echo", &[ECHO]), route_group(NAMESPACE, "requests", &[("all", ".*", &["*"])])];
    stage.shop.manifests.put_all(&objects)?;
    stage.grant(&[("TCPRoute", "echo")])?;
    let at = |ip: IpAddr| SocketAddr::new(ip, ECHO);
    let (web, node) = (stage.web()?, stage.shop.node.namespace());
    let (mut granted, mut kept, mut denied) = (Vec::new(), Vec::new(), Vec::new());
    for ip in web.ips() {
        granted.push(Talk::begin(&stage.shop.client, at(ip))?);
        denied.push(Talk::begin(&stage.other, at(ip))?);
        denied.push(Talk::begin(&stage.outsider, at(ip))?);
        kept.push(Talk::begin(web, at(ip))?);
        kept.push(node.run(|| Talk::connect(format!("the node to {ip}"), at(ip)))?);
    }
    // What the server itself made is not made to it.
    for ip in stage.outsider.ips() {
        kept.push(Talk::begin(web, at(ip))?);
    }
    for ip in stage.shop.service_ips("web")? {
        granted.push(Talk::begin(&stage.shop.client, at(ip))?);
    }
    stage.shop.start()?;
    for talk in &mut denied {
        talk.is_reset()?;
    }
    stage.cut(4.0)?;
    all_go_on(&mut granted)?;
    all_go_on(&mut kept)?;
    let agent = stage.shop.agent()?;
    // Both ends of what it talks with itself, too.
    let before = agent.status()?.pod(NAMESPACE, "v1-1").context("no pod v1-1")?.connections_before_capture;
    assert_eq!(before, 16);
    let log = agent.log();
    for because in ["not granted by TrafficTarget shop/web", "the source has no identity"] {
        let said = |line: &str| line.contains("weft does not carry this connection") && line.contains(because);
        assert!(log.lines().any(said), "{because} is not in the access log: {log}");
    }

    // What is said on them is not known, so a grant of requests is none.
    stage.grant(&[("TCPRoute", "echo"), ("HTTPRouteGroup", "requests")])?;
    let changed = Instant::now();
    for talk in &mut granted {
        talk.is_reset()?;
    }
    let took = changed.elapsed();
    assert!(took < CUT_WITHIN, "{took:?}");
    stage.cut(8.0)?;
    all_go_on(&mut kept)?;
    assert_eq!(stage.outsiders_server.stats()?.connections_to(ECHO), 2);
    assert!(stage.shop.agent()?.metric("weft_connections_not_cut_total", &[])? < 0.5);
    Ok(())
}

#[test]
fn what_the_agent_carries_is_never_taken_for_older() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.shop.manifests.put(&tcp_route(NAMESPACE, "echo", &[ECHO]))?;
    let at = SocketAddr::new(stage.web()?.ipv4().into(), ECHO);
    let mut older = Talk::begin(&stage.outsider, at)?;
    stage.shop.start()?;
    let mut carried = Talk::begin(&stage.outsider, at)?;
    stage.grant(&[("TCPRoute", "echo")])?;
    older.is_reset()?;
    carried.is_reset()?;
    let agent = stage.shop.agent()?;
    for reason in ["older", "denied"] {
        let count = agent.metric("weft_connections_cut_total", &[&format!("reason=\"{reason}\"")])?;
        assert!((count - 1.0).abs() < 0.5, "{reason}: {count}");
    }
    Ok(())
}

#[test]
fn connections_made_directly_while_the_agent_was_gone_end_when_policy_denies_them() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.shop.manifests.put(&tcp_route(NAMESPACE, "echo", &[ECHO]))?;
    stage.shop.start()?;
    stage.shop.agent()?.wait_captured(NAMESPACE, "other")?;
    let at = SocketAddr::new(stage.web()?.ipv4().into(), ECHO);
    stage.shop.take_agent()?.kill()?;
    let mut early = [Talk::begin(&stage.shop.client, at)?, Talk::begin(&stage.other, at)?];
    stage.shop.start()?;
    all_go_on(&mut early)?;
    stage.shop.take_agent()?.kill()?;
    let mut late = [Talk::begin(&stage.shop.client, at)?, Talk::begin(&stage.other, at)?];
    // Nobody is there to read this until the next agent starts.
    stage.grant(&[("TCPRoute", "echo")])?;
    stage.shop.start()?;
    for [granted, denied] in [&mut early, &mut late] {
        denied.is_reset()?;
        assert!(granted.goes_on()?, "{} was reset", granted.0);
    }
    stage.cut(2.0)
}

//! Mutual TLS between nodes is ordinary TLS 1.3: OpenSSL with a certificate of the same root is a client of a captured pod, and a server to
//! one.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command, time::SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_identity::{
    TrustDomain,
    authority::{Issuer, Profile, Root},
    bundle,
    key::PrivateKey,
};
use weft_integration::{
    Agent, AgentOptions, Manifests, Node, Pod, PodSpec, Process, command, limits, link::Link,
    objects::meshed_namespace, pod::Server, testpod::talk::Transcript,
};
use weft_policy::names::ServiceAccountKey;

const ECHO: u16 = 9002;

/// A node with an agent, a client and a server; and a node without, with a pod that has nothing but OpenSSL and certificates.
struct Stand {
    // Ended before what they are in.
    agent: Agent,
    _server: Server,
    web: Pod,
    client: Pod,
    outsider: Pod,
    certificates: Certificates,
    _manifests: Manifests,
    _link: Link,
}

/// The authority that the agent uses, and what it signs for others.
struct Certificates {
    issuer: Issuer,
    dir: PathBuf,
}

impl Certificates {
    /// Keys in the form of the agent's file.
    fn new(node: &Node) -> Result<Self> {
        let now = SystemTime::now();
        let root = Root::generate(now)?;
        let issuer = root.issuer(now)?;
        let dir = node.state_dir();
        let parts =
            [&*root.certificate_pem(), &*root.key_pem(), "# issuer\n", &*issuer.chain_pem(), &*issuer.key_pem()];
        fs::write(dir.join("authority.pem"), parts.concat())?;
        fs::write(dir.join("root.pem"), root.certificate_pem())?;
        Ok(Self { issuer, dir })
    }

    /// Certificate, chain, key and roots of a service account, in OpenSSL's words.
    fn options(&self, account: &str) -> Result<Vec<String>> {
        let id = TrustDomain::new("cluster.local")?.account(&ServiceAccountKey::new("elsewhere", account))?;
        let key = PrivateKey::generate()?;
        let chain = self.issuer.sign(&id, &key.public(), &Profile::default(), SystemTime::now())?;
        let file = |name: &str, text: &str| -> Result<String> {
            let path = self.dir.join(format!("{account}-{name}.pem"));
            fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        Ok([
            ("-cert", file("leaf", &bundle::to_pem(&chain[..1]))?),
            ("-cert_chain", file("chain", &bundle::to_pem(&chain[1..]))?),
            ("-key", file("key", &key.to_pem())?),
            ("-CAfile", self.dir.join("root.pem").display().to_string()),
        ]
        .into_iter()
        .flat_map(|(option, value)| [option.to_owned(), value])
        .collect())
    }
}

impl Stand {
    fn new() -> Result<Self> {
        let (node, far) = (Node::new("node-a")?, Node::numbered("node-b", 1)?);
        let link = Link::between(&[node.clone(), far.clone()])?;
        let certificates = Certificates::new(&node)?;
        let client = node.pod(PodSpec::new("shop", "client").account("client"))?;
        let web = node.pod(PodSpec::new("shop", "web").account("web"))?;
        let server = web.serve(&["--tcp", &format!("echo:{ECHO}")])?;
        let outsider = far.pod_of(PodSpec::new("elsewhere", "outsider"), "outsider")?;
        let mut manifests = Manifests::new(&node)?;
        manifests.put(&meshed_namespace("shop"))?;
        manifests.put_pod(&client)?;
        manifests.put_pod(&web)?;
        let ips: Vec<_> = outsider.ips().iter().map(ToString::to_string).collect();
        manifests.put(&json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "NodeWorkloads", "metadata": {"name": "node-b-0"},
            "spec": {"node": "node-b", "pods": [{
                "uid": outsider.uid(), "namespace": "elsewhere", "name": "outsider", "serviceAccount": "outsider", "ips": ips,
            }]},
        }))?;
        let keys = certificates.dir.join("authority.pem").display().to_string();
        let options = AgentOptions {
            workers: Some(1),
            arguments: vec!["--ca-keys-file".to_owned(), keys],
            ..AgentOptions::default()
        };
        let agent = Agent::start_with(&node, &manifests, options)?;
        for pod in ["client", "web"] {
            agent.wait_captured("shop", pod)?;
        }
        weft_integration::wait::until("certificates of both accounts", limits::APPLY_TIMEOUT, || {
            let identity = agent.identity()?;
            let rows = identity["accounts"].as_array().context("no accounts")?;
            Ok((rows.len() == 2 && rows.iter().all(|row| row["serial"].is_string())).then_some(()))
        })?;
        Ok(Self { agent, _server: server, web, client, outsider, certificates, _manifests: manifests, _link: link })
    }

    /// OpenSSL as a client of the echo, that says one line and listens on.
    fn client_of_web(&self, options: &[&str], account: Option<&str>) -> Result<Process> {
        let to = SocketAddr::from((self.web.ipv4(), ECHO)).to_string();
        let mut line = vec!["openssl".to_owned(), "s_client".to_owned(), "-connect".to_owned(), to];
        line.extend(["-verify_return_error", "-quiet"].map(str::to_owned));
        line.extend(options.iter().map(|option| (*option).to_owned()));
        line.extend(match account {
            Some(account) => self.certificates.options(account)?,
            None => vec!["-CAfile".to_owned(), self.certificates.dir.join("root.pem").display().to_string()],
        });
        let mut shell = self.outsider.command("bash");
        shell.args(["-c", &format!("exec {} < <(echo hello)", line.join(" "))]);
        self.outsider.spawn(shell)
    }

    /// OpenSSL as a server that answers each line backwards.
    fn server(&self, port: u16, account: &str) -> Result<Process> {
        let mut openssl: Command = self.outsider.command("openssl");
        openssl.args(["s_server", "-accept", &port.to_string(), "-alpn", "weft-tcp/1", "-tls1_3", "-rev"]);
        openssl.args(["-Verify", "2", "-verify_return_error"]).args(self.certificates.options(account)?);
        let server = self.outsider.spawn(openssl)?;
        server.wait_line("that it listens", limits::APPLY_TIMEOUT, |line| line.starts_with("ACCEPT").then_some(()))?;
        Ok(server)
    }

    fn talk(&self, port: u16, steps: &[&str]) -> Result<Transcript> {
        let mut talk = self.client.testpod()?;
        talk.args([
            "talk",
            "--to",
            &SocketAddr::from((self.outsider.ipv4(), port)).to_string(),
            "--timeout-ms",
            "20000",
        ]);
        talk.args(steps.iter().flat_map(|step| ["--step", step]));
        Ok(serde_json::from_str(&command::output(&mut talk)?)?)
    }

    fn handshakes(&self, side: &str, result: &str) -> Result<f64> {
        self.agent.metric("weft_tls_handshakes_total", &[&format!("side=\"{side}\""), &format!("result=\"{result}\"")])
    }
}

#[test]
fn openssl_is_a_client_of_a_captured_pod_if_it_has_a_certificate_and_speaks_tls_1_3() -> Result<()> {
    let stand = Stand::new()?;
    let good = stand.client_of_web(&["-tls1_3", "-alpn", "weft-tcp/1"], Some("outsider"))?;
    good.wait_line("its echo", limits::APPLY_TIMEOUT, |line| (line == "hello").then_some(()))?;
    ensure!(stand.handshakes("server", "ok")? == 1.0, "it went another way");
    let cases = [
        (["-tls1_2", "-alpn", "weft-tcp/1"], Some("outsider"), "protocol_version"),
        (["-tls1_3", "-alpn", "weft-tcp/1"], None, "no_certificate"),
    ];
    for (options, account, reason) in cases {
        let mut refused = stand.client_of_web(&options, account)?;
        let ended = weft_integration::wait::until("its end", limits::APPLY_TIMEOUT, || refused.has_ended())?;
        let log = refused.log_tail(limits::LOG_TAIL_LINES);
        ensure!(!log.lines().any(|line| line == "hello"), "{reason}: it got an answer");
        ensure!(stand.handshakes("server", reason)? == 1.0, "{reason} ({ended}): {log}");
    }
    Ok(())
}

#[test]
fn openssl_is_a_server_to_a_captured_pod_if_it_is_who_it_should_be() -> Result<()> {
    let stand = Stand::new()?;
    let _good = stand.server(9443, "outsider")?;
    let said = stand.talk(9443, &["send:hello\\n", "until:olleh"])?;
    ensure!(said.received.starts_with("olleh"), "{said:?}");
    ensure!(stand.handshakes("client", "ok")? >= 1.0, "it went another way");
    let _bad = stand.server(9444, "somebody")?;
    let said = stand.talk(9444, &["send:hello\\n", "end"])?;
    ensure!(said.end == "reset" && said.received.is_empty(), "{said:?}");
    ensure!(stand.handshakes("client", "wrong_identity")? >= 1.0, "no handshake was refused");
    Ok(())
}

//! An agent's side of the authority's protocol, for tests: its own connection, its token, its requests.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::{Request, Status, Streaming, metadata::MetadataValue};
use tower::util::BoxCloneSyncService;
use weft_identity::{
    Bundle, SpiffeId,
    key::PrivateKey,
    request, tls,
    wire::{
        self, SignItem, SignRequest, SignResponse, WatchBundleRequest, authority_client::AuthorityClient,
        sign_result::Outcome,
    },
};
use weft_integration::kube::{Authority, authority::SERVER_NAME};

/// One call, on a busy machine, to an authority that may wait for another signer.
const CALL_TIMEOUT: Duration = Duration::from_secs(40);

type Channel =
    BoxCloneSyncService<http::Request<tonic::body::Body>, http::Response<hyper::body::Incoming>, hyper::Error>;

/// What became of one request: its chain, or the code of the refusal.
pub(crate) type Outcomes = Vec<Result<Vec<CertificateDer<'static>>, wire::Refusal>>;

/// One connection to a replica.
pub(crate) struct Client {
    stub: AuthorityClient<Channel>,
    token: Option<String>,
    /// The bundle that it reports to trust.
    pub(crate) trusts: String,
    /// The epoch that it reports.
    pub(crate) reissued: u64,
}

/// Runs something that is asynchronous, in a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// The roots as they are mounted.
pub(crate) fn roots(authority: &Authority) -> Result<Arc<Bundle>> {
    Ok(Arc::new(Bundle::from_pem(&std::fs::read(authority.bundle_file())?)?))
}

impl Client {
    /// Connects to a replica, which must show a certificate of these roots.
    pub(crate) async fn connect(
        authority: &Authority,
        replica: u16,
        roots: &Bundle,
        token: Option<&str>,
    ) -> Result<Self> {
        let address = authority.address(replica);
        let stream = authority.node().namespace().run(|| {
            let stream = std::net::TcpStream::connect_timeout(&address, CALL_TIMEOUT)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        })?;
        let mut config = tls::authority_client(Arc::clone(roots.store()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connecting = TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(SERVER_NAME)?, TcpStream::from_std(stream)?);
        let stream = timeout(CALL_TIMEOUT, connecting).await.context("no handshake")??;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let send = tower::service_fn(move |request| {
            let mut sender = sender.clone();
            async move { sender.send_request(request).await }
        });
        let origin = http::Uri::from_static("https://weft-ca");
        let stub = AuthorityClient::with_origin(BoxCloneSyncService::new(send), origin);
        let (token, trusts) = (token.map(str::to_owned), roots.sha256());
        Ok(Self { stub, token, trusts, reissued: 0 })
    }

    fn with_token<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            let value: MetadataValue<_> = format!("Bearer {token}").parse()?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }

    /// Asks for certificates.
    pub(crate) async fn ask(&mut self, items: Vec<SignItem>) -> Result<Result<SignResponse, Status>> {
        let (bundle_sha256, reissued_epoch) = (self.trusts.clone(), self.reissued);
        let message = SignRequest { items, bundle_sha256, agent_version: "test".to_owned(), reissued_epoch };
        let request = self.with_token(message)?;
        let answer = timeout(CALL_TIMEOUT, self.stub.sign(request)).await.context("no answer")?;
        Ok(answer.map(tonic::Response::into_inner))
    }

    /// Asks for certificates; the call must be granted.
    pub(crate) async fn sign(&mut self, items: Vec<SignItem>) -> Result<Outcomes> {
        outcomes(self.ask(items).await?)
    }

    /// Follows the roots.
    pub(crate) async fn watch(&mut self) -> Result<Result<Streaming<wire::Bundle>, Status>> {
        let (bundle_sha256, reissued_epoch) = (self.trusts.clone(), self.reissued);
        let message = WatchBundleRequest { bundle_sha256, agent_version: "test".to_owned(), reissued_epoch };
        let request = self.with_token(message)?;
        let answer = timeout(CALL_TIMEOUT, self.stub.watch_bundle(request)).await.context("no answer")?;
        Ok(answer.map(tonic::Response::into_inner))
    }
}

/// What became of each request of a call that must be granted.
pub(crate) fn outcomes(answer: Result<SignResponse, Status>) -> Result<Outcomes> {
    let answer = answer.map_err(|status| anyhow::anyhow!("refused: {status}"))?;
    let outcome = |result: wire::SignResult| match result.outcome {
        Some(Outcome::Chain(chain)) => Ok(Ok(chain.certificates.into_iter().map(Into::into).collect())),
        Some(Outcome::Refusal(refusal)) => Ok(Err(refusal)),
        None => bail!("no outcome"),
    };
    answer.results.into_iter().map(outcome).collect()
}

/// The code of a call that was refused.
pub(crate) fn code(status: &Status) -> String {
    let code = status.metadata().get("weft-refusal").and_then(|code| code.to_str().ok());
    code.unwrap_or("none").to_owned()
}

/// A request for a pod, as its node's agent makes it.
pub(crate) fn item(pod: (&str, &str, &str), account: &str, key: &PrivateKey) -> Result<SignItem> {
    let (namespace, name, uid) = pod;
    let id: SpiffeId = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse()?;
    Ok(SignItem {
        pod_uid: uid.to_owned(),
        pod_name: name.to_owned(),
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        csr_der: request::create(&id, key)?,
    })
}

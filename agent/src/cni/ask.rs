//! The plugin's side of the socket. Blocking, with one deadline for all of it.

use std::{
    io::{self, IoSlice, Read},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    time::{Duration, Instant},
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};

use super::protocol::{Answer, Question};
use crate::limits;

/// Why there is no answer. None of them holds a pod up.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No agent runs.
    #[error("no agent listens on the socket")]
    NoAgent(#[source] io::Error),
    /// It hangs, or has much to do.
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
    /// It does not speak this protocol.
    #[error("the answer cannot be read")]
    Unreadable(#[source] io::Error),
}

/// Asks the agent, for as long as `wait` at most.
///
/// # Errors
/// When there is no agent, or no answer in time.
pub fn ask(socket: &Path, question: &Question, netns: BorrowedFd<'_>, wait: Duration) -> Result<Answer, AskError> {
    let deadline = Instant::now() + wait;
    let mut text = serde_json::to_vec(question).map_err(|error| AskError::Unreadable(error.into()))?;
    text.push(b'\n');
    loop {
        match attempt(socket, &text, netns, deadline) {
            Ok(answer) if answer.is_empty() => {}
            Ok(answer) => {
                return serde_json::from_slice(&answer).map_err(|error| AskError::Unreadable(error.into()));
            }
            Err(Failure::Connect(error)) if !is_late(&error) => return Err(AskError::NoAgent(error)),
            Err(Failure::Talk(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(AskError::Unreadable(error));
            }
            Err(Failure::Connect(_) | Failure::Talk(_)) => {}
        }
        // An agent that hands over to the next one closes its connections; that one listens at the same path.
        if Instant::now() + limits::CNI_ASK_AGAIN >= deadline {
            std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
            return Err(AskError::Late(wait));
        }
        std::thread::sleep(limits::CNI_ASK_AGAIN);
    }
}

enum Failure {
    Connect(io::Error),
    Talk(io::Error),
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// One connection. Empty: closed without an answer.
fn attempt(path: &Path, question: &[u8], netns: BorrowedFd<'_>, deadline: Instant) -> Result<Vec<u8>, Failure> {
    let socket = connect(path, deadline).map_err(Failure::Connect)?;
    let talk = || -> io::Result<Vec<u8>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [netns];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent = sendmsg(socket.as_fd(), &[IoSlice::new(question)], &mut control, SendFlags::NOSIGNAL)?;
        let mut rest = &question[sent..];
        while !rest.is_empty() {
            socket.set_write_timeout(Some(left(deadline)))?;
            rest = &rest[socket.send(rest)?..];
        }
        read_line(&socket, deadline)
    };
    talk().map_err(Failure::Talk)
}

fn connect(path: &Path, deadline: Instant) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // connect(2) waits for a place in the queue of a socket that nobody accepts from; this bounds it (unix(7), socket(7) SO_SNDTIMEO).
    socket.set_write_timeout(Some(left(deadline)))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

fn read_line(mut socket: &Socket, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    loop {
        socket.set_read_timeout(Some(left(deadline)))?;
        let bytes = socket.read(&mut piece)?;
        answer.extend_from_slice(&piece[..bytes]);
        if let Some(end) = answer.iter().position(|byte| *byte == b'\n') {
            answer.truncate(end);
            return Ok(answer);
        }
        if bytes == 0 {
            return Ok(Vec::new());
        }
        if answer.len() > limits::CNI_MESSAGE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
        }
    }
}

/// Until the deadline; zero would mean for ever.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests;

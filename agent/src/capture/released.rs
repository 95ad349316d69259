//! Pods that are not captured any more, and that other agents may still take for ready: what those dial for mutual TLS must not reach
//! an application. A program stays behind that resets it, for a while.

use std::{io, time::Duration};

use super::{
    Capture,
    error::CaptureError,
    heartbeat::now_ns,
    limits::RELEASED_MAX,
    netns::Netns,
    pins::{Pins, ReleasedLink, remove_link},
    programs::{self, Programs},
};

/// Leaves the program behind, for so long. To be called while the pod is still captured, so that there is no moment between.
pub(crate) fn refuse_tls(
    programs: &mut Programs,
    pins: &Pins,
    netns: &Netns,
    how_long: Duration,
) -> Result<(), CaptureError> {
    let others = pins.released_links().map_err(read(pins))?;
    let until_ns = now_ns().saturating_add(u64::try_from(how_long.as_nanos()).unwrap_or(u64::MAX));
    programs.attach_released(pins, netns, until_ns)?;
    let first = others.iter().min_by_key(|link| link.until_ns).filter(|_| others.len() >= RELEASED_MAX);
    let same = others.iter().filter(|link| link.netns_cookie == netns.cookie() && link.until_ns != until_ns);
    remove(pins, same.chain(first))
}

/// Removes what was left behind in a namespace: the pod in it is captured again.
pub(crate) fn accept_tls(pins: &Pins, netns_cookie: u64) -> Result<(), CaptureError> {
    let links = pins.released_links().map_err(read(pins))?;
    remove(pins, links.iter().filter(|link| link.netns_cookie == netns_cookie))
}

fn remove<'a>(pins: &Pins, mut links: impl Iterator<Item = &'a ReleasedLink>) -> Result<(), CaptureError> {
    links
        .try_for_each(|link| remove_link(&pins.released_link(link)))
        .map_err(CaptureError::kernel("detach a released pod's program"))
}

fn read(pins: &Pins) -> impl FnOnce(io::Error) -> CaptureError {
    CaptureError::kernel(format!("read {}", pins.dir().display()))
}

impl Capture {
    /// Removes programs that do nothing any more: their time is over, or their namespace gone.
    pub(crate) fn sweep_released(&self) -> Result<(), CaptureError> {
        let links = self.pins.released_links().map_err(read(&self.pins))?;
        let now = now_ns();
        let over =
            |link: &&ReleasedLink| link.until_ns < now || !programs::link_has_netns(&self.pins.released_link(link));
        remove(&self.pins, links.iter().filter(over))
    }
}

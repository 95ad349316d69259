//! From a change of policy to what clients see of it.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, bail};
use serde::Serialize;

use crate::{
    Pod, Process,
    testpod::{monotonic_ns, watch::Change},
};

/// Connections on which a change must have arrived to count.
const CONNECTIONS: usize = 4;
/// How long one change may take; far above what is wanted, so that a slow one is measured and not hidden.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// A client in a pod that asks again and again on open connections.
#[derive(Debug)]
pub struct Watch {
    process: Process,
}

impl Watch {
    /// Begins to ask.
    ///
    /// # Errors
    /// When the client cannot be started.
    pub fn start(client: &Pod, to: SocketAddr, host: &str) -> Result<Self> {
        let mut command = client.testpod()?;
        command.args(["watch", "--to", &to.to_string(), "--host", host]);
        command.args(["--connections", &CONNECTIONS.to_string()]);
        Ok(Self { process: client.spawn(command)? })
    }

    /// Waits until every connection has changed to `version` after `since_ns`; when the last one did, on [`monotonic_ns`].
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait(&self, version: &str, since_ns: u64) -> Result<u64> {
        let mut changed = [None; CONNECTIONS];
        self.process.wait_line(&format!("a change of all connections to {version}"), CHANGE_TIMEOUT, |line| {
            let change = Change::parse(line)?;
            if change.version == version && change.at_ns >= since_ns {
                *changed.get_mut(change.connection)? = Some(change.at_ns);
            }
            changed.iter().copied().collect::<Option<Vec<_>>>()?.into_iter().max()
        })
    }

    /// Makes changes between two versions to and fro, and takes the time of each until all connections have the other version: from
    /// the moment in which it is begun, and from the moment in which `change` returns. The first version is there already.
    ///
    /// # Errors
    /// When a change fails, or one has no effect.
    pub fn to_and_fro(
        &self,
        versions: [&str; 2],
        changes: usize,
        mut change: impl FnMut(&str) -> Result<()>,
    ) -> Result<Times> {
        self.wait(versions[0], 0)?;
        let (mut begun, mut answered) = (Vec::new(), Vec::new());
        for number in 1..=changes {
            let to = versions[number % 2];
            let begin = monotonic_ns();
            change(to)?;
            let answer = monotonic_ns();
            let end = self.wait(to, begin)?;
            let millis = |from: u64| Duration::from_nanos(end.saturating_sub(from)).as_secs_f64() * 1000.0;
            begun.push(millis(begin));
            answered.push(millis(answer));
        }
        Ok(Times { begun: Percentiles::of(begun)?, answered: Percentiles::of(answered)? })
    }
}

/// How long changes took.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From the begin of the write.
    pub begun: Percentiles,
    /// From the answer to the write.
    pub answered: Percentiles,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Percentiles {
    /// Half of all took at most this.
    pub p50: f64,
    /// All but one in a hundred took at most this.
    pub p99: f64,
}

impl Percentiles {
    /// Nearest rank: of 50 values the 99th percentile is the largest.
    ///
    /// # Errors
    /// When there are no values.
    pub fn of(mut millis: Vec<f64>) -> Result<Self> {
        millis.sort_by(f64::total_cmp);
        let rank = |percent: usize| (millis.len() * percent).div_ceil(100).saturating_sub(1);
        match (millis.get(rank(50)), millis.get(rank(99))) {
            (Some(p50), Some(p99)) => Ok(Self { p50: *p50, p99: *p99 }),
            _ => bail!("nothing was measured"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let percentiles = Percentiles::of((1..=50).map(f64::from).collect()).expect("values");
        assert_eq!((percentiles.p50, percentiles.p99), (25.0, 50.0));
        assert!(Percentiles::of(Vec::new()).is_err());
    }
}

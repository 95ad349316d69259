//! How long it takes to bring destinations into the programs' map: all of them, and one that changed. Real maps, by the agent's own
//! capture; the programs are attached to a cgroup without processes.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use weft_abi::{DestKey, DestVerdict, verdict};
use weft_agent::capture::{Capture, CaptureConfig, cleanup, convert::dest_key};
use weft_integration::Node;

/// How many destinations there are.
const SIZES: [u32; 2] = [1_000, 10_000];
/// Repetitions of filling the map.
const FILLS: usize = 15;
/// Repetitions of one change.
const CHANGES: u32 = 2_000;
const PORT: u16 = 80;

/// Measures; by name, with `median_ns`.
///
/// # Errors
/// When not root, or capture refuses.
pub fn measure() -> Result<Value> {
    let node = Node::new("bench")?;
    let config = CaptureConfig {
        bpf_dir: node.bpf_dir(),
        cgroup_root: Some(node.cgroup().to_path_buf()),
        ..CaptureConfig::default()
    };
    let mut capture = Capture::open(&config).context("cannot open capture")?;
    let measured = SIZES.iter().try_fold(Map::new(), |mut all, size| {
        let (full, change) = measure_size(&mut capture, *size)?;
        all.insert(format!("map sync, {size} destinations"), json!({"median_ns": full}));
        all.insert(format!("map sync, one change of {size}"), json!({"median_ns": change}));
        anyhow::Ok(all)
    });
    drop(capture);
    cleanup(&config)?;
    Ok(Value::Object(measured?))
}

fn measure_size(capture: &mut Capture, size: u32) -> Result<(u64, u64)> {
    let mut full = Vec::new();
    for _ in 0..FILLS {
        let start = Instant::now();
        capture.set_destinations((0..size).map(|number| (key(number), Some(with(verdict::PROXY)))))?;
        full.push(start.elapsed().as_nanos());
        capture.set_destinations((0..size).map(|number| (key(number), None)))?;
    }
    capture.set_destinations((0..size).map(|number| (key(number), Some(with(verdict::PROXY)))))?;
    let mut change = Vec::new();
    for round in 0..CHANGES {
        let verdict = if round % 2 == 0 { verdict::DENY } else { verdict::PROXY };
        let start = Instant::now();
        capture.set_destinations([(key(size / 2), Some(with(verdict)))])?;
        change.push(start.elapsed().as_nanos());
    }
    capture.set_destinations((0..size).map(|number| (key(number), None)))?;
    Ok((median(full)?, median(change)?))
}

fn key(number: u32) -> DestKey {
    dest_key(IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 0).to_bits() + number)), Some(PORT))
}

fn with(verdict: u32) -> DestVerdict {
    DestVerdict { verdict, pad: 0 }
}

fn median(mut samples: Vec<u128>) -> Result<u64> {
    samples.sort_unstable();
    Ok(u64::try_from(samples[samples.len() / 2])?)
}

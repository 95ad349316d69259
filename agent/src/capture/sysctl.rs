//! The sysctls that capture needs inside a pod's namespace: set, remembered, restored. All functions work on the namespace that the
//! thread is in.

use std::{
    fmt::Write as _,
    io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use weft_abi::{PodConfig, PortRange, ports, sysctl_was};

const TCP_TIMESTAMPS: &str = "net/ipv4/tcp_timestamps";
const EPHEMERAL_PORTS: &str = "net/ipv4/ip_local_port_range";
const RESERVED_PORTS: &str = "net/ipv4/ip_local_reserved_ports";

/// Switches that transparent sockets need, with the bit of `sysctl_was` that says they were on before.
///
/// `tcp_fwmark_accept`: what the application accepts inherits the mark, so that its answers are routed back to the agent.
/// `fwmark_reflect`: so are answers that have no socket, such as resets.
const SWITCHES: [(&str, u32); 3] = [
    ("net/ipv4/tcp_fwmark_accept", sysctl_was::TCP_FWMARK_ACCEPT),
    ("net/ipv4/fwmark_reflect", sysctl_was::FWMARK_REFLECT_V4),
    ("net/ipv6/fwmark_reflect", sysctl_was::FWMARK_REFLECT_V6),
];

/// Where the kernel shows its parameters; `/proc` unless said otherwise.
static PROC: OnceLock<PathBuf> = OnceLock::new();

/// Says where the node's `/proc` is: in a container its own has a read-only `sys`. Which namespace's parameters are under `sys/net`
/// depends on the thread that opens them (proc(5)), not on the mount. The first call counts.
pub(crate) fn set_proc(directory: &Path) {
    PROC.get_or_init(|| directory.to_owned());
}

fn path(name: &str) -> PathBuf {
    PROC.get().map_or(Path::new("/proc"), PathBuf::as_path).join("sys").join(name)
}

/// Fills in what a release must restore; changes nothing.
///
/// # Errors
/// When they cannot be read.
pub(crate) fn remember(config: &mut PodConfig, switches: bool) -> io::Result<()> {
    let reserved = parse(&read(RESERVED_PORTS)?)?;
    config.reserved_was = intersections(&reserved);
    config.sysctl_was = 0;
    if switches {
        for (name, bit) in SWITCHES {
            if path(name).exists() && read(name)?.trim() != "0" {
                config.sysctl_was |= bit;
            }
        }
    }
    Ok(())
}

/// Sets them; doing it again changes nothing.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn apply(switches: bool) -> io::Result<()> {
    let reserved = parse(&read(RESERVED_PORTS)?)?;
    let merged = merge(&reserved, &ports::RESERVED);
    if merged != reserved {
        write(RESERVED_PORTS, &render(&merged))?;
    }
    if switches {
        for (name, _) in SWITCHES {
            // Without IPv6 in the kernel there is no such switch, and no such traffic.
            if path(name).exists() && read(name)?.trim() == "0" {
                write(name, "1")?;
            }
        }
    }
    Ok(())
}

/// Restores what `remember` found.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn restore(config: &PodConfig, switches: bool) -> io::Result<()> {
    let reserved = parse(&read(RESERVED_PORTS)?)?;
    let was: Vec<(u16, u16)> =
        config.reserved_was.iter().filter(|range| range.last != 0).map(|range| (range.first, range.last)).collect();
    let restored = merge(&subtract(&reserved, &ports::RESERVED), &was);
    if restored != reserved {
        write(RESERVED_PORTS, &render(&restored))?;
    }
    if switches {
        for (name, bit) in SWITCHES {
            if config.sysctl_was & bit == 0 && path(name).exists() {
                write(name, "0")?;
            }
        }
    }
    Ok(())
}

/// Whether TCP timestamps are on (RFC 7323).
///
/// # Errors
/// When that cannot be read.
pub(crate) fn tcp_timestamps() -> io::Result<bool> {
    Ok(read(TCP_TIMESTAMPS)?.trim() != "0")
}

/// The ports that the kernel gives to sockets which ask for any (ip-sysctl, "ip_local_port_range").
///
/// # Errors
/// When they cannot be read.
pub(crate) fn ephemeral_ports() -> io::Result<RangeInclusive<u16>> {
    let text = read(EPHEMERAL_PORTS)?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("{EPHEMERAL_PORTS} holds {text:?}"));
    let mut ports = text.split_whitespace().map(str::parse::<u16>);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..=last),
        _ => Err(bad()),
    }
}

fn read(name: &str) -> io::Result<String> {
    let path = path(name);
    std::fs::read_to_string(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn write(name: &str, value: &str) -> io::Result<()> {
    let path = path(name);
    std::fs::write(&path, value).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Reads the kernel's list: `1024,2000-2010`.
fn parse(text: &str) -> io::Result<Vec<(u16, u16)>> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("{RESERVED_PORTS} holds {text:?}"));
    let mut ranges = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = (first.trim().parse().map_err(|_| bad())?, last.trim().parse().map_err(|_| bad())?);
        if range.0 > range.1 {
            return Err(bad());
        }
        ranges.push(range);
    }
    Ok(merge(&ranges, &[]))
}

/// Writes a list as the kernel reads it. An empty one is a newline: writing nothing at all would change nothing.
fn render(ranges: &[(u16, u16)]) -> String {
    let mut text = String::new();
    for (first, last) in ranges {
        if !text.is_empty() {
            text.push(',');
        }
        let _infallible = if first == last { write!(text, "{first}") } else { write!(text, "{first}-{last}") };
    }
    text.push('\n');
    text
}

/// All ports of both lists, in order, with ranges that touch made one.
fn merge(left: &[(u16, u16)], right: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut all: Vec<(u16, u16)> = left.iter().chain(right).copied().collect();
    all.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match merged.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// The ports of `from` that are not in `what`.
fn subtract(from: &[(u16, u16)], what: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut left = from.to_vec();
    for (first, last) in what {
        left = left
            .iter()
            .flat_map(|range| {
                let before = (range.0 < *first).then(|| (range.0, range.1.min(first.saturating_sub(1))));
                let after = (range.1 > *last).then(|| (range.0.max(last.saturating_add(1)), range.1));
                [before, after]
            })
            .flatten()
            .collect();
    }
    left
}

/// The ports of weft's own blocks that are in a list. When there are more pieces than there is room for, the last ones are
/// remembered as one: after a release a few more ports are reserved than before, which takes nothing from anybody.
fn intersections(reserved: &[(u16, u16)]) -> [PortRange; 4] {
    let mut pieces: Vec<(u16, u16)> = ports::RESERVED
        .iter()
        .flat_map(|block| {
            reserved
                .iter()
                .filter(|range| range.0 <= block.1 && range.1 >= block.0)
                .map(|range| (range.0.max(block.0), range.1.min(block.1)))
        })
        .collect();
    pieces.sort_unstable();
    let mut remembered = [PortRange::default(); 4];
    let last_slot = remembered.len() - 1;
    for (index, (first, last)) in pieces.into_iter().enumerate() {
        let slot = &mut remembered[index.min(last_slot)];
        if slot.last == 0 {
            slot.first = first;
        }
        slot.last = last;
    }
    remembered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        assert_eq!(parse("\n").expect("empty"), []);
        assert_eq!(parse("1024,2000-2010\n").expect("list"), [(1024, 1024), (2000, 2010)]);
        assert_eq!(render(&[(1024, 1024), (2000, 2010)]), "1024,2000-2010\n");
        assert_eq!(render(&[]), "\n");
        for bad in ["x", "10-5", "70000", "1-2-3"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn merging_joins_what_touches() {
        assert_eq!(merge(&[(10, 20)], &[(21, 30), (5, 8)]), [(5, 8), (10, 30)]);
        assert_eq!(merge(&[(10, 20)], &[(12, 15)]), [(10, 20)]);
        assert_eq!(merge(&[(65_535, 65_535)], &[(65_534, 65_535)]), [(65_534, 65_535)]);
    }

    #[test]
    fn subtracting_cuts_out() {
        assert_eq!(subtract(&[(10, 20)], &[(12, 15)]), [(10, 11), (16, 20)]);
        assert_eq!(subtract(&[(10, 20)], &[(10, 20)]), []);
        assert_eq!(subtract(&[(10, 20)], &[(5, 12), (18, 40)]), [(13, 17)]);
        assert_eq!(subtract(&[(0, 65_535)], &[(0, 65_535)]), []);
    }

    #[test]
    fn release_leaves_what_was_reserved_before() {
        let block = ports::RESERVED[0];
        for before in [
            vec![],
            vec![(80, 80)],
            vec![(block.0 - 10, block.0 + 10)],
            vec![
                (block.0 + 5, block.0 + 5),
                (block.0 + 9, block.0 + 20),
                (ports::REDIRECT_FIRST, ports::REDIRECT_FIRST),
            ],
        ] {
            let was: Vec<(u16, u16)> = intersections(&before)
                .iter()
                .filter(|range| range.last != 0)
                .map(|range| (range.first, range.last))
                .collect();
            let during = merge(&before, &ports::RESERVED);
            assert_eq!(merge(&subtract(&during, &ports::RESERVED), &was), before);
        }
    }

    #[test]
    fn more_pieces_than_there_is_room_for_stay_reserved_as_one() {
        let first = ports::RESERVED[0].0;
        let before: Vec<(u16, u16)> = (0..6).map(|index| (first + index * 10, first + index * 10)).collect();
        let remembered = intersections(&before);
        for (port, _) in before {
            assert!(remembered.iter().any(|range| range.first <= port && port <= range.last), "{port}");
        }
    }
}

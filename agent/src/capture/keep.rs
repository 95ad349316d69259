//! Values that outlive the agent and never touch a disk: a pinned hash in the kernel's memory, which root alone can open, and which goes
//! with the machine's power or with `weft-agent cleanup`.
//!
//! Must not know what it keeps. The next agent may be another version: it must check what it reads as it would check a file.

use std::io;

use bytemuck::{Pod, Zeroable};

use super::{
    bpf::Map,
    error::CaptureError,
    limits::{KEEP_ENTRIES_MAX, KEEP_NAME_BYTES_MAX, KEEP_READS_MAX, KEEP_VALUE_BYTES_MAX},
    pins::Pins,
};

/// Name of the map, and of its pin.
pub(crate) const MAP: &str = "KEEP";

/// Name of a value, filled up with zero bytes.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Name([u8; KEEP_NAME_BYTES_MAX]);

/// A value, filled up with zero bytes.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Value {
    /// Of the bytes: an element that is replaced may be given to another value while it is read.
    checksum: u64,
    length: u32,
    pad: u32,
    /// In halves, because that is a size that `bytemuck` knows.
    bytes: [[u8; KEEP_VALUE_BYTES_MAX / 2]; 2],
}

/// Why a value was not kept, or not given back.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The name is no name.
    #[error("a kept value's name has {length} bytes; it must have 1 to {KEEP_NAME_BYTES_MAX}, and none of them zero")]
    Name {
        /// Its length, bytes.
        length: usize,
    },
    /// The value does not fit.
    #[error("{name} has {length} bytes; a kept value has at most {KEEP_VALUE_BYTES_MAX}")]
    TooLarge {
        /// Name of the value.
        name: String,
        /// Its length, bytes.
        length: usize,
    },
    /// There is no room for one more.
    #[error(
        "{name} is not kept: there are {KEEP_ENTRIES_MAX} values already (metric weft_capture_map_entries{{map=\"{MAP}\"}})"
    )]
    Full {
        /// Name of the value.
        name: String,
    },
    /// What is there is not what was put there.
    #[error("{name} was kept, and is damaged")]
    Damaged {
        /// Name of the value.
        name: String,
    },
    /// The kernel refused.
    #[error("cannot {action} the kept value {name:?}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// Name of the value; empty for all.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl KeepError {
    /// Stable word for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Name { .. } => "bad_name",
            Self::TooLarge { .. } => "too_large",
            Self::Full { .. } => "full",
            Self::Damaged { .. } => "damaged",
            Self::Kernel { .. } => "kernel_error",
        }
    }

    /// Whether the same may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Kernel { .. })
    }
}

/// Values by name. Any thread may use it, and so may the agent that takes over while this one still runs.
pub struct Keep {
    map: Map<Name, Value>,
}

// Without what it keeps: private keys are among it.
impl std::fmt::Debug for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keep").finish_non_exhaustive()
    }
}

impl Keep {
    /// Opens what an earlier agent left, or begins anew.
    pub(crate) fn open(pins: &Pins) -> Result<Self, CaptureError> {
        let path = pins.map(MAP);
        let map = Map::open_or_create(&path, MAP, KEEP_ENTRIES_MAX)
            .map_err(CaptureError::kernel(format!("open map {}", path.display())))?;
        Ok(Self { map })
    }

    /// Keeps a value, in place of the one that had this name.
    ///
    /// # Errors
    /// When name or value do not fit, or the kernel refuses. What was kept before is still kept.
    pub fn put(&self, name: &str, value: &[u8]) -> Result<(), KeepError> {
        let key = key(name)?;
        if value.len() > KEEP_VALUE_BYTES_MAX {
            return Err(KeepError::TooLarge { name: name.to_owned(), length: value.len() });
        }
        let mut stored = Value::zeroed();
        stored.bytes.as_flattened_mut()[..value.len()].copy_from_slice(value);
        stored.length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        stored.checksum = checksum(value);
        self.map.set(&key, &stored).map_err(|source| match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => KeepError::Full { name: name.to_owned() },
            _ => KeepError::Kernel { action: "write", name: name.to_owned(), source },
        })
    }

    /// The value of this name.
    ///
    /// # Errors
    /// When it is not as it was put there, or the kernel refuses.
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>, KeepError> {
        let key = key(name)?;
        for _ in 0..KEEP_READS_MAX {
            let read = self.map.get(&key);
            let read = read.map_err(|source| KeepError::Kernel { action: "read", name: name.to_owned(), source })?;
            let Some(stored) = read else { return Ok(None) };
            let length = usize::try_from(stored.length).unwrap_or(usize::MAX);
            if let Some(bytes) = stored.bytes.as_flattened().get(..length)
                && checksum(bytes) == stored.checksum
            {
                return Ok(Some(bytes.to_vec()));
            }
        }
        Err(KeepError::Damaged { name: name.to_owned() })
    }

    /// Forgets a value; whether there was one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, name: &str) -> Result<bool, KeepError> {
        let key = key(name)?;
        self.map.remove(&key).map_err(|source| KeepError::Kernel { action: "delete", name: name.to_owned(), source })
    }

    /// The names of all values, in no order.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn names(&self) -> Result<Vec<String>, KeepError> {
        let failed = |source| KeepError::Kernel { action: "list", name: String::new(), source };
        let text = |key: &Name| {
            let end = key.0.iter().position(|byte| *byte == 0).unwrap_or(key.0.len());
            String::from_utf8_lossy(&key.0[..end]).into_owned()
        };
        Ok(self.map.keys().map_err(failed)?.iter().map(text).collect())
    }
}

fn key(name: &str) -> Result<Name, KeepError> {
    let mut key = Name::zeroed();
    match key.0.get_mut(..name.len()) {
        Some(to) if !name.is_empty() && !name.bytes().any(|byte| byte == 0) => to.copy_from_slice(name.as_bytes()),
        _ => return Err(KeepError::Name { length: name.len() }),
    }
    Ok(key)
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo): the same in every version of the agent. Against accidents; who can write here is root.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_fnv_1a() {
        // From the reference implementation's test vectors.
        assert_eq!(checksum(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(checksum(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(checksum(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        assert!(key(&"n".repeat(KEEP_NAME_BYTES_MAX)).is_ok());
        for bad in ["", "a\0b", &"n".repeat(KEEP_NAME_BYTES_MAX + 1)] {
            assert_eq!(key(bad).err().map(|error| error.reason()), Some("bad_name"), "{bad:?}");
        }
    }
}

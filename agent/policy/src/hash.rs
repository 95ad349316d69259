//! A hash that is the same in every worker, on every node and in every release: what consistent hashing rests on.
//!
//! It is no defence: whoever knows the key of a request knows where it goes, and could send the same key again and again just as well.

/// Takes bytes in and gives 64 well mixed bits: FNV-1a (draft-eastlake-fnv), and then the finalizer of MurmurHash3, because the high bits
/// of FNV alone follow those of short inputs.
#[derive(Clone, Copy, Debug)]
pub struct StableHash(u64);

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

impl StableHash {
    /// Begins; different seeds give hashes that have nothing to do with each other.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(FNV_OFFSET ^ mix(seed))
    }

    /// Takes one byte in.
    pub fn byte(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
    }

    /// Takes bytes in, in order.
    pub fn bytes(&mut self, bytes: impl IntoIterator<Item = u8>) {
        bytes.into_iter().for_each(|byte| self.byte(byte));
    }

    /// The hash of all that was taken in.
    #[must_use]
    pub fn finish(self) -> u64 {
        mix(self.0)
    }
}

/// Spreads every bit over all others, and maps no two numbers to one (fmix64 of MurmurHash3).
#[must_use]
pub fn mix(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(seed: u64, text: &str) -> u64 {
        let mut hash = StableHash::new(seed);
        hash.bytes(text.bytes());
        hash.finish()
    }

    /// Another value in another release would send every client of every mesh that is being upgraded to another endpoint.
    #[test]
    fn the_hash_is_what_it_was_in_the_first_release() {
        let expected = (0xefd0_1f60_ba99_2926, 0x82a2_a958_a9be_ce5b, 0x73e0_6e57_4120_228a);
        assert_eq!((of(0, ""), of(0, "a"), of(1, "a")), expected);
    }

    #[test]
    fn short_texts_spread_over_high_and_low_bits() {
        for shift in [0, 56] {
            let mut buckets = [0_u32; 256];
            (0..25_600).for_each(|n| buckets[((of(0, &n.to_string()) >> shift) & 0xff) as usize] += 1);
            // 255 degrees of freedom: beyond 400 once in a hundred million draws.
            let chi: f64 = buckets.iter().map(|count| (f64::from(*count) - 100.0).powi(2) / 100.0).sum();
            assert!(chi < 400.0, "{chi} at {shift}");
        }
    }
}

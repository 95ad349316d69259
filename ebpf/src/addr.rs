//! What addresses mean.

use weft_abi::Addr;

/// 4 or 6, as `ListenerKey` wants it.
#[inline(always)]
pub fn ip_version(addr: &Addr) -> u32 {
    if addr.is_v4() { 4 } else { 6 }
}

/// Whether it is 127.0.0.0/8 or ::1 (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3).
#[inline(always)]
pub fn is_loopback(addr: &Addr) -> bool {
    let words = &addr.words_be;
    if addr.is_v4() {
        u32::from_be(words[3]) >> 24 == 127
    } else {
        words[0] == 0 && words[1] == 0 && words[2] == 0 && words[3] == 1_u32.to_be()
    }
}

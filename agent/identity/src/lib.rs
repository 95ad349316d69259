//! weft's identities. Names ([`spiffe`]), what certificates must be ([`svid`]), keys and requests ([`key`], [`request`]), the
//! credentials that the data path makes TLS of ([`credential`], [`tls`], [`refusal`]), and the authority without its I/O
//! ([`authority`]). Nothing here opens a socket, reads a file or knows Kubernetes' clients.
//!
//! Formats: SPIFFE ID and X509-SVID (spiffe.io standards), X.509 (RFC 5280), PKCS #10 (RFC 2986), TLS 1.3 (RFC 8446).

pub mod authority;
pub mod bundle;
pub mod credential;
pub mod key;
pub mod limits;
pub mod refusal;
pub mod request;
pub mod spiffe;
pub mod svid;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
mod verify;
#[cfg(feature = "wire")]
pub mod wire;

pub use bundle::Bundle;
pub use credential::{Credential, Credentials};
pub use refusal::{Refusal, refusal};
pub use spiffe::{SpiffeId, TrustDomain};
pub use svid::Svid;
pub use tls::Alpn;

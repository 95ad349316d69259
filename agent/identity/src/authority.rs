//! The authority that signs, without its I/O: what a certificate of ours looks like ([`profile`]), keys that sign ([`root`],
//! [`issuer`]), and the place where others can sign instead ([`signer`]), with what their answers must be ([`answer`]).
//!
//! A root signs an issuer, the issuer signs workloads: the root's key is needed at rotation only.

pub mod answer;
pub mod issuer;
pub mod profile;
pub mod root;
pub mod rotation;
pub mod signer;

pub use issuer::{Issuer, IssuerError};
pub use profile::{Profile, ProfileError};
pub use root::Root;
pub use rotation::Rotation;
pub use signer::{BuiltinSigner, Order, SignError, Signer, Signing};

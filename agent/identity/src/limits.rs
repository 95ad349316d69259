//! Named maxima and times of identities, with their units and where they come from.

use std::time::Duration;

/// Longest trust domain, bytes (SPIFFE ID 2.1).
pub const TRUST_DOMAIN_MAX: usize = 255;
/// Longest SPIFFE ID, bytes (SPIFFE ID 2.3).
pub const SPIFFE_ID_MAX: usize = 2048;
/// Longest namespace name, bytes (Kubernetes: RFC 1123 label).
pub const NAMESPACE_MAX: usize = 63;
/// Longest name of a service account, bytes (Kubernetes: RFC 1123 subdomain).
pub const SERVICE_ACCOUNT_MAX: usize = 253;

/// Largest certificate of a peer, bytes. One with the longest SPIFFE ID and an RSA issuer's signature takes less than 4 KiB.
pub const CERTIFICATE_MAX: usize = 8 * 1024;
/// Longest serial number, bytes (RFC 5280, 4.1.2.2).
pub const SERIAL_MAX: usize = 20;
/// Most certificates of a chain besides the leaf: an issuer of ours, and two of somebody's PKI above it.
pub const INTERMEDIATES_MAX: usize = 4;
/// Largest answer of an authority for one certificate, bytes.
pub const CHAIN_MAX: usize = CERTIFICATE_MAX * (1 + INTERMEDIATES_MAX);
/// Most roots of a bundle: two while one is rotated, and some of a user's PKI.
pub const ROOTS_MAX: usize = 16;
/// Largest bundle, bytes of PEM.
pub const BUNDLE_MAX: usize = 64 * 1024;
/// Largest signing request, bytes of DER.
pub const REQUEST_MAX: usize = 4 * 1024;
/// Largest private key, bytes of PKCS #8 or PEM.
pub const KEY_MAX: usize = 8 * 1024;

/// Length of the serial numbers that we choose, bytes: 128 bits, of which the first is zero (RFC 5280: positive).
pub const SERIAL_LENGTH: usize = 16;
/// Life of a workload's certificate unless asked otherwise.
pub const TTL_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Shortest life that may be configured: renewal has to survive a restart of the authority.
pub const TTL_MIN: Duration = Duration::from_secs(600);
/// Longest life that may be configured.
pub const TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// How far before the moment of signing a certificate begins: clocks of nodes differ. At most a tenth of its life.
pub const BACKDATE_MAX: Duration = Duration::from_secs(300);
/// How far from now a certificate of our own may begin: more than that, and a clock is wrong.
pub const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(60);
/// Life of a root that we make.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Life of an issuer that we make.
pub const ISSUER_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Items of one signing call.
pub const BATCH_MAX: usize = 64;

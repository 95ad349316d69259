//! Named maxima and times of the authority. What meets one is refused and counted (`weft_ca_refusals_total`).

use std::time::Duration;

/// How often a replica looks at its keys and the bundle, and the leader at a rotation.
pub const LOOK: Duration = Duration::from_secs(1);
/// How often the leader looks while nothing is to be done, which is how long a question for a rotation may wait. What a replica sees of
/// the issuer and the bundle makes it look at once.
pub const LOOK_IDLE: Duration = Duration::from_secs(5);
/// How old the last look at the issuer may be for a replica to sign with it: afterwards another one may sign already, and the root that
/// this one's chain leads to may go.
pub const ISSUER_SEEN_WITHIN: Duration = Duration::from_secs(10);
/// How long the leader waits after it has changed the issuer until it takes for granted that nobody signs with the one before.
pub const ISSUER_TAKEN_UP: Duration = Duration::from_secs(20);
/// Part of an issuer's life that may be left before the leader makes another.
pub const ISSUER_RENEW_PART: u32 = 3;
/// What may be left of a root's life before the leader rotates it unasked: two years of ten.
pub const ROOT_ROTATE_BEFORE: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
/// Life of the certificate of the authority's own server.
pub const SERVER_TTL: Duration = Duration::from_secs(24 * 3600);

/// Connections of agents at one time: one for each node of the largest cluster (5,000; kubernetes.io, "Considerations for large
/// clusters"), twice while they are upgraded.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Calls at one time on one connection: a watch, and as many batches as an agent sends at one time.
pub const STREAMS_MAX: u32 = 16;
/// Watches of the bundle at one time of one agent's pod: one, and those that it has lost and we have not noticed.
pub const WATCHES_PER_AGENT_MAX: usize = 8;
/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a silent connection is asked for a sign of life.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long that sign may take.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept, when descriptors have run out: it would fail again at once.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long open calls may take after the authority was told to stop.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest message of an agent, bytes: a full batch of the largest requests, each with names of at most 1 KiB.
pub const MESSAGE_MAX: usize = weft_identity::limits::BATCH_MAX * (weft_identity::limits::REQUEST_MAX + 1024);

/// Longest bearer token, bytes. Those of service accounts have about one thousand.
pub const TOKEN_MAX: usize = 16 * 1024;
/// How long a token that the API server has confirmed is believed without asking again.
pub const TOKEN_CACHE: Duration = Duration::from_secs(5 * 60);
/// Tokens that are remembered: two for each agent.
pub const TOKENS_MAX: usize = 10_000;
/// TokenReviews at one time.
pub const REVIEWS_MAX: usize = 16;
/// TokenReviews in a burst, of tokens that are not known: all agents of a large cluster after a restart of the authority.
pub const REVIEWS_BURST: u32 = 5_000;
/// TokenReviews a second after that.
pub const REVIEWS_PER_SECOND: u32 = 50;
/// Certificates of one agent's pod in a burst: a node has at most some hundred pods.
pub const ITEMS_BURST: u32 = 512;
/// Certificates of one agent's pod a second after that.
pub const ITEMS_PER_SECOND: u32 = 20;
/// Agents' pods that are remembered with their rates and reports.
pub const AGENTS_MAX: usize = 10_000;
/// Lookups of single pods at the API server at one time.
pub const LOOKUPS_MAX: usize = 16;

/// Largest report of one replica to the others, bytes: two of them fit into a ConfigMap (1 MiB).
pub const REPORT_MAX: usize = 400 * 1024;
/// How long a certificate of cert-manager may take, with the wait for a place: less than an agent waits for a whole batch (20 s).
pub const CERT_MANAGER_TIMEOUT: Duration = Duration::from_secs(15);
/// After how long a CertificateRequest is looked at first: cert-manager's own issuers sign in some hundred milliseconds.
pub const CERT_MANAGER_LOOK_FIRST: Duration = Duration::from_millis(100);
/// Longest pause between two looks at a CertificateRequest; pauses double up to it.
pub const CERT_MANAGER_LOOK_MAX: Duration = Duration::from_secs(1);
/// CertificateRequests at one time, of one replica: a whole batch of an agent.
pub const CERT_MANAGER_MAX: usize = weft_identity::limits::BATCH_MAX;
/// How often it is tried to delete a CertificateRequest before it is left to the replica's pod, which owns it.
pub const CERT_MANAGER_DELETE_TRIES: u32 = 5;
/// Pause after the authority's own certificate could not be had of cert-manager, or would not be trusted.
pub const CERT_MANAGER_RETRY: Duration = Duration::from_secs(5);
/// Letters of what cert-manager says that are told on.
pub const CERT_MANAGER_WORDS_MAX: usize = 256;
/// How often it is asked whether the API server has ClusterTrustBundles now, while it has none: it changes by an upgrade.
pub const TRUST_BUNDLE_LOOK: Duration = Duration::from_secs(10 * 60);

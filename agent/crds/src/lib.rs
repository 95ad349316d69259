//! The Kubernetes kinds that weft reads, the store that holds them, and their lowering to weft's model.

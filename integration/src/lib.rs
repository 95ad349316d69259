//! Pods of network namespaces, and the agent run on them.

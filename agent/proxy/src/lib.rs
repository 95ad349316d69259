//! weft's data path. Workers accept captured connections, look their plan up, choose a backend and an endpoint, and carry the
//! bytes. Everything it needs from the kernel comes through the two traits of [`socket`]; it knows neither Kubernetes nor BPF.

pub mod socket;

//! weft's node agent: everything that touches the world.

pub mod capture;

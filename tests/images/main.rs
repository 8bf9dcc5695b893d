//! Images into and out of the store, by the built binary and from archives made here or by other tools.

mod crashes;
mod fixture;
mod load;
mod peers;
mod refused;
mod sharing;
mod state;

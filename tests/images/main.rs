//! Images into and out of the store, by the built binary and from archives made here or by other tools.

mod crashes;
mod faults;
mod fixture;
mod hostile;
mod load;
mod login;
mod peers;
mod power;
mod real;
mod refused;
mod registry;
mod server;
mod sharing;
mod state;
mod token;
mod trust;
mod verbs;

//! The device against a driver that the test plays, through real rings, sockets and interrupts.

mod guest;
mod hostile;
mod stream;

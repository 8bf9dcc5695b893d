//! The entropy device (virtio 1.2, 5.4), fed from `getrandom(2)`.

use std::io;

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::{
    ActivateContext, ActivateError, Buffers, DeviceQueue, Poller, ServeError, VirtioDevice, Worker,
};

/// Device ID (virtio 1.2, 5.4.1).
const DEVICE_TYPE: u32 = 4;
/// Linux has one request at a time.
const QUEUE_SIZES: [u16; 1] = [4];
/// Most bytes for one request; a driver takes what it gets (virtio 1.2, 5.4.6). Linux asks for 64.
const MAX_REQUEST: usize = 4096;

/// The device.
#[derive(Default)]
pub struct Rng {
    worker: Option<Worker<()>>,
}

impl Rng {
    /// An idle device.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, context: ActivateContext) -> Result<(), ActivateError> {
        let events = ActivateError::events("rng");
        let requests = context.queues.into_iter().next();
        let requests = requests.ok_or_else(|| events(io::ErrorKind::NotFound.into()))?;
        let mut poller = Poller::new().map_err(events)?;
        poller
            .add_queue(&requests, Token::Requests)
            .map_err(events)?;
        self.worker = Some(Worker::spawn("rng", move |stop| {
            // The queue has told the driver where it broke it.
            let _ = serve(requests, poller, &stop);
        })?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
    }
}

/// What the worker sleeps on.
#[derive(Debug, Clone, Copy)]
enum Token {
    Stop,
    Requests,
}

fn serve(
    mut requests: DeviceQueue,
    mut poller: Poller<Token>,
    stop: &EventFd,
) -> Result<(), ServeError> {
    poller.add(stop, EventSet::IN, Token::Stop)?;
    loop {
        requests.serve(|chain| Some(fill(&mut chain.writable)))?;
        for (token, _) in poller.wait()? {
            if let Token::Stop = token {
                return Ok(());
            }
        }
    }
}

/// Fills the front of `buffer`; how many bytes. None where the host has no entropy to give, which
/// no Linux says after its start.
fn fill(buffer: &mut Buffers<'_>) -> u32 {
    let mut bytes = [0; MAX_REQUEST];
    let bytes = &mut bytes[..buffer.len().min(MAX_REQUEST)];
    if getrandom::fill(bytes).is_err() || buffer.write(bytes).is_err() {
        return 0;
    }
    bytes.len() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake::FakeDriver;

    #[test]
    fn requests_are_filled_and_bounded() {
        let mut rng = Rng::new();
        let mut driver = FakeDriver::new(&QUEUE_SIZES);
        rng.activate(driver.context(0)).unwrap();
        let mut ask = |readable: &[&[u8]], writable: &[u32]| {
            driver.add(0, readable, writable);
            driver.kick(0);
            driver.wait_used(0)
        };
        let (first, second) = (ask(&[], &[64]), ask(&[], &[32, 32]));
        assert_eq!((first.written, second.written), (64, 64));
        assert_ne!(first.data, second.data);
        let large = ask(&[], &[1 << 20]);
        assert_eq!(large.written as usize, MAX_REQUEST);
        assert!(large.data[MAX_REQUEST..].iter().all(|&byte| byte == 0));
        assert_eq!(ask(&[b"x"], &[]).written, 0);
        rng.reset();
    }
}

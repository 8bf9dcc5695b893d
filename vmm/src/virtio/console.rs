//! The console device (virtio 1.2, 5.3): one port, output only.
//!
//! It is there for a kernel's last words, so it keeps the latest of them; a program's input and
//! output go elsewhere. A Linux driver spins until a write is taken, hence each is taken at once
//! and whole, whatever becomes of it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::{
    ActivateContext, ActivateError, Buffers, DeviceQueue, Poller, ServeError, VirtioDevice, Worker,
};
use crate::output::Output;

/// Device ID (virtio 1.2, 5.3.1).
const DEVICE_TYPE: u32 = 3;
/// Of the receive and transmit queue. Linux fills the first with pages of its own memory, though
/// nothing ever comes; of the second it uses one entry at a time.
const QUEUE_SIZES: [u16; 2] = [2, 16];
/// Bytes of output kept.
const KEPT: usize = 16 << 10;
/// Most bytes taken of one write, so that buffers that overlap cannot occupy the worker for long.
/// Linux writes a page at most.
const MAX_WRITE: usize = 64 << 10;

/// The latest output of a console; clones show the same.
#[derive(Debug, Clone, Default)]
pub struct ConsoleTail(Arc<Mutex<VecDeque<u8>>>);

impl ConsoleTail {
    /// The last 16 KiB at most, oldest byte first.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        // Whoever panicked here left whole bytes at worst.
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().copied().collect()
    }

    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
        let excess = (kept.len() + bytes.len()).saturating_sub(KEPT);
        kept.drain(..excess);
        kept.extend(bytes);
    }
}

/// The device.
pub struct Console {
    sink: Option<Sink>,
    tail: ConsoleTail,
    worker: Option<Worker<Sink>>,
}

/// Where output goes.
#[derive(Debug)]
struct Sink {
    tail: ConsoleTail,
    output: Option<Output>,
}

impl Console {
    /// An idle console that writes to `output` too.
    #[must_use]
    pub fn new(output: Option<Output>) -> Self {
        let tail = ConsoleTail::default();
        Self {
            sink: Some(Sink {
                tail: tail.clone(),
                output,
            }),
            tail,
            worker: None,
        }
    }

    /// The latest output, across resets too.
    #[must_use]
    pub fn tail(&self) -> ConsoleTail {
        self.tail.clone()
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, context: ActivateContext) -> Result<(), ActivateError> {
        let events = ActivateError::events("console");
        let transmit = context.queues.into_iter().nth(1);
        let transmit = transmit.ok_or_else(|| events(io::ErrorKind::NotFound.into()))?;
        let mut poller = Poller::new().map_err(events)?;
        poller
            .add_queue(&transmit, Token::Transmit)
            .map_err(events)?;
        // Without the output where a worker could not be started before; the tail remains.
        let mut sink = self.sink.take().unwrap_or_else(|| Sink {
            tail: self.tail.clone(),
            output: None,
        });
        self.worker = Some(Worker::spawn("console", move |stop| {
            // The queue has told the driver where it broke it.
            let _ = sink.serve(transmit, poller, &stop);
            sink
        })?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.sink = Some(worker.stop());
        }
    }
}

/// What the worker sleeps on.
#[derive(Debug, Clone, Copy)]
enum Token {
    Stop,
    Transmit,
}

impl Sink {
    fn serve(
        &mut self,
        mut transmit: DeviceQueue,
        mut poller: Poller<Token>,
        stop: &EventFd,
    ) -> Result<(), ServeError> {
        poller.add(stop, EventSet::IN, Token::Stop)?;
        loop {
            transmit.serve(|chain| {
                self.write(&mut chain.readable);
                Some(0)
            })?;
            for (token, _) in poller.wait()? {
                if let Token::Stop = token {
                    return Ok(());
                }
            }
        }
    }

    fn write(&mut self, text: &mut Buffers<'_>) {
        let mut chunk = [0; 4096];
        let mut left = text.len().min(MAX_WRITE);
        while left > 0 {
            let count = left.min(chunk.len());
            if text.read(&mut chunk[..count]).is_err() {
                break;
            }
            left -= count;
            self.tail.push(&chunk[..count]);
            if let Some(output) = &mut self.output {
                output.offer(&chunk[..count]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake::FakeDriver;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    const TRANSMIT: usize = 1;

    fn start(console: &mut Console) -> FakeDriver {
        let driver = FakeDriver::new(&QUEUE_SIZES);
        console.activate(driver.context(0)).unwrap();
        driver
    }

    fn print(driver: &mut FakeDriver, text: &[u8]) {
        driver.add(TRANSMIT, &[text], &[]);
        driver.kick(TRANSMIT);
        assert_eq!(driver.wait_used(TRANSMIT).written, 0);
    }

    #[test]
    fn text_is_kept_and_written() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Output::new(OwnedFd::from(writer).into()).unwrap();
        let mut console = Console::new(Some(output));
        let mut driver = start(&mut console);
        print(&mut driver, b"Kernel panic - not syncing: ");
        driver.add(TRANSMIT, &[b"no ", b"init"], &[]);
        driver.kick(TRANSMIT);
        driver.wait_used(TRANSMIT);
        console.reset();
        let said = b"Kernel panic - not syncing: no init";
        assert_eq!(console.tail().bytes(), said);
        drop(console);
        let mut written = Vec::new();
        reader.read_to_end(&mut written).unwrap();
        assert_eq!(written, said);
    }

    #[test]
    fn only_the_latest_is_kept() {
        let mut console = Console::new(None);
        let mut driver = start(&mut console);
        for round in 0..6_u8 {
            print(&mut driver, &[b'a' + round; 5000]);
        }
        console.reset();
        let kept = console.tail().bytes();
        assert_eq!(kept.len(), KEPT);
        assert_eq!(&kept[..2], b"cc");
        assert_eq!(kept.iter().filter(|&&b| b == b'f').count(), 5000);
    }

    #[test]
    fn a11_flood_without_a_reader_is_taken_dropped_and_counted() {
        let (reader, writer) = io::pipe().unwrap();
        let output = Output::new(OwnedFd::from(writer).into()).unwrap();
        let mut console = Console::new(Some(output));
        let mut driver = start(&mut console);
        let text = vec![b'x'; 64 << 10];
        for _ in 0..100 {
            print(&mut driver, &text);
        }
        console.reset();
        let sink = console.sink.as_ref().unwrap();
        let dropped = sink.output.as_ref().unwrap().dropped();
        assert!(dropped > 90 * text.len() as u64, "dropped {dropped}");
        assert_eq!(console.tail().bytes(), [b'x'; KEPT]);
        drop(reader);
    }

    #[test]
    fn a05_overlapping_buffers_are_taken_up_to_a_cap() {
        let mut console = Console::new(None);
        let mut driver = start(&mut console);
        let address = driver.allocate(1 << 20);
        driver.add_buffers(TRANSMIT, &[(address, 1 << 20, 0); 16]);
        driver.kick(TRANSMIT);
        driver.wait_used(TRANSMIT);
        print(&mut driver, b"alive");
        assert!(console.tail().bytes().ends_with(b"alive"));
        console.reset();
    }

    #[test]
    fn activated_again_it_goes_on() {
        let mut console = Console::new(None);
        for _ in 0..2 {
            let mut driver = start(&mut console);
            print(&mut driver, b"boot ");
            console.reset();
        }
        assert_eq!(console.tail().bytes(), b"boot boot ");
    }
}

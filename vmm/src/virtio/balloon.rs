//! The memory balloon (virtio 1.2, 5.5): pages that the guest gives back go back to the host.
//!
//! Two ways. By free-page reporting (5.5.6.7) a guest tells of memory that it does not use; it may use it again
//! at any time, and finds zeroes. And by the balloon proper it is asked to do without some for as long as it is asked.
//! Neither takes anything from a guest that does not cooperate: that is for the host's own limits.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::{self, GuestMemory};

use super::device::copy_config;
use super::{
    ActivateContext, ActivateError, Buffers, DeviceQueue, Interrupt, Poller, ServeError,
    VirtioDevice, Worker,
};

/// Device ID (5.5.1).
const DEVICE_TYPE: u32 = 5;
const NAME: &str = "balloon";
/// Inflate, deflate, and reports of free pages (5.5.2): without statistics and hints in between.
const QUEUE_SIZES: [u16; 3] = [128, 128, 32];
/// `VIRTIO_BALLOON_F_PAGE_REPORTING` (5.5.3), as a bit.
const PAGE_REPORTING: u64 = 1 << 5;
/// What the balloon is counted in, whatever the guest's pages are (5.5.6).
const PAGE: u64 = 4096;
/// Page numbers taken from the guest at once. Linux sends 256.
const BATCH: usize = 1024;
/// Offset of `actual` in `struct virtio_balloon_config` (5.5.4).
const ACTUAL: u64 = 4;

/// The device.
#[derive(Default)]
pub struct Balloon {
    size: BalloonSize,
    worker: Option<Worker<()>>,
}

/// How large the balloon is to be and is; clones are of the same one.
#[derive(Debug, Clone, Default)]
pub struct BalloonSize(Arc<Size>);

#[derive(Debug, Default)]
struct Size {
    wanted: AtomicU32,
    actual: AtomicU32,
    /// How to tell the driver, once there is one.
    interrupt: Mutex<Option<Interrupt>>,
}

impl BalloonSize {
    /// Asks the guest to do without `bytes` of its memory, rounded down to pages.
    pub fn want(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        self.0.wanted.store(pages, Ordering::Release);
        if let Some(interrupt) = &*self.interrupt() {
            interrupt.config_changed();
        }
    }

    /// How many bytes the guest says that it does without.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::Acquire)) * PAGE
    }

    fn interrupt(&self) -> std::sync::MutexGuard<'_, Option<Interrupt>> {
        let interrupt = self.0.interrupt.lock();
        interrupt.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Balloon {
    /// An idle device with an empty balloon.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where its size is set.
    #[must_use]
    pub fn size(&self) -> BalloonSize {
        self.size.clone()
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    /// Not `DEFLATE_ON_OOM`: what a guest was asked to do without it does without.
    fn features(&self) -> u64 {
        PAGE_REPORTING
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `num_pages` and `actual` (5.5.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let [a, b, c, d] = self.size.0.wanted.load(Ordering::Acquire).to_le_bytes();
        let [e, f, g, h] = self.size.0.actual.load(Ordering::Acquire).to_le_bytes();
        copy_config(&[a, b, c, d, e, f, g, h], offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(pages)) = (offset, data.try_into()) {
            let pages = u32::from_le_bytes(pages);
            self.size.0.actual.store(pages, Ordering::Release);
        }
    }

    fn activate(&mut self, context: ActivateContext) -> Result<(), ActivateError> {
        let events = ActivateError::events(NAME);
        let ActivateContext {
            memory,
            queues,
            interrupt,
            ..
        } = context;
        let queues = <[DeviceQueue; 3]>::try_from(queues)
            .map_err(|_| events(io::ErrorKind::NotFound.into()))?;
        let mut poller = Poller::new().map_err(events)?;
        for (queue, token) in queues.iter().zip(Token::QUEUES) {
            poller.add_queue(queue, token).map_err(events)?;
        }
        self.worker = Some(Worker::spawn(NAME, move |stop| {
            // The queue has told the driver where it broke it.
            let _ = serve(&memory, queues, poller, &stop);
        })?);
        *self.size.interrupt() = Some(interrupt);
        Ok(())
    }

    fn reset(&mut self) {
        *self.size.interrupt() = None;
        self.size.0.actual.store(0, Ordering::Release);
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
    }
}

/// What the worker sleeps on.
#[derive(Debug, Clone, Copy)]
enum Token {
    Stop,
    Inflate,
    Deflate,
    Report,
}

impl Token {
    /// In the order of the queues.
    const QUEUES: [Self; 3] = [Self::Inflate, Self::Deflate, Self::Report];
}

fn serve(
    memory: &GuestMemory,
    queues: [DeviceQueue; 3],
    mut poller: Poller<Token>,
    stop: &EventFd,
) -> Result<(), ServeError> {
    let [mut inflate, mut deflate, mut report] = queues;
    // Up to 32 runs of memory, each as large as Linux keeps them.
    report.take_any_size();
    poller.add(stop, EventSet::IN, Token::Stop)?;
    loop {
        inflate.serve(|chain| {
            discard_pages(memory, &mut chain.readable);
            Some(0)
        })?;
        // Nothing was locked away: the guest may just use them.
        deflate.serve(|_| Some(0))?;
        report.serve(|chain| {
            for range in chain.writable.slices() {
                memory::discard(range);
            }
            Some(0)
        })?;
        for (token, _) in poller.wait()? {
            if let Token::Stop = token {
                return Ok(());
            }
        }
    }
}

/// Gives pages back to the host, neighbours together. Numbers of no page are passed over.
fn discard_pages(memory: &GuestMemory, numbers: &mut Buffers<'_>) {
    let mut left = BATCH;
    let mut run: Option<(u64, u64)> = None;
    while left > 0
        && let Ok(number) = numbers.read_object::<u32>()
    {
        left -= 1;
        let number = u64::from(number);
        run = Some(match run {
            Some((first, count)) if number == first + count => (first, count + 1),
            // Linux takes pages from the top of free memory downwards.
            Some((first, count)) if number + 1 == first => (number, count + 1),
            other => {
                discard_run(memory, other);
                (number, 1)
            }
        });
    }
    discard_run(memory, run);
}

fn discard_run(memory: &GuestMemory, run: Option<(u64, u64)>) {
    if let Some((first, count)) = run {
        memory::discard_range(memory, first * PAGE, count * PAGE);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::fake::{FakeDriver, WRITE};

    fn started() -> (Balloon, FakeDriver) {
        let mut balloon = Balloon::new();
        let driver = FakeDriver::new(&QUEUE_SIZES);
        balloon.activate(driver.context(0)).unwrap();
        (balloon, driver)
    }

    #[test]
    fn pages_in_the_balloon_are_given_back() {
        let (mut balloon, mut driver) = started();
        let page = |number: u64| GuestAddress(number * PAGE);
        for number in [1000, 1001, 1002, 1003] {
            driver.memory.write_obj(7u8, page(number)).unwrap();
        }
        let numbers: Vec<u8> = [1001u32, 1000, u32::MAX, 1003]
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        driver.add(0, &[&numbers], &[]);
        driver.kick(0);
        driver.wait_used(0);
        let seen = |number| driver.memory.read_obj::<u8>(page(number)).unwrap();
        assert_eq!([1000, 1001, 1002, 1003].map(seen), [0, 0, 7, 0]);
        balloon.reset();
    }

    #[test]
    fn reported_memory_is_given_back_and_odd_reports_are_harmless() {
        let (mut balloon, mut driver) = started();
        driver.add(2, &[], &[4096, 1]);
        driver.kick(2);
        driver.wait_used(2);
        driver.add(1, &[b"odd"], &[]);
        driver.kick(1);
        driver.wait_used(1);
        driver.add(0, &[b"odd"], &[]);
        driver.kick(0);
        driver.wait_used(0);
        balloon.reset();
    }

    #[test]
    fn a_report_may_be_of_much_memory() {
        let (mut balloon, mut driver) = started();
        let page = GuestAddress(20 << 20);
        driver.memory.write_obj(7u8, page).unwrap();
        let runs = [(16 << 20, 4 << 20, WRITE), (20 << 20, 4 << 20, WRITE)];
        driver.add_buffers(2, &[runs; 16].concat());
        driver.kick(2);
        driver.wait_used(2);
        assert_eq!(driver.memory.read_obj::<u8>(page).unwrap(), 0);
        balloon.reset();
    }

    #[test]
    fn the_guest_is_told_how_large_the_balloon_shall_be() {
        let (mut balloon, driver) = started();
        let size = balloon.size();
        size.want(8 << 20);
        assert_eq!(driver.wait_interrupt(), 2);
        let mut wanted = [0; 4];
        balloon.read_config(0, &mut wanted);
        assert_eq!(u32::from_le_bytes(wanted), 2048);
        balloon.write_config(ACTUAL, &5u32.to_le_bytes());
        balloon.write_config(0, &9u32.to_le_bytes());
        balloon.write_config(ACTUAL, &[1]);
        assert_eq!(size.actual(), 5 * PAGE);
        balloon.reset();
    }
}

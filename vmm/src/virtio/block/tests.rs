//! The block device against drivers and files that misbehave.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::fake::{Answer, FakeDriver, WRITE};

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Bytes that tell their position, never zero.
fn pattern(count: usize, seed: u8) -> Vec<u8> {
    (0..count)
        .map(|at| (at / 3 % 250) as u8 ^ seed | 1)
        .collect()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn part(bytes: &[u8], size: u64) -> Part {
    Part::new(OwnedFd::from(file(bytes)), size)
}

fn writable(file: &File) -> Disk {
    let bytes = file.metadata().unwrap().len();
    let part = Part::new(file.try_clone().unwrap().into(), bytes);
    Disk::new(vec![part], false, "disk".to_owned()).unwrap()
}

fn read_only(bytes: &[u8]) -> Disk {
    let part = part(bytes, bytes.len() as u64);
    Disk::new(vec![part], true, "root".to_owned()).unwrap()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut range = sector.to_le_bytes().to_vec();
    range.extend(sectors.to_le_bytes());
    range.extend(flags.to_le_bytes());
    range
}

/// A device with its driver, which asks one thing at a time.
struct Bench {
    block: Block,
    driver: FakeDriver,
}

impl Bench {
    fn new(disk: Disk) -> Self {
        Self::limited(disk, BlockLimits::default())
    }

    fn limited(disk: Disk, limits: BlockLimits) -> Self {
        let mut block = Block::new(disk, limits);
        let driver = FakeDriver::new(&[QUEUE_SIZE]);
        block.activate(driver.context(0)).unwrap();
        Self { block, driver }
    }

    fn ask(&mut self, readable: &[&[u8]], writable: &[u32]) -> Answer {
        self.driver.add(0, readable, writable);
        self.driver.kick(0);
        self.driver.wait_used(0)
    }

    /// Reads `bytes` in buffers of up to `buffer`.
    fn read(&mut self, sector: u64, bytes: usize, buffer: usize) -> Result<Vec<u8>, u8> {
        let mut buffers = vec![buffer as u32; bytes / buffer];
        buffers.extend(Some((bytes % buffer) as u32).filter(|rest| *rest > 0));
        buffers.push(1);
        let Answer {
            mut data, written, ..
        } = self.ask(&[&header(VIRTIO_BLK_T_IN, sector)], &buffers);
        match data.pop().unwrap() {
            OK => {
                assert_eq!(written as usize, bytes + 1);
                Ok(data)
            }
            status => Err(status),
        }
    }

    /// Sends a request without data to read, and returns its status.
    fn send(&mut self, kind: u32, sector: u64, data: &[u8]) -> u8 {
        self.ask(&[&header(kind, sector), data], &[1]).data[0]
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.block.reset();
    }
}

#[test]
fn parts_are_read_as_one_disk_with_zeroes_past_a_files_end() {
    let (a, b) = (pattern(8192, 0), pattern(5000, 0x40));
    let parts = vec![
        part(&a, 8192),
        part(&b, 8192),
        part(b"", 4096),
        part(&a, 512),
    ];
    let disk = Disk::new(parts, true, String::new()).unwrap();
    let mut whole = [&a[..], &b].concat();
    whole.resize(8192 + 8192 + 4096, 0);
    whole.extend(&a[..512]);
    let mut bench = Bench::new(disk);

    for buffer in [512, 4096, 1000, whole.len()] {
        assert_eq!(bench.read(0, whole.len(), buffer).unwrap(), whole);
    }
    assert_eq!(
        bench.read(15, 1024, 1024).unwrap(),
        whole[15 * 512..17 * 512]
    );
    assert_eq!(bench.read(40, 512, 512).unwrap(), a[..512]);
}

#[test]
fn what_is_written_is_read_back_and_in_the_file() {
    let file = file(&[0; 16384]);
    let mut bench = Bench::new(writable(&file));
    let data = pattern(4096, 0);

    let request = header(VIRTIO_BLK_T_OUT, 4);
    let answer = bench.ask(&[&request, &data[..1000], &data[1000..]], &[1]);
    assert_eq!((answer.written, &answer.data[..]), (1, &[OK][..]));
    assert_eq!(bench.send(VIRTIO_BLK_T_FLUSH, 0, b""), OK);

    assert_eq!(bench.read(4, 4096, 4096).unwrap(), data);
    let mut stored = vec![0; 4096];
    file.read_exact_at(&mut stored, 2048).unwrap();
    assert_eq!(stored, data);
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes() {
    for (kind, flags) in [(VIRTIO_BLK_T_DISCARD, 0), (VIRTIO_BLK_T_WRITE_ZEROES, 1)] {
        let data = pattern(64 << 10, 0);
        let mut bench = Bench::new(writable(&file(&data)));
        let ranges = [range(8, 8, flags), range(32, 16, flags)].concat();

        assert_eq!(bench.send(kind, 0, &ranges), OK);

        let mut wanted = data;
        wanted[8 * 512..16 * 512].fill(0);
        wanted[32 * 512..48 * 512].fill(0);
        assert_eq!(bench.read(0, wanted.len(), 4096).unwrap(), wanted);
    }
}

#[test]
fn the_driver_learns_size_and_name() {
    let mut bench = Bench::new(read_only(&[0; 8192]));
    let mut capacity = [0; 8];
    bench.block.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 16);

    let answer = bench.ask(&[&header(VIRTIO_BLK_T_GET_ID, 0)], &[20, 1]);
    assert_eq!(answer.written, 21);
    assert_eq!(answer.data, [&b"root"[..], &[0; 17]].concat());
}

#[test]
fn a13_a_read_only_disk_refuses_what_writes() {
    let data = pattern(8192, 0);
    let file = file(&data);
    // Even where the descriptor would let it.
    let part = Part::new(file.try_clone().unwrap().into(), 8192);
    let disk = Disk::new(vec![part], true, String::new()).unwrap();
    let mut bench = Bench::new(disk);
    assert_ne!(bench.block.features() & 1 << VIRTIO_BLK_F_RO, 0);

    assert_eq!(bench.send(VIRTIO_BLK_T_OUT, 0, &[0; 512]), IO_ERROR);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(bench.send(kind, 0, &range(0, 8, 0)), IO_ERROR);
    }
    assert_eq!(bench.send(VIRTIO_BLK_T_FLUSH, 0, b""), OK);

    let mut stored = vec![0; 8192];
    file.read_exact_at(&mut stored, 0).unwrap();
    assert_eq!(stored, data);
}

#[test]
fn requests_outside_of_the_disk_are_refused() {
    let mut bench = Bench::new(writable(&file(&[7; 8192])));
    for (sector, bytes) in [
        (16, 512),
        (15, 1024),
        (1 << 55, 512),
        (u64::MAX, 512),
        (0, 100),
    ] {
        assert_eq!(bench.read(sector, bytes, bytes), Err(IO_ERROR), "{sector}");
        let status = bench.send(VIRTIO_BLK_T_OUT, sector, &vec![0; bytes]);
        assert_eq!(status, IO_ERROR, "{sector}");
    }
    for (sector, sectors) in [(16, 1), (0, 17), (u64::MAX, 1), (0, u32::MAX)] {
        let status = bench.send(VIRTIO_BLK_T_DISCARD, 0, &range(sector, sectors, 0));
        assert_eq!(status, IO_ERROR, "{sector}");
    }
    // One bad range spoils its request before any of it is carried out.
    let ranges = [range(0, 8, 0), range(16, 1, 0)].concat();
    assert_eq!(bench.send(VIRTIO_BLK_T_DISCARD, 0, &ranges), IO_ERROR);
    assert_eq!(bench.read(0, 8192, 8192).unwrap(), [7; 8192]);
}

#[test]
fn malformed_requests_are_answered_where_there_is_room() {
    let mut bench = Bench::new(writable(&file(&[7; 8192])));
    assert_eq!(bench.send(99, 0, b""), UNSUPPORTED);
    let wrong_flag = range(0, 8, 1);
    assert_eq!(
        bench.send(VIRTIO_BLK_T_DISCARD, 0, &wrong_flag),
        UNSUPPORTED
    );
    assert_eq!(bench.send(VIRTIO_BLK_T_DISCARD, 0, &[0; 15]), IO_ERROR);
    let many = range(0, 8, 0).repeat(request::MAX_RANGES as usize + 1);
    assert_eq!(bench.send(VIRTIO_BLK_T_DISCARD, 0, &many), IO_ERROR);
    // No whole header.
    assert_eq!(bench.ask(&[&[0; 15]], &[1]).data, [IO_ERROR]);
    // No room for a status.
    assert_eq!(bench.ask(&[&header(VIRTIO_BLK_T_FLUSH, 0)], &[]).written, 0);
    assert_eq!(bench.read(0, 512, 512).unwrap(), [7; 512]);
}

#[test]
fn a54_a_failing_file_is_never_success() {
    // A descriptor that only reads fails each write.
    let source = tempfile::NamedTempFile::new().unwrap();
    source.as_file().set_len(8192).unwrap();
    let part = Part::new(File::open(source.path()).unwrap().into(), 8192);
    let mut bench = Bench::new(Disk::new(vec![part], false, String::new()).unwrap());
    assert_eq!(bench.send(VIRTIO_BLK_T_OUT, 0, &[1; 512]), IO_ERROR);

    // A pipe has no positions to read from.
    let (reader, _writer) = std::io::pipe().unwrap();
    let part = Part::new(OwnedFd::from(reader), 8192);
    let mut bench = Bench::new(Disk::new(vec![part], true, String::new()).unwrap());
    assert_eq!(bench.read(0, 512, 512), Err(IO_ERROR));
}

#[test]
fn a05_overlapping_buffers_cost_no_memory() {
    let mut bench = Bench::new(read_only(&pattern(1 << 20, 0)));
    let request = header(VIRTIO_BLK_T_IN, 0);
    let address = bench.driver.allocate(16);
    bench
        .driver
        .memory
        .write_slice(&request, GuestAddress(address))
        .unwrap();
    let data = bench.driver.allocate(1 << 20);
    let mut buffers = vec![(address, 16, 0)];
    buffers.extend([(data, 1 << 20, WRITE); 63]);
    buffers.push((data, 1, WRITE));
    bench.driver.add_buffers(0, &buffers);
    bench.driver.kick(0);

    // More than the disk has: refused, without a byte of it being read.
    let answer = bench.driver.wait_used(0);
    assert_eq!(answer.data.last(), Some(&IO_ERROR));
}

#[test]
fn disks_that_make_no_sense_are_refused() {
    let disk = |sizes: &[u64], read_only, serial: &str| {
        let parts = sizes.iter().map(|size| part(b"", *size)).collect();
        Disk::new(parts, read_only, serial.to_owned()).map(drop)
    };
    assert_eq!(disk(&[4096, 512], true, "12345678901234567890"), Ok(()));
    assert_eq!(disk(&[], true, ""), Err(DiskError::PartCount(0)));
    assert_eq!(disk(&[512, 512], false, ""), Err(DiskError::PartCount(2)));
    assert!(matches!(
        disk(&[512, 512], true, ""),
        Err(DiskError::PartSize { index: 0, .. })
    ));
    assert!(matches!(
        disk(&[4096, 100], true, ""),
        Err(DiskError::PartSize { index: 1, .. })
    ));
    assert_eq!(disk(&[0], true, ""), Err(DiskError::Size));
    assert_eq!(disk(&[1 << 63], true, ""), Err(DiskError::Size));
    assert_eq!(disk(&[1 << 63, 1 << 63], true, ""), Err(DiskError::Size));
    assert!(matches!(
        disk(&[512], true, "123456789012345678901"),
        Err(DiskError::Serial(_))
    ));
    assert!(matches!(
        disk(&[512], true, "pïll"),
        Err(DiskError::Serial(_))
    ));
}

proptest! {
    #[test]
    fn any_request_is_answered_and_a_disk_keeps_to_its_file(
        kind in prop_oneof![Just(0u32), Just(1), Just(4), Just(8), Just(11), Just(13), any::<u32>()],
        sector in prop_oneof![0..20u64, any::<u64>()],
        body in proptest::collection::vec(any::<u8>(), 0..1100),
        writable_bytes in proptest::collection::vec(0..1100u32, 0..4),
    ) {
        let file = file(&[7; 8192]);
        let mut bench = Bench::new(writable(&file));
        let answer = bench.ask(&[&header(kind, sector), &body], &writable_bytes);
        let room = writable_bytes.iter().sum::<u32>();
        prop_assert!(answer.written <= room);
        if room > 0 {
            prop_assert!(*answer.data.last().unwrap() <= UNSUPPORTED);
        }
        prop_assert_eq!(file.metadata().unwrap().len(), 8192);
    }
}

#[test]
fn writes_wait_for_their_limit_and_are_counted() {
    let disk = Disk::new(vec![part(&[], 1 << 20)], false, String::new()).unwrap();
    let limits = BlockLimits {
        write_bytes: Some(1 << 20),
        ..BlockLimits::default()
    };
    let mut bench = Bench::limited(disk, limits);
    let meter = bench.block.meter();
    let start = Instant::now();
    for _ in 0..4 {
        assert_eq!(bench.send(VIRTIO_BLK_T_OUT, 0, &[7; 100 * 1024]), OK);
    }
    // A burst of 102.4 KiB, one request in debt, and the rest at 1 MiB a second.
    assert!(start.elapsed() > Duration::from_millis(150));
    let traffic = meter.traffic();
    assert_eq!((traffic.outs, traffic.out_bytes), (4, 400 * 1024));
    bench.read(0, 4096, 4096).unwrap();
    assert_eq!(meter.traffic().in_bytes, 4096);
}

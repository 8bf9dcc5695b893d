//! From a [`VmConfig`] and its descriptors to a machine that runs, and from there to its end.

mod slots;

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::{Bus, Overlap};
use crate::config::{BlockConfig, DescriptorIndex, SerialConfig, VmConfig};
use crate::control::{Counters, Ending};
use crate::kernel::{self, KernelError};
use crate::memory::{self, GuestMemory, MemoryError};
use crate::output::Output;
use crate::panic;
use crate::serial::{self, Serial};
use crate::throttle::Throttle;
use crate::vcpu::{self, Gate, Reason, Vcpu, VcpuEnd, VcpuHandle, VcpuStartError};
use crate::virtio::block::{Block, Disk, DiskError, Part};
use crate::virtio::fs::{Fs, FsError};
use crate::virtio::net::{Net, NetError, NetRates};
use crate::virtio::{Balloon, BalloonSize, Connector, Console, ConsoleTail, Meter, Rng, Vsock};
use crate::x86::{boot, cpuid, layout, mptable, registers};
use slots::Slots;

pub use slots::SlotError;

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The number of vCPUs.
    #[error("a machine has 1 to {most} vCPUs, not {0}", most = VmConfig::MAX_VCPUS)]
    Vcpus(u8),
    /// The configuration names a descriptor that did not come with it, or names one twice.
    #[error("descriptor {} is missing", .0.0)]
    Descriptor(DescriptorIndex),
    /// A call to KVM.
    #[error("KVM cannot {what}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// From the ioctl.
        #[source]
        source: Errno,
    },
    /// Guest memory.
    #[error("cannot set up guest memory")]
    Memory(#[from] MemoryError),
    /// Kernel or initramfs.
    #[error("cannot load what boots")]
    Kernel(#[from] KernelError),
    /// The command line with what the devices add.
    #[error("kernel command line of {0} bytes is over {most}", most = layout::COMMAND_LINE_SIZE - 1)]
    CommandLine(usize),
    /// Entropy for the kernel's seed.
    #[error("cannot get random bytes")]
    Seed(#[source] getrandom::Error),
    /// Tables in low memory.
    #[error("cannot write the boot tables")]
    Tables(#[source] GuestMemoryError),
    /// A disk.
    #[error("cannot make block device {index}")]
    Disk {
        /// Position in the configuration.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: DiskError,
    },
    /// A network device.
    #[error("cannot make network device {index}")]
    Net {
        /// Position in the configuration.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: NetError,
    },
    /// The file system device.
    #[error("cannot make the file system device")]
    Fs(#[from] FsError),
    /// Where a console writes to.
    #[error("cannot write console output without waiting")]
    Output(#[source] io::Error),
    /// The serial port.
    #[error("cannot connect the serial port")]
    Serial(#[source] SerialError),
    /// A place for a device.
    #[error("cannot connect a device")]
    Slot(#[from] SlotError),
    /// The limit of its processor time.
    #[error("cannot limit its processor time")]
    Throttle(#[source] io::Error),
    /// A vCPU's thread.
    #[error("cannot start the machine")]
    Start(#[from] VcpuStartError),
}

/// A machine that is complete and has not run yet.
pub struct Machine {
    vm: VmFd,
    vcpus: Vec<Vcpu>,
    /// Told of its end by vCPUs and devices.
    sender: Sender<VcpuEnd>,
    ends: Receiver<VcpuEnd>,
    console_tail: ConsoleTail,
    controls: Controls,
    /// Mapped for as long as `vm` refers to it.
    memory: GuestMemory,
}

/// A machine that runs.
pub struct RunningMachine {
    ends: Receiver<VcpuEnd>,
    controls: Controls,
    console_tail: ConsoleTail,
    _vm: VmFd,
    _memory: GuestMemory,
}

/// What can be asked of a machine while it runs; clones are of the same one.
#[derive(Clone, Default)]
pub struct Controls {
    balloon: Option<BalloonSize>,
    blocks: Vec<Meter>,
    nets: Vec<Meter>,
    gate: Arc<Gate>,
    throttle: Arc<Throttle>,
    /// Empty until it is started.
    vcpus: Arc<Mutex<Vec<VcpuHandle>>>,
}

impl Controls {
    /// Asks the guest to do without `bytes` of its memory; nothing happens to one without a balloon.
    pub fn balloon(&self, bytes: u64) {
        if let Some(size) = &self.balloon {
            size.want(bytes);
        }
    }

    /// Takes all vCPUs out of the guest until [`resume`](Self::resume): nothing of it runs. Its devices finish what they
    /// were given.
    pub fn pause(&self) {
        self.close(Reason::Paused);
    }

    /// Lets the vCPUs go on.
    pub fn resume(&self) {
        self.gate.open(Reason::Paused);
    }

    /// Limits the machine to `nano_cpus` billionths of a processor, or no more.
    ///
    /// # Errors
    ///
    /// When the host has no thread left.
    pub fn throttle(&self, nano_cpus: Option<u64>) -> io::Result<()> {
        let (hold, release) = (self.clone(), self.clone());
        self.throttle.limit(
            nano_cpus,
            move || hold.close(Reason::Throttled),
            move || release.gate.open(Reason::Throttled),
        )
    }

    fn close(&self, reason: Reason) {
        self.gate.close(reason);
        for vcpu in &mut *self.vcpus() {
            vcpu.kick();
        }
    }

    fn vcpus(&self) -> MutexGuard<'_, Vec<VcpuHandle>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What passed the devices so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            blocks: self.blocks.iter().map(Meter::traffic).collect(),
            nets: self.nets.iter().map(Meter::traffic).collect(),
            balloon_bytes: self.balloon.as_ref().map_or(0, BalloonSize::actual),
        }
    }
}

/// The descriptors that came with a configuration; each is taken once.
struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    fn take(&mut self, index: DescriptorIndex) -> Result<OwnedFd, MachineError> {
        self.0
            .get_mut(usize::from(index.0))
            .and_then(Option::take)
            .ok_or(MachineError::Descriptor(index))
    }

    fn take_output(
        &mut self,
        index: Option<DescriptorIndex>,
    ) -> Result<Option<Output>, MachineError> {
        let Some(index) = index else {
            return Ok(None);
        };
        let output = Output::new(self.take(index)?.into());
        Ok(Some(output.map_err(MachineError::Output)?))
    }
}

impl Machine {
    /// Builds the machine that `config` describes. What its guest connects to is given to
    /// `connector`.
    ///
    /// # Errors
    ///
    /// For a configuration that makes no sense, and when the host cannot provide it.
    pub fn new(
        config: VmConfig,
        descriptors: Vec<OwnedFd>,
        connector: Connector,
    ) -> Result<Self, MachineError> {
        if !(1..=VmConfig::MAX_VCPUS).contains(&config.vcpus) {
            return Err(MachineError::Vcpus(config.vcpus));
        }
        let mut descriptors = Descriptors(descriptors.into_iter().map(Some).collect());
        let kvm = open_kvm(descriptors.take(config.kvm)?);
        let memory = memory::map(descriptors.take(config.memory.memfd)?, config.memory.bytes)?;
        let vm = create_vm(&kvm, &memory)?;

        let (sender, ends) = channel();
        let mut slots = Slots::new(&vm, memory.clone(), sender.clone());
        let mut controls = Controls::default();
        for (index, block) in config.blocks.into_iter().enumerate() {
            let limits = block.limits;
            let disk = disk(block, &mut descriptors)?
                .map_err(|source| MachineError::Disk { index, source })?;
            let block = Block::new(disk, limits);
            controls.blocks.push(block.meter());
            slots.add(Box::new(block))?;
        }
        let output = descriptors.take_output(config.console.output)?;
        let console = Console::new(output);
        let console_tail = console.tail();
        slots.add(Box::new(console))?;
        let rates = NetRates::new(&config.net_limits);
        for (index, net) in config.nets.into_iter().enumerate() {
            let queues = net.descriptors.iter().map(|&one| descriptors.take(one));
            let queues = queues.collect::<Result<_, _>>()?;
            let net = Net::new(&net, &rates, queues)
                .map_err(|source| MachineError::Net { index, source })?;
            controls.nets.push(net.meter());
            slots.add(Box::new(net))?;
        }
        if let Some(fs) = config.fs {
            let server = descriptors.take(fs.server)?;
            slots.add(Box::new(Fs::new(&fs.tag, server)?))?;
        }
        if let Some(vsock) = config.vsock {
            slots.add(Box::new(Vsock::new(vsock, connector)))?;
        }
        if config.balloon {
            let balloon = Balloon::new();
            controls.balloon = Some(balloon.size());
            slots.add(Box::new(balloon))?;
        }
        if config.rng {
            slots.add(Box::new(Rng::new()))?;
        }
        let (mmio, device_arguments) = slots.finish();
        let mut ports = Bus::default();
        if let Some(SerialConfig { output }) = config.serial
            && let Some(output) = descriptors.take_output(Some(output))?
        {
            add_serial(&vm, &mut ports, output).map_err(MachineError::Serial)?;
        }
        let (mmio, ports) = (Arc::new(mmio), Arc::new(ports));

        let kernel = kernel::load(&memory, descriptors.take(config.kernel.image)?)?;
        let initramfs = match config.kernel.initramfs {
            Some(index) => {
                let file = descriptors.take(index)?;
                Some(kernel::load_initramfs(&memory, file, kernel)?)
            }
            None => None,
        };
        let command_line = config.kernel.command_line + &device_arguments;
        if command_line.len() >= layout::COMMAND_LINE_SIZE {
            return Err(MachineError::CommandLine(command_line.len()));
        }
        let mut seed = [0; boot::SEED];
        getrandom::fill(&mut seed).map_err(MachineError::Seed)?;
        boot::write(&memory, &command_line, initramfs, &seed)
            .and_then(|()| mptable::write(&memory, config.vcpus))
            .and_then(|()| registers::write_tables(&memory))
            .map_err(MachineError::Tables)?;

        if config.nano_cpus.is_some() {
            controls
                .throttle(config.nano_cpus)
                .map_err(MachineError::Throttle)?;
        }
        let vcpus = create_vcpus(&kvm, &vm, config.vcpus, kernel.entry)?;
        let vcpus = (0..).zip(vcpus).map(|(id, fd)| {
            // One bus of each kind for all.
            Vcpu::new(fd, id, ports.clone(), mmio.clone(), controls.gate.clone())
        });
        Ok(Self {
            vcpus: vcpus.collect(),
            vm,
            sender,
            ends,
            console_tail,
            controls,
            memory,
        })
    }

    /// What can be asked of it while it runs.
    #[must_use]
    pub fn controls(&self) -> Controls {
        self.controls.clone()
    }

    /// Lets all vCPUs run.
    ///
    /// # Errors
    ///
    /// When the host has no thread left for one of them.
    pub fn start(self) -> Result<RunningMachine, MachineError> {
        vcpu::install_kick()?;
        let run_size = self.vm.run_size();
        let mut vcpus = self.controls.vcpus();
        // The one that boots comes last: the others wait in KVM until it starts them.
        for vcpu in self.vcpus.into_iter().rev() {
            vcpus.push(vcpu.start(run_size, self.sender.clone())?);
        }
        drop(vcpus);
        Ok(RunningMachine {
            ends: self.ends,
            controls: self.controls,
            console_tail: self.console_tail,
            _vm: self.vm,
            _memory: self.memory,
        })
    }
}

impl RunningMachine {
    /// Sleeps until the machine ends.
    #[must_use]
    pub fn wait(&self) -> Ending {
        match self.ends.recv() {
            Ok(VcpuEnd::PowerOff) => Ending::PowerOff,
            // A kernel that panics says so on its console, then resets.
            Ok(VcpuEnd::Reset) => match panic::message(&self.console_tail.bytes()) {
                Some(message) => Ending::Panic { message },
                None => Ending::Reset,
            },
            Ok(VcpuEnd::TripleFault) => Ending::TripleFault,
            Ok(VcpuEnd::Failed(error)) => Ending::HostError {
                message: error_chain(&error),
            },
            Ok(VcpuEnd::Device(error)) => Ending::HostError {
                message: error_chain(&error),
            },
            Ok(VcpuEnd::Stopped) | Err(_) => Ending::Killed,
        }
    }

    /// Stops all vCPUs and releases the machine. A process that is about to exit has no need to.
    pub fn stop(self) {
        self.controls.close(Reason::Stopped);
        for vcpu in self.controls.vcpus().drain(..) {
            vcpu.join();
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn kvm_error(what: &'static str) -> impl Fn(Errno) -> MachineError {
    move |source| MachineError::Kvm { what, source }
}

fn open_kvm(fd: OwnedFd) -> Kvm {
    // SAFETY: The descriptor is open and nobody else's: it was just taken out of its owner.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// A virtual machine with its memory and interrupt controllers. The memory comes first, which is
/// cheaper: without interrupt controllers KVM has no readers to wait for.
fn create_vm(kvm: &Kvm, memory: &GuestMemory) -> Result<VmFd, MachineError> {
    let vm = loop {
        match kvm.create_vm() {
            // Creation waits for the kernel's housekeeping and can be interrupted.
            Err(error) if error.errno() == libc::EINTR => {}
            result => break result.map_err(kvm_error("create a virtual machine"))?,
        }
    };
    for (slot, region) in (0..).zip(memory.iter()) {
        let description = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: The range is a mapping of that size, which no reference points into, and which
        // stays while the machine does: both are dropped together, the machine first.
        unsafe { vm.set_user_memory_region(description) }.map_err(kvm_error("add guest memory"))?;
    }
    vm.set_tss_address(layout::KVM_TSS as usize)
        .map_err(kvm_error("set the address of its task state segment"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(kvm_error("set the address of its identity map"))?;
    vm.create_irq_chip()
        .map_err(kvm_error("create the interrupt controllers"))?;
    Ok(vm)
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, count: u8, entry: u64) -> Result<Vec<VcpuFd>, MachineError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("say what processors it supports"))?;
    let tsc_deadline = vm.check_extension(Cap::TscDeadlineTimer);
    let model_specific = registers::model_specific();
    let mut vcpus = Vec::with_capacity(count.into());
    for id in 0..count {
        let vcpu = vm
            .create_vcpu(id.into())
            .map_err(kvm_error("create a vCPU"))?;
        vcpu.set_cpuid2(&cpuid::for_vcpu(&supported, id, count, tsc_deadline))
            .map_err(kvm_error("set the CPUID of a vCPU"))?;
        vcpu.set_msrs(&model_specific)
            .map_err(kvm_error("set the model-specific registers of a vCPU"))?;
        if id == 0 {
            let mut sregs = vcpu
                .get_sregs()
                .map_err(kvm_error("read the registers of a vCPU"))?;
            registers::set_long_mode(&mut sregs);
            vcpu.set_sregs(&sregs)
                .and_then(|()| vcpu.set_regs(&registers::general(entry)))
                .map_err(kvm_error("set the registers of a vCPU"))?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// Why there is no serial port.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// Its interrupt.
    #[error("cannot create its interrupt")]
    Event(#[source] io::Error),
    /// `KVM_IRQFD`.
    #[error("KVM cannot connect its interrupt")]
    Irqfd(#[source] Errno),
    /// Its ports are taken.
    #[error("cannot place it")]
    Place(#[source] Overlap),
}

fn add_serial(vm: &VmFd, ports: &mut Bus, output: Output) -> Result<(), SerialError> {
    let line = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(SerialError::Event)?;
    vm.register_irqfd(&line, serial::GSI)
        .map_err(SerialError::Irqfd)?;
    let serial = Arc::new(Mutex::new(Serial::new(line, output)));
    ports
        .insert(serial::PORT.into(), serial::PORTS, serial)
        .map_err(SerialError::Place)
}

fn disk(
    config: BlockConfig,
    descriptors: &mut Descriptors,
) -> Result<Result<Disk, DiskError>, MachineError> {
    let mut parts = Vec::with_capacity(config.parts.len());
    for part in config.parts {
        parts.push(Part::new(descriptors.take(part.file)?, part.bytes));
    }
    Ok(Disk::new(parts, config.read_only, config.serial))
}

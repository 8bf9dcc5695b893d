//! All connections of one guest: takes its packets and finds the next one for it.
//!
//! Connections are opened by the guest only. Memory is bounded by [`MAX_CONNECTIONS`], each
//! connection's buffer and [`MAX_RESETS`]; beyond these the guest is refused or has to wait.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::connection::{Connection, Violation};
use super::packet::{HOST_CID, Header, TYPE_STREAM, op};
use super::{Connector, Token};
use crate::config::VsockConfig;
use crate::virtio::{Buffers, Poller};

/// Most connections at a time, those included that only deliver what the guest left behind.
pub const MAX_CONNECTIONS: usize = 512;

/// Unsent refusals from which on no packet of the guest is taken.
const MAX_RESETS: usize = 256;

/// Names a connection for good, where a guest may use its ports again.
pub type ConnectionId = u64;

/// The two ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Endpoint {
    guest_port: u32,
    host_port: u32,
}

/// The host's side of the socket device.
pub struct Mux {
    guest_cid: u64,
    host_ports: Vec<u32>,
    connector: Connector,
    poller: Poller<Token>,
    slots: BTreeMap<ConnectionId, Slot>,
    /// The connections that the guest knows.
    open: BTreeMap<Endpoint, ConnectionId>,
    next_id: ConnectionId,
    resets: VecDeque<Header>,
    /// Connections with a packet for the guest, each once, in the order of their turns.
    turns: VecDeque<ConnectionId>,
    /// Connections that something happened to since [`Mux::settle`], each once.
    touched: Vec<ConnectionId>,
}

struct Slot {
    connection: Connection,
    endpoint: Endpoint,
    /// What the poller waits for; nothing where it does not know the socket.
    awaited: Option<EventSet>,
    is_open: bool,
    has_turn: bool,
    is_touched: bool,
}

impl Mux {
    /// No connections yet; `poller` already knows the queues.
    pub fn new(config: &VsockConfig, connector: Connector, poller: Poller<Token>) -> Mux {
        Mux {
            guest_cid: u64::from(config.guest_cid),
            host_ports: config.host_ports.clone(),
            connector,
            poller,
            slots: BTreeMap::new(),
            open: BTreeMap::new(),
            next_id: 0,
            resets: VecDeque::new(),
            turns: VecDeque::new(),
            touched: Vec::new(),
        }
    }

    /// Waits for the worker to be stopped, too.
    pub fn watch_stop(&mut self, stop: &EventFd) -> std::io::Result<()> {
        self.poller.add(stop, EventSet::IN, Token::Stop)
    }

    /// Sleeps until something happens to a queue or a connection.
    pub fn wait(&self) -> std::io::Result<Vec<(Token, EventSet)>> {
        self.poller.wait()
    }

    /// Whether the guest's packets may be taken: refusals do not pile up.
    pub fn accepts(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether [`transmit`](Self::transmit) may have something.
    pub fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// Takes a packet of the guest.
    pub fn receive(&mut self, packet: &mut Buffers<'_>) {
        let mut bytes = [0; Header::SIZE];
        if packet.read(&mut bytes).is_err() {
            // Too short to tell whom to answer.
            return;
        }
        let header = Header::decode(&bytes);
        let is_ours = header.src_cid == self.guest_cid
            && header.dst_cid == HOST_CID
            && header.kind == TYPE_STREAM;
        if !is_ours {
            if header.op != op::RST {
                self.refuse(&header);
            }
            return;
        }
        let endpoint = Endpoint {
            guest_port: header.src_port,
            host_port: header.dst_port,
        };
        match self.open.get(&endpoint).copied() {
            Some(id) => self.receive_on(id, &header, packet),
            None if header.op == op::REQUEST && header.len == 0 => {
                if self.connect(endpoint, &header).is_none() {
                    self.refuse(&header);
                }
            }
            None if header.op == op::RST => {}
            None => self.refuse(&header),
        }
    }

    /// Writes the next packet for the guest into a buffer of its; how many bytes. `None` when there
    /// is no packet for it.
    pub fn transmit(&mut self, buffer: &mut Buffers<'_>) -> Option<u32> {
        let Ok(mut head) = buffer.take(Header::SIZE) else {
            // Useless, and giving it back is the only way past it.
            return Some(0);
        };
        let header = match self.resets.pop_front() {
            Some(reset) => reset,
            None => self.next_packet(buffer)?,
        };
        // It has the header's size.
        let _ = head.write(&header.encode());
        Some(Header::SIZE as u32 + header.len)
    }

    /// Something happened on the socket of a connection.
    pub fn on_socket(&mut self, id: ConnectionId, events: EventSet) {
        // It may be gone since the event was reported.
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.connection.on_socket(events);
            self.touch(id);
        }
    }

    /// Ends what is through and waits for what the rest now depend on. To be called before
    /// [`wait`](Self::wait).
    pub fn settle(&mut self) {
        for id in std::mem::take(&mut self.touched) {
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            slot.is_touched = false;
            let is_through = !slot.is_open && !slot.connection.is_draining();
            if is_through {
                self.drop_slot(id);
            } else if update_interest(&mut self.poller, id, slot).is_err() {
                // The host has no room for one more watch.
                let (endpoint, is_known) = (slot.endpoint, slot.is_open);
                self.drop_slot(id);
                if is_known {
                    self.open.remove(&endpoint);
                    self.resets.push_back(self.reset_of(endpoint));
                }
            }
        }
    }

    fn next_packet(&mut self, payload: &Buffers<'_>) -> Option<Header> {
        for _ in 0..self.turns.len() {
            let id = self.turns.pop_front()?;
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            slot.has_turn = false;
            let packet = slot.connection.next_packet(payload);
            let header = packet.map(|(op, flags, len)| {
                let mut header = Header {
                    src_cid: HOST_CID,
                    dst_cid: self.guest_cid,
                    src_port: slot.endpoint.host_port,
                    dst_port: slot.endpoint.guest_port,
                    len,
                    op,
                    flags,
                    ..Header::default()
                };
                slot.connection.stamp(&mut header);
                header
            });
            self.touch(id);
            if header.is_some() {
                return header;
            }
        }
        None
    }

    fn receive_on(&mut self, id: ConnectionId, header: &Header, packet: &mut Buffers<'_>) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        if header.op == op::RST {
            self.close(id);
            return;
        }
        let outcome = take_packet(&mut slot.connection, header, packet);
        if outcome.is_err() || slot.connection.is_closed_by_guest() {
            self.refuse(header);
            self.close(id);
        }
        self.touch(id);
    }

    /// Opens the connection that `request` asks for; `None` when it must not or cannot be.
    fn connect(&mut self, endpoint: Endpoint, request: &Header) -> Option<()> {
        if !self.host_ports.contains(&endpoint.host_port) || self.slots.len() >= MAX_CONNECTIONS {
            return None;
        }
        let (ours, theirs) = UnixStream::pair().ok()?;
        ours.set_nonblocking(true).ok()?;
        (self.connector)(endpoint.host_port, theirs.into()).ok()?;
        let id = self.next_id;
        self.next_id += 1;
        self.open.insert(endpoint, id);
        self.slots.insert(
            id,
            Slot {
                connection: Connection::new(ours, request),
                endpoint,
                awaited: None,
                is_open: true,
                has_turn: false,
                is_touched: false,
            },
        );
        self.touch(id);
        Some(())
    }

    /// The guest knows the connection no longer; what it sent before still gets to the host.
    fn close(&mut self, id: ConnectionId) {
        if let Some(slot) = self.slots.get_mut(&id) {
            self.open.remove(&slot.endpoint);
            slot.is_open = false;
            slot.connection.detach();
            self.drop_turn(id);
            self.touch(id);
        }
    }

    /// Guests that open and end connections without ever taking a packet must not leave turns
    /// behind.
    fn drop_turn(&mut self, id: ConnectionId) {
        if let Some(slot) = self.slots.get_mut(&id)
            && std::mem::take(&mut slot.has_turn)
        {
            self.turns.retain(|&turn| turn != id);
        }
    }

    fn drop_slot(&mut self, id: ConnectionId) {
        self.drop_turn(id);
        if let Some(slot) = self.slots.remove(&id)
            && slot.awaited.is_some()
        {
            // Closing the socket takes it off too; this keeps the poller's own table small.
            let _ = self.poller.remove(slot.connection.socket());
        }
    }

    fn touch(&mut self, id: ConnectionId) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        if !slot.has_turn && slot.is_open && slot.connection.has_packet() {
            slot.has_turn = true;
            self.turns.push_back(id);
        }
        if !slot.is_touched {
            slot.is_touched = true;
            self.touched.push(id);
        }
    }

    /// Answers a packet with RST. That comes from where the packet went, whatever that is: by it
    /// the driver finds its socket.
    fn refuse(&mut self, header: &Header) {
        self.resets.push_back(Header {
            src_cid: header.dst_cid,
            dst_cid: self.guest_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            kind: header.kind,
            op: op::RST,
            ..Header::default()
        });
    }

    fn reset_of(&self, endpoint: Endpoint) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: endpoint.host_port,
            dst_port: endpoint.guest_port,
            kind: TYPE_STREAM,
            op: op::RST,
            ..Header::default()
        }
    }
}

/// Lets an open connection take a packet that is neither REQUEST nor RST.
fn take_packet(
    connection: &mut Connection,
    header: &Header,
    packet: &mut Buffers<'_>,
) -> Result<(), Violation> {
    connection.update_credit(header)?;
    if header.op == op::RW {
        let payload = packet.take(header.len as usize).map_err(|_| Violation)?;
        return connection.receive(&payload);
    }
    if header.len != 0 {
        return Err(Violation);
    }
    match header.op {
        op::SHUTDOWN => connection.guest_shutdown(header.flags),
        op::CREDIT_UPDATE => {}
        op::CREDIT_REQUEST => connection.request_credit(),
        _ => return Err(Violation),
    }
    Ok(())
}

fn update_interest(
    poller: &mut Poller<Token>,
    id: ConnectionId,
    slot: &mut Slot,
) -> std::io::Result<()> {
    let wanted = slot.connection.interest();
    let socket = slot.connection.socket();
    match (slot.awaited, wanted) {
        (None, Some(events)) => poller.add(socket, events, Token::Connection(id))?,
        (Some(before), Some(events)) if before != events => poller.modify(socket, events)?,
        (Some(_), None) => poller.remove(socket)?,
        _ => {}
    }
    slot.awaited = wanted;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::VolatileSlice;

    use super::*;

    fn send(mux: &mut Mux, guest_port: u32, op: u16) {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: 1,
            kind: TYPE_STREAM,
            op,
            ..Header::default()
        };
        let mut bytes = header.encode();
        let mut packet = Buffers::default();
        packet.push(VolatileSlice::from(&mut bytes[..]));
        mux.receive(&mut packet);
        mux.settle();
    }

    #[test]
    fn a09_connections_opened_and_ended_without_taking_a_packet_leave_nothing() {
        let config = VsockConfig {
            guest_cid: 3,
            host_ports: vec![1],
        };
        let connector = Arc::new(|_, _| Ok(()));
        let mut mux = Mux::new(&config, connector, Poller::new().unwrap());
        for _ in 0..3 {
            for port in 0..10 {
                send(&mut mux, port, op::REQUEST);
            }
            for port in 0..10 {
                send(&mut mux, port, op::RST);
            }
        }
        assert!(!mux.has_packet());
        assert!(mux.slots.is_empty() && mux.open.is_empty() && mux.touched.is_empty());
    }
}

//! Two data planes that carry everything to each other, and an allocator that counts: once the lists have their size, no packet
//! asks for memory, whatever becomes of it.

use std::num::NonZeroU16;

use super::*;
use crate::crypto::Provider;
use crate::esp::{DataPlane, Inbox, Incoming, Outbox};
use crate::model::{Drops, Gso};
use crate::sys::testing::allocations;
use crate::wire::segment::Split;
use crate::wire::testing::Recipe;

const NOW: Instant = Instant::ORIGIN;

/// One end, with a kernel's memory in front of it and behind it.
struct End {
    plane: DataPlane,
    outbox: Outbox,
    inbox: Inbox,
    incoming: Vec<Incoming>,
    buffer: Vec<u8>,
    /// Inner packets that came out.
    received: usize,
}

impl End {
    /// Host `own` with an SA to host `other`, over a path that is narrower than the device.
    fn new(own: u8, other: u8, (inbound, outbound): (Spi, Spi), path: Path) -> Self {
        let config = crate::esp::Config { worker: WorkerIndex(0), provider: Provider::Ring, tun_mtu: 1400 };
        let plane = DataPlane::new(config, Arc::new(Drops::default()));
        let (outbox, buffer) = (Outbox::new(256 << 10, 256), vec![0; 256 << 10]);
        let incoming = Vec::with_capacity(256);
        let mut end = Self { plane, outbox, inbox: Inbox::default(), incoming, buffer, received: 0 };
        let install =
            Update::Install { child: Box::new(child(path, inbound, outbound)), counters: Arc::default(), ticket: Ticket(1) };
        let mut released = Vec::new();
        let narrow = Update::PathLimit(PEER, Some(1300));
        for update in [routes(own, other, WorkerIndex(0)).1, install, Update::Activate(inbound), narrow] {
            end.plane.handle_update(NOW, update, &mut end.outbox, &mut released);
        }
        end
    }

    /// Hands in what the device holds, super-packets as such, and sends as often as that takes.
    fn send(&mut self, whole: &[u8], gso: Option<Gso>, to: &mut Self) {
        let Some(gso) = gso else {
            if !self.outbox.has_room() {
                self.flush(to);
            }
            self.plane.handle_inner(NOW, whole, &mut self.outbox);
            return;
        };
        let split = Split::parse(whole, gso).unwrap().expect("more than one packet");
        let mut next = 0;
        while next < split.count() {
            self.plane.handle_split(NOW, &split, &mut next, &mut self.outbox);
            self.flush(to);
        }
    }

    /// Everything that was sealed arrives, and once more: a replay.
    fn flush(&mut self, to: &mut Self) {
        self.plane.seal_pending(&mut self.outbox);
        let (datagrams, octets) = self.outbox.datagrams();
        for _ in 0..2 {
            to.buffer.copy_from_slice(octets);
            to.incoming.clear();
            to.incoming.extend(datagrams.iter().map(|datagram| {
                let path = Path { local: datagram.path.remote, remote: datagram.path.local };
                Incoming { start: datagram.start, len: datagram.len, path, ecn: datagram.ecn }
            }));
            to.plane.handle_outer(NOW, &mut to.buffer, &to.incoming, true, &mut to.inbox);
            to.received += to.inbox.packets.len();
        }
        self.outbox.clear();
        while self.plane.poll_event().or_else(|| to.plane.poll_event()).is_some() {}
        self.plane.handle_timeout(NOW);
    }
}

/// What hosts send: alone and as super-packets, of both families, too long for the path with DF and without, and for nobody.
fn everything(own: u8) -> Vec<(Vec<u8>, Option<Gso>)> {
    let other = 3 - own;
    let tcp = |size| Some(Gso::Tcp(NonZeroU16::new(size).unwrap()));
    let udp = |size| Some(Gso::Udp(NonZeroU16::new(size).unwrap()));
    let mut all = Vec::new();
    for v6 in [false, true] {
        for len in [0, 1, 64, 500, 1100] {
            all.push((Recipe::new(v6, false, &vec![5; len]).build(), None));
        }
        all.push((Recipe { dont_fragment: false, ..Recipe::new(v6, false, &[6; 1300]) }.build(), None));
        all.push((Recipe::new(v6, false, &[7; 1330]).build(), None));
        for (is_tcp, size, gso) in [(true, 536, tcp(536)), (true, 1100, tcp(1100)), (false, 1100, udp(1100))] {
            all.push((Recipe::new(v6, is_tcp, &vec![8; 40 * size + 9]).build(), gso));
        }
    }
    for (packet, _) in &mut all {
        let at: &[usize] = if packet[0] >> 4 == 4 { &[14, 18] } else { &[13, 29] };
        for (at, host) in at.iter().zip([own, other]) {
            packet[*at] = host;
        }
    }
    let mut nobodys = all[2].0.clone();
    nobodys[18] = 99;
    all.push((nobodys, None));
    all
}

#[test]
fn no_packet_asks_for_memory() {
    let ends = [([192, 0, 2, 1], 4500).into(), ([192, 0, 2, 2], 4500).into()];
    let path = |[local, remote]: [SocketAddr; 2]| Path { local, remote };
    let (here, there) = (spi(0x1000_0000), spi(0x2000_0000));
    let mut alpha = End::new(1, 2, (here, there), path(ends));
    let mut beta = End::new(2, 1, (there, here), path([ends[1], ends[0]]));
    let (from_alpha, from_beta) = (everything(1), everything(2));
    let mut asked = Vec::new();
    for _ in 0..20 {
        let before = allocations();
        for ((one, of_one), (other, of_other)) in from_alpha.iter().zip(&from_beta) {
            alpha.send(one, *of_one, &mut beta);
            beta.send(other, *of_other, &mut alpha);
        }
        alpha.flush(&mut beta);
        beta.flush(&mut alpha);
        asked.push(allocations() - before);
    }
    assert!(asked[0] > 0, "the first round makes the lists as long as they get");
    assert_eq!(asked[1..], [0; 19]);
    assert_eq!(alpha.received, beta.received);
    assert!(alpha.received > 20 * 240, "{}", alpha.received);
}

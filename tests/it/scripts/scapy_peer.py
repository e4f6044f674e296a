"""An IKEv2 peer made of scapy, an implementation of the codec that shares nothing with ours.

    scapy_peer.py LOCAL REMOTE    both IPv4 addresses

First it asks as an honest peer would, and checks what comes back field by field; then it sends malformed messages, each from the
same address. The last line says how many of them were sent: "sent N".
"""

import os
import random
import socket
import struct
import sys

from scapy.contrib.ikev2 import (
    IKEv2,
    IKEv2_payload_KE,
    IKEv2_payload_Nonce,
    IKEv2_payload_Notify,
    IKEv2_payload_Proposal,
    IKEv2_payload_SA,
    IKEv2_payload_Transform,
)
from scapy.packet import Raw

ENCR, PRF, DH = 1, 2, 4
AES_GCM_16, PRF_SHA2_256, X25519 = 20, 5, 31
SA_INIT, RESPONSE, INITIATOR = 34, 0x20, 0x08
NO_PROPOSAL, INVALID_KE = 14, 17

# A point that is not of low order: the base point of Curve25519 (RFC 7748).
VALUE = bytes([9]) + bytes(31)

chance = random.Random(1)
local, remote = sys.argv[1:3]
wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
wire.bind((local, 500))
wire.settimeout(2)


def transforms(group, encr):
    last = IKEv2_payload_Transform(transform_type=DH, transform_id=group)
    prf = IKEv2_payload_Transform(next_payload=3, transform_type=PRF, transform_id=PRF_SHA2_256) / last
    # With the key length it is twelve octets long.
    return IKEv2_payload_Transform(next_payload=3, length=12, transform_type=ENCR, transform_id=encr, key_length=256) / prf


def init(spi=None, group=X25519, value=VALUE, nonce=None, encr=AES_GCM_16, offered=None):
    spi = spi or chance.randbytes(8)
    nonce = chance.randbytes(32) if nonce is None else nonce
    proposal = IKEv2_payload_Proposal(proposal=1, proto=1, trans_nb=3, trans=transforms(offered or group, encr))
    return (
        IKEv2(init_SPI=spi, next_payload=33, exch_type=SA_INIT, flags=INITIATOR)
        / IKEv2_payload_SA(next_payload=34, prop=proposal)
        / IKEv2_payload_KE(next_payload=40, group=group, load=value)
        / IKEv2_payload_Nonce(next_payload=0, load=nonce)
    )


def ask(message):
    wire.sendto(bytes(message), (remote, 500))
    return IKEv2(wire.recvfrom(65535)[0])


def check(what, condition, answer):
    if not condition:
        answer.show()
        sys.exit(f"scapy sees something else: {what}")


def honest():
    request = init()
    answer = ask(request)
    check("SPIi", answer.init_SPI == request.init_SPI, answer)
    check("SPIr", answer.resp_SPI != bytes(8), answer)
    check("version", answer.version == 0x20, answer)
    check("exchange and flags", (answer.exch_type, int(answer.flags)) == (SA_INIT, RESPONSE), answer)
    check("message ID", answer.id == 0, answer)
    check("length", answer.length == len(answer), answer)
    proposal = answer[IKEv2_payload_SA].prop
    check("proposal", (proposal.proposal, proposal.proto, proposal.trans_nb) == (1, 1, 3), answer)
    chosen = {}
    transform = proposal.trans
    while isinstance(transform, IKEv2_payload_Transform):
        chosen[transform.transform_type] = transform.transform_id
        transform = transform.payload
    check("transforms", chosen == {ENCR: AES_GCM_16, PRF: PRF_SHA2_256, DH: X25519}, answer)
    check("KE", answer[IKEv2_payload_KE].group == X25519 and len(answer[IKEv2_payload_KE].load) == 32, answer)
    check("nonce", 16 <= len(answer[IKEv2_payload_Nonce].load) <= 256, answer)
    # The same once more: the same octets.
    check("the same answer", bytes(ask(request)) == bytes(answer), answer)
    # What cannot be, is told.
    answer = ask(init(encr=12))
    check("NO_PROPOSAL_CHOSEN", answer[IKEv2_payload_Notify].type == NO_PROPOSAL, answer)
    answer = ask(init(group=19, value=bytes(64), offered=X25519))
    check("INVALID_KE_PAYLOAD", answer[IKEv2_payload_Notify].type == INVALID_KE, answer)
    check("the group", bytes(answer[IKEv2_payload_Notify].load) == struct.pack("!H", X25519), answer)


def hostile():
    """Messages that an honest peer never sends; each is to be counted."""
    good = bytes(init())
    for length in list(range(0, 28)) + [28, 29, 31, 32, 60, len(good) - 1]:
        yield good[:length]
    for length in (0, 27, len(good) - 1, len(good) + 1, 0xFFFFFFFF):
        yield good[:24] + struct.pack("!I", length) + good[28:]
    for major in (0, 1, 3, 15):
        yield good[:17] + bytes([major << 4]) + good[18:]
    for exchange in (0, 33, 35, 36, 37, 43, 44, 255):
        yield good[:18] + bytes([exchange]) + good[19:]
    for flags in (0x00, 0x20, 0x28):
        yield good[:19] + bytes([flags]) + good[20:]
    # Lengths of the first payload, and of what stands in it.
    for length in (0, 1, 3, 4, 8, 0xFFFF):
        yield good[:30] + struct.pack("!H", length) + good[32:]
        yield good[:34] + struct.pack("!H", length) + good[36:]
        yield good[:42] + struct.pack("!H", length) + good[44:]
    for count in (0, 1, 4, 255):
        yield good[:39] + bytes([count]) + good[40:]
    # Payloads that are missing, twice, or of IKEv1.
    for kind in (0, 1, 5, 34, 40, 46, 53, 128):
        yield good[:16] + bytes([kind]) + good[17:]
    for length in (0, 1, 15, 257):
        yield bytes(init(nonce=bytes(length)))
    yield bytes(init() / Raw(b"behind the end"))
    # Octets of chance behind a header that looks right.
    for _ in range(20):
        body = chance.randbytes(chance.randrange(1, 300))
        yield good[:8] + bytes(8) + good[16:24] + struct.pack("!I", 28 + len(body)) + body


honest()
sent = 0
for octets in hostile():
    wire.sendto(octets, (remote, 500))
    sent += 1
print("sent", sent)
os._exit(0)

# Frames that a machine must not send, and at the end one that it may.
import socket, struct

link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x300)
link.bind(("eth0", 0))
own = bytes.fromhex(open("/sys/class/net/eth0/address").read().strip().replace(":", ""))
address = socket.gethostbyname(socket.gethostname())
everybody = b"\xff" * 6


def checksum(data):
    total = sum(struct.unpack(">%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)


def udp(source, target, ports):
    head = struct.pack(">BBHHHBBH", 0x45, 0, 28, 1, 0, 64, 17, 0) + socket.inet_aton(source) + socket.inet_aton(target)
    return head[:10] + checksum(head) + head[12:] + struct.pack(">HHHH", *ports, 8, 0)


def arp(kind, sender, target):
    body = struct.pack(">HHBBH", 1, 0x800, 6, 4, kind) + own + socket.inet_aton(sender)
    return body + everybody + socket.inet_aton(target)


# Another's address, another's card, a DHCP server, the gateway's place, a router of IPv6.
link.send(everybody + own + b"\x08\x00" + udp("10.213.0.99", "198.51.100.9", (9, 9)))
link.send(everybody + b"\x02\x99\0\0\0\1" + b"\x08\x00" + udp(address, "198.51.100.9", (9, 9)))
link.send(everybody + own + b"\x08\x00" + udp(address, "255.255.255.255", (67, 68)))
link.send(everybody + own + b"\x08\x06" + arp(2, "10.213.0.1", "10.213.0.1"))
link.send(b"\x33\x33\0\0\0\1" + own + b"\x86\xdd" + b"\x60\0\0\0\0\x08\x3a\xff" + b"\xfe\x80" + bytes(14) + b"\xff\x02" + bytes(13) + b"\1" + b"\x86" + bytes(7))
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"own", ("203.0.113.2", 9999))
print("sent")

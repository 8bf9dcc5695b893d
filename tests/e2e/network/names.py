# What a container finds by name, with and without a name server of its own on port 53.
import socket, struct


def addresses(name, family):
    try:
        return sorted({found[4][0] for found in socket.getaddrinfo(name, 80, family, socket.SOCK_STREAM)})
    except OSError:
        return []


def asked(name, stream):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    message = struct.pack(">HHHHHH", 0x1234, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
    if stream:
        with socket.create_connection(("127.0.0.11", 53)) as link:
            link.sendall(struct.pack(">H", len(message)) + message)
            answer = link.makefile("rb")
            return answer.read(struct.unpack(">H", answer.read(2))[0])[-4:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.connect(("127.0.0.11", 53))
        link.send(message)
        return link.recv(512)[-4:]


def hello(address):
    with socket.create_connection((address, 80)) as link:
        return link.recv(6).decode().strip()


print(open("/etc/resolv.conf").readline().strip())
for name in ["db", "data", "db.app", "DB"]:
    print(name, *addresses(name, socket.AF_INET))
six = addresses("db", socket.AF_INET6)
print("six", *[address[:2] for address in six], *[hello(address) for address in six])
print("four", hello("db"))
print("outside", *addresses("outside.example", socket.AF_INET))
print("back", socket.gethostbyaddr(socket.gethostbyname("db"))[0])
packets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
packets.bind(("0.0.0.0", 53))
listener = socket.create_server(("0.0.0.0", 53))
print("own", asked("db", False) == asked("db", True) == socket.inet_aton("10.77.0.2"))

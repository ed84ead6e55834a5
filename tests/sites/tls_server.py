"""A machine at the other end of a connection: by mutual TLS, in plaintext, or one that hangs up."""

import socket
import ssl
import struct
import threading


class server:
    """Something that listens on loopback for one connection, by mutual TLS with a folder's files, or in
    plaintext."""

    def __init__(self, folder, hangs_up=False, roughly=False):
        self.folder, self.socket = folder, socket.create_server(("127.0.0.1", 0))
        self.hangs_up, self.roughly = hangs_up, roughly

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()
        return self.socket.getsockname()[1]

    def __exit__(self, *error):
        self.thread.join(10)
        self.socket.close()

    def serve(self):
        plain, _ = self.socket.accept()
        with plain:
            if self.folder is None:
                plain.recv(100)
                plain.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00")  # how gRPC begins
                return
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.verify_mode = ssl.CERT_REQUIRED
            context.set_alpn_protocols(["h2"])
            context.load_verify_locations(self.folder / "ca.crt")
            context.load_cert_chain(self.folder / "node.crt", self.folder / "node.key")
            try:
                with context.wrap_socket(plain, server_side=True) as secure:
                    if self.roughly:
                        secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    if not self.hangs_up:
                        secure.sendall(b"\x00")
            except OSError:
                return  # what the other end makes of it is what is tested

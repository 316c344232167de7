import socket
ok = []
try:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.sendto(b"x", "\0maxk_canary"); ok.append("datagram")
except OSError: pass
try:
    a, b = socket.socketpair(); a.send(b"x", socket.MSG_OOB); ok.append("oob")
except OSError: pass
try: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET); ok.append("seqpacket")
except OSError: pass
if ok: print("BREACH", ok)

# a child that dies by SIGKILL, or leaves no mark, is retried and masked: no program may bring that about
import ctypes, fcntl, os, signal, socket, time
for f in (lambda: os.kill(os.getpid(), 9), lambda: os.kill(0, 9), lambda: os.kill(-1, 9), lambda: signal.raise_signal(9),
          lambda: signal.pthread_kill(ctypes.CDLL(None).pthread_self(), 9)):
    try: f()
    except (OSError, AttributeError): pass
l = ctypes.CDLL(None, use_errno=True)
info = ctypes.create_string_buffer(128)
for number in (200, 129, 297, 424, 222): l.syscall(number, os.getpid(), 9, info, 0)
a, b = socket.socketpair()
for command, value in ((8, os.getpid()), (10, 9), (4, os.O_ASYNC | os.O_NONBLOCK), (15, os.getpid())):
    try: fcntl.fcntl(a, command, value)
    except OSError: pass
b.send(b"x"); time.sleep(0.05)
raise SystemExit(1)

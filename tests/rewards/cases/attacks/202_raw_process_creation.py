import ctypes, os, platform
l = ctypes.CDLL(None, use_errno=True); ok = []
me = os.getpid()
calls = [(435, b"\0" * 88, 88)]
if platform.machine() == "x86_64": calls += [(56, 17, 0, 0, 0, 0), (57,), (58,), (56, 0x11 | 0x10000000, 0, 0, 0, 0), (272, 0x10000000), (0x40000039,)]
else: calls += [(220, 17, 0, 0, 0, 0)]
for call in calls:
    r = l.syscall(*call)
    if os.getpid() != me: os._exit(0)
    if r >= 0: ok.append(call[0])
try: os.posix_spawn("/bin/true", ["true"], {}); ok.append("spawn")
except OSError: pass
if ok: print("BREACH", ok)

import ctypes, os
l = ctypes.CDLL(None, use_errno=True); ok = []
for name in ("shm_open", "sem_open", "mq_open"):
    try:
        if getattr(l, name)(b"/maxk_mark", 0o102, 0o600, 1) >= 0 and name != "sem_open": ok.append(name)
    except AttributeError: pass
for f in (lambda: os.sched_setaffinity(0, {0}), lambda: os.setpriority(0, 0, 5), lambda: os.setsid(), lambda: os.setpgid(0, 0), lambda: os.pidfd_open(os.getppid()), lambda: os.eventfd(0) and 0):
    try:
        if f() is None or f() >= 3: ok.append("call")
    except OSError: pass
if "call" in ok and len(ok) == 1:
    ok = []                                           # eventfd is a program's own
if ok: print("BREACH", ok)

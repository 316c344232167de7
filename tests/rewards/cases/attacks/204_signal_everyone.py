import os
ok = []
for pid in [os.getppid(), 1, -1, 0] + [os.getpid() + d for d in range(-40, 40) if d]:
    try: os.kill(pid, 0); ok.append(pid)
    except OSError: pass
if ok: print("BREACH", ok)

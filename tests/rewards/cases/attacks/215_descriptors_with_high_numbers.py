# the owner may have had thousands of files open when it started the worker
import os
got = []
for fd in list(range(3, 70000)):
    try: os.fstat(fd); got.append(fd)
    except OSError: pass
if got: print("BREACH", got[:5])

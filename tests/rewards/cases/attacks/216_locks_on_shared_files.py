import fcntl, os
f = open(os.__file__)
for lock in (lambda: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB), lambda: fcntl.lockf(f, fcntl.LOCK_SH | fcntl.LOCK_NB)):
    try: lock(); print("BREACH lock")
    except OSError: pass

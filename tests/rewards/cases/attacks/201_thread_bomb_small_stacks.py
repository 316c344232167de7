import threading, time
threading.stack_size(32768)
n = 0
try:
    while n < 20000:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); n += 1
except (RuntimeError, MemoryError): pass
if n >= 8000: print("BREACH", n, "threads", flush=True)
time.sleep(60)
